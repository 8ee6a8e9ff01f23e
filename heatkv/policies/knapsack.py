"""The knapsack planner: whenever the cache would exceed its budget, what is worth least per token goes.

Unlike HeatKV (arXiv 2605.14877) it chooses over all layers, heads and source scales at once, and judges a head-scale
after a step only by the attention that later steps pay to it: what earlier scales paid is past. Its scores are the
attention mass of every query scale, as a calibration holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from heatkv.errors import BudgetError, OrdersError
from heatkv.policies.full import keep_everything
from heatkv.policies.pinned import FREE, check_pins, no_pins
from heatkv.schedule import PruningSchedule, budget_tokens, check_budget, check_sink_scales

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig
    from heatkv.scales import ScaleSchedule

DEFAULT_EXPONENT = 1.5
"""Of the tokens that a head-scale's value is divided by: 1 is value per token, more prefers to drop large scales."""


@dataclass(frozen=True, slots=True, eq=False)
class KnapsackPolicy:
    """Drops head-scales by the attention to come that is lost per token freed."""

    mass: NDArray[np.floating]
    """[query_scale, layer, head, source_scale]: mean attention mass; NaN counts as none."""
    exponent: float = DEFAULT_EXPONENT
    weights: NDArray[np.floating] | None = None
    """[query_scale]: what a query scale counts; None: by its queries."""

    name: ClassVar[str] = "knapsack"
    frees_memory: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    def plan(
        self,
        config: ModelConfig,
        scales: ScaleSchedule,
        *,
        budget: float | None = None,
        sink_scales: int | None = None,
        pins: NDArray[np.int16] | None = None,
    ) -> PruningSchedule:
        """The schedule whose peak, after every step, is within the budget; sink_scales None: the first only.

        Raises BudgetError with the minimum if sinks and pins alone exceed it, OrdersError for scores of another shape.
        """
        sinks = min(1, scales.num_scales - 1) if sink_scales is None else sink_scales
        check_sink_scales(sinks, scales)
        feasible = check_budget(budget, scales, sinks)
        shape = (scales.num_scales, config.num_layers, config.num_heads, scales.num_scales)
        if self.mass.shape != shape:
            raise OrdersError(f"the attention mass has shape {list(self.mass.shape)}; this run needs {list(shape)}")
        pins = no_pins(config, scales) if pins is None else pins
        check_pins(pins, config, scales, sinks)
        drop_step = self._spent(budget_tokens(feasible, config, scales), config, scales, sinks, pins)
        weights = {} if self.weights is None else {"weights": [float(weight) for weight in self.weights]}
        provenance = {"exponent": self.exponent} | weights
        return PruningSchedule(drop_step, config.name, scales, sinks, self.name, budget, provenance)

    def _spent(
        self, limit: int, config: ModelConfig, scales: ScaleSchedule, sinks: int, pins: NDArray[np.int16]
    ) -> NDArray[np.int16]:
        """Go through the run step by step and drop what is worth least whenever more than `limit` is held."""
        tokens, num_layers = np.array(scales.tokens), config.num_layers
        paid = self._paid(scales)
        # [query_scale, ...]: what all query scales after it pay.
        later = np.flip(np.cumsum(np.flip(paid, axis=0), axis=0), axis=0) - paid
        price = tokens.astype(np.float64) ** self.exponent
        drop_step = keep_everything(config, scales)
        drop_step[pins != FREE] = pins[pins != FREE]
        held = np.zeros(drop_step.shape, dtype=np.bool_)
        able = np.broadcast_to(np.arange(scales.num_scales) >= sinks, drop_step.shape) & (pins == FREE)
        for query_scale in range(scales.num_scales - 1):
            for layer in range(num_layers):
                step = query_scale * num_layers + layer
                held[layer, :, query_scale] = True
                held &= (drop_step > step) | (drop_step == num_layers * scales.num_scales - 1)
                excess = int((held.sum(axis=(0, 1)) * tokens).sum()) - limit
                if excess <= 0:
                    continue
                worth = later[query_scale].copy()
                worth[layer + 1 :] += paid[query_scale, layer + 1 :]
                chosen = _cheapest(worth / price, held & able, tokens, excess)
                if chosen is None:
                    raise _too_little(excess + limit, limit, step, config, scales)
                drop_step[chosen] = step
                held &= ~chosen
        return drop_step

    def _paid(self, scales: ScaleSchedule) -> NDArray[np.float64]:
        """What each query scale pays to each head-scale, weighted: [query_scale, layer, head, source_scale]."""
        queries = np.array(scales.tokens, np.float64)
        weights = queries / queries.sum() if self.weights is None else np.asarray(self.weights, np.float64)
        paid: NDArray[np.float64] = np.nan_to_num(np.asarray(self.mass, np.float64)) * weights[:, None, None, None]
        return paid


def _cheapest(
    worth: NDArray[np.float64], able: NDArray[np.bool_], tokens: NDArray[np.int64], excess: int
) -> NDArray[np.bool_] | None:
    """The least worthy of what can be dropped, just enough to free `excess` tokens; None: all of it is not enough.

    What is chosen but not needed, because something larger came after it, is kept: the most worthy first.
    """
    places = np.flatnonzero(able)
    order = places[np.argsort(worth.ravel()[places], kind="stable")]
    freed = tokens[order % len(tokens)]
    total = np.cumsum(freed)
    if not len(total) or total[-1] < excess:
        return None
    count = int(np.searchsorted(total, excess)) + 1
    taken, spare = order[:count].tolist(), int(total[count - 1]) - excess
    kept = set()
    for place in reversed(taken[:-1]):
        size = int(tokens[place % len(tokens)])
        if size <= spare:
            kept.add(place)
            spare -= size
    chosen = np.zeros(able.size, dtype=np.bool_)
    chosen[[place for place in taken if place not in kept]] = True
    return chosen.reshape(able.shape)


def _too_little(needed: int, limit: int, step: int, config: ModelConfig, scales: ScaleSchedule) -> BudgetError:
    history = scales.history_tokens * config.num_layers * config.num_heads
    place = f"scale {step // config.num_layers}, layer {step % config.num_layers}"
    return BudgetError(
        f"the budget allows {limit:,} head-tokens, sinks and pins alone need about {needed:,} after {place}; "
        "clear pins, lower the sink scales, or raise the budget",
        minimum=needed / history,
    )
