"""The HeatKV planner: a pruning schedule from head orders and a budget (arXiv 2605.14877).

At each scale the same number of heads is removed from every source scale, least needed first, just enough for
the budget. Where the cache would still exceed it inside a scale, because later layers hold what they are about
to lose, their head-scales go before they are read: early activation, last layer first.

Agrees with the reference implementation drop by drop. It differs in one thing: a budget that is the minimum, or
a whole number of tokens, up to float rounding, counts as reaching it; the reference refuses some such budgets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from heatkv.budget import budget_tokens, check_budget, check_sink_scales
from heatkv.policies.full import keep_everything
from heatkv.schedule import PruningSchedule
from heatkv.steps import tokens_held

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig
    from heatkv.orders import HeadOrders
    from heatkv.scales import ScaleSchedule


@dataclass(frozen=True, slots=True)
class HeatKVPolicy:
    """Drops the heads that calibration found least needed, whole head-scales at a time."""

    orders: HeadOrders

    name: ClassVar[str] = "heatkv"
    frees_memory: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("orders",)

    def plan(
        self,
        config: ModelConfig,
        scales: ScaleSchedule,
        *,
        budget: float | None = None,
        sink_scales: int | None = None,
    ) -> PruningSchedule:
        """The schedule whose peak, after every step, is within the budget; sink_scales None: those of the orders.

        Raises BudgetError with the minimum if the sinks alone exceed the budget, or none is given; OrdersError
        if the orders are for another model or lack a source scale of this run.
        """
        sinks = min(self.orders.first_source, scales.num_scales - 1) if sink_scales is None else sink_scales
        self.orders.check_model(config)
        check_sink_scales(sinks, scales)
        feasible = check_budget(budget, scales, sinks)
        self.orders.require(range(sinks, scales.num_scales - 1))
        removed = removed_counts(feasible, scales, sinks, num_slots=config.num_layers * config.num_heads)
        drop_step, rank = _drops_at_scale_end(self.orders, config, scales, sinks, removed)
        limit = budget_tokens(feasible, config, scales)
        activate_early(drop_step, rank, scales, limit)
        assert tokens_held(drop_step, scales).max() <= limit, "the end of a scale fits, so every step of it can"
        return PruningSchedule(drop_step, config.name, scales, sinks, self.name, budget, self._provenance())

    def _provenance(self) -> dict[str, str | int]:
        return {
            "orders": self.orders.source,
            "orders_sha256": self.orders.content_hash,
            "orders_first_source": self.orders.first_source,
        }


def removed_counts(budget: float, scales: ScaleSchedule, sink_scales: int, *, num_slots: int) -> NDArray[np.int64]:
    """Heads (of all `num_slots` = layers × heads) gone from each source scale when a scale is done: [num_scales].

    The formula, and the order of its operations, are the reference's. The last scale removes nothing more.
    """
    sink_tokens = sum(scales.tokens[:sink_scales])
    allowed = max(budget * scales.history_tokens, sink_tokens)
    counts = []
    for cached in scales.offsets[1:-1]:
        if cached <= allowed:
            counts.append(0)
        else:
            counts.append(min(num_slots, math.ceil(num_slots * (cached - allowed) / (cached - sink_tokens))))
    return np.array([*counts, counts[-1]])


def _drops_at_scale_end(
    orders: HeadOrders, config: ModelConfig, scales: ScaleSchedule, sink_scales: int, removed: NDArray[np.int64]
) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """drop_step without early activation, and each head-scale's rank: both [layer, head, source_scale].

    A head-scale of rank r leaves after its own layer of the first scale, its own or later, that removes more than r.
    """
    num_layers, num_scales = config.num_layers, scales.num_scales
    drop_step = keep_everything(config, scales)
    rank = np.zeros(drop_step.shape, dtype=np.int64)
    flat_drop_step, flat_rank = drop_step.reshape(-1, num_scales), rank.reshape(-1, num_scales)
    for source_scale in range(sink_scales, num_scales - 1):
        slots = orders.for_source(source_scale)
        flat_rank[slots, source_scale] = np.arange(len(slots))
        drop_scale = np.maximum(source_scale, np.searchsorted(removed, np.arange(len(slots)), side="right"))
        leaves = drop_scale < num_scales
        leaving = slots[leaves]
        flat_drop_step[leaving, source_scale] = drop_scale[leaves] * num_layers + leaving // config.num_heads
    return drop_step, rank


def activate_early(
    drop_step: NDArray[np.int16],
    rank: NDArray[np.int64],
    scales: ScaleSchedule,
    limit: int,
    *,
    free: NDArray[np.bool_] | None = None,
) -> None:
    """Lower drop_step in place where steps hold more than `limit` tokens over all layers and heads.

    At a step over the limit, head-scales that leave in later layers of the same scale go at once: last layer
    first, then the largest source scale, then the least needed. That order does not depend on the step, so what
    has gone by any layer is a prefix of one list, and running totals of its tokens tell how long a prefix. Where the
    end of every scale fits, every step of it then does. `free`: what may be lowered; None: everything.
    """
    num_layers, tokens = len(drop_step), np.array(scales.tokens)
    excess = tokens_held(drop_step, scales).reshape(-1, num_layers) - limit
    for scale in np.flatnonzero((excess[:-1] > 0).any(axis=1)):
        leaving = drop_step[:, :, :scale] // num_layers == scale
        layer, head, source_scale = np.nonzero(leaving if free is None else leaving & free[:, :, :scale])
        queue = np.lexsort((rank[layer, head, source_scale], -source_scale, -layer))
        layer, head, source_scale = layer[queue], head[queue], source_scale[queue]
        freed = np.cumsum(tokens[source_scale])
        needed = np.where(excess[scale] > 0, np.searchsorted(freed, excess[scale]) + 1, 0)
        gone_by_layer = np.maximum.accumulate(needed)
        drop_layer = np.searchsorted(gone_by_layer, np.arange(len(queue)), side="right")
        early = drop_layer < layer
        drop_step[layer[early], head[early], source_scale[early]] = scale * num_layers + drop_layer[early]
