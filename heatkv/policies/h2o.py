"""H2O: half the capacity for the tokens that all queries so far attended to most, half for the most recent ones.

Source: Zhang et al., arXiv 2306.14048. Deviations: a token's running sum is divided by the number of queries that
could see it, as scales are seen by unequally many and the first would win by age alone; the paper's decoder adds one
query at a time and sums. Attention is what the heads really computed, over what they still had, as in the paper.
"Recent" is raster order, so of a scale that is kept in part it is the bottom of the picture. No sinks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from heatkv.policies import check_parameter
from heatkv.policies.tokens import TokenPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from heatkv.seen import Seen


@dataclass(frozen=True, slots=True)
class H2OPolicy(TokenPolicy):
    """Keeps heavy hitters and recent tokens."""

    recent: float = 0.5
    """Share of the capacity for the most recent tokens, 0 to 1."""

    name: ClassVar[str] = "h2o"
    carries: ClassVar[bool] = True
    default_sinks: ClassVar[int | None] = 0

    def __post_init__(self) -> None:
        check_parameter(self, "recent", least=0, most=1)

    def carry(self, seen: Seen) -> Tensor:
        """Attention that each token has had, summed over all queries so far."""
        now = seen.mass() * seen.num_current
        return now if seen.carried is None else seen.carried + now

    def scores(self, seen: Seen) -> Tensor:
        assert seen.carried is not None  # this policy carries
        begins = seen.tokens.new_tensor(seen.scales.offsets[:-1])
        num_queries = seen.scales.offsets[seen.query_scale + 1] - begins[seen.source_scales]
        num_recent = (seen.capacity * self.recent).long()
        return (seen.carried / num_queries).masked_fill(seen.is_last(num_recent), float("inf"))
