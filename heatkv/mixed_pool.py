"""MixedPool: one TokenPool for each codec in use, under one numbering of slots, so that attention sees one pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatkv.pool import Slots, TokenPool


class MixedPool:
    """Slots of the first pool come first, then those of the second, and so on."""

    is_plain = False

    def __init__(self, pools: Sequence[TokenPool]) -> None:
        self.pools = tuple(pools)
        self._starts: NDArray[np.int32] = np.cumsum([0, *(pool.num_slots for pool in pools)]).astype(np.int32)

    @property
    def num_slots(self) -> int:
        return sum(pool.num_slots for pool in self.pools)

    @property
    def nbytes(self) -> int:
        """Every byte allocated here, in all pools."""
        return sum(pool.nbytes for pool in self.pools)

    def take(self, count: int, codec: int) -> Slots:
        """That many free slots of the pool with this index."""
        slots: Slots = self.pools[codec].take(count) + self._starts[codec]
        return slots

    def give(self, slots: Slots) -> None:
        """Take slots of one pool back."""
        if len(slots):
            codec = self._pool_of(slots[:1]).item()
            self.pools[codec].give(slots - self._starts[codec])

    def write(self, slots: Slots, keys: Tensor, values: Tensor) -> None:
        """Put keys and values, [R, len(slots), D] each, into slots, each as its pool writes it."""
        for pool, own, at in self._parts(slots):
            if len(at) == len(slots):
                pool.write(own, keys, values)
            else:
                index = pool.index(at)
                pool.write(own, keys.index_select(1, index), values.index_select(1, index))

    def read(self, slots: Slots) -> tuple[Tensor, Tensor]:
        """Keys and values in slots, [n] or [G, P]: [R, n, D] or [R, G, P, D] in the model's dtype; copies."""
        keys, values, at = self.read_anyhow(slots.ravel())
        index = self.index(at.reshape(slots.shape))
        return keys[:, index], values[:, index]

    def read_anyhow(self, slots: Slots) -> tuple[Tensor, Tensor, Slots]:
        """As `read` of slots [n], one pool after the other: [R, n, D] each; and where in it each slot's are."""
        parts = list(self._parts(slots))
        if len(parts) < 2:
            pool, own, _ = parts[0] if parts else (self.pools[0], slots, None)
            return pool.read_anyhow(own)
        keys, values = zip(*(pool.read(own) for pool, own, _ in parts), strict=True)
        at = np.empty(len(slots), np.int32)
        at[np.concatenate([places for _, _, places in parts])] = np.arange(len(slots), dtype=np.int32)
        return torch.cat(keys, dim=1), torch.cat(values, dim=1), at

    def release(self) -> None:
        """Free the memory: no slots are left."""
        for pool in self.pools:
            pool.release()
        self._starts = np.zeros_like(self._starts)

    def index(self, slots: Slots) -> Tensor:
        """Slots as an index tensor on the pools' device, copied there without waiting for it."""
        return self.pools[0].index(slots)

    def _pool_of(self, slots: Slots) -> NDArray[np.int64]:
        """Index of the pool of each; of pools without slots none."""
        return np.searchsorted(self._starts[1:], slots, side="right")

    def _parts(self, slots: Slots) -> Iterator[tuple[TokenPool, Slots, Slots]]:
        """Each pool that some are of, their numbers there, and where among `slots` they stand."""
        pool_of = self._pool_of(slots)
        for codec, count in enumerate(np.bincount(pool_of).tolist()):
            if count == len(slots):
                yield self.pools[codec], slots - self._starts[codec], np.arange(count, dtype=np.int32)
            elif count:
                at = np.flatnonzero(pool_of == codec).astype(np.int32)
                yield self.pools[codec], slots[at] - self._starts[codec], at


Pool = TokenPool | MixedPool
"""What a cache may keep tokens in: attention reads either."""
