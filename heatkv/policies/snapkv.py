"""SnapKV: what a window of queries attends to stays.

Source: Li et al., arXiv 2404.14469 (default kernel and pooling as in kvpress's port). Deviations, as no port to next-
scale images is published: the window is ScaleKV's grid of queries spread over the current map, not its last queries,
which are the bottom of the picture; the tokens of the window compete like all others, since an image's next scale is
no continuation of them. Softmax over all candidates, mean over the window, average pooling along the cache. No sinks,
as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from heatkv.policies import MOST_QUERIES, WIDEST_POOLING, check_parameter
from heatkv.policies.tokens import TokenPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from heatkv.seen import Seen


@dataclass(frozen=True, slots=True)
class SnapKVPolicy(TokenPolicy):
    """Keeps the tokens with most attention from a grid of observing queries."""

    window: int = 16
    """Observing queries; a square number lies on a grid."""
    kernel: int = 5
    """Width of the pooling along the cache; 1: none."""

    name: ClassVar[str] = "snapkv"
    default_sinks: ClassVar[int | None] = 0

    def __post_init__(self) -> None:
        check_parameter(self, "window", least=1, most=MOST_QUERIES)
        check_parameter(self, "kernel", least=1, most=WIDEST_POOLING)

    def scores(self, seen: Seen) -> Tensor:
        return observed(seen, window=self.window, kernel=self.kernel)


def observed(seen: Seen, *, window: int, kernel: int) -> Tensor:
    """Attention of a grid of `window` queries, their mean, smoothed along the cache: [R, G, T]."""
    # Deferred: planning needs no torch.
    from heatkv.seen import pooled

    return pooled(seen.chances(seen.grid_queries(window)).mean(2), kernel, "mean")
