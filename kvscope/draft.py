"""Draft: a schedule being edited. Frozen; every edit makes a new one, so undo is keeping the old.

Where a policy is set it fills in, within the budget, what is not pinned; without one everything else stays as it was at
the start. A draft that cannot be kept to its budget has the schedule of the one before, and says why in `problem`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from heatkv.budget import budget_from_tokens, budget_tokens, codec_budget
from heatkv.bundled import bundled_orders
from heatkv.codecs import codec_named
from heatkv.config import model_config
from heatkv.errors import BudgetError, HeatKVError, OptionError, UnknownNameError
from heatkv.head_codecs import of_names
from heatkv.measurements import Measurements
from heatkv.policies import make_policy, split_policy
from heatkv.policies.full import keep_everything
from heatkv.policies.pinned import FREE, no_pins, plan_within
from heatkv.schedule import PruningSchedule
from heatkv.steps import own_steps
from kvscope.edits import Budget, Clear, Drop, Edit, Pin, Policy, Sinks, Store
from kvscope.errors import UsageError
from kvscope.estimate import check_planned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig
    from heatkv.orders import HeadOrders
    from heatkv.policies.knapsack import KnapsackPolicy
    from heatkv.scales import ScaleSchedule
    from kvscope.header import Header
    from kvscope.job import Job

FILLERS = ("heatkv", "knapsack", "full")
"""Policies that can fill in round pins."""

_BISECTIONS = 10


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
    measurements: Measurements | None = None
    """What the knapsack weighs by: a calibration's, or attention mass of the trace; None: it cannot be asked."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.config.num_layers, self.config.num_heads, self.scales.num_scales

    @property
    def rows(self) -> int:
        """Of the batch: 2 with guidance."""
        return self.bytes_per_token // (2 * self.config.head_dim * self.dtype_bytes)

    def peak_bytes(self, schedule: PruningSchedule) -> int:
        """The most bytes that a schedule holds after any step."""
        return schedule.peak_bytes(self.config.head_dim, rows=self.rows, dtype_bytes=self.dtype_bytes)

    @property
    def last_step(self) -> int:
        return self.config.num_layers * self.scales.num_scales - 1


def ground_of(header: Header, mass: NDArray[np.floating] | None = None) -> Ground:
    """What editing a run's schedule cannot change; with the head orders that its job names, or the model's own.

    `mass`: the attention that the trace has, [query_scale, layer, head, source_scale], as far as it has run.
    """
    # Deferred: reading a calibration takes h5py, which not every caller needs.
    from kvscope.plan import load_orders

    config = model_config(header.model)
    path = orders_path(header.job) or bundled_orders(config)
    orders = None if path is None else load_orders(path, config)
    measured = measured_by(orders_path(header.job), config, header.scales, mass)
    return Ground(config, header.scales, header.bytes_per_token, orders, header.dtype_bytes, measured)


def measured_by(
    path: Path | None, config: ModelConfig, scales: ScaleSchedule, mass: NDArray[np.floating] | None
) -> Measurements | None:
    """What the knapsack weighs by: the error of attention's output if this file is a calibration that has it for these
    scales, else a trace's mass if it is whole."""
    # Deferred as in ground_of.
    from kvscope.calibration import is_calibration
    from kvscope.plan import load_measurements

    if path is not None and is_calibration(path):
        found = load_measurements(path)
        if found.output_error is not None and len(found.output_error) == scales.num_scales:
            return found
    shape = (scales.num_scales, config.num_layers, config.num_heads, scales.num_scales)
    if mass is None or mass.shape != shape or np.isnan(mass).all():
        return None
    return Measurements(attention_mass=np.asarray(mass, np.float64))


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
    stored_in: NDArray[np.str_] | None = None
    """[layer, head, source_scale]: the codec that a person has chosen, empty: none; None: none at all."""
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
    def has_codecs(self) -> bool:
        """Whether a person has chosen any."""
        return self.stored_in is not None and bool((self.stored_in != "").any())

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
    try:
        return _replanned(_changed(draft, edit))
    except (OptionError, UnknownNameError) as error:
        raise UsageError(str(error)) from None


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
        case Store(codec, target):
            return _stored(draft, target.mask(draft.ground.shape), codec)
        case Clear(target):
            chosen = target.mask(draft.ground.shape)
            stored_in = None if draft.stored_in is None else np.where(chosen, "", draft.stored_in)
            return replace(draft, pins=np.where(chosen, FREE, draft.pins).astype(np.int16), stored_in=stored_in)


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
    if name.partition(":")[0] not in FILLERS:
        raise UsageError(f"policy {name!r} cannot fill in round pins; expected one of {', '.join(FILLERS)}, none")
    if name == "heatkv" and ground.orders is None:
        raise UsageError("policy heatkv needs head orders; give --orders FILE")
    if name.startswith("knapsack"):
        _knapsack(name, ground)
    return name


def _knapsack(text: str, ground: Ground) -> KnapsackPolicy:
    """The policy of this text, by what there is to weigh by. Raises UsageError, or what make_policy raises."""
    measured = ground.measurements
    if measured is None:
        raise UsageError("policy knapsack needs attention mass; edit a whole trace that has it, not a schedule file")
    name, given = split_policy(text)
    if measured.output_error is None and "score" not in given:
        given = {"score": "mass", "exponent": "1.5"} | given
    parts = ",".join(f"{key}={value}" for key, value in given.items())
    policy: KnapsackPolicy = make_policy(f"{name}:{parts}" if parts else name, {"measurements": measured})
    return policy


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


def _stored(draft: Draft, chosen: NDArray[np.bool_], codec: str) -> Draft:
    """Another codec for what was chosen; sinks, which everybody reads, and the last scale are passed by."""
    codec_named(codec)
    able = chosen.copy()
    able[..., : draft.sink_scales] = False
    able[..., -1] = False
    if not able.any():
        raise UsageError("only sink scales, or the last scale, are meant: they are not stored in a codec")
    before = np.full(draft.ground.shape, "") if draft.stored_in is None else draft.stored_in
    return replace(draft, stored_in=np.where(able, codec, before))


def _replanned(draft: Draft) -> Draft:
    """The draft with the schedule that its pins, budget and policy ask for; or the one it had, and the problem."""
    try:
        schedule = _scheduled(draft, *_filled(draft))
    except BudgetError as error:
        return replace(draft, problem=Problem(str(error), error.minimum))
    except HeatKVError as error:
        return replace(draft, problem=Problem(str(error)))
    return replace(draft, schedule=schedule, problem=_over(draft, schedule))


def _scheduled(draft: Draft, drop_step: NDArray[np.int16], stored_in: NDArray[np.str_]) -> PruningSchedule:
    """The schedule of a filler's plan, with the codecs that a person has chosen."""
    stored_in = _by_hand(draft, stored_in)
    codec, codecs = of_names(stored_in)
    if (stored_in == draft.start.stored_in()).all():
        codec, codecs = draft.start.codec, draft.start.codecs
    policy = (draft.policy or draft.start.policy).partition(":")[0]
    return PruningSchedule(
        drop_step,
        draft.start.model,
        draft.ground.scales,
        draft.sink_scales,
        f"{policy}+edits" if draft.num_pins or draft.has_codecs else policy,
        draft.budget,
        draft.start.provenance | {"edited_from": draft.start.content_hash},
        codec=codec,
        codecs=codecs,
    )


def _by_hand(draft: Draft, stored_in: NDArray[np.str_]) -> NDArray[np.str_]:
    """Codecs with those that a person has chosen instead; not of what has become a sink since."""
    if draft.stored_in is None:
        return stored_in
    chosen = draft.stored_in != ""
    chosen[..., : draft.sink_scales] = False
    return np.where(chosen, draft.stored_in, stored_in)


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


def _within(draft: Draft, budget: float) -> NDArray[np.int16]:
    """HeatKV's drop_step round the pins, at a budget in tokens."""
    orders, ground = draft.ground.orders, draft.ground
    assert orders is not None  # _known_policy asked
    return plan_within(draft.pins, orders, ground.config, ground.scales, budget=budget, sink_scales=draft.sink_scales)


def _most(draft: Draft, least: float) -> NDArray[np.int16]:
    """The same at the largest budget in tokens, from `least` on, whose bytes, in the codecs chosen, are allowed."""
    found, low, high = _within(draft, least), least, 1.0
    for _ in range(_BISECTIONS):
        tried = _within(draft, (low + high) / 2)
        if _over(draft, _scheduled(draft, tried, draft.start.stored_in())) is None:
            found, low = tried, (low + high) / 2
        else:
            high = (low + high) / 2
    return found


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


def _filled(draft: Draft) -> tuple[NDArray[np.int16], NDArray[np.str_]]:
    """drop_step and codecs by pins, budget and policy, without the codecs that a person has chosen."""
    if draft.policy is None or not draft.policy.startswith("knapsack"):
        return _drop_step(draft), draft.start.stored_in()
    ground = draft.ground
    planned = _knapsack(draft.policy, ground).plan(
        ground.config,
        ground.scales,
        budget=1.0 if draft.budget is None else draft.budget,
        sink_scales=draft.sink_scales,
        pins=_without_sinks(draft.pins, draft.sink_scales),
    )
    return planned.drop_step, planned.stored_in()


def _without_sinks(pins: NDArray[np.int16], sink_scales: int) -> NDArray[np.int16]:
    free = pins.copy()
    free[..., :sink_scales] = FREE
    return free


def _drop_step(draft: Draft) -> NDArray[np.int16]:
    ground = draft.ground
    if draft.policy == "heatkv":
        budget = 1.0 if draft.budget is None else _bought(draft, draft.budget)
        return _within(draft, budget) if draft.budget is None or not draft.has_codecs else _most(draft, budget)
    as_it_was = draft.policy is None
    drop_step = draft.start.drop_step.copy() if as_it_was else keep_everything(ground.config, ground.scales)
    drop_step[..., : draft.sink_scales] = ground.last_step
    decided = draft.pins != FREE
    decided[..., : draft.sink_scales] = False
    drop_step[decided] = draft.pins[decided]
    return drop_step
