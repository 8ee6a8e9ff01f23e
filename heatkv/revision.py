"""Revision: a run that goes on with another schedule from some scale on. Pure numpy: what may be revised, and to what.

What has left the cache cannot come back; what the other schedule let go of earlier leaves at once. So the whole run,
before and after, obeys one schedule again: the one that `revised` returns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from heatkv.errors import ScheduleError
from heatkv.schedule import PruningSchedule, own_steps

if TYPE_CHECKING:
    from numpy.typing import NDArray


def revised(current: PruningSchedule, wanted: PruningSchedule, query_scale: int) -> PruningSchedule:
    """The schedule of a run that obeyed `current` before this query scale, and goes on with `wanted`.

    Of what the run holds at that boundary, what `wanted` has let go of by then leaves right there: its drop step is
    that of the last step before. Labels are those of `wanted`; its budget, if the whole run keeps to it.

    Raises ScheduleError if it is for another model or other scales, if no scale follows, or at the first head-scale
    that has left and that `wanted` would still have.
    """
    _check_same_run(current, wanted)
    if not 0 <= query_scale < current.scales.num_scales:
        raise ScheduleError(f"no scale {query_scale} follows that could be revised; run the schedule anew")
    before = query_scale * current.num_layers - 1
    last_step = current.num_steps - 1
    written = own_steps(current.num_layers, current.scales.num_scales)[:, None] <= before
    gone = written & ~_outlives(current.drop_step, before, last_step)
    _check_not_back(gone & _outlives(wanted.drop_step, before, last_step), current, query_scale)
    leaves_at_once = written & (wanted.drop_step < before)
    drop_step = np.where(gone, current.drop_step, np.where(leaves_at_once, before, wanted.drop_step))
    one = replace(wanted, drop_step=drop_step.astype(np.int16))
    return one if one.peak_tokens <= wanted.peak_tokens else replace(one, budget=None)


def check_room(schedule: PruningSchedule, query_scale: int, *, capacity_tokens: int, bytes_per_token: int) -> None:
    """Raises ScheduleError, saying by how much, if what is held from this query scale on outgrows an allocated pool."""
    peak = int(schedule.tokens_held()[query_scale * schedule.num_layers :].max())
    if peak > capacity_tokens:
        missing = (peak - capacity_tokens) * bytes_per_token
        raise ScheduleError(
            f"from scale {query_scale} on it holds up to {peak:,} head-tokens, and the run's cache has room for "
            f"{capacity_tokens:,}: {missing:,} bytes too many; keep less, or run it anew"
        )


def leaving(current: PruningSchedule, schedule: PruningSchedule, query_scale: int) -> NDArray[np.bool_]:
    """What leaves at the boundary itself: held under `current` until then, and gone in what `revised` made of it."""
    before, last_step = query_scale * current.num_layers - 1, current.num_steps - 1
    written = own_steps(current.num_layers, current.scales.num_scales)[:, None] <= before
    held: NDArray[np.bool_] = written & _outlives(current.drop_step, before, last_step)
    return held & ~_outlives(schedule.drop_step, before, last_step)


def _outlives(drop_step: NDArray[np.int16], step: int, last_step: int) -> NDArray[np.bool_]:
    """Whether what was written by then is still held after a step."""
    held: NDArray[np.bool_] = (drop_step > step) | (drop_step == last_step)
    return held


def _check_same_run(current: PruningSchedule, wanted: PruningSchedule) -> None:
    found, expected = ((one.model, *one.drop_step.shape) for one in (wanted, current))
    if found != expected:
        raise ScheduleError(
            f"the schedule is for {_shape_text(*found)}, the run is {_shape_text(*expected)}; plan it for this run"
        )
    if current.codec is not None or wanted.codec is not None:
        raise ScheduleError("a run that stores in codecs cannot be revised, nor into codecs; run the schedule anew")
    if wanted.scales.sizes != current.scales.sizes:
        raise ScheduleError("the schedule is for other token grids than the run's; plan it for this run")


def _shape_text(model: str, layers: int, heads: int, scales: int) -> str:
    return f"{model} ({layers} layers, {heads} heads, {scales} scales)"


def _check_not_back(back: NDArray[np.bool_], current: PruningSchedule, query_scale: int) -> None:
    if back.any():
        layer, head, source_scale = (int(index[0]) for index in np.nonzero(back))
        count = int(back.sum())
        others = f", nor can {count - 1:,} others" if count > 1 else ""
        scale, after = divmod(int(current.drop_step[layer, head, source_scale]), current.num_layers)
        raise ScheduleError(
            f"layer {layer}, head {head}, source scale {source_scale} left after scale {scale} layer {after}, and "
            f"cannot come back at scale {query_scale}{others}; drop it, or run the schedule anew"
        )
