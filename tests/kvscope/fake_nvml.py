"""A stand-in for the pynvml module: a GPU that answers, or fails in one of the ways that drivers do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from ctypes import c_uint
from types import SimpleNamespace

GIB = 1 << 30
WHOLE = "whole"
"""The handle of the GPU; that of the instance of a divided one is its index."""
Handle = str | int


class NVMLError(Exception):
    """NVML's error with its code, as nvml.h numbers them."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class NVMLLibraryMismatchError(Exception):
    """What pynvml raises, as no kind of NVMLError, where it is newer than the driver."""


class FakeNvml:
    """`failing`: function name → error code, raised when that function is called."""

    nvmlMemory_v2 = 0x02000028  # noqa: N815 - pynvml's own name
    NVMLError = NVMLError

    def __init__(self, *, failing: dict[str, int] | None = None) -> None:
        self.failing = failing or {}
        self.memory = SimpleNamespace(used=5 * GIB, reserved=GIB // 2, total=80 * GIB)
        self.process_bytes: object = 3 * GIB
        self.pid = os.getpid()
        self.shut_down = False

    def nvmlInit(self) -> None:
        self._answer("nvmlInit")

    def nvmlShutdown(self) -> None:
        self.shut_down = True
        self._answer("nvmlShutdown")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Handle:
        self._answer("nvmlDeviceGetHandleByIndex")
        if index > 0:
            raise NVMLError(2)
        return WHOLE

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> Handle:
        if uuid != b"GPU-1":
            raise NVMLError(6)
        return WHOLE

    def nvmlDeviceGetName(self, _handle: Handle) -> bytes:
        return b"Fake H200"

    def nvmlDeviceIsMigDeviceHandle(self, handle: Handle) -> c_uint:
        return c_uint(handle != WHOLE)

    def nvmlDeviceGetMigMode(self, _handle: Handle) -> list[int]:
        raise NVMLError(3)

    def nvmlDeviceGetMemoryInfo(self, _handle: Handle, version: int | None = None) -> SimpleNamespace:
        self._answer("nvmlDeviceGetMemoryInfo_v2" if version else "nvmlDeviceGetMemoryInfo")
        if version:
            return self.memory
        return SimpleNamespace(used=self.memory.used + self.memory.reserved, total=self.memory.total)

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: Handle) -> list[SimpleNamespace]:
        self._answer("nvmlDeviceGetComputeRunningProcesses")
        return [
            SimpleNamespace(pid=1, usedGpuMemory=1),
            SimpleNamespace(pid=self.pid, usedGpuMemory=self.process_bytes),
        ]

    def nvmlDeviceGetUtilizationRates(self, _handle: Handle) -> SimpleNamespace:
        self._answer("nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=0)

    def nvmlDeviceGetPowerUsage(self, _handle: Handle) -> int:
        self._answer("nvmlDeviceGetPowerUsage")
        return 123_456

    def nvmlDeviceGetTemperature(self, _handle: Handle, _sensor: int) -> int:
        self._answer("nvmlDeviceGetTemperature")
        return 45

    def nvmlDeviceGetClockInfo(self, _handle: Handle, _kind: int) -> int:
        self._answer("nvmlDeviceGetClockInfo")
        return 1980

    def _answer(self, name: str) -> None:
        if name in self.failing:
            raise NVMLError(self.failing[name])


class OldNvml(FakeNvml):
    """A pynvml of before memory info version 2."""

    nvmlMemory_v2 = property(lambda _: _missing())  # type: ignore[assignment]  # noqa: N815 - pynvml's own name

    def nvmlDeviceGetMemoryInfo(self, _handle: Handle) -> SimpleNamespace:  # type: ignore[override]
        return FakeNvml.nvmlDeviceGetMemoryInfo(self, _handle)


class OldDriver(FakeNvml):
    """A driver that is older than pynvml: it knows neither the third list of processes nor the first temperature."""

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Handle) -> list[SimpleNamespace]:
        raise NVMLLibraryMismatchError("Unversioned function called")

    def nvmlDeviceGetComputeRunningProcesses_v2(self, handle: Handle) -> list[SimpleNamespace]:
        return FakeNvml.nvmlDeviceGetComputeRunningProcesses(self, handle)

    def nvmlDeviceGetTemperature(self, _handle: Handle, _sensor: int) -> int:
        raise NVMLError(26)

    def nvmlDeviceGetTemperatureV(self, _handle: Handle, _sensor: int) -> int:
        return 46


class MigNvml(FakeNvml):
    """A GPU divided into instances, of which `ours` runs this process; the whole tells little to who is not root.

    Instance n has n + 1 GiB in use of 10, and the UUID `MIG-n`. There is no instance in place 2.
    """

    def __init__(self, *, instances: tuple[int, ...] = (0, 1, 3), ours: int | None = 1) -> None:
        super().__init__()
        self.instances = instances
        self.ours = ours

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> Handle:
        name, _, number = uuid.decode().partition("-")
        if name == "MIG" and number.isdecimal() and int(number) in self.instances:
            return int(number)
        return super().nvmlDeviceGetHandleByUUID(b"GPU-1" if uuid == b"GPU-whole" else b"")

    def nvmlDeviceGetMigMode(self, _handle: Handle) -> list[int]:
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, _handle: Handle) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, _handle: Handle, index: int) -> Handle:
        if index not in self.instances:
            raise NVMLError(6)
        return index

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, _handle: Handle) -> Handle:
        return WHOLE

    def nvmlDeviceGetName(self, handle: Handle) -> bytes:
        return b"Fake H200" if handle == WHOLE else b"Fake H200 MIG 1g.10gb"

    def nvmlDeviceGetMemoryInfo(self, handle: Handle, version: int | None = None) -> SimpleNamespace:
        if handle == WHOLE:
            raise NVMLError(4)
        return SimpleNamespace(used=(int(handle) + 1) * GIB, reserved=GIB // 8, total=10 * GIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Handle) -> list[SimpleNamespace]:
        if handle == WHOLE:
            raise NVMLError(4)
        return super().nvmlDeviceGetComputeRunningProcesses(handle) if handle == self.ours else []

    def nvmlDeviceGetUtilizationRates(self, _handle: Handle) -> SimpleNamespace:
        raise NVMLError(3)

    def nvmlDeviceGetPowerUsage(self, handle: Handle) -> int:
        if handle != WHOLE:
            raise NVMLError(3)
        return super().nvmlDeviceGetPowerUsage(handle)


class HangingNvml(FakeNvml):
    """A driver that never comes back from one function, until `release` is set."""

    def __init__(self, hanging: str) -> None:
        super().__init__()
        self.hanging = hanging
        self.release = threading.Event()

    def _answer(self, name: str) -> None:
        if name == self.hanging:
            self.release.wait(60)


class BrokenNvml(FakeNvml):
    """A pynvml whose every question ends in something that is not NVML's error."""

    def _answer(self, name: str) -> None:
        if name.startswith("nvmlDeviceGet") and name != "nvmlDeviceGetHandleByIndex":
            raise ValueError("ctypes does not like this")


def _missing() -> Callable[[], None]:
    raise AttributeError("nvmlMemory_v2")
