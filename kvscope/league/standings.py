"""Standings: means over prompts with 95 % confidence intervals, and differences from one policy, prompt by prompt.

Seeds of one prompt are averaged first: the interval is of prompts. Equal pictures count as EQUAL_DB, so that a mean of
PSNR stays finite. Pure numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.errors import UnknownNameError
from kvscope.league.table import MEASURES

if TYPE_CHECKING:
    from kvscope.league.entrants import Entrant
    from kvscope.league.table import League

EQUAL_DB = 68.13
"""PSNR of a squared error of 0.01: what is more alike counts as this."""

_NORMAL = 1.959964


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over prompts; `half`: half the width of its 95 % confidence interval, NaN for one prompt."""

    value: float
    half: float
    prompts: int

    def to_json(self) -> dict[str, float | int | None]:
        """NaN as None."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Standing:
    """One entrant in numbers; bytes are the most over its rows."""

    entrant: Entrant
    runs: int
    accounted_bytes: int | None
    stored_bytes: int | None
    pool_bytes: int | None
    allocator_bytes: int | None
    seconds: float
    """Median over runs."""
    time_ratio: float
    """Median over runs of the free run's seconds over full's, same prompt, same process."""
    means: dict[str, Mean]
    """By the names of MEASURES, those that were measured."""
    kl_by_scale: tuple[Mean, ...]
    differences: dict[str, Mean]
    """This minus the policy of `against` at the same target, over the prompts that both have."""

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        plain = {name: getattr(self, name) for name in ("runs", "accounted_bytes", "stored_bytes", "pool_bytes")}
        times = {name: _none_if_nan(getattr(self, name)) for name in ("seconds", "time_ratio")}
        entrant = asdict(self.entrant) | {"is_equal": self.entrant.is_equal, "below_target": self.entrant.below_target}
        return (
            entrant
            | plain
            | times
            | {
                "allocator_bytes": self.allocator_bytes,
                "means": {name: mean.to_json() for name, mean in self.means.items()},
                "kl_by_scale": [mean.to_json() for mean in self.kl_by_scale],
                "differences": {name: mean.to_json() for name, mean in self.differences.items()},
            }
        )


def standings(league: League, *, against: str | None = None) -> list[Standing]:
    """Every entrant, largest target first. Raises UnknownNameError if `against` takes no part."""
    policies = {one.policy for one in league.entrants}
    if against is not None and against not in policies:
        raise UnknownNameError("policy of this league", against, sorted(policies))
    made = [_standing(league, index, _rival(league, index, against)) for index in range(len(league.entrants))]
    return sorted(made, key=lambda one: -(one.entrant.target_bytes or math.inf))


def mean_over_prompts(values: dict[tuple[int, int], float]) -> Mean | None:
    """Of (prompt, seed) → value; None: nothing was measured."""
    by_prompt: dict[int, list[float]] = {}
    for (prompt, _), value in values.items():
        if not math.isnan(value):
            by_prompt.setdefault(prompt, []).append(value)
    if not by_prompt:
        return None
    means = np.array([np.mean(one) for one in by_prompt.values()])
    count = len(means)
    half = quantile(count - 1) * float(means.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Mean(float(means.mean()), half, count)


def quantile(freedom: int) -> float:
    """The 97.5 % point of Student's t, by its expansion around the normal's; within 0.01 from 3 degrees on."""
    z = _NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom ** (power + 1) for power, term in enumerate(terms))


def _standing(league: League, index: int, rival: int | None) -> Standing:
    rows = [row for row in league.rows if row.entrant == index]
    means = {name: _values(league, index, name) for name in MEASURES}
    scales = range(league.settings.scales.num_scales)
    by_scale = [mean_over_prompts({(row.prompt, row.seed): row.kl_by_scale[scale] for row in rows}) for scale in scales]
    return Standing(
        league.entrants[index],
        len(rows),
        _most(row.numbers.get("accounted_peak_bytes") for row in rows),
        _most(row.numbers.get("stored_peak_bytes") for row in rows),
        _most(row.numbers.get("pool_bytes") for row in rows),
        _most(row.numbers.get("allocator_peak_bytes") for row in rows),
        _median([row.numbers["seconds"] for row in rows]),
        _median([row.numbers["seconds"] / row.numbers["full_seconds"] for row in rows]),
        _measured(means),
        tuple(mean for mean in by_scale if mean is not None),
        {} if rival is None else _measured({name: _minus(means[name], _values(league, rival, name)) for name in means}),
    )


def _rival(league: League, index: int, against: str | None) -> int | None:
    """Who an entrant is compared with: that policy at the same target; None: itself, or nobody."""
    target = league.entrants[index].target_bytes
    for other, one in enumerate(league.entrants):
        if one.policy == against and one.target_bytes == target and other != index:
            return other
    return None


def _values(league: League, index: int, name: str) -> dict[tuple[int, int], float]:
    values = league.numbers(index, name)
    return {place: min(value, EQUAL_DB) for place, value in values.items()} if name == "psnr" else values


def _minus(ours: dict[tuple[int, int], float], theirs: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    return {place: value - theirs[place] for place, value in ours.items() if place in theirs}


def _measured(values: dict[str, dict[tuple[int, int], float]]) -> dict[str, Mean]:
    means = {name: mean_over_prompts(one) for name, one in values.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan


def _most(values: Iterable[float | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(max(known)) if known else None


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
