"""Visible: what one layer's attention reads at one step. A cache says it, attention reads it; nobody else needs it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatkv.mixed_pool import Pool
from heatkv.pool import Slots

Sources = tuple[tuple[int, int], ...]
"""(source_scale, tokens) of what a head has stored, ascending."""


@dataclass(frozen=True, slots=True)
class Visible:
    """The stored tokens of each head, in their slots of the pool, then the current scale for every head."""

    pool: Pool
    slots: tuple[Slots, ...]
    """Per head, ordered by source scale."""
    sources: tuple[Sources, ...]
    """Per head, of those slots."""
    query_scale: int
    keys: Tensor
    """Of the current scale: [R, H, L, D]."""
    values: Tensor
    tokens: tuple[Tensor, ...] | None = None
    """Per head, [R, P]: which token of the sequence each slot holds in each row, where rows differ and source scales
    are kept in part. `sources` then tells the first row's. None: `sources` tells all."""
    offsets: tuple[int, ...] = ()
    """[num_scales + 1]: where each scale begins in the sequence; for `tokens`."""

    @property
    def num_heads(self) -> int:
        return len(self.slots)

    def groups(self) -> list[tuple[list[int], Sources]]:
        """Heads that have stored equally many tokens of the same scales, with those; every head is in one group.

        Where rows differ: heads that have stored equally many tokens, with the first head's.
        """
        heads: dict[object, list[int]] = {}
        for head, sources in enumerate(self.sources):
            heads.setdefault(sources if self.tokens is None else len(self.slots[head]), []).append(head)
        return [(each, self.sources[each[0]]) for each in heads.values()]

    def mass_by_scale(self, masses: Tensor, heads: list[int]) -> Tensor:
        """[R', G, num_scales] of the mass of each stored key [R', G, P], where rows differ; the current scale has the
        rest to 1."""
        assert self.tokens is not None  # the callers ask
        ends = torch.tensor(self.offsets[1:], device=masses.device)
        tokens = torch.stack([self.tokens[head] for head in heads], dim=1)[: len(masses)]
        summed = masses.new_zeros(*masses.shape[:2], len(self.offsets) - 1)
        summed.scatter_add_(2, torch.bucketize(tokens.long(), ends, right=True), masses)
        summed[:, :, self.query_scale] = 1 - summed.sum(-1)
        return summed

    def unseen(self, num_scales: int, rows: slice) -> Tensor:
        """Whether none of these rows reads a source scale: bool [head, source_scale], on the keys' device."""
        if self.tokens is None:
            return torch.from_numpy(self.read_tokens(num_scales) == 0).to(self.keys.device, non_blocking=True)
        ends = torch.tensor(self.offsets[1:], device=self.keys.device)
        unseen = torch.ones(self.num_heads, num_scales, dtype=torch.bool, device=self.keys.device)
        unseen[:, self.query_scale] = False
        for head, tokens in enumerate(self.tokens):
            unseen[head, torch.bucketize(tokens[rows].long(), ends, right=True).flatten()] = False
        return unseen

    def read_tokens(self, num_scales: int) -> NDArray[np.int64]:
        """Tokens that each head reads, in the first row: [head, source_scale]."""
        tokens = np.zeros((self.num_heads, num_scales), np.int64)
        for head, sources in enumerate(self.sources):
            for source_scale, count in sources:
                tokens[head, source_scale] = count
        tokens[:, self.query_scale] = self.keys.shape[2]
        return tokens

    def packed(self) -> Packed:
        """The same as flat index arrays on the pool's device, in one copy that nobody waits for."""
        counts = [len(slots) for slots in self.slots]
        source_of, tokens_of = np.array([one for sources in self.sources for one in sources], np.int32).reshape(-1, 2).T
        parts = (
            np.concatenate(self.slots),
            np.cumsum([0, *counts], dtype=np.int32),
            np.repeat(source_of, tokens_of),
            np.argsort(np.negative(counts), kind="stable").astype(np.int32),
        )
        flat = self.pool.index(np.concatenate(parts))
        return Packed(*flat.split([len(part) for part in parts]))


@dataclass(frozen=True, slots=True)
class Packed:
    """What a kernel needs to find each head's tokens; int32 tensors on the pool's device."""

    slots: Tensor
    """[N], head after head, each ordered by source scale."""
    offsets: Tensor
    """[H + 1] into `slots`."""
    sources: Tensor
    """[N]: source scale of each slot."""
    order: Tensor
    """[H]: heads, the longest first."""


def gathered(stored: Tensor, current: Tensor, slots: Tensor, out: Tensor) -> Tensor:
    """Fill `out` [R, H', P + L, D] with each head's stored tokens, then its current ones, and return it.

    `stored` [R, num_slots, D], `current` [R, H', L, D], `slots` [H', P] on the CPU. Slots that lie dense are copied as
    a block. Of others, large pieces are copied straight to their place; for small ones two calls for all of them cost
    less than one call each.
    """
    num_stored = slots.shape[1]
    out[:, :, num_stored:] = current
    dense = _as_block(stored, slots.numpy())
    if dense is not None:
        out[:, :, :num_stored] = dense
    elif num_stored * stored.shape[2] < _LARGE_PIECE:
        out[:, :, :num_stored] = stored.index_select(1, slots.flatten()).unflatten(1, slots.shape)
    else:
        for row in range(out.shape[0]):
            for head in range(out.shape[1]):
                torch.index_select(stored[row], 0, slots[head], out=out[row, head, :num_stored])
    return out


_LARGE_PIECE = 64 << 10
"""Numbers of one head and row."""


def _as_block(stored: Tensor, slots: NDArray[np.int32]) -> Tensor | None:
    """The slots [H', P] as a view [R, H', P, D], if each head's are neighbours and all heads' lie equally far apart."""
    num_heads, num_stored = slots.shape
    first = int(slots[0, 0])
    apart = int(slots[1, 0]) - first if num_heads > 1 else num_stored
    if apart < num_stored or int(slots[-1, -1]) != first + (num_heads - 1) * apart + num_stored - 1:
        return None
    if not np.array_equal(slots, first + apart * np.arange(num_heads)[:, None] + np.arange(num_stored)):
        return None
    row, slot, _ = stored.stride()
    begin = stored.storage_offset() + first * slot
    return stored.as_strided((len(stored), num_heads, num_stored, stored.shape[2]), (row, apart * slot, slot, 1), begin)
