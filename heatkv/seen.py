"""Seen: what an online policy may look at when it chooses, and the numbers that policies make of it.

Some heads of one layer, right after their attention: the candidates (stored tokens, then the current scale's) and the
queries that just attended to them. Nothing here ever holds a query × key matrix of all queries: a policy looks at few
queries, or asks for `mass`. Letters: R rows, G heads, L queries, T candidates, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from heatkv.kernels.mass import key_mass
from heatkv.scales import ScaleSchedule

_BLOCK_QUERIES = 256


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Some heads of one layer at one step, and the tokens among which to choose."""

    layer: int
    query_scale: int
    heads: tuple[int, ...]
    scales: ScaleSchedule
    sink_scales: int
    q: Tensor
    """[R, G, L, D]: normalised, scaled and rotated, as attention used them."""
    keys: Tensor
    """[R, G, T, D]: after RoPE."""
    values: Tensor
    tokens: Tensor
    """[R, G, T] int64: index of each candidate in the sequence of all scales, ascending; the last L are current."""
    capacity: Tensor
    """[G] int64: how many each head keeps; where heads share their layer's, the mean."""
    raw_queries: Callable[[Tensor], Tensor]
    """Of current tokens with these indices [n]: projected only, without bias, norm, scale and RoPE: [R, G, n, D]."""
    carried: Tensor | None = None
    """[R, G, T] float32: what the policy gave each stored token last; 0 for the current scale's."""

    @property
    def num_current(self) -> int:
        return self.q.shape[2]

    @property
    def num_stored(self) -> int:
        return self.keys.shape[2] - self.num_current

    @property
    def source_scales(self) -> Tensor:
        """[R, G, T]: the scale that each candidate is of."""
        ends = torch.tensor(self.scales.offsets[1:], device=self.tokens.device)
        return torch.bucketize(self.tokens.contiguous(), ends, right=True)

    def of_scales(self, values: Tensor) -> Tensor:
        """[R, G, T] of `values` [G, num_scales]: each candidate's by its source scale."""
        rows, heads, _ = self.tokens.shape
        expanded: Tensor = values.expand(rows, heads, -1)
        return expanded.gather(2, self.source_scales)

    def of_heads(self, values: NDArray[np.generic]) -> Tensor:
        """[G, …] of `values` [layer, head, …]: those of these heads; floats as float32."""
        own = values[self.layer, list(self.heads)]
        return torch.from_numpy(own.astype(np.float32) if own.dtype.kind == "f" else own).to(self.tokens.device)

    def is_last(self, counts: Tensor) -> Tensor:
        """[G, T] bool: True at the last `counts` [G] candidates of each head."""
        place = torch.arange(self.keys.shape[2], device=counts.device)
        last: Tensor = place >= self.keys.shape[2] - counts[:, None]
        return last

    def chances(self, queries: Tensor) -> Tensor:
        """Softmax attention [R, G, n, T] of the current queries with these indices [n]; few of them."""
        q = self.q[:, :, queries].float()
        chances: Tensor = (q @ self.keys.float().transpose(-1, -2)).softmax(-1)
        return chances

    def mass(self) -> Tensor:
        """Attention that each candidate receives, mean over all queries: [R, G, T] float32; in blocks of queries."""
        keys = self.keys.float()
        lse = [(block.float() @ keys.transpose(-1, -2)).logsumexp(-1) for block in self.q.split(_BLOCK_QUERIES, dim=2)]
        return key_mass(self.q, self.keys, torch.cat(lse, dim=2))

    def last_queries(self, count: int) -> Tensor:
        """Indices of the last `count` queries in raster order."""
        first = max(0, self.num_current - count)
        return torch.arange(first, self.num_current, device=self.q.device)

    def uniform_queries(self, count: int) -> Tensor:
        """Indices of `count` queries, or all, equally far apart in raster order."""
        count = min(count, self.num_current)
        index = (torch.arange(count, device=self.q.device) + 0.5) * (self.num_current / count)
        return index.long()

    def grid_queries(self, count: int) -> Tensor:
        """Indices of the queries nearest the middles of a square grid of `count` cells over the map (ScaleKV's window).

        Token floor((cell - 1) / 2) of each cell, cells floor(side / grid) wide; rows and columns left over are ignored.
        A map smaller than the grid, or not square, gives its last tokens.
        """
        height, width = self.scales.sizes[self.query_scale]
        side = int(count**0.5)
        if height != width or height < side or side * side != count:
            return self.last_queries(count)
        cell = height // side
        at = torch.arange(side, device=self.q.device) * cell + (cell - 1) // 2
        index: Tensor = (at[:, None] * width + at).flatten()
        return index

    def is_current(self, queries: Tensor) -> Tensor:
        """[T] bool: True at candidates that are these current tokens [n]."""
        chosen = torch.zeros(self.keys.shape[2], dtype=torch.bool, device=self.q.device)
        chosen[self.num_stored + queries] = True
        return chosen


def pooled(scores: Tensor, kernel: int, how: Literal["max", "mean", "zero-padded mean"]) -> Tensor:
    """Scores [R, G, T] pooled along T, stride 1, same length; only the zero-padded mean counts what is outside."""
    if kernel <= 1:
        return scores
    flat, padding = scores.flatten(0, 1)[:, None], kernel // 2
    if how == "max":
        out = F.max_pool1d(flat, kernel, stride=1, padding=padding)
    else:
        out = F.avg_pool1d(flat, kernel, stride=1, padding=padding, count_include_pad=how != "mean")
    same_length: Tensor = out[:, 0, : scores.shape[2]].unflatten(0, scores.shape[:2])
    return same_length
