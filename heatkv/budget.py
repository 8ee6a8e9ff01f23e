"""Budgets: what a fraction of the history means, in tokens and in bytes, and which fractions can be met.

A budget bounds the peak of the tokens held, counted after each layer's write and eviction, as a fraction of the
history: the tokens of all scales but the last, over all layers and heads. No other place says what 100 % is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from heatkv import head_codecs
from heatkv.errors import BudgetError, ScheduleError

if TYPE_CHECKING:
    from heatkv.config import ModelConfig
    from heatkv.scales import ScaleSchedule

BUDGET_TOLERANCE = 1e-12
"""Budgets this close below a whole number of tokens, or below the minimum, count as reaching it."""


def full_history_tokens(config: ModelConfig, scales: ScaleSchedule) -> int:
    """Tokens of all scales but the last, over all layers and heads: the denominator of every budget."""
    return config.num_layers * config.num_heads * scales.history_tokens


def budget_tokens(budget: float, config: ModelConfig, scales: ScaleSchedule) -> int:
    """The most tokens, over all layers and heads, that a budget allows after any step.

    Multiplied in the order of the reference planner, then floored with BUDGET_TOLERANCE, because a product that
    comes out a hair below a whole number would forbid the very schedule that the budget was computed for.
    """
    return allowed_tokens(budget, config.num_layers, config.num_heads, scales)


def allowed_tokens(budget: float, num_layers: int, num_heads: int, scales: ScaleSchedule) -> int:
    """As budget_tokens."""
    threshold = budget * num_layers * num_heads * scales.history_tokens
    return math.floor(threshold + BUDGET_TOLERANCE * num_layers * num_heads * scales.history_tokens)


def budget_bytes(
    budget: float, config: ModelConfig, scales: ScaleSchedule, *, dtype_bytes: int = 2, rows: int = 2
) -> int:
    """The bytes of K and V that a budget allows; `rows`: batch rows cached, 2 per image with guidance."""
    return budget_tokens(budget, config, scales) * config.kv_bytes_per_token(dtype_bytes=dtype_bytes, rows=rows)


def budget_from_tokens(tokens: int, config: ModelConfig, scales: ScaleSchedule) -> float:
    """The budget, at most 1.0, that allows this many tokens over all layers and heads."""
    return min(1.0, tokens / full_history_tokens(config, scales))


def budget_from_bytes(
    num_bytes: int, config: ModelConfig, scales: ScaleSchedule, *, dtype_bytes: int = 2, rows: int = 2
) -> float:
    """The budget, at most 1.0, that fits in this many bytes of K and V."""
    tokens = num_bytes // config.kv_bytes_per_token(dtype_bytes=dtype_bytes, rows=rows)
    return budget_from_tokens(tokens, config, scales)


def codec_budget(
    budget: float, codec: str, config: ModelConfig, scales: ScaleSchedule, *, sink_scales: int, dtype_bytes: int
) -> float:
    """The budget in tokens, at most 1.0, whose bytes are within `budget` if all but the sinks are in this codec.

    `budget`: of the history's bytes in the model's dtype. Too little for the sinks: `budget` itself, still too little.
    """
    sinks = sum(scales.tokens[:sink_scales]) * config.num_layers * config.num_heads
    allowed = budget_tokens(budget, config, scales)
    if allowed < sinks:
        return budget
    bought = head_codecs.tokens_bought(allowed, sinks, codec, head_dim=config.head_dim, dtype_bytes=dtype_bytes)
    return budget_from_tokens(bought, config, scales)


def minimum_budget(scales: ScaleSchedule, sink_scales: int) -> float:
    """The least budget that any schedule can meet: the sink scales' share of the history."""
    return sum(scales.tokens[:sink_scales]) / scales.history_tokens


def check_budget(budget: float | None, scales: ScaleSchedule, sink_scales: int) -> float:
    """The budget, raised to the minimum if rounding alone put it below. Raises BudgetError with the minimum."""
    minimum = minimum_budget(scales, sink_scales)
    if budget is None or not 0 <= budget <= 1:
        found = "no budget (--budget), which this policy needs" if budget is None else f"budget {budget}"
        raise BudgetError(f"{found}; expected a fraction of history, {_minimum_text(minimum)} to 1", minimum=minimum)
    if budget < minimum - BUDGET_TOLERANCE:
        sink_tokens, history = sum(scales.tokens[:sink_scales]), scales.history_tokens
        raise BudgetError(
            f"budget {budget:.8g} is below the minimum {_minimum_text(minimum)}: the {sink_scales} sink scales are "
            f"never evicted and take {sink_tokens} of {history} history tokens in every head; "
            "raise the budget or lower the sink scales",
            minimum=minimum,
        )
    return max(budget, minimum)


def check_sink_scales(sink_scales: int, scales: ScaleSchedule) -> None:
    """Raises ScheduleError unless 0 <= sink_scales < num_scales (the last scale is never cached)."""
    if not 0 <= sink_scales < scales.num_scales:
        raise ScheduleError(f"{sink_scales} sink scales; expected 0 to {scales.num_scales - 1} for {scales.in_words}")


def _minimum_text(minimum: float) -> str:
    # Rounded up, so that the printed number is itself feasible.
    rounded = math.ceil(minimum * 1e8) / 1e8
    return f"{rounded:.8g} ({rounded * 100:.6g} %)"
