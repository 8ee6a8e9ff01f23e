"""GpuSampler: NVML readings of one GPU from a thread of its own. The only file that imports pynvml.

Every reading is a number or an Unavailable with its reason; an unknown is never a zero. Without a driver, or with a
wrong `pynvml` module, the sampler still starts and says so. Only its own thread talks to the driver, which may hang:
whoever starts or stops it waits a few seconds at most.
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
    2: Reason.NOT_SUPPORTED,  # invalid argument: this driver does not know what was asked for
    3: Reason.NOT_SUPPORTED,
    4: Reason.NO_PERMISSION,
    6: Reason.NOT_SUPPORTED,  # not found: on this GPU there is no such thing
    9: Reason.DRIVER_NOT_LOADED,
    12: Reason.LIBRARY_NOT_FOUND,
    13: Reason.FUNCTION_NOT_FOUND,
    15: Reason.GPU_LOST,
    16: Reason.GPU_LOST,  # it needs a reset; until then it is as good as lost
    17: Reason.NO_PERMISSION,  # blocked by the operating system, such as by a cgroup
    25: Reason.FUNCTION_NOT_FOUND,  # a structure of a version that the driver does not know
    26: Reason.FUNCTION_NOT_FOUND,  # deprecated, and gone
    28: Reason.NO_SUCH_GPU,
}
_NO_GPU = {2, 6, 28}
"""Of those, what an index past the last GPU or an unknown UUID gives."""
_DETAILS = {18: "the driver and its library are of different versions; load the new driver, or reboot"}

_CONNECT_WAIT_S = 5.0
"""The driver of a GPU that nobody used may need seconds to wake up."""
_STOP_WAIT_S = 2.0
"""A driver call may hang when a GPU is lost; the thread is a daemon, so nothing need wait for it longer."""

_NEEDED = ("nvmlInit", "nvmlShutdown", "NVMLError", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo")
_NO_NUMBER = {-1, (1 << 32) - 1, (1 << 64) - 1}
"""What NVML writes for a value that it does not have, where pynvml does not catch it."""
_MEMORY = ("used_bytes", "reserved_bytes", "total_bytes")


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
    """When the reading began, on the monotonic clock that the run's steps use."""
    sample_ns: int
    """What it cost: how long all calls took."""
    memory_version: int
    """2: used_bytes excludes reserved_bytes; 1: it includes them; 0: memory was not measured."""
    readings: dict[str, Reading]


class GpuSampler:
    """Samples one GPU every `interval_s` until stopped; `samples` hands over what has come in.

    `gpu` is an NVML index, or a UUID (`GPU-…` or `MIG-…`): CUDA numbers GPUs in its own way, a UUID is safe. Of a GPU
    that is divided (MIG) the instance of this process is sampled. `nvml` replaces the pynvml module. At most
    `capacity` samples wait; older ones are dropped and counted.
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
        self._connected = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._handle: object = None
        self._board: object = None
        """The whole GPU, which has the power, the temperature and the clock; of an undivided one, `_handle`."""

    def start(self) -> Self:
        """Connect and begin to sample; a second call does nothing. Never raises: see `unavailable`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kvscope-nvml", daemon=True)
            self._thread.start()
            if not self._connected.wait(_CONNECT_WAIT_S):
                self._give_up(f"the driver did not answer within {_CONNECT_WAIT_S:g} s")
        return self

    def stop(self) -> None:
        """Stop sampling; samples that wait can still be taken."""
        self._stop.set()
        if self._thread is None or not self._connected.is_set():
            return
        self._thread.join(_STOP_WAIT_S)
        if self._thread.is_alive():
            self._give_up(f"the driver did not answer for {_STOP_WAIT_S:g} s at the end")

    def samples(self) -> list[GpuSample]:
        """The samples since the last call, oldest first."""
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
        return taken

    def sample(self) -> GpuSample:
        """Read every field now."""
        begin_ns = time.monotonic_ns()
        nvml, handle, board = self._nvml, self._handle, self._board
        version, memory = self._memory()
        readings: dict[str, Reading] = memory | {
            "process_bytes": self._process_bytes(handle),
            "util_pct": self._read(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            "power_w": self._read(lambda: nvml.nvmlDeviceGetPowerUsage(board), per=1000),
            "temperature_c": self._temperature(board),
            "clock_mhz": self._read(lambda: nvml.nvmlDeviceGetClockInfo(board, 1)),
        }
        return GpuSample(begin_ns, time.monotonic_ns() - begin_ns, version, readings)

    # In the sampler's thread.

    def _run(self) -> None:
        unavailable = self._connect()
        with self._lock:
            if not self._stop.is_set():
                self.unavailable = unavailable
            self._connected.set()
        if unavailable is not None:
            return
        try:
            self._sample_until_stopped()
        finally:
            self._shut_down()

    def _connect(self) -> Unavailable | None:
        wrong = self._load()
        if wrong is not None:
            return wrong
        try:
            self._nvml.nvmlInit()
        except Exception as error:  # foreign code, that may be of any version
            return self._unavailable(error)
        try:
            self._handle = self._board = self._find_gpu()
            self._find_instance()
            self.gpu_name = _as_text(self._nvml.nvmlDeviceGetName(self._handle))
        except Exception as error:  # as above
            self._shut_down()
            return self._unavailable(error, looking_for_gpu=True)
        return None

    def _load(self) -> Unavailable | None:
        if self._nvml is None:
            try:
                self._nvml = importlib.import_module("pynvml")
            except ImportError:
                return Unavailable(Reason.NO_MODULE)
            except Exception as error:  # such as a SyntaxError: the oldest pynvml is of Python 2
                return Unavailable(Reason.WRONG_MODULE, f"{error!r} at its import; {_WAY_OUT}")
        missing = [name for name in _NEEDED if not callable(getattr(self._nvml, name, None))]
        if missing:
            place = getattr(self._nvml, "__file__", None) or "unknown place"
            return Unavailable(Reason.WRONG_MODULE, f"{place} lacks {missing[0]}; {_WAY_OUT}")
        return None

    def _find_gpu(self) -> object:
        if isinstance(self._gpu, int):
            return self._nvml.nvmlDeviceGetHandleByIndex(self._gpu)
        try:
            return self._nvml.nvmlDeviceGetHandleByUUID(self._gpu.encode())
        except self._nvml.NVMLError:
            if not self._gpu.startswith("GPU-"):
                raise
        # CUDA does not tell whether what it runs on is a whole GPU or an instance of a divided one.
        return self._nvml.nvmlDeviceGetHandleByUUID(f"MIG-{self._gpu.removeprefix('GPU-')}".encode())

    def _find_instance(self) -> None:
        """Of a divided GPU, turn to the instance of this process: the whole one tells what all of them use."""
        nvml = self._nvml
        try:
            if nvml.nvmlDeviceIsMigDeviceHandle(self._handle):
                self._board = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self._handle)
                return
            if nvml.nvmlDeviceGetMigMode(self._handle)[0] != 1:
                return
            most = nvml.nvmlDeviceGetMaxMigDeviceCount(self._handle)
        except Exception:  # cannot be divided, or nobody here knows how to ask
            return
        instances = []
        for index in range(most):
            with contextlib.suppress(nvml.NVMLError):  # places without an instance
                instances.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(self._board, index))
        ours = [one for one in instances if isinstance(self._process_bytes(one), float)]
        if ours or len(instances) == 1:
            self._handle = (ours or instances)[0]

    def _sample_until_stopped(self) -> None:
        deadline = time.monotonic()
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

    def _keep(self, sample: GpuSample) -> None:
        with self._lock:
            self.dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(sample)

    def _memory(self) -> tuple[int, dict[str, Reading]]:
        """(memory_version, readings). Version 2 keeps the driver's own memory apart; old drivers know only 1."""
        try:
            info = self._nvml.nvmlDeviceGetMemoryInfo(self._handle, version=self._nvml.nvmlMemory_v2)
            return _memory_readings(2, info.used, info.reserved, info.total)
        except Exception as error:  # also what a pynvml that does not know version 2 raises
            unavailable = self._unavailable(error)
            if unavailable.reason in (Reason.NO_PERMISSION, Reason.GPU_LOST):
                return 0, dict.fromkeys(_MEMORY, unavailable)
        try:
            info = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            return _memory_readings(1, info.used, Unavailable(Reason.NOT_SEPARATED), info.total)
        except Exception as error:
            return 0, dict.fromkeys(_MEMORY, self._unavailable(error))

    def _process_bytes(self, handle: object) -> Reading:
        for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetComputeRunningProcesses_v2"):
            try:
                processes = getattr(self._nvml, name)(handle)
            except Exception as error:
                unavailable = self._unavailable(error)
                if unavailable.reason is not Reason.FUNCTION_NOT_FOUND:
                    return unavailable
                continue
            mine = [_reading(process.usedGpuMemory) for process in processes if process.pid == os.getpid()]
            if not mine:
                # Not started on the GPU yet, or a container whose pids are not the driver's.
                return Unavailable(Reason.NOT_LISTED)
            unknown = [one for one in mine if isinstance(one, Unavailable)]
            return unknown[0] if unknown else sum(one for one in mine if isinstance(one, float))
        return unavailable

    def _temperature(self, board: object) -> Reading:
        nvml = self._nvml
        found = self._read(lambda: nvml.nvmlDeviceGetTemperature(board, 0))
        if isinstance(found, Unavailable) and found.reason is Reason.FUNCTION_NOT_FOUND:
            return self._read(lambda: nvml.nvmlDeviceGetTemperatureV(board, 0))
        return found

    def _read(self, call: Callable[[], object], *, per: float = 1) -> Reading:
        try:
            return _reading(call(), per=per)
        except Exception as error:  # NVML's, or a bug of whatever pynvml this is: neither may end the run
            return self._unavailable(error)

    def _unavailable(self, error: Exception, *, looking_for_gpu: bool = False) -> Unavailable:
        code = getattr(error, "value", None)
        if isinstance(error, AttributeError) or type(error).__name__ == "NVMLLibraryMismatchError":
            return Unavailable(Reason.FUNCTION_NOT_FOUND)
        if not isinstance(code, int):
            return Unavailable(Reason.OTHER, repr(error))
        if looking_for_gpu and code in _NO_GPU:
            return Unavailable(Reason.NO_SUCH_GPU)
        reason = _REASONS.get(code, Reason.OTHER)
        return Unavailable(reason, _DETAILS.get(code, str(error)) if reason is Reason.OTHER else "")

    def _shut_down(self) -> None:
        # A lost GPU cannot be shut down, and there is nothing left to do about it.
        with contextlib.suppress(Exception):
            self._nvml.nvmlShutdown()

    # In the thread of whoever waits.

    def _give_up(self, why: str) -> None:
        with self._lock:
            self._stop.set()
            if self.unavailable is None:
                self.unavailable = Unavailable(Reason.OTHER, why)


_WAY_OUT = "uninstall it, install nvidia-ml-py"


def _reading(value: object, *, per: float = 1) -> Reading:
    """A number, in units of 1 / `per`; anything else is what WSL, and some drivers, say instead of one."""
    if not isinstance(value, int | float) or value in _NO_NUMBER:
        return Unavailable(Reason.NOT_SUPPORTED)
    return float(value) / per


def _memory_readings(version: int, used: object, reserved: object, total: object) -> tuple[int, dict[str, Reading]]:
    values = [one if isinstance(one, Unavailable) else _reading(one) for one in (used, reserved, total)]
    if not values[2]:  # a GPU without memory: the driver does not know
        return 0, dict.fromkeys(_MEMORY, Unavailable(Reason.NOT_SUPPORTED))
    return 0 if isinstance(values[0], Unavailable) else version, dict(zip(_MEMORY, values, strict=True))


def _as_text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
