"""Attention on the CPU: heads that have stored equally many tokens of the same scales share one call of PyTorch's
flash attention, over keys and values gathered for it. Equal to masked dense attention, without the masked part.

With many queries, measuring in the fast way costs almost nothing: attention of the measured rows is computed scale by
scale, and the parts are added up by their logsumexp, which is the mass. The bit-exact way leaves attention alone and
looks at the stored keys a second time. Letters as in mass.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from heatkv.kernels.mass import key_mass, scale_mass, whole_key_mass
from heatkv.pool import Slots, TokenPool
from heatkv.visible import Visible, gathered

GATHER_BYTES = 32 << 20
"""The most that keys and values gathered for one call take (but at least one head's). From there on glibc's malloc
fetches every block anew from the system, which costs more than the copying."""

_DECODE_TOKENS = 4096
"""Of several heads that are decoded together (but at least one head's)."""

_MERGE_QUERIES = 512
"""From so many queries on, adding up partial attentions is faster than looking at the keys a second time."""
_FEW_QUERIES = 100
"""Up to so many, the logsumexp of flash attention, whose exponentials are approximate, is not averaged enough."""
_MERGE_TOKENS = 128
"""Stored scales are joined up to this many tokens before one gets a partial attention of its own."""


def grouped_attention(
    q: Tensor,
    visible: Visible,
    *,
    num_scales: int,
    capture_rows: int = 0,
    bit_exact: bool = True,
    maps: bool = False,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Attention of q [R, H, L, D].

    Returns the output [R, H, L, D]; the mass of each source scale in the first `capture_rows` rows, mean over
    queries, [capture_rows, H, num_scales] float32 (None if there are no such rows); and with `maps`, per head, the
    mass of each key it sees, [capture_rows, T].
    """
    out = torch.empty_like(q)
    mass = torch.zeros(capture_rows, q.shape[1], num_scales) if capture_rows else None
    key_masses = [q.new_empty(0)] * (q.shape[1] if maps else 0)
    groups = visible.groups()
    stored = _stored(visible, [head for heads, _ in groups for head in heads])
    for heads, sources in groups:
        for chunk in _chunks(heads, visible):
            at = _at(chunk)
            call = _Call(q[:, at], *_keys_values(visible, chunk, stored), tuple(tokens for _, tokens in sources))
            if mass is None:
                out[:, at] = _attention(call.q, call.keys, call.values)
                continue
            if bit_exact or maps or visible.tokens is not None or not call.merging_pays:
                out[:, at], parts, of_keys = call.second_look(capture_rows, maps=maps)
                for head in chunk if maps else ():
                    key_masses[head] = of_keys[:, chunk.index(head)]
            else:
                out[:, at], parts = call.merged(capture_rows)
            if visible.tokens is not None:
                mass[:, chunk] = visible.mass_by_scale(of_keys[:, :, : sum(call.stored)], chunk)
                continue
            columns = [source for source, _ in sources] + [visible.query_scale]
            mass[:, torch.tensor(chunk)[:, None], torch.tensor(columns)] = parts
    return out, mass, key_masses


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of attention: some heads' queries, keys and values, the current scale's last."""

    q: Tensor
    keys: Tensor
    values: Tensor
    stored: tuple[int, ...]
    """Tokens of each stored scale."""

    @property
    def merging_pays(self) -> bool:
        return self.q.shape[2] >= _MERGE_QUERIES and sum(self.stored) > _MERGE_TOKENS

    def second_look(self, rows: int, *, maps: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Attention as it is, and the mass of each scale [rows, H, scales] and of each key looked at [rows, H, T].

        Without `maps` only stored keys are looked at: the current scale gets what the others leave.
        """
        out, lse = _flash(self.q, self.keys, self.values)
        num_stored = sum(self.stored)
        num_seen = self.keys.shape[2] if maps else num_stored
        if self.q.shape[2] <= _FEW_QUERIES:
            masses = whole_key_mass(self.q[:rows], self.keys[:rows])[:, :, :num_seen]
        else:
            masses = key_mass(self.q[:rows], self.keys[:rows, :, :num_seen], lse[:rows])
        stored = scale_mass(masses[:, :, :num_stored], self.stored)
        return out, torch.cat((stored, 1 - stored.sum(-1, keepdim=True)), dim=-1), masses

    def merged(self, rows: int) -> tuple[Tensor, Tensor]:
        """Attention of the first rows as the sum of its parts, of the others as it is; and mass [rows, H, scales]."""
        joined = _joined(self.stored)
        tokens = [sum(self.stored[:joined]), *self.stored[joined:], self.keys.shape[2] - sum(self.stored)]
        tokens = tokens if joined else tokens[1:]
        q = self.q[:rows]
        keys, values = self.keys[:rows].split(tokens, dim=2), self.values[:rows].split(tokens, dim=2)
        parts = [_flash(q, *part) for part in zip(keys, values, strict=True)]
        lse = torch.stack([part for _, part in parts])
        total = lse.logsumexp(0)
        weights = (lse - total).exp_()
        summed = parts[0][0] * weights[0, ..., None]
        for (part, _), weight in zip(parts[1:], weights[1:], strict=True):
            summed += part * weight[..., None]
        mass = weights.mean(-1).permute(1, 2, 0)
        if joined:
            small = scale_mass(key_mass(q, keys[0], total), self.stored[:joined])
            mass = torch.cat((small, mass[:, :, 1:]), dim=-1)
        out = torch.empty_like(self.q)
        out[:rows] = summed
        if rows < len(out):
            out[rows:] = _attention(self.q[rows:], self.keys[rows:], self.values[rows:])
        return out, mass


def _attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, keys, values, scale=1.0)


def _flash(q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What _attention computes on the CPU, bit for bit, and the logsumexp [R, H, L] that it keeps to itself."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, keys, values, scale=1.0)
    return out, lse


def _joined(stored: Sequence[int]) -> int:
    """How many leading scales are joined."""
    count = total = 0
    while count < len(stored) and total + stored[count] <= _MERGE_TOKENS:
        total += stored[count]
        count += 1
    return count


def _chunks(heads: list[int], visible: Visible) -> list[list[int]]:
    """Heads of one group, so many at a time as GATHER_BYTES allow."""
    rows, _, num_current, head_dim = visible.keys.shape
    num_keys = len(visible.slots[heads[0]]) + num_current
    together = max(1, GATHER_BYTES // (2 * rows * num_keys * head_dim * visible.keys.element_size()))
    return [heads[begin : begin + together] for begin in range(0, len(heads), together)]


_Stored = tuple[Tensor, Tensor, Sequence[Slots]]
"""Keys and values [R, n, D], and where in them each head's are."""


def _stored(visible: Visible, order: list[int]) -> _Stored | None:
    """What all heads have stored: in the pool as it lies, or decoded at once, in this order of heads, so that heads of
    one call lie together; None: there is nothing, or too much to be decoded at once."""
    pool, slots = visible.pool, visible.slots
    if isinstance(pool, TokenPool) and pool.is_plain:
        return pool.keys, pool.values, slots
    rows, _, _, head_dim = visible.keys.shape
    ends = np.cumsum([0, *(len(slots[head]) for head in order)])
    if not 0 < 2 * rows * ends[-1] * head_dim * visible.keys.element_size() <= GATHER_BYTES:
        return None
    keys, values, at = pool.read_anyhow(np.concatenate([slots[head] for head in order]))
    own = {head: at[begin:end] for head, (begin, end) in zip(order, pairwise(ends.tolist()), strict=True)}
    return keys, values, [own[head] for head in range(len(order))]


def _keys_values(visible: Visible, heads: list[int], stored: _Stored | None) -> tuple[Tensor, Tensor]:
    """[R, len(heads), T, D] twice: stored tokens, then the current ones."""
    keys, values = visible.keys[:, _at(heads)], visible.values[:, _at(heads)]
    num_stored = len(visible.slots[heads[0]])
    if not num_stored:
        return keys, values
    rows, _, num_current, head_dim = keys.shape
    room = keys.new_empty(2, rows, len(heads), num_stored + num_current, head_dim)
    if stored is not None:
        slots = torch.from_numpy(np.stack([stored[2][head] for head in heads]))
        gathered(stored[0], keys, slots, room[0])
        gathered(stored[1], values, slots, room[1])
    else:
        room[0, :, :, num_stored:], room[1, :, :, num_stored:] = keys, values
        _decode(visible, heads, room)
    return room[0], room[1]


def _decode(visible: Visible, heads: list[int], room: Tensor) -> None:
    """Put each head's stored keys and values into room [2, R, len(heads), T, D], decoded, some heads at a time."""
    num_stored = len(visible.slots[heads[0]])
    together = max(1, _DECODE_TOKENS // num_stored)
    for begin in range(0, len(heads), together):
        some = heads[begin : begin + together]
        read = visible.pool.read(np.concatenate([visible.slots[head] for head in some]))
        for whole, part in zip(room, read, strict=True):
            whole[:, begin : begin + together, :num_stored] = part.unflatten(1, (len(some), num_stored))


def _at(heads: list[int]) -> slice | list[int]:
    """An index for these heads: a view where they are neighbours, else a copy."""
    if heads[-1] - heads[0] + 1 == len(heads):
        return slice(heads[0], heads[-1] + 1)
    return heads
