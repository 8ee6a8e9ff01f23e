"""What memory a process really takes, and what its tensors take; measurements in a process of their own.

Peaks of a process are the kernel's (VmHWM, reset through clear_refs): what PyTorch, oneDNN and malloc take beside the
tensors counts too. NaN where the system does not tell.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

P = ParamSpec("P")
T = TypeVar("T")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_SYSTEM = Path("/proc/meminfo")


def in_fresh_process(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a module's function, run by a new Python that has allocated nothing yet."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *args, **kwargs).result()


def held_bytes(device: str) -> float:
    """Resident bytes of this process; on CUDA the bytes of its tensors there."""
    return float(torch.cuda.memory_allocated()) if device == "cuda" else _status("VmRSS")


def peak_bytes(call: Callable[[], object], device: str) -> float:
    """The most that was held at any moment of a call, everything held before included."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        call()
        return float(torch.cuda.max_memory_allocated())
    try:
        _CLEAR.write_text("5")
    except OSError:
        return math.nan
    call()
    return _status("VmHWM")


def most_tensor_bytes(call: Callable[[], object]) -> int:
    """The most bytes that tensors made during a call took at any moment; what a kernel keeps to itself is not seen."""
    with _LiveBytes() as live:
        call()
    most: int = live.most
    return most


def available_bytes() -> float:
    """Memory that can still be had."""
    return _kilobytes(_SYSTEM, "MemAvailable")


class _LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # ships without annotations
        self.now = self.most = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(  # Any: whatever an operation takes and returns
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            self._known.setdefault(storage)  # there before, as weights are, of which views may come back
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            if storage not in self._known:
                self._count(storage)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        self._known[storage] = None
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._uncount, storage.nbytes())

    def _uncount(self, num_bytes: int) -> None:
        self.now -= num_bytes


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _status(name: str) -> float:
    return _kilobytes(_STATUS, name)


def _kilobytes(path: Path, name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE) if path.is_file() else None
    return math.nan if found is None else float(found[1]) * 1024
