"""What must hold in a trace whose tokens an online policy chose during the run: rules for `kvscope trace validate`.

Which tokens stay is the policy's doing and breaks no rule; how many may, and that nothing comes back, is checked.
Counts and attention are of the first row; other rows may keep other tokens, equally many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from kvscope import maps
from kvscope.findings import Finding, unequal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.trace import Trace


def token_findings(trace: Trace) -> Iterator[Finding]:
    """Kept and read tokens that no choice of the policy explains."""
    kept = trace.kept_tokens.astype(np.int64)
    read = trace.read_tokens.astype(np.int64)
    schedule, done = trace.schedule, trace.scales_done
    if kept.shape != (done, *schedule.drop_step.shape) or read.shape != kept.shape:
        yield Finding("kept_tokens, read_tokens", f"shapes {kept.shape}, {read.shape}", f"of {done} scales")
        return
    assert schedule.layer_tokens is not None  # of an online policy
    why = "kept one scale before, and the current scale"
    yield from unequal("read_tokens", read, _due(kept, trace), why=why)
    more = np.argwhere(kept > read)
    if len(more):
        place = tuple(int(index) for index in more[0])
        where = f"kept_tokens[{', '.join(map(str, place))}]"
        yield Finding(where, f"{kept[place]}", f"{read[place]} at most: what attention read")
    tokens = np.array(schedule.scales.tokens)
    for scale in range(done):
        sinks = min(schedule.sink_scales, scale + 1)
        expected = np.broadcast_to(tokens[:sinks], kept[scale, :, :, :sinks].shape)
        yield from unequal(f"kept_tokens of scale {scale}", kept[scale, :, :, :sinks], expected, why="sinks stay")
    held = schedule.layer_tokens[:done].astype(np.int64)
    yield from unequal("kept_tokens of all heads", kept.sum(axis=(2, 3)), held, why="as many as the plan lets stay")


def _due(kept: NDArray[np.int64], trace: Trace) -> NDArray[np.int64]:
    """What attention reads: [scales_done, layer, head, source_scale]."""
    due = np.zeros_like(kept)
    due[1:] = kept[:-1]
    for scale in range(len(due)):
        due[scale, :, :, scale] = trace.header.scales.tokens[scale]
    return due


def seen(trace: Trace) -> NDArray[np.bool_]:
    """[scales_done, layer, head, source_scale]: where the first row read something."""
    read: NDArray[np.bool_] = trace.read_tokens > 0
    return read


def may_be_measured(measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a value of the unconditional rows may be, which may have read other source scales than the first row.

    What was measured, but past the current scale nothing, and of the current scale all.
    """
    due = measured.copy()
    for scale in range(len(due)):
        due[scale, :, :, scale] = True
        due[scale, :, :, scale + 1 :] = False
    return due


def is_map_whole(
    trace: Trace, cells: NDArray[np.float32], visible: NDArray[np.bool_], query_scale: int, layer: int, head: int
) -> bool:
    """Whether a map of one head has cells where it has tokens: of small grids as many as were read, of others some."""
    measured = ~np.isnan(cells)
    counts = measured.sum(axis=(1, 2))
    read = trace.read_tokens[query_scale, layer, head]
    sizes = np.array(trace.header.scales.sizes)
    is_small = (sizes <= maps.MAP_CELLS).all(axis=1)
    as_due = np.where(is_small, counts == read, (counts > 0) == visible)
    rows, columns = np.minimum(sizes, maps.MAP_CELLS).T
    outside = np.arange(maps.MAP_CELLS) >= rows[:, None], np.arange(maps.MAP_CELLS) >= columns[:, None]
    strays = (measured & (outside[0][:, :, None] | outside[1][:, None, :])).any()
    return bool(as_due.all() and not strays)
