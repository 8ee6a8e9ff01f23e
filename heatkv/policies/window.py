"""Sliding window: the last tokens in raster order stay, whatever they are. The least that any policy must beat.

Source: the baseline of ScaleKV (arXiv 2505.19602, table 1), whose port to next-scale images is not published. Ours:
the budget's tokens, the same for every head, no sinks. In raster order the last tokens are the bottom of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from heatkv.policies.tokens import TokenPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from heatkv.seen import Seen


@dataclass(frozen=True, slots=True)
class WindowPolicy(TokenPolicy):
    """Keeps the most recent tokens."""

    name: ClassVar[str] = "window"
    default_sinks: ClassVar[int | None] = 0

    def scores(self, seen: Seen) -> Tensor:
        return seen.tokens.float()
