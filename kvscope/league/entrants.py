"""Entrants: every policy at every target, with the nominal budget whose exact planned peak comes nearest from below.

Policies round in their own ways: HeatKV drops whole head-scales, others cut to a number of tokens per head. So the
nominal budget is searched until the bytes are equal; what stays off by more than 1 % is said, not hidden.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from heatkv.budget import budget_from_tokens
from heatkv.errors import BudgetError
from kvscope.league.settings import FULL
from kvscope.plan import plan_job

if TYPE_CHECKING:
    from kvscope.league.settings import Settings

EQUAL = 0.01
"""Peaks within this share below their target count as equal bytes."""

_GROWTH = 1.25
_MOST_HALVINGS = 24
_SHIFTS = np.linspace(-0.03, 0.03, 31)

PeakOf = Callable[[float], int]
"""Nominal budget → exact peak in bytes. Raises BudgetError with the minimum."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """One policy at one target."""

    policy: str
    target_bytes: int | None
    """None: policy full, which has none."""
    budget: float | None
    """Nominal, as `kvscope run --budget` takes it; the policy's minimum where the target cannot be reached."""
    peak_bytes: int
    """Planned, exactly."""
    is_reachable: bool = True

    @property
    def below_target(self) -> float:
        """How far the peak is below its target, as a share of it; negative where the target cannot be reached."""
        return 0.0 if self.target_bytes is None else 1 - self.peak_bytes / self.target_bytes

    @property
    def is_equal(self) -> bool:
        """Whether it stands at its target, within 1 %."""
        return self.is_reachable and self.below_target <= EQUAL

    @property
    def remark(self) -> str:
        """What to know of its bytes; empty: nothing."""
        if not self.is_reachable:
            return "cannot: minimum"
        return "" if self.is_equal else f"{100 * self.below_target:.1f} % below"


def entrants(settings: Settings, *, narrate: Callable[[str], None] = lambda _: None) -> Iterator[Entrant]:
    """Full first, then each policy at each target, in the order given. Raises HeatKVError as plan_job does."""
    yield Entrant(FULL, None, None, settings.peak_bytes(plan_job(settings.job(FULL, None))))
    for policy in (name for name in settings.policies if name != FULL):
        narrate(f"planning {policy} for {len(settings.targets)} budgets")
        peak_of = _peaks(settings, policy)
        for target in settings.targets:
            yield _entrant(settings, policy, target, peak_of)


def nearest_budget(peak_of: PeakOf, limit: int, *, start: float) -> float:
    """The nominal budget with the largest peak found that is at most `limit` bytes.

    Raises BudgetError, with the least nominal budget, if even that one's peak is above the limit.
    """
    tried: dict[float, int] = {}

    def fits(budget: float) -> bool:
        try:
            tried[budget] = peak_of(budget)
        except BudgetError:
            return False
        return tried[budget] <= limit

    low = _feasible_start(peak_of, limit, start)
    tried[low] = peak_of(low)
    if tried[low] < limit:
        high = _too_large(fits, low)
        _halve(fits, low, high, tried, limit)
        _look_around(fits, tried, limit)
    return max((budget for budget, peak in tried.items() if peak <= limit), key=lambda budget: (tried[budget], -budget))


def _entrant(settings: Settings, policy: str, target: int, peak_of: PeakOf) -> Entrant:
    start = budget_from_tokens(target // settings.bytes_per_token, settings.config, settings.scales)
    try:
        budget = nearest_budget(peak_of, target, start=start)
    except BudgetError as error:
        return Entrant(policy, target, error.minimum, peak_of(error.minimum), is_reachable=False)
    return Entrant(policy, target, budget, peak_of(budget))


def _peaks(settings: Settings, policy: str) -> PeakOf:
    known: dict[float, int] = {}

    def peak_of(budget: float) -> int:
        if budget not in known:
            known[budget] = settings.peak_bytes(plan_job(settings.job(policy, budget)))
        return known[budget]

    return peak_of


def _feasible_start(peak_of: PeakOf, limit: int, start: float) -> float:
    """`start`, or the policy's minimum, whichever it can plan and fits. Raises BudgetError with the minimum."""
    with contextlib.suppress(BudgetError):
        if peak_of(start) <= limit:
            return start
    least = _minimum(peak_of)
    if peak_of(least) > limit:
        raise BudgetError(f"no budget of this policy stays within {limit:,} bytes", minimum=least)
    return least


def _minimum(peak_of: PeakOf) -> float:
    try:
        peak_of(0.0)
    except BudgetError as error:
        return error.minimum
    return 0.0


def _too_large(fits: Callable[[float], bool], low: float) -> float:
    high = low
    while high < 1:
        high = min(1.0, max(high * _GROWTH, math.nextafter(high, 2)))
        if not fits(high):
            return high
    return 1.0


def _halve(fits: Callable[[float], bool], low: float, high: float, tried: dict[float, int], limit: int) -> None:
    for _ in range(_MOST_HALVINGS):
        middle = (low + high) / 2
        if limit in tried.values() or not low < middle < high:
            return
        if fits(middle):
            low = middle
        else:
            high = middle


def _look_around(fits: Callable[[float], bool], tried: dict[float, int], limit: int) -> None:
    """A peak need not grow with the budget everywhere: budgets nearby are tried too."""
    best = max((budget for budget, peak in tried.items() if peak <= limit), key=lambda budget: tried[budget])
    for shift in _SHIFTS:
        if limit in tried.values():
            return
        budget = min(1.0, best * (1 + float(shift)))
        fits(budget)
