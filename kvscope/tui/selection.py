"""Selection: the rectangle of layers × heads between the cursor and the other corner of the range, and its sums.

Pure numpy over a Snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvscope.tui.metrics import Cell, volume_of

if TYPE_CHECKING:
    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot


@dataclass(frozen=True, slots=True)
class Selection:
    """Some layers × some heads."""

    layers: range
    heads: range

    @classmethod
    def between(cls, one: Cursor, other: Cursor) -> Selection:
        """The rectangle with these two corners."""
        layers, heads = sorted((one.layer, other.layer)), sorted((one.head, other.head))
        return cls(range(layers[0], layers[1] + 1), range(heads[0], heads[1] + 1))

    def __contains__(self, place: tuple[int, int]) -> bool:
        return place[0] in self.layers and place[1] in self.heads

    @property
    def num_heads(self) -> int:
        """Heads of all its layers."""
        return len(self.layers) * len(self.heads)


@dataclass(frozen=True, slots=True)
class SelectionSum:
    """A selection at one query and source scale."""

    num_heads: int
    kept_heads: int
    """Heads that keep the source scale after the step."""
    kept_tokens: int
    kept_bytes: int
    values: int
    """Heads that have a value of the metric."""
    total: float
    mean: float
    """Of those values; NaN: there are none."""


def sum_of(snapshot: Snapshot, metric: str, selection: Selection, cursor: Cursor) -> SelectionSum:
    """What a selection comes to at the cursor's query and source scale, which must be finished."""
    layers, heads = (
        slice(selection.layers[0], selection.layers[-1] + 1),
        slice(selection.heads[0], selection.heads.stop),
    )
    place = (cursor.query_scale, layers, heads, cursor.source_scale)
    kept, volume = snapshot.kept_tokens[place], volume_of(snapshot, metric)
    values = volume.values[place][volume.cells[place] == Cell.VALUE]
    tokens = int(kept.sum(dtype=np.int64))
    token_bytes = snapshot.header.bytes_of(snapshot.schedule)[layers, heads, cursor.source_scale]
    return SelectionSum(
        num_heads=selection.num_heads,
        kept_heads=int((kept > 0).sum()),
        kept_tokens=tokens,
        kept_bytes=int((kept * token_bytes).sum()),
        values=values.size,
        total=float(values.sum()),
        mean=float(values.mean()) if values.size else float("nan"),
    )
