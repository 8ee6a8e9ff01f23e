"""TokenCache: the cache of online policies. Like KVCache it obeys; here it is told, step by step, which tokens stay.

One pool for all layers, allocated once at the exact peak of the plan. Each row may keep tokens of its own, equally many
of a head: a slot then holds another token in each row, and what stays is moved together when something leaves. All
tokens, sinks too, are stored in the plan's codec: encoded once, when their own step ends, and moved as they lie there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatkv.codecs import codec_named
from heatkv.online import OnlinePlan
from heatkv.pool import Raw, Slots, TokenPool
from heatkv.probe import PoolStart
from heatkv.visible import Sources, Visible


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """Heads of one layer that keep equally many tokens."""

    heads: tuple[int, ...]
    slots: Slots
    """[G, P]."""
    tokens: Tensor
    """[R, G, P] int16: index in the sequence of all scales, ascending."""
    carried: Tensor | None
    """[R, G, P] float32: what the policy gave each token."""
    sources: tuple[Sources, ...]
    """Per head, of the first row's tokens."""

    @property
    def nbytes(self) -> int:
        """Of what says which token is where."""
        carried = 0 if self.carried is None else self.carried.nbytes
        return self.slots.nbytes + self.tokens.nbytes + carried


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Heads of one layer, and the tokens that may stay: the stored ones, then the current scale's."""

    heads: tuple[int, ...]
    keys: Tensor
    """[R, G, T, D]."""
    values: Tensor
    tokens: Tensor
    """[R, G, T] int64: index in the sequence of all scales, ascending."""
    carried: Tensor | None
    """[R, G, T] float32; 0 for the current scale's."""
    coded: Raw | None = None
    """Keys and values as the pool holds them, [R, G, T, width] each; None: as they are."""

    @property
    def raw(self) -> Raw:
        """What is stored of them."""
        return (self.keys, self.values) if self.coded is None else self.coded

    def of(self, places: list[int]) -> Candidates:
        """Those of the heads at these places."""
        if places == list(range(len(self.heads))):
            return self
        carried = None if self.carried is None else self.carried[:, places]
        heads = tuple(self.heads[place] for place in places)
        coded = None if self.coded is None else (self.coded[0][:, places], self.coded[1][:, places])
        return Candidates(heads, self.keys[:, places], self.values[:, places], self.tokens[:, places], carried, coded)


Chosen = tuple[Candidates, Tensor]
"""Heads that keep equally many of their candidates, and which: [R, G, n] ascending positions."""


class TokenCache:
    """Keys and values of one run's rows: for each layer and head, the tokens that a policy chose."""

    def __init__(
        self, plan: OnlinePlan, *, rows: int, head_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.plan = plan
        codec = codec_named(plan.codec)
        self.pool = TokenPool(plan.peak_tokens, rows=rows, head_dim=head_dim, dtype=dtype, device=device, codec=codec)
        self._layers: list[list[_Kept]] = [[] for _ in range(plan.config.num_layers)]
        self._num_tokens = self._index_bytes = 0

    def visible(self, layer: int, *, query_scale: int, keys: Tensor, values: Tensor) -> Visible:
        """What attention of this layer sees: the stored tokens of each head, then the current scale for every head."""
        slots, tokens, sources = {}, {}, {}
        for kept in self._layers[layer]:
            for index, head in enumerate(kept.heads):
                slots[head], tokens[head], sources[head] = kept.slots[index], kept.tokens[:, index], kept.sources[index]
        none, no_tokens = np.empty(0, np.int32), torch.empty(len(keys), 0, dtype=torch.int16, device=keys.device)
        heads = range(keys.shape[1])
        return Visible(
            self.pool,
            tuple(slots.get(head, none) for head in heads),
            tuple(sources.get(head, ()) for head in heads),
            query_scale,
            keys,
            values,
            tuple(tokens.get(head, no_tokens) for head in heads),
            self.plan.scales.offsets,
        )

    def candidates(self, layer: int, *, query_scale: int, keys: Tensor, values: Tensor) -> list[Candidates]:
        """What may stay after this step; keys and values of the current scale: [R, H, L, D]."""
        rows, num_heads, num_current, _ = keys.shape
        first = self.plan.scales.offsets[query_scale]
        current = torch.arange(first, first + num_current, device=keys.device).expand(rows, num_heads, -1)
        fresh_raw = None if self.pool.is_plain else self.pool.encoded(keys, values)
        all_heads = Candidates(tuple(range(num_heads)), keys, values, current, None, fresh_raw)
        found = [self._with_current(kept, all_heads) for kept in self._layers[layer]]
        stored = {head for group in found for head in group.heads}
        fresh = [head for head in range(num_heads) if head not in stored]
        if fresh:
            found.append(all_heads.of(fresh))
        return found

    def store(self, layer: int, chosen: list[Chosen]) -> int:
        """End a step: of its candidates each head keeps what is chosen. Returns the head-tokens that are gone."""
        before = sum(each.tokens.shape[1] * each.tokens.shape[2] for each, _ in chosen)
        self._free(layer)
        count = sum(keep.shape[1] * keep.shape[2] for _, keep in chosen)
        slots, begin = self.pool.take(count), 0
        for heads, (keys, values), tokens, carried in _regrouped(chosen):
            end = begin + tokens.shape[1] * tokens.shape[2]
            own = slots[begin:end].reshape(len(heads), -1).copy()
            self.pool.put(own.ravel(), (keys.flatten(1, 2), values.flatten(1, 2)))
            self._layers[layer].append(_Kept(heads, own, tokens.to(torch.int16), carried, self._sources(tokens[0])))
            begin = end
        self._num_tokens += count
        self._index_bytes += sum(kept.nbytes for kept in self._layers[layer])
        return before - count

    def kept_tokens(self, layer: int) -> NDArray[np.int64]:
        """Tokens that a layer holds now, in the first row: [head, source_scale]."""
        tokens = np.zeros((self.plan.config.num_heads, self.plan.scales.num_scales), np.int64)
        for kept in self._layers[layer]:
            for index, head in enumerate(kept.heads):
                for source_scale, count in kept.sources[index]:
                    tokens[head, source_scale] = count
        return tokens

    @property
    def capacity_tokens(self) -> int:
        """Head-tokens that fit."""
        return self.pool.num_slots

    @property
    def pool_starts(self) -> tuple[PoolStart, ...]:
        """Room and bytes per token of the plan's codec; empty for the model's own numbers."""
        if self.pool.is_plain:
            return ()
        return (PoolStart(self.plan.codec, self.pool.bytes_per_slot, self.pool.num_slots),)

    @property
    def accounted_bytes(self) -> int:
        """Keys and values of the tokens held, all layers: what the budget counts."""
        return self._num_tokens * self.pool.bytes_per_slot

    @property
    def storage_bytes(self) -> int:
        """Every byte allocated for keys, values, for finding them, and for what travels with them."""
        return self.pool.nbytes + self._index_bytes

    def clear(self) -> None:
        """Forget everything and free its memory."""
        self.pool.release()
        for layer in self._layers:
            layer.clear()
        self._num_tokens = self._index_bytes = 0

    def _with_current(self, kept: _Kept, all_heads: Candidates) -> Candidates:
        """What some heads have stored, then what all heads have of the current scale."""
        current = all_heads.of(list(kept.heads))
        keys, values = (held.unflatten(1, kept.slots.shape) for held in self.pool.raw(kept.slots.ravel()))
        carried, coded = kept.carried, None
        if carried is not None:
            carried = torch.cat((carried, carried.new_zeros(current.tokens.shape)), dim=2)
        if current.coded is not None:
            coded = _after((keys, values), current.coded)
            keys, values = self.pool.decoded((keys, values))
        keys, values = _after((keys, values), (current.keys, current.values))
        tokens = torch.cat((kept.tokens.long(), current.tokens), dim=2)
        return Candidates(kept.heads, keys, values, tokens, carried, coded)

    def _free(self, layer: int) -> None:
        """Give back all slots of a layer: what stays of it has been read, and is written anew."""
        for kept in reversed(self._layers[layer]):
            self.pool.give(kept.slots.ravel())
            self._num_tokens -= kept.slots.size
            self._index_bytes -= kept.nbytes
        self._layers[layer].clear()

    def _sources(self, tokens: Tensor) -> tuple[Sources, ...]:
        """(source_scale, tokens) of each head's tokens [G, P], ascending; waits for the device."""
        ends = np.array(self.plan.scales.offsets[1:])
        before = np.array([np.searchsorted(each, ends) for each in tokens.cpu().numpy()])  # each is ascending
        counts = np.diff(before, prepend=0).tolist()
        return tuple(tuple((scale, count) for scale, count in enumerate(each) if count) for each in counts)


_Group = tuple[tuple[int, ...], Raw, Tensor, Tensor | None]


def _after(stored: Raw, current: Raw) -> Raw:
    """Keys and values [R, G, P + L, ...]: the stored ones, then the current scale's."""
    return torch.cat((stored[0], current[0]), dim=2), torch.cat((stored[1], current[1]), dim=2)


def _regrouped(chosen: list[Chosen]) -> list[_Group]:
    """What stays, heads with equally many tokens together: heads, keys and values as stored, tokens, carried."""
    by_count: dict[int, list[Chosen]] = {}
    for each in chosen:
        by_count.setdefault(each[1].shape[2], []).append(each)
    groups: list[_Group] = []
    for count, members in by_count.items():
        if not count:
            continue
        heads = tuple(head for group, _ in members for head in group.heads)
        raw = [group.raw for group, _ in members]
        keys, values = (
            _joined([_rows(held, keep) for held, (_, keep) in zip(part, members, strict=True)])
            for part in zip(*raw, strict=True)
        )
        tokens = _joined([group.tokens.gather(2, keep) for group, keep in members])
        carried = [group.carried.gather(2, keep) for group, keep in members if group.carried is not None]
        groups.append((heads, (keys, values), tokens, _joined(carried) if carried else None))
    return groups


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _rows(tensor: Tensor, keep: Tensor) -> Tensor:
    """[R, G, n, D] of [R, G, T, D]: each row's and head's own positions [R, G, n]."""
    return tensor.gather(2, keep[..., None].expand(-1, -1, -1, tensor.shape[3]))
