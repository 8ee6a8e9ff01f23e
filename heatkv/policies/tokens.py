"""TokenPolicy: what online policies that keep equally many tokens of every head have in common."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from heatkv.online import OnlinePlan, fitted, mean_capacity
from heatkv.policies import Rows, parameters

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from heatkv.config import ModelConfig
    from heatkv.scales import ScaleSchedule
    from heatkv.seen import Seen


class TokenPolicy:
    """A policy is one of these with a `name` and `scores`; others of its shape are what it says otherwise."""

    __slots__ = ()
    name: ClassVar[str]
    frees_memory: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    rows: ClassVar[Rows] = "each"
    shares_layer: ClassVar[bool] = False
    floor: ClassVar[float] = 0.0
    carries: ClassVar[bool] = False
    default_sinks: ClassVar[int | None] = None
    """Sink scales where the user says nothing; None: the model's."""

    def parameters(self) -> dict[str, Any]:  # Any: numbers and texts
        return parameters(self)

    def plan(
        self,
        config: ModelConfig,
        scales: ScaleSchedule,
        *,
        budget: float | None = None,
        sink_scales: int | None = None,
    ) -> OnlinePlan:
        """The plan whose peak, after every step, is within the budget. Raises BudgetError with the minimum."""
        sinks = sink_scales
        if sinks is None:
            usual = config.sink_scales if self.default_sinks is None else self.default_sinks
            sinks = min(usual, scales.num_scales - 1)
        return fitted(
            self,
            lambda mean: self.capacities(mean, config, scales, sinks),
            config,
            scales,
            budget=budget,
            sink_scales=sinks,
        )

    def capacities(
        self, mean: float, config: ModelConfig, scales: ScaleSchedule, sink_scales: int
    ) -> NDArray[np.float64]:
        """Tokens that each head may keep, [query_scale, layer, head], if the mean head keeps `mean`."""
        return mean_capacity(mean, config, scales)

    def carry(self, seen: Seen) -> Tensor:
        """See OnlinePolicy; only asked of policies that carry."""
        raise NotImplementedError

    def scores(self, seen: Seen) -> Tensor:
        """Of every candidate, [R, G, T]: the highest stay."""
        raise NotImplementedError


@functools.cache
def spread_order(count: int) -> NDArray[np.int64]:
    """[count]: a rank for each place, such that the places of the lowest few ranks, however few, lie far apart.

    Ranks of the fractions of multiples of the golden ratio. Read-only: it is cached.
    """
    fractions = np.arange(count) * 0.6180339887498949 % 1
    order = fractions.argsort(kind="stable").argsort(kind="stable")
    order.flags.writeable = False
    return order
