"""Self attention over what a KV cache kept, and how much of it goes to each source scale.

Heads that kept the same source scales are computed together. Nothing here is masked: a key that was evicted is
not in the tensors. Letters: R rows, H heads, L tokens, D head_dim. Softmax scale is 1 (cosine attention).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_MASS_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Segment:
    """Keys and values of one source scale in one layer, for the heads that keep it."""

    source_scale: int
    heads: tuple[int, ...]
    """Ascending; row i of `keys` is head heads[i]."""
    keys: Tensor
    """[R, len(heads), L, D]."""
    values: Tensor

    @property
    def num_tokens(self) -> int:
        return self.keys.shape[2]

    def only(self, heads: Sequence[int]) -> Segment:
        """The same scale for fewer heads, in memory of its own (the rest is freed with this segment)."""
        if tuple(heads) == self.heads:
            return self
        rows = [self.heads.index(head) for head in heads]
        return Segment(self.source_scale, tuple(heads), self.keys[:, rows], self.values[:, rows])


def attend(q: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Attention of q [R, H, L, D] over the segments; the last one must be the current scale of all heads."""
    groups = list(_head_groups(q.shape[1], segments))
    if len(groups) == 1:
        return _attend_group(q, segments)
    out = torch.empty_like(q)
    for heads, visible in groups:
        rows = list(heads)
        out[:, rows] = _attend_group(q[:, rows], [segment.only(heads) for segment in visible])
    return out


def attention_mass(q: Tensor, segments: Sequence[Segment], *, num_scales: int) -> Tensor:
    """Softmax mass that each source scale receives: mean over rows and queries, [H, num_scales] float32.

    Pass the conditional rows only. NaN where a head cannot see a scale. Scores are float32 whatever the inputs,
    and computed in blocks of queries, so no query x key matrix is ever whole.
    """
    mass = torch.full((q.shape[1], num_scales), torch.nan, device=q.device)
    for heads, visible in _head_groups(q.shape[1], segments):
        rows = list(heads)
        group = [segment.only(heads) for segment in visible]
        keys = torch.cat([segment.keys for segment in group], dim=2).float()
        sources = [segment.source_scale for segment in group]
        sums = _mass_by_segment(q[:, rows].float(), keys, [segment.num_tokens for segment in group])
        mass[torch.tensor(rows)[:, None], torch.tensor(sources)] = sums
    return mass


def tokens_by_head(segments: Sequence[Segment], num_heads: int, num_scales: int) -> NDArray[np.int64]:
    """Tokens that the segments hold for each head: [head, source_scale]."""
    tokens = np.zeros((num_heads, num_scales), np.int64)
    for segment in segments:
        tokens[list(segment.heads), segment.source_scale] = segment.num_tokens
    return tokens


def _mass_by_segment(q: Tensor, keys: Tensor, sizes: list[int]) -> Tensor:
    """[heads, segments]: mean over rows and queries of the summed probabilities of each run of keys."""
    block = max(1, _MASS_BLOCK_BYTES // (4 * q.shape[0] * q.shape[1] * keys.shape[2]))
    total = torch.zeros(q.shape[1], len(sizes), device=q.device)
    for queries in q.split(block, dim=2):
        probabilities = torch.softmax(queries @ keys.transpose(-1, -2), dim=-1)
        parts = probabilities.sum(dim=(0, 2)).split(sizes, dim=-1)
        total += torch.stack([part.sum(dim=-1) for part in parts], dim=-1)
    return total / (q.shape[0] * q.shape[2])


def _head_groups(num_heads: int, segments: Sequence[Segment]) -> Iterator[tuple[tuple[int, ...], list[Segment]]]:
    """Heads that see the same segments, with those segments in order; every head is in exactly one group."""
    visible: dict[tuple[int, ...], list[int]] = {}
    for head in range(num_heads):
        seen = tuple(index for index, segment in enumerate(segments) if head in segment.heads)
        visible.setdefault(seen, []).append(head)
    for seen, heads in visible.items():
        yield tuple(heads), [segments[index] for index in seen]


def _attend_group(q: Tensor, segments: Sequence[Segment]) -> Tensor:
    keys = torch.cat([segment.keys for segment in segments], dim=2)
    values = torch.cat([segment.values for segment in segments], dim=2)
    return F.scaled_dot_product_attention(q, keys, values, scale=1.0)
