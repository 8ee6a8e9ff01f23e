"""Draft: a schedule being edited. Frozen; every edit makes a new one, so undo is keeping the old.

Where a policy is set it fills in, within the budget, what is not pinned; without one everything else stays as it was at
the start. A draft that cannot be kept to its budget has the schedule of the one before, and says why in `problem`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from heatkv.bundled import bundled_orders
from heatkv.config import model_config
from heatkv.errors import BudgetError, HeatKVError
from heatkv.policies.full import keep_everything
from heatkv.policies.pinned import FREE, no_pins, plan_within
from heatkv.schedule import PruningSchedule, budget_from_tokens, budget_tokens, codec_budget, own_steps
from kvscope.edits import Budget, Clear, Drop, Edit, Pin, Policy, Sinks
from kvscope.errors import UsageError
from kvscope.estimate import check_planned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig
    from heatkv.orders import HeadOrders
    from heatkv.scales import ScaleSchedule
    from kvscope.header import Header
    from kvscope.job import Job

FILLERS = ("heatkv", "full")
"""Policies that can fill in round pins."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What no edit changes: the model, its scales, how many bytes a token takes, and the ranking that policies use."""

    config: ModelConfig
    scales: ScaleSchedule
    bytes_per_token: int
    """Of one head, K and V, all rows."""
    orders: HeadOrders | None = None
    """None: policies that rank heads cannot be asked."""
    dtype_bytes: int = 2
    """Of one number of the model's."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.config.num_layers, self.config.num_heads, self.scales.num_scales

    def peak_bytes(self, schedule: PruningSchedule) -> int:
        """The most bytes that a schedule holds after any step."""
        rows = self.bytes_per_token // (2 * self.config.head_dim * self.dtype_bytes)
        return schedule.peak_bytes(self.config.head_dim, rows=rows, dtype_bytes=self.dtype_bytes)

    @property
    def last_step(self) -> int:
        return self.config.num_layers * self.scales.num_scales - 1


def ground_of(header: Header) -> Ground:
    """What editing a run's schedule cannot change; with the head orders that its job names, or the model's own."""
    # Deferred: reading a calibration takes h5py, which not every caller needs.
    from kvscope.plan import load_orders

    config = model_config(header.model)
    path = orders_path(header.job) or bundled_orders(config)
    orders = None if path is None else load_orders(path, config)
    return Ground(config, header.scales, header.bytes_per_token, orders, header.dtype_bytes)


def orders_path(job: Job) -> Path | None:
    """The file of head orders that a job names, if it is still there."""
    return Path(job.orders) if job.orders is not None and Path(job.orders).exists() else None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the last edit has no schedule."""

    text: str
    minimum: float | None = None
    """The least budget that would do, as a fraction of the history."""


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """A schedule, and all that led to it."""

    ground: Ground
    start: PruningSchedule
    """The schedule that editing began with."""
    pins: NDArray[np.int16]
    """[layer, head, source_scale]: the step after which a head-scale shall go; FREE: nothing is decided."""
    schedule: PruningSchedule
    budget: float | None
    """As a fraction of the history; None: none."""
    sink_scales: int
    policy: str | None = None
    problem: Problem | None = None

    @classmethod
    def of(cls, start: PruningSchedule, ground: Ground) -> Draft:
        """A draft without an edit. Raises UsageError for an online policy's, which has no drop steps to edit."""
        check_planned(start)
        return cls(ground, start, no_pins(ground.config, ground.scales), start, start.budget, start.sink_scales)

    @property
    def is_changed(self) -> bool:
        return self.schedule.content_hash != self.start.content_hash

    @property
    def num_pins(self) -> int:
        return int((self.pins != FREE).sum())

    @property
    def held_tokens(self) -> NDArray[np.int64]:
        """Tokens in the cache after each step, over all layers and heads: [num_steps]. Estimated."""
        return self.schedule.tokens_held()

    @property
    def limit_tokens(self) -> int | None:
        """What the budget allows, over all layers and heads; None: no budget."""
        return None if self.budget is None else budget_tokens(self.budget, self.ground.config, self.ground.scales)


def edited(draft: Draft, edit: Edit) -> Draft:
    """The draft after an edit. Raises UsageError for one that makes no sense here; a budget that is too small for the
    pins is no error, but a `problem` of the draft."""
    return _replanned(_changed(draft, edit))


def _changed(draft: Draft, edit: Edit) -> Draft:
    match edit:
        case Budget():
            return replace(draft, budget=_fraction(edit, draft.ground))
        case Sinks(count):
            if not 0 <= count < draft.ground.scales.num_scales:
                raise UsageError(f"{count} sink scales; expected 0 to {draft.ground.scales.num_scales - 1}")
            return replace(draft, sink_scales=count, policy=draft.policy)
        case Policy(name):
            return replace(draft, policy=_known_policy(name, draft.ground))
        case Drop(target, after):
            return _pinned(draft, target.mask(draft.ground.shape), _drop_steps(draft.ground, after))
        case Pin(target):
            kept = np.full(draft.ground.shape, draft.ground.last_step, np.int16)
            return _pinned(draft, target.mask(draft.ground.shape), kept)
        case Clear(target):
            pins = draft.pins.copy()
            pins[target.mask(draft.ground.shape)] = FREE
            return replace(draft, pins=pins)


def _fraction(budget: Budget, ground: Ground) -> float | None:
    config, scales = ground.config, ground.scales
    if budget.tokens is not None:
        return budget_from_tokens(budget.tokens * config.num_layers * config.num_heads, config, scales)
    if budget.num_bytes is not None:
        whole = budget.num_bytes // ground.bytes_per_token
        return budget_from_tokens(whole, config, scales)
    return budget.fraction


def _known_policy(name: str | None, ground: Ground) -> str | None:
    if name is None:
        return None
    if name not in FILLERS:
        raise UsageError(f"policy {name!r} cannot fill in round pins; expected one of {', '.join(FILLERS)}, none")
    if name == "heatkv" and ground.orders is None:
        raise UsageError("policy heatkv needs head orders; give --orders FILE")
    return name


def _drop_steps(ground: Ground, after: int | None) -> NDArray[np.int16]:
    """The step at which each head-scale goes that is dropped after its layer of a query scale, its own at the least."""
    own = np.broadcast_to(own_steps(ground.config.num_layers, ground.scales.num_scales)[:, None], ground.shape)
    if after is None:
        return own.astype(np.int16)
    if not 0 <= after < ground.scales.num_scales:
        raise UsageError(f"there is no query scale {after}; there are {ground.scales.num_scales}, from 0")
    layer = np.arange(ground.config.num_layers)[:, None, None]
    return np.maximum(own, after * ground.config.num_layers + layer).astype(np.int16)


def _pinned(draft: Draft, chosen: NDArray[np.bool_], steps: NDArray[np.int16]) -> Draft:
    """Pins on what was chosen; sinks and the last scale are passed by, unless there is nothing else."""
    able = chosen.copy()
    able[..., : draft.sink_scales] = False
    able[..., -1] = False
    if not able.any():
        raise UsageError(
            "only sink scales, or the last scale, are meant: sinks never leave, and the last is never kept"
        )
    return replace(draft, pins=np.where(able, steps, draft.pins).astype(np.int16))


def _replanned(draft: Draft) -> Draft:
    """The draft with the schedule that its pins, budget and policy ask for; or the one it had, and the problem."""
    try:
        drop_step = _drop_step(draft)
        schedule = PruningSchedule(
            drop_step,
            draft.start.model,
            draft.ground.scales,
            draft.sink_scales,
            f"{draft.policy or draft.start.policy}+edits" if draft.num_pins else draft.policy or draft.start.policy,
            draft.budget,
            draft.start.provenance | {"edited_from": draft.start.content_hash},
            codec=draft.start.codec,
            codecs=draft.start.codecs,
        )
    except BudgetError as error:
        return replace(draft, problem=Problem(str(error), error.minimum))
    except HeatKVError as error:
        return replace(draft, problem=Problem(str(error)))
    return replace(draft, schedule=schedule, problem=_over(draft, schedule))


def _over(draft: Draft, schedule: PruningSchedule) -> Problem | None:
    """By how much a schedule exceeds the budget: in tokens of the model's dtype, whatever it is stored in."""
    if draft.limit_tokens is None:
        return None
    excess = draft.ground.peak_bytes(schedule) - draft.limit_tokens * draft.ground.bytes_per_token
    if excess <= 0:
        return None
    step = int(schedule.tokens_held().argmax())
    place = f"scale {step // schedule.num_layers}, layer {step % schedule.num_layers}"
    tokens = -(-excess // draft.ground.bytes_per_token)
    return Problem(
        f"{tokens:,} head-tokens over the budget after {place}; drop more, or raise the budget",
        (draft.limit_tokens + tokens) / schedule.history_tokens,
    )


def _bought(draft: Draft, budget: float) -> float:
    """The budget in tokens for a policy: more than the budget's own where all but the sinks are in one codec."""
    ground, codecs = draft.ground, draft.start.codecs
    if len(codecs) != 2 or draft.start.codec is None or draft.start.in_codec(codecs[1]) != draft.start:
        return budget
    return codec_budget(
        budget,
        codecs[1],
        ground.config,
        ground.scales,
        sink_scales=draft.start.sink_scales,
        dtype_bytes=ground.dtype_bytes,
    )


def _drop_step(draft: Draft) -> NDArray[np.int16]:
    ground = draft.ground
    if draft.policy == "heatkv":
        assert ground.orders is not None  # _known_policy asked
        budget = 1.0 if draft.budget is None else _bought(draft, draft.budget)
        return plan_within(
            draft.pins, ground.orders, ground.config, ground.scales, budget=budget, sink_scales=draft.sink_scales
        )
    as_it_was = draft.policy is None
    drop_step = draft.start.drop_step.copy() if as_it_was else keep_everything(ground.config, ground.scales)
    drop_step[..., : draft.sink_scales] = ground.last_step
    decided = draft.pins != FREE
    decided[..., : draft.sink_scales] = False
    drop_step[decided] = draft.pins[decided]
    return drop_step
