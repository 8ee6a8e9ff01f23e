"""Advisor: schedules for a target, searched with the estimator, verified by forced runs, and the choice in words.

`candidates` makes plans of several kinds at one budget; `Advice` keeps those that no other beats in both bytes and
error. Nothing here runs a model: whoever verifies hands in the measured errors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.budget import budget_from_tokens
from heatkv.errors import BudgetError, HeatKVError
from heatkv.policies.heatkv import HeatKVPolicy
from heatkv.policies.knapsack import KnapsackPolicy
from kvscope.errors import UsageError
from kvscope.estimate import estimate
from kvscope.units import bytes_text, fraction_text

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

_STEPS = 24
"""Halvings of the search for the least bytes: enough to reach single tokens."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One schedule that was considered."""

    name: str
    """How it was made."""
    schedule: PruningSchedule
    peak_bytes: int
    """Estimated, and exact if the schedule is obeyed."""
    lost: float
    """Estimated share of attention mass, mean over the recorded runs."""
    kl: float | None = None
    """Forced, mean over the recorded runs; None: not verified."""
    flips: float | None = None

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        facts = {name: getattr(self, name) for name in ("name", "peak_bytes", "lost", "kl", "flips")}
        return facts | {"schedule_sha256": self.schedule.content_hash, "policy": self.schedule.policy}


@dataclass(frozen=True, slots=True)
class Advice:
    """What was tried, what is worth having, and what is advised."""

    tried: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    """Those that none beats in both bytes and error, fewest bytes first."""
    chosen: Candidate
    words: tuple[str, ...]
    """Why."""

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return {
            "chosen": self.chosen.to_json(),
            "front": [one.to_json() for one in self.front],
            "tried": [one.to_json() for one in self.tried],
            "why": list(self.words),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What plans are made from, and judged on."""

    ground: Ground
    mass: NDArray[np.float64]
    """[query_scale, layer, head, source_scale]: mean attention mass to plan from."""
    runs: tuple[Recorded, ...]
    """Recorded runs of the full cache, to estimate losses on."""

    def candidate(self, name: str, schedule: PruningSchedule) -> Candidate:
        """A schedule with its estimates."""
        guesses = [estimate(run, schedule) for run in self.runs]
        return Candidate(name, schedule, guesses[0].peak_bytes, float(np.mean([guess.lost for guess in guesses])))


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


def candidates(evidence: Evidence, budget: float) -> list[Candidate]:
    """Plans of several kinds whose peak is within a budget, the least estimated loss first; none: no plan meets it."""
    made: dict[str, Candidate] = {}
    for name, schedule in _plans(evidence, budget):
        made.setdefault(schedule.content_hash, evidence.candidate(name, schedule))
    return sorted(made.values(), key=lambda one: (one.lost, one.peak_bytes, one.name))


def for_bytes(evidence: Evidence, target_bytes: int) -> list[Candidate]:
    """Plans whose peak takes at most so many bytes, the least estimated loss first; for 0 bytes, nothing is kept."""
    ground = evidence.ground
    return candidates(
        evidence, budget_from_tokens(target_bytes // ground.bytes_per_token, ground.config, ground.scales)
    )


def for_loss(evidence: Evidence, most_lost: float) -> list[Candidate]:
    """Plans with the fewest bytes that lose at most this share of attention, the fewest first. Raises UsageError."""
    if not 0 <= most_lost < 1:
        raise UsageError(f"a loss of {most_lost:g}; expected a share of attention from 0 to 1")
    best: dict[str, Candidate] = {}
    for name, policy, sinks in _policies(evidence):
        found = _least(evidence, name, policy, sinks, most_lost)
        if found is not None:
            best.setdefault(found.schedule.content_hash, found)
    return sorted(best.values(), key=lambda one: (one.peak_bytes, one.lost, one.name))


def advice(tried: Sequence[Candidate], *, by_bytes: bool) -> Advice:
    """The best of what was tried: verified ones only, if there are any; by error within the bytes, or by bytes."""
    if not tried:
        raise UsageError("no schedule to choose from")
    verified = [one for one in tried if one.kl is not None]
    pool = verified or list(tried)
    chosen = min(pool, key=lambda one: (error_of(one), one.peak_bytes) if by_bytes else (one.peak_bytes, error_of(one)))
    front = pareto(pool)
    return Advice(tuple(tried), front, chosen, _words(chosen, tried))


def pareto(tried: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Those that none beats in both bytes and error, fewest bytes first."""
    front: list[Candidate] = []
    for one in sorted(tried, key=lambda one: (one.peak_bytes, error_of(one))):
        if not front or error_of(one) < error_of(front[-1]):
            front.append(one)
    return tuple(front)


def error_of(candidate: Candidate) -> float:
    """What candidates are compared by: the forced KL if it was measured, else the estimated loss."""
    return candidate.lost if candidate.kl is None else candidate.kl


def verified(candidate: Candidate, kl: Sequence[float], flips: Sequence[float]) -> Candidate:
    """With what forced runs measured, one of each recorded run."""
    return replace(candidate, kl=float(np.mean(kl)), flips=float(np.mean(flips)))


def _plans(evidence: Evidence, budget: float) -> Iterator[tuple[str, PruningSchedule]]:
    """(how it was made, plan), of every kind that can meet the budget."""
    ground = evidence.ground
    for name, policy, sinks in _policies(evidence):
        with contextlib.suppress(HeatKVError):  # sinks alone exceed the budget, or orders that do not fit
            yield name, policy.plan(ground.config, ground.scales, budget=budget, sink_scales=sinks)


def _policies(evidence: Evidence) -> Iterator[tuple[str, PlannedPolicy, int]]:
    """(name, policy, sink scales)."""
    orders = evidence.ground.orders
    if orders is not None:
        yield "heatkv", HeatKVPolicy(orders), min(orders.first_source, evidence.ground.scales.num_scales - 1)
    for name, power in WEIGHTINGS.items():
        for exponent in EXPONENTS:
            policy = KnapsackPolicy.of_mass(evidence.mass, exponent=exponent, late=power)
            for sinks in (0, 1):
                yield f"knapsack, {name}exponent {exponent:g}, {sinks} sinks", policy, sinks


def _least(evidence: Evidence, name: str, policy: PlannedPolicy, sinks: int, most_lost: float) -> Candidate | None:
    """The plan of one policy with the fewest bytes that loses no more."""
    ground, low, high, best = evidence.ground, 0.0, 1.0, None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        try:
            schedule = policy.plan(ground.config, ground.scales, budget=middle, sink_scales=sinks)
        except BudgetError:
            low = middle
            continue
        candidate = evidence.candidate(name, schedule)
        if candidate.lost <= most_lost:
            best, high = candidate, middle
        else:
            low = middle
    return best


def _words(chosen: Candidate, tried: Sequence[Candidate]) -> tuple[str, ...]:
    """Why it was chosen: what it takes and loses, what it is better than, and what it does otherwise than HeatKV."""
    how = "not verified"
    if chosen.kl is not None:
        how = f"forced KL {chosen.kl:.4g} nats per bit, {fraction_text(chosen.flips)} of bits flip"
    takes = f"{bytes_text(chosen.peak_bytes)} at peak (est.), {fraction_text(chosen.lost)} of attention lost (est.)"
    lines = [f"{chosen.name}: {takes}, {how}"]
    rival = next((one for one in tried if one.name == "heatkv"), None)
    if rival is None or rival is chosen:
        return tuple(lines)
    if chosen.kl is not None and rival.kl:
        change = chosen.kl / rival.kl - 1
        size = chosen.peak_bytes / rival.peak_bytes - 1
        lines.append(f"against heatkv: KL {change:+.1%} at {size:+.1%} bytes, both forced on the same runs")
    lines += _differences(chosen.schedule, rival.schedule)
    return tuple(lines)


def _differences(ours: PruningSchedule, theirs: PruningSchedule) -> list[str]:
    """What is kept to the end of each source scale, ours and theirs, where they differ most."""
    last = ours.num_steps - 1
    kept, rival = ((one.drop_step[..., :-1] == last).sum(axis=(0, 1)) for one in (ours, theirs))
    slots = ours.num_layers * ours.num_heads
    lines = []
    for source in np.argsort(-np.abs(kept - rival), kind="stable")[:3]:
        if kept[source] != rival[source]:
            height, width = ours.scales.sizes[source]
            lines.append(
                f"of source scale {source} ({height}×{width}) it keeps {kept[source]} of {slots} head-scales "
                f"to the end, heatkv {rival[source]}"
            )
    return lines
