"""Planning round pins: what a person has decided of single head-scales stays, a policy's ranking fills the rest.

A pin is the step after which a head-scale is freed, FREE where nothing is decided. Without pins the result is that of
HeatKVPolicy: the same number of heads goes from every source scale, least needed first, just enough for the budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from heatkv.budget import budget_tokens, full_history_tokens
from heatkv.errors import BudgetError, ScheduleError
from heatkv.policies.full import keep_everything
from heatkv.policies.heatkv import HeatKVPolicy, activate_early
from heatkv.steps import own_steps, tokens_held

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig
    from heatkv.orders import HeadOrders
    from heatkv.scales import ScaleSchedule

FREE = -1
"""The pin of a head-scale that nothing is decided of."""


def no_pins(config: ModelConfig, scales: ScaleSchedule) -> NDArray[np.int16]:
    """Pins [layer, head, source_scale] that decide nothing."""
    return np.full((config.num_layers, config.num_heads, scales.num_scales), FREE, dtype=np.int16)


def check_pins(pins: NDArray[np.int16], config: ModelConfig, scales: ScaleSchedule, sink_scales: int) -> None:
    """Raises ScheduleError, naming the cell, unless every pin is a step at which its head-scale can be freed."""
    last = config.num_layers * scales.num_scales - 1
    decided = pins != FREE
    first = np.broadcast_to(own_steps(config.num_layers, scales.num_scales)[:, None], pins.shape)
    wrong = decided & ((pins < first) | (pins > last))
    wrong[..., :sink_scales] |= decided[..., :sink_scales] & (pins[..., :sink_scales] != last)
    wrong[..., -1] |= decided[..., -1] & (pins[..., -1] != first[..., -1])
    if wrong.any():
        layer, head, source = (int(index[0]) for index in np.nonzero(wrong))
        reason = "is never cached" if source == scales.num_scales - 1 else "is not there yet, or never leaves"
        raise ScheduleError(
            f"layer {layer}, head {head}, source scale {source} is pinned to step {int(pins[layer, head, source])}, "
            f"where it {reason}; clear that pin"
        )


def plan_within(
    pins: NDArray[np.int16],
    orders: HeadOrders,
    config: ModelConfig,
    scales: ScaleSchedule,
    *,
    budget: float,
    sink_scales: int,
) -> NDArray[np.int16]:
    """drop_step [layer, head, source_scale] that obeys the pins and, after every step, the budget.

    Raises BudgetError, with the minimum and the place that needs it, if the pins and sinks alone exceed the budget.
    """
    check_pins(pins, config, scales, sink_scales)
    if not (pins != FREE).any():
        unpinned = HeatKVPolicy(orders).plan(config, scales, budget=budget, sink_scales=sink_scales)
        return unpinned.drop_step.copy()
    limit = budget_tokens(budget, config, scales)
    drop_step, free = _pinned_only(pins, config, scales, sink_scales)
    check_feasible(drop_step, free, scales, limit, budget)
    rank = _ranks(orders, free, scales)
    leaves_at = _leaving_scales(drop_step, free, rank, scales, limit)
    layer = np.broadcast_to(np.arange(config.num_layers)[:, None, None], drop_step.shape)
    going = free & (leaves_at < scales.num_scales)
    drop_step[going] = leaves_at[going] * config.num_layers + layer[going]
    activate_early(drop_step, rank, scales, limit, free=free)
    _free_where_pins_need_room(drop_step, free, rank, scales, limit)
    return drop_step


def check_feasible(
    drop_step: NDArray[np.int16], free: NDArray[np.bool_], scales: ScaleSchedule, limit: int, budget: float
) -> None:
    """Raises BudgetError if `limit` tokens are too few even when no free head-scale is ever kept."""
    held = tokens_held(_least(drop_step, free), scales)
    step = int(held.argmax())
    if held[step] > limit:
        history = scales.history_tokens * drop_step.shape[0] * drop_step.shape[1]
        minimum = float(held[step] / history)
        place = f"scale {step // len(drop_step)}, layer {step % len(drop_step)}"
        raise BudgetError(
            f"budget {budget:.8g} is below {minimum:.8g}: sinks and pins alone hold {int(held[step]):,} head-tokens "
            f"after {place}, and the budget allows {limit:,}; clear pins, lower the sink scales, or raise the budget",
            minimum=minimum,
        )


def _free(pins: NDArray[np.int16], sink_scales: int) -> NDArray[np.bool_]:
    """What a policy may decide: neither pinned, nor a sink, nor of the last scale."""
    free: NDArray[np.bool_] = pins == FREE
    free[..., :sink_scales] = False
    free[..., -1] = False
    return free


def _ranks(orders: HeadOrders, free: NDArray[np.bool_], scales: ScaleSchedule) -> NDArray[np.int64]:
    """The rank of each free head-scale among those of its source scale, the least needed first; others: 0."""
    rank = np.zeros(free.shape, np.int64)
    flat_free, flat_rank = free.reshape(-1, scales.num_scales), rank.reshape(-1, scales.num_scales)
    for source in range(scales.num_scales - 1):
        if flat_free[:, source].any():
            slots = orders.for_source(source)
            slots = slots[flat_free[slots, source]]
            flat_rank[slots, source] = np.arange(len(slots))
    return rank


def _leaving_scales(
    drop_step: NDArray[np.int16],
    free: NDArray[np.bool_],
    rank: NDArray[np.int64],
    scales: ScaleSchedule,
    limit: int,
) -> NDArray[np.int64]:
    """The scale at whose end each free head-scale goes: [layer, head, source_scale]; num_scales: it stays.

    After each scale the least needed `removed` of every source scale are gone, the least number that the limit allows.
    """
    num_layers, tokens = len(drop_step), np.array(scales.tokens)
    leaves_at = np.full(free.shape, scales.num_scales, np.int64)
    num_free = free.sum(axis=(0, 1))
    removed = 0
    for scale in range(scales.num_scales - 1):
        end = (scale + 1) * num_layers - 1
        stays = ~free & (drop_step > end)
        pinned_tokens = int((stays[..., : scale + 1].sum(axis=(0, 1)) * tokens[: scale + 1]).sum())
        while pinned_tokens + int((np.maximum(num_free - removed, 0)[: scale + 1] * tokens[: scale + 1]).sum()) > limit:
            removed += 1
        going = free & (rank < removed) & (leaves_at == scales.num_scales)
        going[..., scale + 1 :] = False
        leaves_at[going] = scale
    late = free & (rank < removed) & (leaves_at == scales.num_scales)
    source = np.broadcast_to(np.arange(scales.num_scales), free.shape)
    leaves_at[late] = source[late]
    return leaves_at


def _free_where_pins_need_room(
    drop_step: NDArray[np.int16],
    free: NDArray[np.bool_],
    rank: NDArray[np.int64],
    scales: ScaleSchedule,
    limit: int,
) -> None:
    """Lower drop_step in place at steps that are still over the limit: pins that leave late within a scale hold what
    the scale's end has room for. The least needed of what is held goes, the largest scales first."""
    tokens, num_layers = np.array(scales.tokens), len(drop_step)
    own = np.broadcast_to(own_steps(num_layers, scales.num_scales)[:, None], drop_step.shape)
    for step in np.flatnonzero(tokens_held(drop_step, scales) > limit):
        excess = int(tokens_held(drop_step, scales)[step]) - limit
        if excess <= 0:  # freed by an earlier step of this loop
            continue
        layer, head, source = np.nonzero(free & (own <= step) & (drop_step > step))
        queue = np.lexsort((-source, rank[layer, head, source]))
        count = int(np.searchsorted(np.cumsum(tokens[source[queue]]), excess)) + 1
        chosen = queue[:count]
        drop_step[layer[chosen], head[chosen], source[chosen]] = step


def least_budget(pins: NDArray[np.int16], config: ModelConfig, scales: ScaleSchedule, sink_scales: int) -> float:
    """The least fraction of history that pins and sinks alone need, at the step where they need most."""
    drop_step, free = _pinned_only(pins, config, scales, sink_scales)
    return float(tokens_held(_least(drop_step, free), scales).max() / full_history_tokens(config, scales))


def _pinned_only(
    pins: NDArray[np.int16], config: ModelConfig, scales: ScaleSchedule, sink_scales: int
) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """drop_step with what the pins decide and all else kept; and what they leave free."""
    drop_step, free = keep_everything(config, scales), _free(pins, sink_scales)
    decided = ~free & (pins != FREE)
    drop_step[decided] = pins[decided]
    return drop_step, free


def _least(drop_step: NDArray[np.int16], free: NDArray[np.bool_]) -> NDArray[np.int16]:
    """The same with every free head-scale read at its own step only, and never kept."""
    own = np.broadcast_to(own_steps(len(drop_step), drop_step.shape[2])[:, None], drop_step.shape)
    return np.where(free, own, drop_step).astype(np.int16)
