"""Cursor: the one place that every screen looks at, where it begins, and how it moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from kvscope.tui.feed import Snapshot

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


def shape_of(snapshot: Snapshot) -> Shape:
    """How far the cursor goes in what a trace holds so far."""
    schedule = snapshot.schedule
    return Shape(max(1, snapshot.scales_done), schedule.num_layers, schedule.num_heads, schedule.scales.num_scales)


def first_cursor(snapshot: Snapshot) -> Cursor:
    """The newest query scale, the first source scale that can be dropped, and the head that attends to it most."""
    shape = shape_of(snapshot)
    source = min(snapshot.schedule.sink_scales, shape.source_scale - 1)
    layer, head = _most_attending(snapshot, shape.query_scale - 1, source)
    return Cursor(shape.query_scale - 1, layer, head, source)


def _most_attending(snapshot: Snapshot, query_scale: int, source_scale: int) -> tuple[int, int]:
    """The layer and head that attend most to a source scale, of those that read it; the first, where none does."""
    if query_scale >= snapshot.scales_done:
        return 0, 0
    reads = snapshot.read_tokens[query_scale, :, :, source_scale] > 0
    mass = np.where(reads, np.nan_to_num(snapshot.attention_mass[query_scale, :, :, source_scale]), -1.0)
    layer, head = divmod(int(mass.argmax()), mass.shape[1])
    return layer, head
