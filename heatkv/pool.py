"""TokenPool: one block of memory for the keys and values of all layers, allocated once, handed out slot by slot.

A slot holds one token's key and value of one head, in every row, as the pool's codec writes them. Slots of one token
have no waste: whatever mix of scales, heads and layers is kept, as many tokens fit as there are slots, and whoever
leaves makes room for anybody. It knows nothing of layers, heads or scales.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatkv.codecs import CODECS, MODEL, Codec, Packing
from heatkv.packing import check_device, decode, encode, stored_dtype

Slots = NDArray[np.int32]
"""Numbers of slots, in the order of the tokens they hold: [n]; where it is said, [R, n]: each row's own."""

Raw: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values as a pool holds them: [R, n, width] each."""

_NUMBERS_AT_ONCE = 1 << 20
"""That are decoded together: what is needed beside the result stays small, and in a core's cache."""


class TokenPool:
    """`num_slots` slots for keys and values of all rows."""

    def __init__(
        self,
        num_slots: int,
        *,
        rows: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        codec: Codec = CODECS[MODEL],
    ) -> None:
        self.codec, self.head_dim, self.dtype = codec, head_dim, dtype
        self.keys, self.values = (self._room(packing, rows, num_slots, device) for packing in self._packings)
        """[R, num_slots, width]: D numbers of `dtype`, or the codec's bytes; what is in a free slot means nothing."""
        self._returned: list[Slots] = []
        """Slots that came back; the last ones go out again first."""
        self._num_used = 0
        """Slots from this one on were never taken."""

    @property
    def num_slots(self) -> int:
        return self.keys.shape[1]

    @property
    def is_plain(self) -> bool:
        """Whether attention can read keys and values where they lie."""
        return self.codec.is_model

    @property
    def bytes_per_slot(self) -> int:
        """Of one token's key and value, in all rows."""
        return sum(len(held) * held.shape[2] * held.element_size() for held in (self.keys, self.values))

    @property
    def num_free(self) -> int:
        return self.num_slots - self._num_used + sum(len(slots) for slots in self._returned)

    @property
    def nbytes(self) -> int:
        """Every byte allocated here: all slots, and the list of those that came back."""
        listed = sum(slots.nbytes for slots in self._returned)
        return self.keys.untyped_storage().nbytes() + self.values.untyped_storage().nbytes() + listed

    def take(self, count: int) -> Slots:
        """That many free slots, which are nobody else's until they are given back."""
        taken = []
        missing = count
        while missing and self._returned:
            slots = self._returned.pop()
            if len(slots) > missing:
                self._returned.append(slots[missing:].copy())  # a view would keep the memory of both parts
                slots = slots[:missing].copy()
            taken.append(slots)
            missing -= len(slots)
        if missing or not taken:
            too_few = self._num_used + missing - self.num_slots
            assert too_few <= 0, f"{too_few} slots too few: the pool was sized wrongly"
            taken.append(np.arange(self._num_used, self._num_used + missing, dtype=np.int32))
            self._num_used += missing
        return np.concatenate(taken) if len(taken) != 1 else taken[0]

    def give(self, slots: Slots) -> None:
        """Take slots back."""
        self._returned.append(slots)

    def write(self, slots: Slots, keys: Tensor, values: Tensor) -> None:
        """Put keys and values, [R, len(slots), D] each, into slots."""
        self.put(slots, self.encoded(keys, values))

    def encoded(self, keys: Tensor, values: Tensor) -> Raw:
        """Keys and values [..., D] as this pool holds them: [..., width] each."""
        return encode(self.codec.keys, keys), encode(self.codec.values, values)

    def decoded(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """Keys and values [..., D] of `dtype` of what is held: [..., width] each."""
        keys, values = (
            decode(packing, held, self.head_dim, self.dtype) for held, packing in zip(raw, self._packings, strict=True)
        )
        return keys, values

    def read(self, slots: Slots) -> tuple[Tensor, Tensor]:
        """Keys and values in slots, [n] or [G, P]: [R, n, D] or [R, G, P, D] of `dtype` each; copies."""
        flat = slots.ravel()
        if self.is_plain or flat.size * len(self.keys) * self.head_dim <= _NUMBERS_AT_ONCE:
            keys, values = self.decoded(self.raw(flat))
            return keys.unflatten(1, slots.shape), values.unflatten(1, slots.shape)
        keys, values = (self.keys.new_empty(len(self.keys), len(flat), self.head_dim, dtype=self.dtype) for _ in "kv")
        at_once = max(1, _NUMBERS_AT_ONCE // (len(self.keys) * self.head_dim))
        for begin in range(0, len(flat), at_once):
            part = self.raw(flat[begin : begin + at_once])
            for whole, stored, packing in zip((keys, values), part, self._packings, strict=True):
                whole[:, begin : begin + at_once] = decode(packing, stored, self.head_dim, self.dtype)
        return keys.unflatten(1, slots.shape), values.unflatten(1, slots.shape)

    def read_anyhow(self, slots: Slots) -> tuple[Tensor, Tensor, Slots]:
        """As `read` of slots [n], in whatever order is cheapest: [R, n, D] each; and where in it each slot's are."""
        return *self.read(slots), np.arange(len(slots), dtype=np.int32)

    def raw(self, slots: Slots) -> Raw:
        """What lies in slots, [n] or [R, n], as it lies there: copies. `put` elsewhere, it means the same."""
        index = self.index(slots)
        if index.ndim == 1:
            return self.keys.index_select(1, index), self.values.index_select(1, index)
        return self.keys[_rows(index), index.long()], self.values[_rows(index), index.long()]

    def put(self, slots: Slots, raw: Raw) -> None:
        """Put into slots, [n] or [R, n], what `raw` gave, of this pool or of one like it."""
        index = self.index(slots.astype(np.int64))  # all that index_copy_ takes
        for held, moved in zip((self.keys, self.values), raw, strict=True):
            if index.ndim == 1:
                held.index_copy_(1, index, moved)
            else:
                held[_rows(index), index] = moved

    def release(self) -> None:
        """Free the memory: no slots are left."""
        self.keys, self.values = (held.new_empty(len(held), 0, held.shape[2]) for held in (self.keys, self.values))
        self._returned, self._num_used = [], 0

    def index(self, slots: NDArray[np.integer]) -> Tensor:
        """Slots as an index tensor on the pool's device, copied there without waiting for it."""
        index = torch.from_numpy(slots)
        if self.keys.device.type == "cuda":
            return index.pin_memory().to(self.keys.device, non_blocking=True)
        return index.to(self.keys.device)

    @property
    def _packings(self) -> tuple[Packing, Packing]:
        return self.codec.keys, self.codec.values

    def _room(self, packing: Packing, rows: int, num_slots: int, device: torch.device | str) -> Tensor:
        check_device(packing, torch.device(device))
        dtype = stored_dtype(packing, self.dtype)
        width = packing.num_bytes(self.head_dim, self.dtype.itemsize) // dtype.itemsize
        return torch.empty(rows, num_slots, width, dtype=dtype, device=device)


def _rows(index: Tensor) -> Tensor:
    return torch.arange(len(index), device=index.device)[:, None]
