"""A stand-in for the pynvml module: a GPU that answers, or fails in one of the ways that drivers do."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace

GIB = 1 << 30


class NVMLError(Exception):
    """NVML's error with its code, as nvml.h numbers them."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class FakeNvml:
    """`failing`: function name → error code, raised when that function is called."""

    nvmlMemory_v2 = 2  # noqa: N815 - pynvml's own name
    NVMLError = NVMLError

    def __init__(self, *, failing: dict[str, int] | None = None) -> None:
        self.failing = failing or {}
        self.process_bytes: int | None = 3 * GIB
        self.pid = os.getpid()
        self.shut_down = False

    def nvmlInit(self) -> None:
        self._answer("nvmlInit")

    def nvmlShutdown(self) -> None:
        self.shut_down = True
        self._answer("nvmlShutdown")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self._answer("nvmlDeviceGetHandleByIndex")
        if index > 0:
            raise NVMLError(2)
        return "handle"

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:
        if uuid != b"GPU-1":
            raise NVMLError(6)
        return "handle"

    def nvmlDeviceGetName(self, _handle: str) -> bytes:
        return b"Fake H200"

    def nvmlDeviceGetMemoryInfo(self, _handle: str, version: int | None = None) -> SimpleNamespace:
        self._answer("nvmlDeviceGetMemoryInfo_v2" if version else "nvmlDeviceGetMemoryInfo")
        if version:
            return SimpleNamespace(used=5 * GIB, reserved=GIB // 2, total=80 * GIB)
        return SimpleNamespace(used=5 * GIB + GIB // 2, total=80 * GIB)

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: str) -> list[SimpleNamespace]:
        self._answer("nvmlDeviceGetComputeRunningProcesses")
        return [
            SimpleNamespace(pid=1, usedGpuMemory=1),
            SimpleNamespace(pid=self.pid, usedGpuMemory=self.process_bytes),
        ]

    def nvmlDeviceGetUtilizationRates(self, _handle: str) -> SimpleNamespace:
        self._answer("nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=0)

    def nvmlDeviceGetPowerUsage(self, _handle: str) -> int:
        self._answer("nvmlDeviceGetPowerUsage")
        return 123_456

    def nvmlDeviceGetTemperature(self, _handle: str, _sensor: int) -> int:
        self._answer("nvmlDeviceGetTemperature")
        return 45

    def nvmlDeviceGetClockInfo(self, _handle: str, _kind: int) -> int:
        self._answer("nvmlDeviceGetClockInfo")
        return 1980

    def _answer(self, name: str) -> None:
        if name in self.failing:
            raise NVMLError(self.failing[name])


class OldNvml(FakeNvml):
    """A pynvml of before memory info version 2."""

    nvmlMemory_v2 = property(lambda _: _missing())  # type: ignore[assignment]  # noqa: N815 - pynvml's own name

    def nvmlDeviceGetMemoryInfo(self, _handle: str) -> SimpleNamespace:  # type: ignore[override]
        return FakeNvml.nvmlDeviceGetMemoryInfo(self, _handle)


def _missing() -> Callable[[], None]:
    raise AttributeError("nvmlMemory_v2")
