"""AMS-KV: the condensed first scales and the local last scales stay; layers that demand more cache get more.

Source: Xu et al., arXiv 2511.16047 (AAAI 2026); no code was to be had. As in the paper: the first two scales always
stay, then the most recent ones; layers whose keys and values are least alike from scale to scale demand more.
Deviations, ours: made for class-conditional VAR there, ported here; the number of local scales is not fixed but what
the capacity holds, and of the oldest of them tokens far apart on the map stay, so that bytes are equal; the half of
the layers with least similarity gets twice the capacity of the others (the paper's numbers are for other models); what
a layer cannot take goes to others. Nothing is looked at during the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from heatkv.online import by_shares
from heatkv.policies import check_parameter
from heatkv.policies.tokens import TokenPolicy, spread_order

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from heatkv.config import ModelConfig
    from heatkv.measurements import Measurements
    from heatkv.scales import ScaleSchedule
    from heatkv.seen import Seen


@dataclass(frozen=True, slots=True)
class AMSKVPolicy(TokenPolicy):
    """Keeps the first scales and the last, more of the last in layers whose scales differ."""

    measurements: Measurements
    demanding: float = 0.5
    """Share of layers that demand more."""
    extra: float = 2.0
    """Their capacity, as a multiple of the others'."""

    name: ClassVar[str] = "amskv"
    needs: ClassVar[tuple[str, ...]] = ("kv_similarity",)
    default_sinks: ClassVar[int | None] = 2

    def __post_init__(self) -> None:
        check_parameter(self, "demanding", least=0, most=1)
        check_parameter(self, "extra", least=1, most=1e6)

    def capacities(
        self, mean: float, config: ModelConfig, scales: ScaleSchedule, sink_scales: int
    ) -> NDArray[np.float64]:
        self.measurements.require(self.needs, config, scales)
        shares = np.where(self._demanding_layers(), self.extra, 1.0)
        shape = (scales.num_scales, config.num_layers, config.num_heads)
        return by_shares(mean, np.broadcast_to(shares[:, None], shape), scales)

    def _demanding_layers(self) -> NDArray[np.bool_]:
        similarity = self.measurements.kv_similarity
        assert similarity is not None  # required when planning
        mean = np.nan_to_num(similarity).sum(axis=1) / np.maximum(np.isfinite(similarity).sum(axis=1), 1)
        demands = np.zeros(len(mean), dtype=np.bool_)
        demands[np.argsort(mean, kind="stable")[: round(self.demanding * len(mean))]] = True
        return demands

    def scores(self, seen: Seen) -> Tensor:
        # Deferred: planning needs no torch.
        import torch

        behind = np.concatenate([spread_order(count) / count for count in seen.scales.tokens])
        return seen.source_scales - torch.from_numpy(behind).to(seen.tokens.device)[seen.tokens]
