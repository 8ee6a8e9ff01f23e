"""KVCache: the keys and values a run holds, in one pool for all layers. It obeys a PruningSchedule and never decides.

The pool is allocated once, exactly as large as the schedule's peak; where head-scales are stored in different codecs,
one part for each, as large as its own. The first scales, as many as no head ever lets go
(the sinks; without pruning all), lie dense in its first slots, layer after layer and head after head; a slot that an
eviction frees serves whatever comes next, in any layer. The last scale is never stored. Byte counts are read from the
memory held, not from a formula.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatkv.codecs import codec_named
from heatkv.mixed_pool import MixedPool
from heatkv.pool import Slots, TokenPool
from heatkv.probe import PoolStart
from heatkv.schedule import PruningSchedule
from heatkv.visible import Visible


class KVCache:
    """Keys and values of one run's rows: for each layer and head, the slots of the source scales it keeps."""

    def __init__(
        self,
        schedule: PruningSchedule,
        *,
        rows: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.schedule = schedule
        self.pools = tuple(
            TokenPool(
                int(held.max()), rows=rows, head_dim=head_dim, dtype=dtype, device=device, codec=codec_named(name)
            )
            for name, held in schedule.tokens_held_by_codec().items()
        )
        """One for each codec of the schedule."""
        self.pool = self.pools[0] if schedule.codec is None else MixedPool(self.pools)
        self._token_bytes = np.array([pool.bytes_per_slot for pool in self.pools])
        num_layers, num_heads, tokens = schedule.num_layers, schedule.num_heads, schedule.scales.tokens
        self._held: list[dict[tuple[int, int], Slots]] = [{} for _ in range(num_layers)]
        """Per layer, (source_scale, head) → slots; in the order of the source scales."""
        self._num_resident = schedule.resident_scales
        resident = sum(tokens[: self._num_resident])
        taken = self._take(num_layers * num_heads * resident, self._codec_of(0, 0, 0))
        self._resident = taken.reshape(num_layers, num_heads, -1)
        """[layer, head, token]: where the first scales go, that never leave."""
        self._held_bytes = self._index_bytes = self._left_at_revision = 0

    def visible(self, layer: int, *, query_scale: int, keys: Tensor, values: Tensor) -> Visible:
        """What attention of this layer sees: the stored tokens of each head, then the current scale for every head."""
        slots: list[list[Slots]] = [[] for _ in range(self.schedule.num_heads)]
        sources: list[list[tuple[int, int]]] = [[] for _ in range(self.schedule.num_heads)]
        for (source_scale, head), kept in self._held[layer].items():
            slots[head].append(kept)
            sources[head].append((source_scale, len(kept)))
        return Visible(
            self.pool,
            tuple(np.concatenate(each) if each else np.empty(0, np.int32) for each in slots),
            tuple(tuple(each) for each in sources),
            query_scale,
            keys,
            values,
        )

    def store(self, layer: int, *, query_scale: int, keys: Tensor, values: Tensor) -> int:
        """End a step, when attention has read: free what leaves after it in any layer, then keep the current scale.

        `keys` and `values`: [R, H, L, D], of which only the heads that outlive the step are copied. Returns the
        tokens of all heads that are gone, the current scale's included, and those that left by a revision just before.
        """
        step = query_scale * self.schedule.num_layers + layer
        evicted = self._evict(step) + self._left_at_revision
        self._left_at_revision = 0
        if query_scale == self.schedule.scales.num_scales - 1:
            return evicted
        tokens = int(keys.shape[2])
        kept = np.flatnonzero(self.schedule.drop_step[layer, :, query_scale] > step).tolist()
        if kept:
            slots = {(query_scale, head): self._slots_for(layer, query_scale, head, tokens) for head in kept}
            self.pool.write(np.concatenate(list(slots.values())), *self._of_heads(kept, keys, values))
            self._held[layer] |= slots
            self._index_bytes += sum(each.nbytes for each in slots.values() if each.base is None)
            self._held_bytes += tokens * self._bytes_of((layer, head, query_scale) for head in kept)
        return evicted + (self.schedule.num_heads - len(kept)) * tokens

    def revise(self, schedule: PruningSchedule, query_scale: int) -> None:
        """Go on with a schedule that `heatkv.revision.revised` made, before the first step of this query scale.

        What it has let go of by then leaves now; the next step tells of it.
        """
        self._share_resident()
        self.schedule = schedule
        self._left_at_revision = self._evict(query_scale * schedule.num_layers - 1)

    def kept_tokens(self, layer: int) -> NDArray[np.int64]:
        """Tokens that a layer holds now: [head, source_scale]."""
        tokens = np.zeros((self.schedule.num_heads, self.schedule.scales.num_scales), np.int64)
        for (source_scale, head), slots in self._held[layer].items():
            tokens[head, source_scale] = len(slots)
        return tokens

    @property
    def capacity_tokens(self) -> int:
        """Head-tokens that fit, in whatever codec."""
        return self.pool.num_slots

    @property
    def pool_starts(self) -> tuple[PoolStart, ...]:
        """Room and bytes per token of each codec; empty without codecs."""
        if self.schedule.codec is None:
            return ()
        return tuple(PoolStart(pool.codec.name, pool.bytes_per_slot, pool.num_slots) for pool in self.pools)

    @property
    def accounted_bytes(self) -> int:
        """Keys and values of the tokens held, all layers: what the budget counts."""
        return self._held_bytes

    @property
    def storage_bytes(self) -> int:
        """Every byte allocated for keys, values and for finding them: the pool, and the numbers of the slots in use."""
        return self.pool.nbytes + self._resident.nbytes + self._index_bytes

    def clear(self) -> None:
        """Forget everything and free its memory, even while something, such as a traceback, holds this object."""
        self.pool.release()
        self._resident = self._resident[:0].copy()
        for held in self._held:
            held.clear()
        self._held_bytes = self._index_bytes = 0

    def _evict(self, step: int) -> int:
        """Free every stored head-scale that leaves after `step`. Returns tokens freed."""
        freed = 0
        for layer, head, source_scale in zip(*(index.tolist() for index in self.schedule.evictions(step)), strict=True):
            slots = self._held[layer].pop((source_scale, head), None)  # None: of the current scale, not stored yet
            if slots is not None:
                self.pool.give(slots)
                self._index_bytes -= slots.nbytes
                freed += len(slots)
                self._held_bytes -= len(slots) * self._bytes_of([(layer, head, source_scale)])
        return freed

    def _share_resident(self) -> None:
        """Treat the first scales as all others: another schedule may let go of them."""
        for held in self._held:
            for where, slots in held.items():
                if slots.base is not None:
                    held[where] = slots.copy()
                    self._index_bytes += slots.nbytes
        used = [slots for held in self._held for slots in held.values()]
        unused = np.setdiff1d(self._resident, np.concatenate(used)) if used else self._resident.ravel()
        if len(unused):
            self.pool.give(unused.copy())
        self._resident, self._num_resident = self._resident[..., :0].copy(), 0

    def _slots_for(self, layer: int, source_scale: int, head: int, tokens: int) -> Slots:
        """Where a source scale of one head goes."""
        if source_scale >= self._num_resident:
            return self._take(tokens, self._codec_of(layer, head, source_scale))
        begin = self.schedule.scales.offsets[source_scale]
        return self._resident[layer, head, begin : begin + tokens]

    def _take(self, tokens: int, codec: int) -> Slots:
        return self.pool.take(tokens, codec) if isinstance(self.pool, MixedPool) else self.pool.take(tokens)

    def _of_heads(self, heads: list[int], keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """[R, len(heads) * L, D] of [R, H, L, D] each."""
        if len(heads) == keys.shape[1]:
            return keys.flatten(1, 2), values.flatten(1, 2)
        # Pieces in one call: an index of heads would have to travel to the device first.
        return torch.cat([keys[:, head] for head in heads], 1), torch.cat([values[:, head] for head in heads], 1)

    def _codec_of(self, layer: int, head: int, source_scale: int) -> int:
        """Index of the pool that it is stored in."""
        return 0 if self.schedule.codec is None else int(self.schedule.codec[layer, head, source_scale])

    def _bytes_of(self, head_scales: Iterable[tuple[int, int, int]]) -> int:
        """Of one token of each (layer, head, source_scale) together."""
        return sum(int(self._token_bytes[self._codec_of(*one)]) for one in head_scales)
