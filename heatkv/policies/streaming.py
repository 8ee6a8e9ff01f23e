"""StreamingLLM: the first tokens and the last ones stay, whatever they are.

Source: Xiao et al., arXiv 2309.17453. Deviations, as no port to next-scale images is published: the sinks are the
model's whole sink scales, not the paper's 4 tokens, which would end inside a scale; `--sink-scales` sets others.
"Last" is raster order, so where a scale is kept in part it is the bottom of the picture. Positions are not assigned
anew after eviction: keys are stored with their rotation, and a token of an image keeps its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from heatkv.policies.tokens import TokenPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from heatkv.seen import Seen


@dataclass(frozen=True, slots=True)
class StreamingPolicy(TokenPolicy):
    """Keeps the sink scales and the most recent tokens."""

    name: ClassVar[str] = "streaming"

    def scores(self, seen: Seen) -> Tensor:
        return seen.tokens.float()
