"""Rows of a trace's tables, made from what a run, a sampler or the process says. Knows no file and no thread."""

from __future__ import annotations

import mmap
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import kvscope
from kvscope import maps
from kvscope.format import GPU_FIELDS, NO_CODEC, TABLES, Reason, text_field

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.probe import StepInfo
    from heatkv.scales import ScaleSchedule
    from heatkv.schedule import PruningSchedule
    from kvscope.job import MapKind
    from kvscope.nvml import GpuSample

_PAGE_FILE = Path("/proc/self/statm")
_NAN = float("nan")


def step_rows(steps: Sequence[StepInfo]) -> NDArray[np.void]:
    """Rows of `steps`."""
    rows = np.zeros(len(steps), TABLES["steps"].row_dtype)
    for name in rows.dtype.names or ():
        values = [getattr(step, name) for step in steps]
        rows[name] = [_NAN if value is None else value for value in values]
    return rows


def summary_row(steps: NDArray[np.void], kept_tokens: NDArray[Any], read_tokens: NDArray[Any]) -> NDArray[np.void]:
    """The row of `scale_summary` (no axes) of one scale: of its rows of `steps` and its tokens."""
    row = np.zeros((), TABLES["scale_summary"].row_dtype)
    row["begin_ns"], row["end_ns"] = steps["begin_ns"].min(), steps["end_ns"].max()
    row["layer_ns"] = (steps["end_ns"] - steps["begin_ns"]).sum()
    for name in ("accounted", "storage"):
        row[f"{name}_peak_bytes"] = steps[f"{name}_bytes"].max()
    row["evicted_tokens"] = steps["evicted_tokens"].sum()
    row["kept_tokens"], row["read_tokens"] = kept_tokens.sum(dtype=np.int64), read_tokens.sum(dtype=np.int64)
    return row


def revision_arrays(schedule: PruningSchedule, asked_sha256: str) -> dict[str, NDArray[Any]]:
    """What the tables of revisions say of a scale before which this plan was put in force."""
    row = np.zeros((), TABLES["revisions"].row_dtype)
    row["is_revised"], row["sink_scales"] = 1, schedule.sink_scales
    row["budget"] = _NAN if schedule.budget is None else schedule.budget
    row["policy"], row["asked_sha256"] = text_field(schedule.policy), text_field(asked_sha256)
    codec = np.full_like(schedule.drop_step, NO_CODEC, np.uint8) if schedule.codec is None else schedule.codec
    return {"revisions": row, "revised_drop_step": schedule.drop_step, "revised_codec": codec}


def mass_array(steps: Sequence[StepInfo], name: str) -> NDArray[np.float32]:
    """[layer, head, source_scale]: one scale's `attention_mass` or the like, NaN where a step did not measure it."""
    shape = steps[0].kept_tokens.shape
    mass = np.full((len(steps), *shape), np.nan, np.float32)
    for index, step in enumerate(steps):
        measured = getattr(step, name)
        if measured is not None:
            mass[index] = on_host(measured)
    return mass


def token_maps(steps: Sequence[StepInfo]) -> list[NDArray[np.float32] | None]:
    """The attention map of each of one scale's steps, [head, token], on the host; empty if none was measured."""
    if all(step.attention_map is None for step in steps):
        return []
    return [None if step.attention_map is None else on_host(step.attention_map) for step in steps]


def map_array(
    token_maps: Sequence[NDArray[np.float32] | None],
    num_heads: int,
    scales: ScaleSchedule,
    query_scale: int,
    kind: MapKind,
) -> NDArray[np.float32] | NDArray[np.uint8]:
    """[layer, head, source_scale, map_y, map_x]: the maps of one scale's layers as `attention_map` stores them."""
    shape = (len(token_maps), num_heads, scales.num_scales, maps.MAP_CELLS, maps.MAP_CELLS)
    cells = np.full(shape, np.nan, np.float32)
    for layer, token_map in enumerate(token_maps):
        if token_map is not None:
            cells[layer] = maps.pool(token_map, scales, query_scale)
    return maps.encode(cells) if kind == "uint8" else cells


def on_host(tensor: Any) -> NDArray[Any]:  # Any: a torch tensor, on whatever device, or an array
    """A copy of the tensor in host memory, that the run cannot change any more."""
    return np.array(tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor)


def gpu_rows(samples: Iterable[GpuSample]) -> NDArray[np.void]:
    """Rows of `gpu`: a value, or NaN and the reason."""
    taken = list(samples)
    rows = np.zeros(len(taken), TABLES["gpu"].row_dtype)
    for row, sample in zip(rows, taken, strict=True):
        row["t_ns"], row["sample_ns"], row["memory_version"] = sample.t_ns, sample.sample_ns, sample.memory_version
        for name, _, _ in GPU_FIELDS:
            reading = sample.readings[name]
            row[name] = reading if isinstance(reading, float) else _NAN
            row[f"{name}_reason"] = Reason.MEASURED if isinstance(reading, float) else reading.reason
    return rows


def log_row(t_ns: int, level: int, text: str) -> NDArray[np.void]:
    """One row of `log`."""
    row = np.zeros(1, TABLES["log"].row_dtype)
    row["t_ns"], row["level"], row["text"] = t_ns, level, text_field(text)
    return row


def memory_row(t_ns: int, device: str) -> NDArray[np.void]:
    """One row of `allocator`: what torch's allocator (CUDA only) and the system say of this process now."""
    row = np.zeros(1, TABLES["allocator"].row_dtype)
    row["t_ns"], row["process_rss_bytes"] = t_ns, _resident_bytes()
    for name in ("allocated_bytes", "reserved_bytes", "peak_bytes"):
        row[name] = _NAN
    if device.startswith("cuda"):
        import torch  # the run has it loaded; only a CUDA run may ask

        row["allocated_bytes"] = torch.cuda.memory_allocated(device)
        row["reserved_bytes"] = torch.cuda.memory_reserved(device)
        row["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return row


def versions() -> dict[str, str]:
    """What made the trace: package → version, of those that this process has loaded."""
    found = {"kvscope": str(kvscope.__version__), "python": platform.python_version(), "system": platform.system()}
    for package in ("numpy", "h5py", "torch"):
        if package in sys.modules:
            found[package] = str(sys.modules[package].__version__)
    return found


def _resident_bytes() -> float:
    """Resident memory of this process; NaN where the system does not tell it as Linux does."""
    try:
        pages = int(_PAGE_FILE.read_text(encoding="ascii").split()[1])
    except OSError:
        return _NAN
    return float(pages * mmap.PAGESIZE)
