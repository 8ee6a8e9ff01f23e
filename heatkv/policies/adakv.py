"""AdaKV: the heads of a layer compete for its capacity, and each is sure of a part; scores are SnapKV's.

Source: Feng et al., arXiv 2407.11550 (floor 0.2, as in its code). Deviations: those of SnapKV here. How many tokens
each head keeps must be the same in all rows, whose slots are shared, so scores are means over the rows of the run,
guidance included: one decision for the run. The paper decides for every sequence alone. No sinks, as in the
paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from heatkv.policies import MOST_QUERIES, WIDEST_POOLING, Rows, check_parameter
from heatkv.policies.snapkv import observed
from heatkv.policies.tokens import TokenPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from heatkv.seen import Seen


@dataclass(frozen=True, slots=True)
class AdaKVPolicy(TokenPolicy):
    """Keeps the tokens with most attention from observing queries, over all heads of a layer."""

    window: int = 16
    """Observing queries; a square number lies on a grid."""
    kernel: int = 5
    """Width of the pooling along the cache; 1: none."""

    name: ClassVar[str] = "adakv"
    rows: ClassVar[Rows] = "run"
    shares_layer: ClassVar[bool] = True
    floor: ClassVar[float] = 0.2
    default_sinks: ClassVar[int | None] = 0

    def __post_init__(self) -> None:
        check_parameter(self, "window", least=1, most=MOST_QUERIES)
        check_parameter(self, "kernel", least=1, most=WIDEST_POOLING)

    def scores(self, seen: Seen) -> Tensor:
        return observed(seen, window=self.window, kernel=self.kernel)
