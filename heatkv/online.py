"""OnlinePlan: how many tokens a policy that chooses during the run may keep, known before the run to the last byte.

An online policy decides *which* tokens stay while the run goes on; *how many* is planned here, so that the pool is as
large as it has to be and no step exceeds the budget. numpy only: planning needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.budget import budget_from_tokens, budget_tokens, check_budget, check_sink_scales, full_history_tokens
from heatkv.codecs import CODECS, MODEL
from heatkv.errors import BudgetError, ScheduleError
from heatkv.head_codecs import bytes_per_token
from heatkv.policies.full import keep_everything
from heatkv.schedule import PruningSchedule
from heatkv.steps import after_steps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig
    from heatkv.policies import OnlinePolicy
    from heatkv.scales import ScaleSchedule

_BISECTIONS = 32
"""Enough for a mean of 10 000 tokens to come out right to a thousandth of a head's token."""


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
    codec: str = MODEL
    """How all tokens are stored, sinks too, as which slot holds what changes; a name of CODECS."""

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

    def bytes_per_token(self, *, rows: int, dtype_bytes: int) -> int:
        """Of one head-token's key and value, in all rows."""
        return CODECS[self.codec].bytes_per_token(self.config.head_dim, rows=rows, dtype_bytes=dtype_bytes)

    def bound(self) -> PruningSchedule:
        """What the run can hold at most, as a schedule: nothing leaves by plan, what does is the policy's choice; how
        many tokens each layer holds is known."""
        kept = keep_everything(self.config, self.scales)
        return PruningSchedule(
            kept,
            self.config.name,
            self.scales,
            self.sink_scales,
            self.policy.name,
            self.budget,
            self.provenance | {"carries": self.policy.carries},
            layer_tokens=self.layer_tokens.astype(np.int32),
            codec=None if self.codec == MODEL else np.zeros_like(kept, np.uint8),
            codecs=() if self.codec == MODEL else (self.codec,),
        )


def plan_in_codec(
    policy: OnlinePolicy,
    codec: str,
    config: ModelConfig,
    scales: ScaleSchedule,
    *,
    budget: float | None,
    sink_scales: int | None,
    dtype_bytes: int,
) -> OnlinePlan:
    """The policy's plan for as many tokens of a codec as take the bytes that the budget allows in the model's dtype.

    `dtype_bytes`: of the model's numbers. Raises BudgetError with the minimum, of those bytes too.
    """
    if codec == MODEL or budget is None or not 0 <= budget <= 1:
        return policy.plan(config, scales, budget=budget, sink_scales=sink_scales)
    plain, coded = bytes_per_token((MODEL, codec), config.head_dim, rows=1, dtype_bytes=dtype_bytes).tolist()
    bought = budget_from_tokens(budget_tokens(budget, config, scales) * plain // coded, config, scales)
    try:
        plan = policy.plan(config, scales, budget=bought, sink_scales=sink_scales)
    except BudgetError as error:
        history = full_history_tokens(config, scales)
        minimum = math.ceil(round(error.minimum * history) * coded / plain) / history
        found = f"budget {budget:.8g} is below {minimum:.8g}, the least that policy {policy.name} can keep in {codec}"
        raise BudgetError(f"{found}; raise the budget, or lower the sink scales", minimum=minimum) from None
    return replace(plan, budget=budget, codec=codec)


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
    mean is searched for, first one for all scales, then a larger one for each that has room left, the last scale
    first, which has most readers. Raises BudgetError with the minimum if the sinks alone exceed the budget.
    """
    check_sink_scales(sink_scales, scales)
    feasible = check_budget(budget, scales, sink_scales)
    fit = _Fit(
        capacities,
        scales,
        least=sum(scales.tokens[:sink_scales]),
        limit=budget_tokens(feasible, config, scales),
        shares_layer=policy.shares_layer,
    )
    least = fit.peak(fit.whole(0.0))
    if least > fit.limit:
        minimum = least / full_history_tokens(config, scales)
        raise BudgetError(
            f"budget {budget:.8g} is below {minimum:.8g}, the least that policy {policy.name} can keep; "
            "raise the budget, or lower the sink scales",
            minimum=minimum,
        )
    capacity, means = fit.for_each_scale(*fit.for_all_scales())
    provenance = {"parameters": policy.parameters(), "rows": policy.rows, "mean_tokens": means}
    return OnlinePlan(policy, config, scales, sink_scales, capacity, budget, provenance)


@dataclass(frozen=True, slots=True)
class _Fit:
    """The search for the largest capacities of a shape that a limit has room for."""

    capacities: Capacities
    scales: ScaleSchedule
    least: int
    """Tokens that every head keeps at least."""
    limit: int
    """Head-tokens of all layers after any step."""
    shares_layer: bool

    def whole(self, mean: float) -> NDArray[np.int32]:
        return np.maximum(_whole(self.capacities(mean)), self.least).astype(np.int32)

    def held(self, capacity: NDArray[np.int32]) -> NDArray[np.int64]:
        """Head-tokens of all layers after each step: [query_scale, layer]."""
        layer_tokens = _held(capacity, self.scales, shares_layer=self.shares_layer)
        return after_steps(layer_tokens).reshape(layer_tokens.shape)

    def peak(self, capacity: NDArray[np.int32]) -> int:
        return int(self.held(capacity).max())

    def for_all_scales(self) -> tuple[NDArray[np.int32], float]:
        """The capacities of the largest mean that fits, and that mean."""
        low, high = 0.0, float(self.scales.history_tokens)
        best = self.whole(high)
        if self.peak(best) <= self.limit:
            return best, high
        best = self.whole(low)
        for _ in range(_BISECTIONS):
            mean = (low + high) / 2
            tried = self.whole(mean)
            if self.peak(tried) <= self.limit:
                low, best = mean, tried
            else:
                high = mean
        return best, low

    def for_each_scale(self, capacity: NDArray[np.int32], mean: float) -> tuple[NDArray[np.int32], list[float]]:
        """The same, larger at scales with room for another token of every head; and the mean of every scale."""
        means = [mean] * len(capacity)
        for scale in reversed(range(self.scales.num_scales - 1)):
            low, high = mean, float(self.scales.history_tokens)
            for _ in range(_BISECTIONS if self._has_room(capacity, scale) else 0):
                means[scale] = (low + high) / 2
                tried = capacity.copy()
                tried[scale] = self.whole(means[scale])[scale]
                if self.peak(tried) <= self.limit:
                    low, capacity = means[scale], tried
                else:
                    high = means[scale]
            means[scale] = low
        means[-1] = means[-2]
        capacity[-1] = capacity[-2]  # nothing is evicted at the last scale
        return capacity, [round(each, 4) for each in means]

    def _has_room(self, capacity: NDArray[np.int32], scale: int) -> bool:
        spare = self.limit - int(self.held(capacity)[scale].max())
        return spare >= capacity[scale].size and bool((capacity[scale] < self.scales.offsets[scale + 1]).any())


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
        if weights.sum() < np.finfo(np.float64).tiny:
            weights = open_.astype(np.float64)
        dealt = dealt + left * (weights / weights.sum())
        over = np.maximum(dealt - most, 0)
        dealt, left = np.minimum(dealt, most), float(over.sum())
        open_ = dealt < most - 1e-9
    return dealt


def by_shares(mean: float, shares: NDArray[np.float64], scales: ScaleSchedule) -> NDArray[np.float64]:
    """Capacities [query_scale, layer, head] in proportion to `shares`, of the same shape, `mean` on average.

    No head gets more than there is: what it cannot take goes to the others of its scale.
    """
    cached = [*scales.offsets[1:-1], scales.offsets[-2]]
    return np.stack([spread(mean * one.size, one, most) for one, most in zip(shares, cached, strict=True)])
