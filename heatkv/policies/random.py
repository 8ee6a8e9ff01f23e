"""Random: every token has a lot of its own, drawn once, and the highest stay. What any signal must beat.

Ours; no source. Each head of each layer draws lots for all tokens of the sequence, by the seed: the same in all rows,
and at every step, so a token that stays has won against all that came before. No sinks.
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
class RandomPolicy(TokenPolicy):
    """Keeps tokens drawn by lot."""

    seed: int = 0
    """Of the lots."""

    name: ClassVar[str] = "random"
    default_sinks: ClassVar[int | None] = 0

    def __post_init__(self) -> None:
        check_parameter(self, "seed", least=0, most=2**32 - 1)

    def scores(self, seen: Seen) -> Tensor:
        # Deferred: planning needs no torch.
        import torch

        generator = torch.Generator().manual_seed(self.seed * _FAR_APART + seen.layer)
        lots = torch.rand(max(seen.heads) + 1, seen.scales.total_tokens, generator=generator)
        own = lots[list(seen.heads)].to(seen.tokens.device)
        return own.expand(len(seen.tokens), -1, -1).gather(2, seen.tokens)


_FAR_APART = 100_003
"""More than any model has layers."""
