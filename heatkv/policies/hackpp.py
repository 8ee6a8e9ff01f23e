"""HACK++: capacities follow how much each layer's heads still rely on history; two signals for two classes of heads.

Source: arXiv 2606.08302, from summaries; no code was to be had. As in the paper: HACK's classes of heads; contextual
heads score tokens by the mean attention of uniform queries, max-pooled along the cache; structural heads by the
calibrated mass on a token's scale times the norm of its value, without a product of queries and keys; at each scale a
class of heads in a layer keeps in proportion to its mean reliance on history in later scales, to the power tau.
Deviations, ours:
- tau, the number of queries and the pool's width are not known to us: 1, 32 and 5; the share of contextual heads is
  HACK's here;
- the prior's normalisation is not known: mass on the scale, divided by its tokens, so that it is of one token;
- what a head cannot take goes on to others, so that the mean head keeps the budget;
- the paper's second, larger cut before attention, which saves time and reads less, is left out: attention reads
  everything that is stored and the whole current scale. Here the rival has the advantage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from heatkv.online import by_shares
from heatkv.policies import MOST_QUERIES, WIDEST_POOLING, check_parameter
from heatkv.policies.hack import contextual_heads
from heatkv.policies.tokens import TokenPolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from heatkv.config import ModelConfig
    from heatkv.measurements import Measurements
    from heatkv.scales import ScaleSchedule
    from heatkv.seen import Seen


@dataclass(frozen=True, slots=True)
class HACKPPPolicy(TokenPolicy):
    """Keeps as many tokens as a class of heads will rely on, chosen by attention or by prior and value."""

    measurements: Measurements
    alpha: float = 0.5
    """Share of all heads that is contextual."""
    tau: float = 1.0
    """Exponent of the reliance; 0: all heads alike."""
    observed: int = 32
    """Queries whose attention is looked at."""
    kernel: int = 5
    """Width of the pooling along the cache; 1: none."""

    name: ClassVar[str] = "hackpp"
    needs: ClassVar[tuple[str, ...]] = ("column_variance", "reliance")
    default_sinks: ClassVar[int | None] = 0

    def __post_init__(self) -> None:
        check_parameter(self, "alpha", least=0, most=1)
        check_parameter(self, "tau", least=0, most=10)
        check_parameter(self, "observed", least=1, most=MOST_QUERIES)
        check_parameter(self, "kernel", least=1, most=WIDEST_POOLING)

    def capacities(
        self, mean: float, config: ModelConfig, scales: ScaleSchedule, sink_scales: int
    ) -> NDArray[np.float64]:
        self.measurements.require(self.needs, config, scales)
        reliance = np.moveaxis(self.measurements.reliance(), -1, 0)
        shares = class_means(reliance, contextual_heads(self.measurements, self.alpha)) ** self.tau
        shares[-1] = shares[-2]  # nothing comes after the last scale, and nothing is evicted there
        return by_shares(mean, shares, scales)

    def scores(self, seen: Seen) -> Tensor:
        # Deferred: planning needs no torch.
        import torch

        contextual = seen.of_heads(contextual_heads(self.measurements, self.alpha))
        return torch.where(contextual[:, None], self._attention(seen), self._prior(seen))

    def _attention(self, seen: Seen) -> Tensor:
        # Deferred: planning needs no torch.
        from heatkv.seen import pooled

        return pooled(seen.chances(seen.uniform_queries(self.observed)).mean(2), self.kernel, "max")

    def _prior(self, seen: Seen) -> Tensor:
        mass = self.measurements.attention_mass
        assert mass is not None  # required when planning
        of_token = np.nan_to_num(mass[seen.query_scale]) / np.array(seen.scales.tokens)
        norm: Tensor = seen.values.float().norm(dim=-1)
        return seen.of_scales(seen.of_heads(of_token)) * norm


def class_means(values: NDArray[np.float64], contextual: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[query_scale, layer, head]: the mean of each head's class in its layer, from values of that shape."""
    means = np.zeros(values.shape)
    for members in (contextual, ~contextual):
        count = np.maximum(members.sum(axis=1, keepdims=True), 1)
        total = np.where(members, values, 0.0).sum(axis=2, keepdims=True)
        means += np.where(members, total / count, 0.0)
    return means
