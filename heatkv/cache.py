"""KVCache: the keys and values a run holds. It obeys a PruningSchedule and never decides.

A head-scale that the schedule drops is gone: its segment is rebuilt without it and the old memory is released.
The last scale is never stored. Byte counts are read from the tensors held, not from a formula.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatkv.attention import Segment, tokens_by_head
from heatkv.schedule import PruningSchedule


class KVCache:
    """Keys and values of one image's rows, per layer and source scale, for the heads that keep them."""

    def __init__(self, schedule: PruningSchedule) -> None:
        self.schedule = schedule
        self._segments: list[dict[int, Segment]] = [{} for _ in range(schedule.num_layers)]

    def read(self, layer: int, *, query_scale: int, keys: Tensor, values: Tensor) -> list[Segment]:
        """What attention of this layer sees: the stored segments, then the current scale for every head."""
        heads = tuple(range(self.schedule.num_heads))
        return [*self._segments[layer].values(), Segment(query_scale, heads, keys, values)]

    def append(self, layer: int, *, query_scale: int, keys: Tensor, values: Tensor) -> int:
        """Store the current scale, [R, H, L, D] each, for the heads that keep it past this step.

        Returns the tokens of the heads that the schedule drops at once: attended to, and never stored. The last
        scale is nobody's source, so there it is 0.
        """
        if query_scale == self.schedule.scales.num_scales - 1:
            return 0
        step = query_scale * self.schedule.num_layers + layer
        kept = np.flatnonzero(self.schedule.drop_step[layer, :, query_scale] > step).tolist()
        if kept:
            self._segments[layer][query_scale] = Segment(
                query_scale, tuple(kept), _own_memory(keys, kept), _own_memory(values, kept)
            )
        return (self.schedule.num_heads - len(kept)) * int(keys.shape[2])

    def evict(self, step: int) -> int:
        """Free every stored head-scale whose time is over after `step`, in any layer. Returns tokens freed."""
        freed = 0
        layers, heads, sources = self.schedule.evictions(step)
        for layer, source in sorted(set(zip(layers.tolist(), sources.tolist(), strict=True))):
            segment = self._segments[layer].get(source)
            if segment is None:
                continue
            gone = set(heads[(layers == layer) & (sources == source)].tolist())
            kept = [head for head in segment.heads if head not in gone]
            freed += (len(segment.heads) - len(kept)) * segment.num_tokens
            if kept:
                self._segments[layer][source] = segment.only(kept)
            else:
                del self._segments[layer][source]
        return freed

    def kept_tokens(self, layer: int) -> NDArray[np.int64]:
        """Tokens that a layer holds now: [head, source_scale]."""
        segments = list(self._segments[layer].values())
        return tokens_by_head(segments, self.schedule.num_heads, self.schedule.scales.num_scales)

    @property
    def accounted_bytes(self) -> int:
        """Kept tokens × bytes per token, all layers: what the budget counts."""
        return sum(tensor.nbytes for tensor in self._tensors())

    @property
    def storage_bytes(self) -> int:
        """Every byte of memory behind the tensors held; memory that two of them share counts once."""
        storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in self._tensors())}
        return sum(storages.values())

    def clear(self) -> None:
        """Release everything."""
        for segments in self._segments:
            segments.clear()

    def _tensors(self) -> list[Tensor]:
        return [
            tensor
            for layer in self._segments
            for segment in layer.values()
            for tensor in (segment.keys, segment.values)
        ]


def _own_memory(tensor: Tensor, heads: list[int]) -> Tensor:
    # k and v are views of one larger projection; storing a view would keep all of it alive.
    return torch.index_select(tensor, 1, torch.tensor(heads, device=tensor.device))
