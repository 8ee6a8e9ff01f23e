"""InForce: which schedule a run obeyed from which scale on. One for most runs; more where it was revised under way.

Each but the first describes the whole run (see heatkv.revision), except what was held right before its scale: that
is by the one before. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.schedule import PruningSchedule
    from kvscope.header import Header


@dataclass(frozen=True, slots=True, eq=False)
class InForce:
    """A schedule, and from when on a run obeyed it."""

    query_scale: int
    """The first scale under it."""
    schedule: PruningSchedule
    asked_sha256: str
    """Content hash of the schedule that was asked for; what had left by then may differ from it."""


Plans = tuple[InForce, ...]
"""Those of one run, in order; the first holds from scale 0 on."""


def sole(schedule: PruningSchedule) -> Plans:
    """Those of a run that was not revised."""
    return (InForce(0, schedule, schedule.content_hash),)


def plan_at(plans: Plans, query_scale: int) -> PruningSchedule:
    """The schedule that was obeyed at a query scale."""
    return [one.schedule for one in plans if one.query_scale <= query_scale][-1]


def by_scale(
    plans: Plans,
    read: Callable[[PruningSchedule], NDArray[Any]],  # Any: counts or booleans
    *,
    num_scales: int | None = None,
) -> NDArray[Any]:
    """`read` of each schedule, [query_scale, ...], joined where the next one took over; the first `num_scales`."""
    ends: Sequence[int | None] = [*(one.query_scale for one in plans[1:]), None]
    parts = [read(one.schedule)[one.query_scale : end] for one, end in zip(plans, ends, strict=True)]
    return np.concatenate(parts)[:num_scales]


def tokens_held(plans: Plans) -> NDArray[np.int64]:
    """Tokens in the cache after each step, over all layers and heads: [num_steps]."""
    layers = plans[0].schedule.num_layers
    return by_scale(plans, lambda schedule: schedule.tokens_held().reshape(-1, layers)).reshape(-1)


def bytes_held(plans: Plans, header: Header) -> NDArray[np.int64]:
    """Bytes of keys and values in the cache after each step, as a trace's header counts them: [num_steps]."""
    layers = plans[0].schedule.num_layers
    return by_scale(plans, lambda schedule: header.bytes_held(schedule).reshape(-1, layers)).reshape(-1)


def evicted_tokens(plans: Plans, num_steps: int) -> NDArray[np.int64]:
    """Tokens freed by each of the first steps; what a revision let go of counts to the first step after it."""
    evicted: NDArray[np.int64] = plans[0].schedule.written_tokens() - np.diff(tokens_held(plans), prepend=0)
    return evicted[:num_steps]
