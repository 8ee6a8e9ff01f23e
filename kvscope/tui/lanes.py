"""What the Schedule screen counts of a plan: lifetimes, what is dropped where, the budget and room left, what changed.

Pure numpy over a Snapshot; knows nothing of screens.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from heatkv.codecs import MODEL
from heatkv.policies.pinned import FREE
from heatkv.steps import own_steps
from kvscope.analysis import StepPlace
from kvscope.tui.metrics import stored_codec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.schedule import PruningSchedule
    from kvscope.draft import Draft
    from kvscope.tui.feed import Snapshot


@lru_cache(maxsize=4)
def lifetimes(schedule: PruningSchedule) -> NDArray[np.float64]:
    """The share of the steps left that each head-scale lives: [layer, head, source_scale], 1: to the end, 0: never."""
    last = schedule.num_steps - 1
    written = own_steps(schedule.num_layers, schedule.scales.num_scales)[:, None]
    lived = (schedule.drop_step - written) / np.maximum(1, last - written)
    lived[schedule.drop_step == last] = 1.0
    lived[..., -1] = 0.0
    return np.asarray(lived, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class SourceFate:
    """What becomes of one source scale, over all layers and heads."""

    dropped: int
    """Head-scales dropped before the end, those never kept included."""
    kept_fraction: float
    """Head-scales kept to the end, over all."""


@lru_cache(maxsize=4)
def source_fates(schedule: PruningSchedule) -> tuple[SourceFate, ...]:
    """One per source scale; the last is never cached, so none of it is dropped and none is kept."""
    heads = schedule.num_layers * schedule.num_heads
    kept = (lifetimes(schedule) == 1.0).sum(axis=(0, 1)).tolist()
    fates = [SourceFate(heads - count, count / heads) for count in kept[:-1]]
    return (*fates, SourceFate(0, 0.0))


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """A plan in numbers; every one is planned, or defined by the budget. None: there is no budget."""

    budget: float | None
    budget_tokens: int | None
    """Over all layers and heads."""
    budget_bytes: int | None
    heads: int
    """Heads of all layers."""
    history_tokens: int
    """What the budget is a fraction of."""
    peak_tokens: int
    peak_bytes: int
    peak_place: StepPlace
    """The first step that holds the most: where there is the least headroom."""
    head_scales: int
    """Those that may be dropped: of neither a sink scale nor the last."""
    dropped: int
    """Of those, dropped before the end."""

    @property
    def headroom_bytes(self) -> int | None:
        """What the budget leaves at the peak."""
        return None if self.budget_bytes is None else self.budget_bytes - self.peak_bytes


@lru_cache(maxsize=4)
def plan_facts(snapshot: Snapshot) -> PlanFacts:
    """The plan in force."""
    schedule, token_bytes = snapshot.schedule, snapshot.header.bytes_per_token
    held, held_bytes = schedule.tokens_held(), snapshot.header.bytes_held(schedule)
    peak = int(held_bytes.argmax())
    allowed = snapshot.summary.budget_bytes
    prunable = schedule.drop_step[:, :, schedule.sink_scales : -1]
    return PlanFacts(
        budget=schedule.budget,
        budget_tokens=None if allowed is None else allowed // token_bytes,
        budget_bytes=allowed,
        heads=schedule.num_layers * schedule.num_heads,
        history_tokens=schedule.history_tokens,
        peak_tokens=int(held[peak]),
        peak_bytes=int(held_bytes[peak]),
        peak_place=StepPlace(*divmod(peak, schedule.num_layers)),
        head_scales=prunable.size,
        dropped=int(np.count_nonzero(prunable < schedule.num_steps - 1)),
    )


class Change(IntEnum):
    """What editing did to a head-scale, beside the plan that the run was recorded with."""

    SAME = 0
    PINNED_KEPT = 1
    PINNED_GONE = 2
    LONGER = 3
    """Decided by a policy, as the next."""
    SHORTER = 4
    RECODED = 5
    """Stays as long, stored in another codec."""


PINS = (Change.PINNED_KEPT, Change.PINNED_GONE)
"""What a person decided."""


@lru_cache(maxsize=4)
def changes(draft: Draft) -> NDArray[np.uint8]:
    """A Change for each head-scale: [layer, head, source_scale]. A pin is one even where it changes nothing."""
    now, before = draft.schedule.drop_step, draft.start.drop_step
    found = np.full(now.shape, Change.SAME, np.uint8)
    found[draft.schedule.stored_in() != draft.start.stored_in()] = Change.RECODED
    found[now > before] = Change.LONGER
    found[now < before] = Change.SHORTER
    pinned = draft.pins != FREE
    found[pinned & (draft.pins == draft.ground.last_step)] = Change.PINNED_KEPT
    found[pinned & (draft.pins != draft.ground.last_step)] = Change.PINNED_GONE
    found[..., : draft.sink_scales] = Change.SAME
    found[..., -1] = Change.SAME
    return found


def fate_words(schedule: PruningSchedule, layer: int, head: int, source_scale: int) -> str:
    """When a schedule lets a head-scale go, and the codec that it is stored in, if any."""
    words = _leaving_words(schedule, layer, head, source_scale)
    codec = stored_codec(schedule, layer, head, source_scale)
    return words if codec == MODEL else f"{words}, stored in {codec}"


CODEC_LETTERS = {"fp8": "f", "int8": "8", "int4": "4", "k4v2": "k", "int2": "2"}
"""What stands at the begin of the bar of a head-scale that is not stored in the model's dtype."""


def _leaving_words(schedule: PruningSchedule, layer: int, head: int, source_scale: int) -> str:
    drop_step = int(schedule.drop_step[layer, head, source_scale])
    if source_scale == schedule.scales.num_scales - 1:
        return "never cached: it is the last scale"
    if source_scale < schedule.sink_scales:
        return "a sink, never dropped"
    if schedule.online:
        return "chosen during the run, token by token"
    if drop_step == schedule.num_steps - 1:
        return "kept to the end"
    if drop_step == source_scale * schedule.num_layers + layer:
        return "never kept"
    scale, after = divmod(drop_step, schedule.num_layers)
    return f"dropped after scale {scale}, layer {after}"


MARK_WORDS = {
    Change.SAME: "as recorded",
    Change.PINNED_KEPT: "pinned",
    Change.PINNED_GONE: "dropped by hand",
    Change.LONGER: "kept longer by the policy",
    Change.SHORTER: "dropped sooner by the policy",
    Change.RECODED: "stored otherwise",
}
"""What a Change means, in words."""
