"""GpuSampler: NVML readings of one GPU from a thread of its own. The only file that imports pynvml.

Every reading is a number or an Unavailable with its reason; an unknown is never a zero. Without a driver, or with a
wrong `pynvml` module, the sampler still starts and says so.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from kvscope.format import Reason

# NVML's return codes, from nvml.h; the reasons that are worth telling apart.
_REASONS = {
    2: Reason.NO_SUCH_GPU,  # invalid argument: an index past the last GPU
    3: Reason.NOT_SUPPORTED,
    4: Reason.NO_PERMISSION,
    6: Reason.NO_SUCH_GPU,  # not found: an unknown UUID
    9: Reason.DRIVER_NOT_LOADED,
    12: Reason.LIBRARY_NOT_FOUND,
    13: Reason.FUNCTION_NOT_FOUND,
    15: Reason.GPU_LOST,
}

_STOP_WAIT_S = 2.0
"""A driver call may hang when a GPU is lost; the thread is a daemon, so nothing need wait for it longer."""

_NEEDED = ("nvmlInit", "nvmlShutdown", "NVMLError", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo")


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A value that could not be had, and why."""

    reason: Reason
    detail: str = ""

    @property
    def text(self) -> str:
        return f"{self.reason.text} ({self.detail})" if self.detail else self.reason.text


Reading = float | Unavailable


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One reading of every field of GPU_FIELDS, by name."""

    t_ns: int
    sample_ns: int
    memory_version: int
    """2: used_bytes excludes reserved_bytes; 1: it includes them; 0: memory was not measured."""
    readings: dict[str, Reading]


class GpuSampler:
    """Samples one GPU every `interval_s` until stopped; `samples` hands over what has come in.

    `gpu` is an NVML index, or a UUID (`GPU-…`): CUDA numbers GPUs in its own way, a UUID is safe. `nvml` replaces the
    pynvml module. At most `capacity` samples wait; older ones are dropped and counted.
    """

    def __init__(
        self,
        interval_s: float = 0.1,
        *,
        gpu: int | str = 0,
        nvml: Any = None,  # Any: a module without type information, or a stand-in
        capacity: int = 4096,
    ) -> None:
        self.unavailable: Unavailable | None = None
        """Why there are no samples, or no more of them; None: there are."""
        self.gpu_name: str | None = None
        self.dropped = 0
        self._interval_s = interval_s
        self._gpu = gpu
        self._nvml = nvml
        self._waiting: deque[GpuSample] = deque(maxlen=capacity)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._handle: object = None

    def start(self) -> Self:
        """Connect and begin to sample; a second call does nothing. Never raises: see `unavailable`."""
        if self._thread is None and self.unavailable is None:
            self.unavailable = self._connect()
            if self.unavailable is None:
                self._thread = threading.Thread(target=self._sample_until_stopped, name="kvscope-nvml", daemon=True)
                self._thread.start()
        return self

    def stop(self) -> None:
        """Stop sampling; samples that wait can still be taken."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_STOP_WAIT_S)

    def samples(self) -> list[GpuSample]:
        """The samples since the last call, oldest first."""
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
        return taken

    def sample(self) -> GpuSample:
        """Read every field now."""
        begin_ns = time.monotonic_ns()
        version, memory = self._memory()
        readings: dict[str, Reading] = memory | {
            "process_bytes": self._process_bytes(),
            "util_pct": self._read(lambda: self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu),
            "power_w": self._read(lambda: self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000),
            "temperature_c": self._read(lambda: self._nvml.nvmlDeviceGetTemperature(self._handle, 0)),
            "clock_mhz": self._read(lambda: self._nvml.nvmlDeviceGetClockInfo(self._handle, 1)),
        }
        return GpuSample(begin_ns, time.monotonic_ns() - begin_ns, version, readings)

    def _connect(self) -> Unavailable | None:
        if self._nvml is None:
            try:
                self._nvml = importlib.import_module("pynvml")
            except ImportError:
                return Unavailable(Reason.NO_MODULE)
        missing = [name for name in _NEEDED if not hasattr(self._nvml, name)]
        if missing:
            place = getattr(self._nvml, "__file__", None) or "unknown place"
            return Unavailable(Reason.WRONG_MODULE, f"{place} lacks {missing[0]}; uninstall it, install nvidia-ml-py")
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            return self._unavailable(error)
        try:
            self._handle = self._find_gpu()
            self.gpu_name = _as_text(self._nvml.nvmlDeviceGetName(self._handle))
        except self._nvml.NVMLError as error:
            self._shut_down()
            return self._unavailable(error)
        return None

    def _find_gpu(self) -> object:
        if isinstance(self._gpu, int):
            return self._nvml.nvmlDeviceGetHandleByIndex(self._gpu)
        return self._nvml.nvmlDeviceGetHandleByUUID(self._gpu.encode())

    def _sample_until_stopped(self) -> None:
        deadline = time.monotonic()
        try:
            while not self._stop.is_set():
                sample = self.sample()
                self._keep(sample)
                lost = sample.readings["used_bytes"]
                if isinstance(lost, Unavailable) and lost.reason is Reason.GPU_LOST:
                    self.unavailable = lost
                    return
                # A sample that took longer than the interval skips beats, it does not pile them up.
                deadline = max(deadline + self._interval_s, time.monotonic())
                self._stop.wait(deadline - time.monotonic())
        finally:
            self._shut_down()

    def _keep(self, sample: GpuSample) -> None:
        with self._lock:
            self.dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(sample)

    def _memory(self) -> tuple[int, dict[str, Reading]]:
        """(memory_version, readings). Version 2 keeps the driver's own memory apart; old drivers know only 1."""
        try:
            info = self._nvml.nvmlDeviceGetMemoryInfo(self._handle, version=self._nvml.nvmlMemory_v2)
            readings = {"used_bytes": info.used, "reserved_bytes": info.reserved, "total_bytes": info.total}
            return 2, {name: float(value) for name, value in readings.items()}
        except (AttributeError, TypeError):
            pass  # a pynvml that does not know version 2
        except self._nvml.NVMLError as error:
            unavailable = self._unavailable(error)
            if unavailable.reason not in (Reason.FUNCTION_NOT_FOUND, Reason.NOT_SUPPORTED, Reason.OTHER):
                return 0, dict.fromkeys(("used_bytes", "reserved_bytes", "total_bytes"), unavailable)
        return self._memory_version_1()

    def _memory_version_1(self) -> tuple[int, dict[str, Reading]]:
        try:
            info = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        except self._nvml.NVMLError as error:
            return 0, dict.fromkeys(("used_bytes", "reserved_bytes", "total_bytes"), self._unavailable(error))
        reserved = Unavailable(Reason.NOT_SEPARATED)
        return 1, {"used_bytes": float(info.used), "reserved_bytes": reserved, "total_bytes": float(info.total)}

    def _process_bytes(self) -> Reading:
        try:
            processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except AttributeError:
            return Unavailable(Reason.FUNCTION_NOT_FOUND)
        except self._nvml.NVMLError as error:
            return self._unavailable(error)
        mine = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
        if not mine:
            # Not started on the GPU yet, or a container whose pids are not the driver's.
            return Unavailable(Reason.NOT_LISTED)
        return Unavailable(Reason.NOT_SUPPORTED) if mine[0] is None else float(mine[0])

    def _read(self, call: Callable[[], float | None]) -> Reading:
        try:
            value = call()
        except AttributeError:
            return Unavailable(Reason.FUNCTION_NOT_FOUND)
        except self._nvml.NVMLError as error:
            return self._unavailable(error)
        return Unavailable(Reason.NOT_SUPPORTED) if value is None else float(value)

    def _unavailable(self, error: Exception) -> Unavailable:
        code = getattr(error, "value", None)
        reason = _REASONS.get(code, Reason.OTHER) if isinstance(code, int) else Reason.OTHER
        return Unavailable(reason, str(error) if reason is Reason.OTHER else "")

    def _shut_down(self) -> None:
        # A lost GPU cannot be shut down, and there is nothing left to do about it.
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()


def _as_text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
