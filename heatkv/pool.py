"""TokenPool: one block of memory for the keys and values of all layers, allocated once, handed out slot by slot.

A slot holds one token's key and value of one head, in every row. Slots of one token have no waste: whatever mix of
scales, heads and layers is kept, as many tokens fit as there are slots, and whoever leaves makes room for anybody.
It knows nothing of layers, heads or scales.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Slots = NDArray[np.int32]
"""Numbers of slots, in the order of the tokens they hold."""


class TokenPool:
    """`num_slots` slots for keys and values of all rows."""

    def __init__(
        self, num_slots: int, *, rows: int, head_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.keys = torch.empty(rows, num_slots, head_dim, dtype=dtype, device=device)
        """[R, num_slots, D]; what is in a free slot means nothing."""
        self.values = torch.empty_like(self.keys)
        self._returned: list[Slots] = []
        """Slots that came back; the last ones go out again first."""
        self._num_used = 0
        """Slots from this one on were never taken."""

    @property
    def num_slots(self) -> int:
        return self.keys.shape[1]

    @property
    def bytes_per_slot(self) -> int:
        """Of one token's key and value, in all rows."""
        return 2 * self.keys.shape[0] * self.keys.shape[2] * self.keys.element_size()

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
        index = self.index(slots).long()  # all that index_copy_ takes
        self.keys.index_copy_(1, index, keys)
        self.values.index_copy_(1, index, values)

    def read(self, slots: Slots) -> tuple[Tensor, Tensor]:
        """Keys and values of slots [G, P]: [R, G, P, D] each, copies."""
        index = self.index(slots.ravel())
        keys, values = (each.index_select(1, index).unflatten(1, slots.shape) for each in (self.keys, self.values))
        return keys, values

    def release(self) -> None:
        """Free the memory: no slots are left."""
        rows, _, head_dim = self.keys.shape
        self.keys, self.values = self.keys.new_empty(2, rows, 0, head_dim)
        self._returned, self._num_used = [], 0

    def index(self, slots: Slots) -> Tensor:
        """Slots as an index tensor on the pool's device, copied there without waiting for it."""
        index = torch.from_numpy(slots)
        if self.keys.device.type == "cuda":
            return index.pin_memory().to(self.keys.device, non_blocking=True)
        return index.to(self.keys.device)
