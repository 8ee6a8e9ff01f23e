"""kvscope: record runs of visual autoregressive models, and look into their KV cache. Names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvscope.analysis import Summary, summarize
    from kvscope.job import Job
    from kvscope.nvml import GpuSampler
    from kvscope.recorder import Recorder
    from kvscope.trace import Trace

_HOMES = {
    "GpuSampler": "kvscope.nvml",
    "Job": "kvscope.job",
    "Recorder": "kvscope.recorder",
    "Summary": "kvscope.analysis",
    "Trace": "kvscope.trace",
    "summarize": "kvscope.analysis",
}

__all__ = ["GpuSampler", "Job", "Recorder", "Summary", "Trace", "__version__", "summarize"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'kvscope' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    # importlib.metadata takes 20 ms to import; only who asks for the version pays.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kvscope")
    except PackageNotFoundError:
        return "0+uninstalled"
