"""Advisor: schedules for a target of bytes or of loss, in the model's dtype and coarser codecs, by what is estimated.

`for_bytes` and `for_loss` make plans of several kinds and put the most promising first. Nothing here runs a model:
whoever verifies hands in the measured errors (`verified`), and kvscope.advice chooses and explains.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.budget import budget_from_tokens
from heatkv.codecs import MODEL
from heatkv.errors import BudgetError, HeatKVError
from heatkv.policies.heatkv import HeatKVPolicy
from heatkv.policies.knapsack import KnapsackPolicy
from heatkv.steps import own_steps
from kvscope.errors import UsageError
from kvscope.estimate import estimate
from kvscope.fidelity import COARSE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.policies import PlannedPolicy
    from heatkv.schedule import PruningSchedule
    from kvscope.draft import Ground
    from kvscope.estimate import Recorded

EXPONENTS = (1.0, 1.5, 1.8)
"""Of tokens, in the knapsack's price."""
WEIGHTINGS = {"": 1.0, "early scales first, ": -0.5}
"""Name → the power of its queries that a query scale counts. A bit that is wrong early changes all that comes after it,
which the estimated loss does not see; forced runs do."""
DROPPED = "dropped"

_CODED_EXPONENT = 1.5
"""Of plans with codecs: between the three it changes less than the codec does (docs/tuning.md)."""
_STEPS = 16
"""Halvings of the search for the least bytes: to 0.0015 % of the history, less than a token of infinity-tiny."""


@dataclass(frozen=True, slots=True)
class Part:
    """Of the head-scales written by the peak of a schedule, those that fare alike."""

    name: str
    """The codec that they are stored in, or DROPPED."""
    head_scales: int
    num_bytes: int
    """Estimated, as `peak_bytes`, which those of all codecs add up to; of DROPPED, what keeping them would take."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One schedule that was considered."""

    name: str
    """How it was made."""
    schedule: PruningSchedule
    peak_bytes: int
    """Estimated, and exact if the schedule is obeyed."""
    lost: float | None
    """Estimated share of attention mass, mean over the recorded runs; None: too much of it is codecs' noise, which
    attention does not tell."""
    output_error: float | None = None
    """Estimated squared change of attention's output, as a fraction of it, mean over layers and query scales, codecs by
    their noise; None: no calibration has measured it."""
    parts: tuple[Part, ...] = ()
    kl: float | None = None
    """Forced, mean over the recorded runs; None: not verified."""
    flips: float | None = None

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        names = ("name", "peak_bytes", "lost", "output_error", "kl", "flips")
        stored = {part.name: {"head_scales": part.head_scales, "bytes": part.num_bytes} for part in self.parts}
        return {name: getattr(self, name) for name in names} | {
            "at_peak": stored,
            "codecs": list(self.schedule.codecs),
            "schedule_sha256": self.schedule.content_hash,
            "policy": self.schedule.policy,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What plans are made from, and judged on."""

    ground: Ground
    mass: NDArray[np.float64]
    """[query_scale, layer, head, source_scale]: mean attention mass to plan from."""
    runs: tuple[Recorded, ...]
    """Recorded runs of the full cache, to estimate losses on."""

    @property
    def by_output(self) -> KnapsackPolicy | None:
        """The planner that weighs by the error of attention's output; None: nothing has measured it."""
        measured = self.ground.measurements
        return None if measured is None or measured.output_error is None else KnapsackPolicy(measured)

    def candidate(self, name: str, schedule: PruningSchedule) -> Candidate:
        """A schedule with its estimates."""
        guesses = [estimate(run, schedule) for run in self.runs]
        is_coarse = np.mean([guess.coarse_share for guess in guesses]) > COARSE
        lost = None if is_coarse else float(np.mean([guess.lost for guess in guesses]))
        judge, error = self.by_output, None
        if judge is not None:
            error = judge.loss_of(schedule, self.ground.config) / schedule.num_layers
        return Candidate(name, schedule, guesses[0].peak_bytes, lost, error, parts_of(schedule, self.ground))


def mean_mass(masses: Iterable[NDArray[np.floating]]) -> NDArray[np.float64]:
    """The mean over runs of [query_scale, layer, head, source_scale]; what was never measured counts as none."""
    total, count = None, None
    for mass in masses:
        known = np.isfinite(mass)
        values = np.where(known, mass, 0.0).astype(np.float64)
        total = values if total is None else total + values
        count = known.astype(np.int64) if count is None else count + known
    if total is None or count is None:
        raise UsageError("no attention mass to plan from; record runs without --no-attention-mass")
    mean: NDArray[np.float64] = total / np.maximum(count, 1)
    return mean


def parts_of(schedule: PruningSchedule, ground: Ground) -> tuple[Part, ...]:
    """What a schedule has dropped when it holds the most bytes, and what it holds in each codec, finest first."""
    sizes = {"rows": ground.rows, "dtype_bytes": ground.dtype_bytes}
    step = int(schedule.bytes_held(ground.config.head_dim, **sizes).argmax())
    written = np.broadcast_to(own_steps(*ground.shape[::2])[:, None], ground.shape) <= step
    written[..., -1] = False
    held = written & ((schedule.drop_step > step) | (schedule.drop_step == schedule.num_steps - 1))
    tokens = np.broadcast_to(schedule.scales.tokens, ground.shape)
    each, stored = schedule.bytes_per_token(ground.config.head_dim, **sizes) * tokens, schedule.stored_in()
    parts = [Part(DROPPED, int((written & ~held).sum()), int(tokens[written & ~held].sum()) * ground.bytes_per_token)]
    for name in schedule.codecs or (MODEL,):
        mine = held & (stored == name)
        if mine.any():
            parts.append(Part(name, int(mine.sum()), int(each[mine].sum())))
    return tuple(parts)


def candidates(evidence: Evidence, budget: float, codecs: Sequence[str] = ()) -> list[Candidate]:
    """Plans of several kinds whose peak is within a budget, the most promising first; none: no plan meets it.

    `codecs`: what plans may store in beside the model's dtype, each as KnapsackPolicy.codecs, tried one by one. Raises
    UnknownNameError or OptionError for what is no such text.
    """
    made: dict[str, Candidate] = {}
    for name, schedule in _plans(evidence, budget, codecs):
        made.setdefault(schedule.content_hash, evidence.candidate(name, schedule))
    return _most_promising(made.values())


def for_bytes(evidence: Evidence, target_bytes: int, codecs: Sequence[str] = ()) -> list[Candidate]:
    """Plans whose peak takes at most so many bytes, as `candidates`; for 0 bytes, nothing is kept."""
    ground = evidence.ground
    budget = budget_from_tokens(target_bytes // ground.bytes_per_token, ground.config, ground.scales)
    return candidates(evidence, budget, codecs)


def for_loss(evidence: Evidence, most_lost: float, codecs: Sequence[str] = ()) -> list[Candidate]:
    """Plans with the fewest bytes that lose at most this share of attention, the fewest first; last those of which that
    is unknown, whose noise counts like attention. `codecs` as in `candidates`. Raises UsageError for what is no share.
    """
    if not 0 <= most_lost < 1:
        raise UsageError(f"a loss of {most_lost:g}; expected a share of attention from 0 to below 1")
    best: dict[str, Candidate] = {}
    for name, policy, sinks in _policies(evidence, codecs):
        found = _least(evidence, name, policy, sinks, most_lost)
        if found is not None:
            best.setdefault(found.schedule.content_hash, found)
    return sorted(best.values(), key=lambda one: (one.lost is None, one.peak_bytes, error_of(one), one.name))


def error_of(candidate: Candidate) -> float:
    """What candidates are compared by: the forced KL if it was measured, else the estimated error of attention's output
    if that was, else the estimated loss; infinite where that is unknown."""
    known = (one for one in (candidate.kl, candidate.output_error, candidate.lost) if one is not None)
    return next(known, float("inf"))


def verified(candidate: Candidate, kl: Sequence[float], flips: Sequence[float]) -> Candidate:
    """With what forced runs measured, one of each recorded run."""
    return replace(candidate, kl=float(np.mean(kl)), flips=float(np.mean(flips)))


def _most_promising(found: Iterable[Candidate]) -> list[Candidate]:
    """The least estimated error first; by attention alone, which does not tell codecs apart, the best in each first."""
    ranked = sorted(found, key=lambda one: (error_of(one), one.peak_bytes, one.name))
    if all(one.output_error is not None for one in ranked):
        return ranked
    before: Counter[tuple[str, ...]] = Counter()
    turns = []
    for one in ranked:
        turns.append(before[one.schedule.codecs])
        before[one.schedule.codecs] += 1
    return [one for _, one in sorted(zip(turns, ranked, strict=True), key=lambda pair: pair[0])]


def _plans(evidence: Evidence, budget: float, codecs: Sequence[str]) -> Iterator[tuple[str, PruningSchedule]]:
    """(how it was made, plan), of every kind that can meet the budget."""
    ground = evidence.ground
    for name, policy, sinks in _policies(evidence, codecs):
        with contextlib.suppress(HeatKVError):  # sinks alone exceed the budget, or orders that do not fit
            yield name, policy.plan(ground.config, ground.scales, budget=budget, sink_scales=sinks)


def _policies(evidence: Evidence, codecs: Sequence[str]) -> Iterator[tuple[str, PlannedPolicy, int]]:
    """(name, policy, sink scales)."""
    orders = evidence.ground.orders
    if orders is not None:
        yield "heatkv", HeatKVPolicy(orders), min(orders.first_source, evidence.ground.scales.num_scales - 1)
    for name, policy in _weighings(evidence):
        for sinks in (0, 1):
            yield f"{name}, {_sinks_text(sinks)}", policy, sinks
    name, policy = [pair for pair in _weighings(evidence) if pair[1].exponent == _CODED_EXPONENT][-1]
    for text in codecs:
        for sinks in (0, 1):
            yield f"{name}, {_sinks_text(sinks)}, in {text}", replace(policy, codecs=text), sinks


def _sinks_text(sinks: int) -> str:
    return f"{sinks} sink{'' if sinks == 1 else 's'}"


def _weighings(evidence: Evidence) -> Iterator[tuple[str, KnapsackPolicy]]:
    """(name, planner in the model's dtype), what predicts errors best last."""
    for name, power in WEIGHTINGS.items():
        for exponent in EXPONENTS:
            mass = KnapsackPolicy.of_mass(evidence.mass, exponent=exponent, late=power)
            yield f"knapsack, {name}exponent {exponent:g}", mass
    if evidence.by_output is not None:
        for exponent in EXPONENTS:
            yield f"knapsack by output, exponent {exponent:g}", replace(evidence.by_output, exponent=exponent)


def _least(evidence: Evidence, name: str, policy: PlannedPolicy, sinks: int, most_lost: float) -> Candidate | None:
    """The plan of one policy with the fewest bytes that loses no more."""
    ground, low, high = evidence.ground, 0.0, 1.0
    best: PruningSchedule | None = None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        try:
            schedule = policy.plan(ground.config, ground.scales, budget=middle, sink_scales=sinks)
        except BudgetError:
            low = middle
            continue
        if np.mean([estimate(run, schedule).lost for run in evidence.runs]) <= most_lost:
            best, high = schedule, middle
        else:
            low = middle
    return None if best is None else evidence.candidate(name, best)
