"""PyramidKV: SnapKV's choice, with capacities that fall linearly from the first layer to the last.

Source: Cai et al., arXiv 2406.02069; from `2 * mean - least` at the first layer to `least = mean / beta` at the last.
Deviations: those of SnapKV here (a grid of observing queries, whose own tokens compete like others, so no window is
set apart from the capacities); a layer that is given more than there is passes the rest on to the others, where the
paper's loses it, so that all policies use equal bytes. No sinks, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from heatkv.online import by_shares
from heatkv.policies import MOST_QUERIES, WIDEST_POOLING, check_parameter
from heatkv.policies.snapkv import observed
from heatkv.policies.tokens import TokenPolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from heatkv.config import ModelConfig
    from heatkv.scales import ScaleSchedule
    from heatkv.seen import Seen


@dataclass(frozen=True, slots=True)
class PyramidKVPolicy(TokenPolicy):
    """Keeps the tokens with most attention from observing queries, more of them in early layers."""

    beta: float = 20.0
    """The last layer keeps 1/beta of the mean; 1: all layers alike."""
    window: int = 16
    """Observing queries; a square number lies on a grid."""
    kernel: int = 5
    """Width of the pooling along the cache; 1: none."""

    name: ClassVar[str] = "pyramidkv"
    default_sinks: ClassVar[int | None] = 0

    def __post_init__(self) -> None:
        check_parameter(self, "beta", least=1, most=1e6)
        check_parameter(self, "window", least=1, most=MOST_QUERIES)
        check_parameter(self, "kernel", least=1, most=WIDEST_POOLING)

    def capacities(
        self, mean: float, config: ModelConfig, scales: ScaleSchedule, sink_scales: int
    ) -> NDArray[np.float64]:
        falling = np.linspace(2 - 1 / self.beta, 1 / self.beta, config.num_layers)
        shape = (scales.num_scales, config.num_layers, config.num_heads)
        return by_shares(mean, np.broadcast_to(falling[:, None], shape), scales)

    def scores(self, seen: Seen) -> Tensor:
        return observed(seen, window=self.window, kernel=self.kernel)
