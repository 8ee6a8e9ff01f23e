"""OnlinePlan: how many tokens a policy that chooses during the run may keep, known before the run to the last byte.

An online policy decides *which* tokens stay while the run goes on; *how many* is planned here, so that the pool is as
large as it has to be and no step exceeds the budget. numpy only: planning needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.errors import BudgetError, ScheduleError
from heatkv.policies.full import keep_everything
from heatkv.schedule import (
    PruningSchedule,
    after_steps,
    budget_tokens,
    check_budget,
    check_sink_scales,
    full_history_tokens,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig
    from heatkv.policies import OnlinePolicy
    from heatkv.scales import ScaleSchedule

_BISECTIONS = 48


@dataclass(frozen=True, slots=True, eq=False)
class OnlinePlan:
    """What an online policy is held to, for one model and one set of scales."""

    policy: OnlinePolicy
    config: ModelConfig
    scales: ScaleSchedule
    sink_scales: int
    """The first scales, never evicted."""
    capacity: NDArray[np.int32]
    """[query_scale, layer, head]: the most tokens a head keeps after its step, in each row; at least the sinks.
    Read-only."""
    budget: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)  # Any: JSON values

    def __post_init__(self) -> None:
        capacity = np.array(self.capacity, dtype=np.int32)
        shape = (self.scales.num_scales, self.config.num_layers, self.config.num_heads)
        if capacity.shape != shape:
            raise ScheduleError(f"capacities have shape {list(capacity.shape)}; expected {list(shape)}")
        capacity.flags.writeable = False
        object.__setattr__(self, "capacity", capacity)

    @property
    def layer_tokens(self) -> NDArray[np.int64]:
        """Head-tokens of each layer after its step: [query_scale, layer]."""
        return _held(self.capacity, self.scales, shares_layer=self.policy.shares_layer)

    def tokens_held(self) -> NDArray[np.int64]:
        """Head-tokens of all layers after each step: [num_steps]; exact, whatever the policy chooses."""
        return after_steps(self.layer_tokens)

    @property
    def peak_tokens(self) -> int:
        return int(self.tokens_held().max())

    def bound(self) -> PruningSchedule:
        """What the run can hold at most, as a schedule: nothing leaves by plan, what does is the policy's choice; how
        many tokens each layer holds is known."""
        return PruningSchedule(
            keep_everything(self.config, self.scales),
            self.config.name,
            self.scales,
            self.sink_scales,
            self.policy.name,
            self.budget,
            self.provenance | {"carries": self.policy.carries},
            layer_tokens=self.layer_tokens.astype(np.int32),
        )


Capacities = Callable[[float], "NDArray[np.float64]"]
"""Mean tokens of a head → tokens that each head may keep, [query_scale, layer, head]; more for more."""


def fitted(
    policy: OnlinePolicy,
    capacities: Capacities,
    config: ModelConfig,
    scales: ScaleSchedule,
    *,
    budget: float | None,
    sink_scales: int,
) -> OnlinePlan:
    """The plan with the largest capacities of this shape whose peak, after every step, is within the budget.

    A layer grows before those after it shrink, so a mean that fits at the end of a scale may not fit within it: the
    mean is searched for. Raises BudgetError with the minimum if the sinks alone exceed it.
    """
    check_sink_scales(sink_scales, scales)
    feasible = check_budget(budget, scales, sink_scales)
    limit = budget_tokens(feasible, config, scales)
    least = sum(scales.tokens[:sink_scales])

    def whole(mean: float) -> NDArray[np.int32]:
        return np.maximum(_whole(capacities(mean)), least).astype(np.int32)

    def peak(capacity: NDArray[np.int32]) -> int:
        return int(after_steps(_held(capacity, scales, shares_layer=policy.shares_layer)).max())

    low, high = 0.0, float(scales.history_tokens)
    best = whole(low)
    if peak(best) > limit:
        minimum = peak(best) / full_history_tokens(config, scales)
        raise BudgetError(
            f"budget {budget:.8g} is below {minimum:.8g}, the least that policy {policy.name} can keep; "
            "raise the budget, or lower the sink scales",
            minimum=minimum,
        )
    if peak(whole(high)) <= limit:
        low, best = high, whole(high)
    for _ in range(_BISECTIONS):
        mean = (low + high) / 2
        tried = whole(mean)
        if peak(tried) <= limit:
            low, best = mean, tried
        else:
            high = mean
    provenance = {"parameters": policy.parameters(), "rows": policy.rows, "mean_tokens": round(low, 4)}
    return OnlinePlan(policy, config, scales, sink_scales, best, budget, provenance)


def _whole(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers that differ by less than 1 from these, and whose sum in every scale is theirs, rounded down."""
    flat = values.reshape(len(values), -1)
    totals = np.floor(np.cumsum(flat, axis=1) + 1e-9).astype(np.int64)
    whole: NDArray[np.int64] = np.diff(totals, axis=1, prepend=0).reshape(values.shape)
    return whole


def _held(capacity: NDArray[np.integer], scales: ScaleSchedule, *, shares_layer: bool) -> NDArray[np.int64]:
    """Head-tokens of each layer after its step: [query_scale, layer]; the last scale adds nothing and takes nothing."""
    limit = capacity.sum(axis=2, keepdims=True) if shares_layer else capacity
    added = np.array(scales.tokens) * (capacity.shape[2] if shares_layer else 1)
    held, now = [], np.zeros(limit.shape[1:], np.int64)
    for scale in range(scales.num_scales - 1):
        now = np.minimum(limit[scale], now + added[scale])
        held.append(now.sum(axis=1))
    return np.array([*held, held[-1] if held else now.sum(axis=1)], np.int64)


def mean_capacity(mean: float, config: ModelConfig, scales: ScaleSchedule) -> NDArray[np.float64]:
    """The same for every head of every layer, at every scale: [query_scale, layer, head]."""
    return np.full((scales.num_scales, config.num_layers, config.num_heads), mean)


def spread(total: float, shares: NDArray[np.float64], most: float) -> NDArray[np.float64]:
    """`total` dealt out in proportion to `shares`, to none more than `most`: what one cannot take the others get."""
    dealt = np.zeros(shares.shape)
    open_ = np.ones(shares.shape, bool)
    left = min(total, most * shares.size)
    while left > 1e-9 and open_.any():
        weights = np.where(open_, shares, 0.0)
        if weights.sum() <= 0:
            weights = open_.astype(np.float64)
        dealt = dealt + left * weights / weights.sum()
        over = np.maximum(dealt - most, 0)
        dealt, left = np.minimum(dealt, most), float(over.sum())
        open_ = dealt < most - 1e-9
    return dealt


def square_side(count: int) -> int:
    """The side of the largest square of at most `count` cells."""
    return math.isqrt(max(count, 0))
