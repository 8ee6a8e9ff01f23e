"""HACK: contextual heads keep few tokens, those most attended to; structural heads many, the first and newest first.

Source: arXiv 2504.09261 (AAAI 2026), from summaries; no code was to be had. As in the paper: heads are classed by
the variance of attention columns at the last scale, summed over columns, the lowest share of all heads contextual;
scores are the attention of 32 uniform queries; structural heads always keep the first two scales and, as far as they
fit, the newest scale, and fill up by score. Deviations, each ours:
- the share of contextual heads for Infinity is not known to us: one half;
- so are the two budgets: contextual heads get a fifth of what structural heads get, as the paper's remarks (90 % and
  50 % compression) say; both are solved so that the mean head keeps the budget, and what a head cannot take goes on;
- where a structural head has no room for the whole newest scale, its best tokens by score stay: the paper is silent;
- attention reads everything that is stored and the whole current scale, then the rest is evicted. The paper evicts
  before attention, which also saves time but reads less: here the rival has the advantage;
- the tokens dropped at the last scale are not merged into others: the last scale is never cached here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from heatkv.online import by_shares
from heatkv.policies import MOST_QUERIES, check_parameter
from heatkv.policies.tokens import TokenPolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from heatkv.config import ModelConfig
    from heatkv.measurements import Measurements
    from heatkv.scales import ScaleSchedule
    from heatkv.seen import Seen

_FIRST_SCALES = 2
"""That structural heads always keep."""


@dataclass(frozen=True, slots=True)
class HACKPolicy(TokenPolicy):
    """Keeps few tokens of contextual heads and many of structural ones."""

    measurements: Measurements
    alpha: float = 0.5
    """Share of all heads that is contextual."""
    contextual: float = 0.2
    """Capacity of a contextual head, as a share of a structural one's."""
    observed: int = 32
    """Queries whose attention is looked at."""

    name: ClassVar[str] = "hack"
    needs: ClassVar[tuple[str, ...]] = ("column_variance",)
    default_sinks: ClassVar[int | None] = 0

    def __post_init__(self) -> None:
        for name in ("alpha", "contextual"):
            check_parameter(self, name, least=0, most=1)
        check_parameter(self, "observed", least=1, most=MOST_QUERIES)

    def capacities(
        self, mean: float, config: ModelConfig, scales: ScaleSchedule, sink_scales: int
    ) -> NDArray[np.float64]:
        self.measurements.require(self.needs, config, scales)
        shares = np.where(contextual_heads(self.measurements, self.alpha), self.contextual, 1.0)
        return by_shares(mean, np.broadcast_to(shares, (scales.num_scales, *shares.shape)), scales)

    def scores(self, seen: Seen) -> Tensor:
        attention = seen.chances(seen.uniform_queries(self.observed)).mean(2)
        structural = ~seen.of_heads(contextual_heads(self.measurements, self.alpha))
        source = seen.source_scales
        newest, first = source == seen.query_scale, source < _FIRST_SCALES
        preferred = newest.float() + 2 * first.float()  # attention is at most 1
        return attention + preferred * structural[:, None]


def contextual_heads(measurements: Measurements, alpha: float) -> NDArray[np.bool_]:
    """[layer, head]: the share `alpha` of all heads whose attention columns vary least over queries."""
    variance = measurements.column_variance
    assert variance is not None  # required when planning
    contextual = np.zeros(variance.size, dtype=np.bool_)
    contextual[np.argsort(variance, axis=None, kind="stable")[: round(alpha * variance.size)]] = True
    return contextual.reshape(variance.shape)
