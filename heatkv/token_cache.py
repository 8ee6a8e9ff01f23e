"""TokenCache: the cache of online policies. Like KVCache it obeys; here it is told, step by step, which tokens stay.

One pool for all layers, allocated once at the exact peak of the plan. Each row may keep tokens of its own, equally many
of a head: a slot then holds another token in each row, and what stays is moved together when something leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatkv.online import OnlinePlan
from heatkv.pool import Slots, TokenPool
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


class TokenCache:
    """Keys and values of one run's rows: for each layer and head, the tokens that a policy chose."""

    def __init__(
        self, plan: OnlinePlan, *, rows: int, head_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.plan = plan
        self.pool = TokenPool(plan.peak_tokens, rows=rows, head_dim=head_dim, dtype=dtype, device=device)
        self._layers: list[list[_Kept]] = [[] for _ in range(plan.config.num_layers)]
        self._num_tokens = self._index_bytes = 0

    def visible(self, layer: int, *, query_scale: int, keys: Tensor, values: Tensor) -> Visible:
        """What attention of this layer sees: the stored tokens of each head, then the current scale for every head."""
        slots, tokens, sources = {}, {}, {}
        for kept in self._layers[layer]:
            for index, head in enumerate(kept.heads):
                slots[head], tokens[head] = kept.slots[index], kept.tokens[:, index]
                sources[head] = self._sources(kept.tokens[0, index])
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
        if not self._layers[layer]:
            return [Candidates(tuple(range(num_heads)), keys, values, current, None)]
        return [self._with_current(kept, keys, values, current) for kept in self._layers[layer]]

    def store(self, layer: int, candidates: list[Candidates], keep: list[Tensor]) -> int:
        """End a step: of each head only the candidates in `keep`, [R, n] ascending positions a head, stay.

        Returns the tokens of all heads that are gone.
        """
        before = sum(each.tokens.shape[1] * each.tokens.shape[2] for each in candidates)
        self._free(layer)
        count = sum(each.shape[1] for each in keep)
        slots, begin = self.pool.take(count), 0
        for heads, keys, values, tokens, carried in _regrouped(candidates, keep):
            end = begin + tokens.shape[1] * tokens.shape[2]
            own = slots[begin:end].reshape(len(heads), tokens.shape[2]).copy()
            self.pool.write(own.ravel(), keys.flatten(1, 2), values.flatten(1, 2))
            self._layers[layer].append(_Kept(heads, own, tokens, carried))
            begin = end
        self._num_tokens += count
        self._index_bytes += sum(kept.nbytes for kept in self._layers[layer])
        return before - count

    def kept_tokens(self, layer: int) -> NDArray[np.int64]:
        """Tokens that a layer holds now, in the first row: [head, source_scale]."""
        tokens = np.zeros((self.plan.config.num_heads, self.plan.scales.num_scales), np.int64)
        for kept in self._layers[layer]:
            for index, head in enumerate(kept.heads):
                for source_scale, count in self._sources(kept.tokens[0, index]):
                    tokens[head, source_scale] = count
        return tokens

    @property
    def capacity_tokens(self) -> int:
        """Head-tokens that fit."""
        return self.pool.num_slots

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

    def _with_current(self, kept: _Kept, keys: Tensor, values: Tensor, current: Tensor) -> Candidates:
        heads = list(kept.heads)
        stored_keys, stored_values = self.pool.read(kept.slots)
        carried = kept.carried
        if carried is not None:
            carried = torch.cat((carried, carried.new_zeros(current[:, heads].shape)), dim=2)
        return Candidates(
            kept.heads,
            torch.cat((stored_keys, keys[:, heads]), dim=2),
            torch.cat((stored_values, values[:, heads]), dim=2),
            torch.cat((kept.tokens.long(), current[:, heads]), dim=2),
            carried,
        )

    def _free(self, layer: int) -> None:
        """Give back all slots of a layer: what stays of it has been read, and is written anew."""
        for kept in reversed(self._layers[layer]):
            self.pool.give(kept.slots.ravel())
            self._num_tokens -= kept.slots.size
            self._index_bytes -= kept.nbytes
        self._layers[layer].clear()

    def _sources(self, tokens: Tensor) -> Sources:
        """(source_scale, tokens) of one row's tokens; waits for the device."""
        source = np.searchsorted(self.plan.scales.offsets[1:], tokens.cpu().numpy(), side="right")
        found, counts = np.unique(source, return_counts=True)
        return tuple(zip(found.tolist(), counts.tolist(), strict=True))


_Group = tuple[tuple[int, ...], Tensor, Tensor, Tensor, Tensor | None]


def _regrouped(candidates: list[Candidates], keep: list[Tensor]) -> list[_Group]:
    """What stays, heads with equally many tokens together: heads, keys, values, tokens, carried."""
    by_count: dict[int, list[tuple[int, Candidates, int]]] = {}
    for group in candidates:
        for index, head in enumerate(group.heads):
            by_count.setdefault(keep[head].shape[1], []).append((head, group, index))
    groups: list[_Group] = []
    for members in by_count.values():
        heads = tuple(head for head, _, _ in members)
        keys, values = (
            torch.stack([_rows(getattr(group, name)[:, index], keep[head]) for head, group, index in members], dim=1)
            for name in ("keys", "values")
        )
        tokens = torch.stack([group.tokens[:, index].gather(1, keep[head]) for head, group, index in members], dim=1)
        carried = [
            group.carried[:, index].gather(1, keep[head]) for head, group, index in members if group.carried is not None
        ]
        together = torch.stack(carried, dim=1) if carried else None
        groups.append((heads, keys, values, tokens.to(torch.int16), together))
    return groups


def _rows(tensor: Tensor, keep: Tensor) -> Tensor:
    """[R, n, D] of [R, T, D]: each row's own positions [R, n]."""
    return tensor.gather(1, keep[..., None].expand(-1, -1, tensor.shape[2]))
