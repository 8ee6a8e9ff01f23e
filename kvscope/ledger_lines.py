"""Every line of the ledger: what it is called, what it is in one sentence, where its number comes from.

A new line is a new row. Order is that of the sum: each level is the level below it and the parts between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DeviceKind = Literal["cpu", "cuda"]
EntryKind = Literal["level", "part", "residual"]


@dataclass(frozen=True, slots=True)
class Entry:
    """The words of one line."""

    key: str
    kind: EntryKind
    """`level`: somebody counts it; `part`: known by itself; `residual`: what is left between two levels."""
    name: str
    definition: str
    source: str
    """Of the measurement: a table and column of the trace, or a formula of them."""
    formula: str = "not predicted"
    """Of the prediction."""
    is_total: bool = False
    """A level that holds all of this process, as far as its counter sees."""
    negative: str = ""
    """Of a residual: what it means when the upper level is smaller than the lower."""
    unit: str = "bytes"

    @property
    def is_level(self) -> bool:
        return self.kind == "level"

    @property
    def is_residual(self) -> bool:
        return self.kind == "residual"


_LESS_RELIABLE = "the two counters were read at different moments, or count differently"

_FREED = (
    "the run used memory that the process already had, or the pool has pages that nothing was ever written to, "
    "which the system does not count yet"
)

_CACHE = (
    Entry("kept", "level", "kept tokens (logical KV)",
          "Keys and values of the tokens that are kept, over all layers, heads and rows: what the budget counts.",
          "steps.accounted_bytes", "tokens held × bytes per token, of each codec"),
    Entry("free_slots", "residual", "free slots",
          "Slots of the pool that held no token just then: the pool is sized once, for the moment of the most tokens, "
          "of each codec by itself.",
          "pool capacity - kept tokens", "the same",
          negative="more tokens were counted than the pool has room for; validate this trace"),
    Entry("capacity", "level", "pool capacity",
          "Keys and values that fit in the pool, which is allocated once and never grows.",
          "header capacity_tokens × bytes per token, or header pools",
          "the schedule's peak × bytes per token, of each codec"),
    Entry("index", "residual", "index of the pool",
          "Numbers of the slots in use, 4 bytes each, by which attention finds its tokens; in the host's memory; where "
          "single tokens were chosen also which of them a slot holds in each row, with the keys and values.",
          "stored KV - pool capacity", "4 bytes × most slots used so far; 2 or 6 more × rows × tokens if so",
          negative="the cache allocated less than it said it had room for; validate this trace"),
    Entry("stored", "level", "stored KV",
          "Every byte that the run allocated for the cache: the pool and its index.",
          "steps.storage_bytes", "pool capacity + index"),
)  # fmt: skip

_CPU = (
    *_CACHE,
    Entry("moment", "residual", "activations, buffers, recording",
          "What the run needed beside the cache and still held when a scale ended: hidden states, codes, previews, "
          "libraries' buffers, the trace's arrays, memory kept for reuse.",
          "added by the run - stored KV", "tensors of one layer (q, k, v, gathered keys and values, feed-forward)",
          negative=_FREED),
    Entry("rss_added", "level", "added by the run",
          "Resident memory of the process less what it had before the first scale; read at the end of each scale, so "
          "what came and went within one is not seen.",
          "allocator.process_rss_bytes less its first row", "stored KV + tensors of one layer", is_total=True),
    Entry("weights", "part", "weights of the model",
          "Parameters of the transformer, matrices of its layers in the run's dtype and the rest in float32, and of "
          "the VAE.",
          "not told apart by the system", "from the model's shape"),
    Entry("host_other", "residual", "held before the run",
          "Python, torch and other libraries, weights, and what loading them left behind.",
          "process memory - added by the run"),
    Entry("rss", "level", "process memory (RSS)",
          "Resident memory of the process in the host's RAM, as the system counts it.",
          "allocator.process_rss_bytes", is_total=True),
)  # fmt: skip

_GPU_USED = Entry(
    "used", "level", "driver: whole GPU in use",
    "Memory of the GPU that is in use by all processes, as the driver counts it.", "gpu.used_bytes",
)  # fmt: skip
_GPU_PROCESS = Entry(
    "process", "level", "driver: this process",
    "Memory of the GPU that this process holds, as the driver counts it.", "gpu.process_bytes", is_total=True,
)  # fmt: skip
_GPU_RESERVED = Entry(
    "driver_reserved", "part", "driver: reserved",
    "Memory of the GPU that the driver and its firmware keep for themselves.", "gpu.reserved_bytes",
)  # fmt: skip

_CUDA = (
    *_CACHE,
    Entry("index_on_host", "part", "less: index, in host memory",
          "What of the index is in host memory is no part of the GPU's memory, so it is taken off again.",
          "pool capacity - stored KV", "the same"),
    Entry("weights", "part", "weights and text",
          "What torch had allocated on the GPU before the first scale, less the pool: weights, text context, tables, "
          "and what cuBLAS keeps to work in (32 MiB on an H100).",
          "allocator.allocated_bytes of its first row - pool capacity", "the transformer's and the VAE's weights"),
    Entry("moment", "residual", "activations and workspaces",
          "What one layer needs for a moment (q, k, v, outputs, feed-forward, workspaces), codes, logits, a preview's "
          "decoding.",
          "allocated - stored KV - index - weights", "tensors of one layer",
          negative="less was allocated than before the first scale: something of the start was freed"),
    Entry("allocated", "level", "allocator: allocated",
          "The most that tensors held of the GPU's memory, as torch's allocator counts, rounding up included.",
          "allocator.peak_bytes, or allocated_bytes where that peak was earlier",
          "pool + weights + tensors of one layer", is_total=True),
    Entry("allocator_cache", "residual", "cached by the allocator",
          "Memory that torch's allocator holds and no tensor uses: freed blocks kept for reuse, and fragmentation.",
          "reserved - allocated",
          negative="reserved is read at the ends of scales only, allocated at its true peak"),
    Entry("reserved", "level", "allocator: reserved",
          "Memory that torch's allocator has taken from the driver.",
          "allocator.reserved_bytes", is_total=True),
    Entry("context", "residual", "CUDA context and kernels",
          "What CUDA needs for this process beside torch's allocator: the context, loaded kernels, page tables.",
          "driver's count of this process - reserved", negative=_LESS_RELIABLE),
    _GPU_PROCESS,
    Entry("others", "residual", "other processes",
          "What everybody else has on the same GPU.", "GPU in use - this process", negative=_LESS_RELIABLE),
    _GPU_USED,
    _GPU_RESERVED,
    Entry("gpu_free", "residual", "free", "Memory of the GPU that nobody uses.",
          "total - in use - reserved", negative=_LESS_RELIABLE),
    Entry("total", "level", "memory of the GPU", "All of it.", "gpu.total_bytes"),
)  # fmt: skip

_LINES: dict[DeviceKind, tuple[Entry, ...]] = {"cpu": _CPU, "cuda": _CUDA}
_RSS_BESIDE = Entry(
    "rss", "level", "process memory (RSS), host",
    "Resident memory of the process in the host's RAM, which is no part of the GPU's.", "allocator.process_rss_bytes",
)  # fmt: skip
_BESIDE: dict[DeviceKind, tuple[Entry, ...]] = {
    "cpu": (
        Entry("allocated", "level", "allocator: allocated", "Held by tensors on a GPU.", "allocator.allocated_bytes"),
        Entry("reserved", "level", "allocator: reserved", "Held by torch's GPU allocator.", "allocator.reserved_bytes"),
        _GPU_PROCESS,
        _GPU_USED,
        _GPU_RESERVED,
    ),
    "cuda": (
        Entry(
            "decoding",
            "level",
            "driver: this process, at the end",
            "The most after the last scale, when the cache is gone and the image is decoded; that may be more than the "
            "run before it took.",
            "gpu.process_bytes after the last scale",
        ),
        _RSS_BESIDE,
    ),
}

FULL = Entry(
    "full", "level", "full history",
    "Keys and values of all scales but the last, over all layers, heads and rows: what a budget of 1 means.",
    "history tokens × bytes per token", "the same",
)  # fmt: skip
BUDGET = Entry(
    "budget", "level", "budget", "The most bytes of kept tokens that the budget allows after any step.",
    "budget × full history, in whole tokens", "the same",
)  # fmt: skip


def device_kind(device: str) -> DeviceKind:
    """`cuda`, or `cpu` for everything else."""
    return "cuda" if device.startswith("cuda") else "cpu"


def lines_of(device: str) -> tuple[Entry, ...]:
    """The lines of the sum for a device, from the tokens up."""
    return _LINES[device_kind(device)]


def lines_beside(device: str) -> tuple[Entry, ...]:
    """Lines that are no part of it: memory of other kinds than the device's own."""
    return _BESIDE[device_kind(device)]
