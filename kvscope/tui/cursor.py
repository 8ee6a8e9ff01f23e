"""Cursor: the one place that every screen looks at, and how it moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

Axis = Literal["query_scale", "layer", "head", "source_scale"]
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True, slots=True)
class Shape:
    """How far each axis of the cursor goes; query scales grow while a run is live."""

    query_scale: int
    layer: int
    head: int
    source_scale: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """One cell of [query_scale, layer, head, source_scale], 0-based."""

    query_scale: int = 0
    layer: int = 0
    head: int = 0
    source_scale: int = 0

    def moved(self, axis: Axis, by: int, *, shape: Shape) -> Cursor:
        """This cursor moved along one axis, stopping at its ends."""
        return self.at(axis, getattr(self, axis) + by, shape=shape)

    def at(self, axis: Axis, index: int, *, shape: Shape) -> Cursor:
        """This cursor with one axis set; negative indices count from the end, as far as -1."""
        last = getattr(shape, axis) - 1
        index = last if index == LAST else index
        return replace(self, **{axis: max(0, min(last, index))})

    def stepped(self, by: int, *, shape: Shape) -> Cursor:
        """This cursor moved along the run's steps: layer by layer, from one query scale into the next."""
        step = self.query_scale * shape.layer + self.layer + by
        query_scale, layer = divmod(max(0, min(shape.query_scale * shape.layer - 1, step)), shape.layer)
        return replace(self, query_scale=query_scale, layer=layer)

    def laned(self, by: int, *, shape: Shape) -> Cursor:
        """This cursor moved along the heads of all layers, the last head of one followed by the first of the next."""
        lane = self.layer * shape.head + self.head + by
        layer, head = divmod(max(0, min(shape.layer * shape.head - 1, lane)), shape.head)
        return replace(self, layer=layer, head=head)

    def followed(self, before: Shape, now: Shape) -> Cursor:
        """The cursor once the run has gone on: at the newest query scale it stays at the newest."""
        if self.query_scale >= before.query_scale - 1:
            return self.at("query_scale", now.query_scale - 1, shape=now)
        return self


LAST = 1 << 30
"""The index that means an axis' end."""
