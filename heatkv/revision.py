"""Revision: a run that goes on with another schedule from some scale on. Pure numpy: what may be revised, and to what.

What has left the cache cannot come back; what the other schedule let go of earlier leaves at once; and what is stored
stays in its codec. So the whole run, before and after, obeys one schedule again: the one that `revised` returns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from heatkv.codecs import MODEL
from heatkv.errors import ScheduleError
from heatkv.schedule import PruningSchedule
from heatkv.steps import own_steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from heatkv.probe import PoolStart

_ANY_HEAD_DIM, _ANY_DTYPE_BYTES = 128, 2


def revised(current: PruningSchedule, wanted: PruningSchedule, query_scale: int) -> PruningSchedule:
    """The schedule of a run that obeyed `current` before this query scale, and goes on with `wanted`.

    Of what the run holds at that boundary, what `wanted` has let go of by then leaves right there: its drop step is
    that of the last step before. The codecs are the run's, which are all that it has room for; head-scales written
    from there on are in the codec that `wanted` gives them. Labels are those of `wanted`; its budget, if the whole run
    keeps to it.

    Raises ScheduleError if it is for another model or other scales, if no scale follows, if it would store in a codec
    that the run has no room for, or at the first head-scale that has left and that `wanted` would still have.
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
    one = replace(
        wanted,
        drop_step=drop_step.astype(np.int16),
        codec=_codec_of(current, wanted, written),
        codecs=current.codecs,
    )
    peaks = _held(wanted).max(), _held(current)[: before + 1].max(initial=0), _held(one)[before + 1 :].max()
    return one if max(peaks) == peaks[0] else replace(one, budget=None)


def check_room(schedule: PruningSchedule, query_scale: int, pools: Sequence[PoolStart]) -> None:
    """Raises ScheduleError, saying by how much, if what is held from this query scale on outgrows an allocated pool."""
    held = schedule.tokens_held_by_codec()
    for pool in pools:
        peak = int(held[pool.codec][query_scale * schedule.num_layers :].max())
        if peak > pool.capacity_tokens:
            missing = (peak - pool.capacity_tokens) * pool.bytes_per_token
            coded = f" in {pool.codec}" if len(pools) > 1 else ""
            raise ScheduleError(
                f"from scale {query_scale} on it holds up to {peak:,} head-tokens{coded}, and the run's cache has room "
                f"for {pool.capacity_tokens:,}: {missing:,} bytes too many; keep less, or run it anew"
            )


def leaving(current: PruningSchedule, schedule: PruningSchedule, query_scale: int) -> NDArray[np.bool_]:
    """What leaves at the boundary itself: held under `current` until then, and gone in what `revised` made of it."""
    before, last_step = query_scale * current.num_layers - 1, current.num_steps - 1
    written = own_steps(current.num_layers, current.scales.num_scales)[:, None] <= before
    held: NDArray[np.bool_] = written & _outlives(current.drop_step, before, last_step)
    return held & ~_outlives(schedule.drop_step, before, last_step)


def _codec_of(
    current: PruningSchedule, wanted: PruningSchedule, written: NDArray[np.bool_]
) -> NDArray[np.uint8] | None:
    """As `current` of what is written, as `wanted` of the rest. Raises ScheduleError if the run lacks that codec."""
    names, known = wanted.stored_in(), current.codecs or (MODEL,)
    will_be = ~written & (wanted.drop_step > own_steps(current.num_layers, current.scales.num_scales)[:, None])
    strange = sorted(set(names[will_be & ~np.isin(names, known)].tolist()))
    if strange:
        raise ScheduleError(
            f"it stores in {', '.join(strange)}, and the run's cache has room for {', '.join(known)} alone; "
            "run the schedule anew"
        )
    if current.codec is None:
        return None
    codec = current.codec.copy()
    for index, name in enumerate(known):
        codec[~written & (names == name)] = index
    return codec


def _held(schedule: PruningSchedule) -> NDArray[np.int64]:
    """Bytes held after each step, of some head dimension: to compare schedules of one run."""
    return schedule.bytes_held(_ANY_HEAD_DIM, rows=1, dtype_bytes=_ANY_DTYPE_BYTES)


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
