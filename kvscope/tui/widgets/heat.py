"""Layers × heads as cells: the grid of the Map and the one-character strip of the Live screen.

Layers that do not fit below each other go on in a block beside; what still does not fit scrolls with the cursor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from rich.style import Style
from textual.strip import Strip

from kvscope import units
from kvscope.tui.metrics import CHOSEN, METRICS, Cell, Metric, cell_text, in_log, log_floor, volume_of
from kvscope.tui.palette import BLOCK, DROPPED, RAMP, UNKNOWN, UNWRITTEN, glyph, level
from kvscope.tui.selection import Selection
from kvscope.tui.widgets.canvas import Part, View, centred, parts_width, row, rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot

_LABEL = 5
_GAP = 1
_WIDEST = 3
_ROOM_FOR_WORDS = 42
_SHARE = 0.6
"""How much of the Map's width its grid may take."""


@dataclass(frozen=True, slots=True)
class Fold:
    """How [layer, head] is laid out in a rectangle."""

    cell: int
    """Columns of one cell."""
    blocks: int
    rows: int
    """Layers in a block."""
    heads: int
    first: int
    """The first layer shown."""

    @property
    def block_width(self) -> int:
        return _LABEL + self.heads * self.cell + _GAP

    def layer_at(self, y: int, block: int) -> int:
        return self.first + block * self.rows + y


def fold(num_layers: int, num_heads: int, width: int, height: int, *, widest: int, layer: int) -> Fold:
    """The widest cells, at most `widest`, with which all layers fit; else the narrowest, scrolled to the layer."""
    needed = -(-num_layers // height)
    for cell in range(widest, 0, -1):
        if needed * (_LABEL + num_heads * cell + _GAP) <= width:
            return Fold(cell, needed, -(-num_layers // needed), num_heads, 0)
    blocks = max(1, width // (_LABEL + num_heads + _GAP))
    first = max(0, min(layer - blocks * height // 2, num_layers - blocks * height))
    return Fold(1, blocks, height, num_heads, first)


def heat_grid(view: View, width: int, height: int) -> list[Strip]:
    """The map: a line of head numbers, then the cells of the cursor's query and source scale."""
    snapshot = view.snapshot
    if snapshot is None:
        return []
    layout = grid_fold(view, width, height)
    absence = _absence(view, snapshot)
    if absence:
        return centred([[(absence, view.ink.muted)]], width, height)
    selection = Selection.between(view.span, view.cursor) if view.span is not None else None
    cells = _Cells.of(view, view.metric, selection)
    lines = [row(_line_parts(view, layout, y, snapshot.schedule.num_layers, cells)) for y in range(layout.rows)]
    return [_head_numbers(view, layout), *lines]


def grid_fold(view: View, width: int, height: int) -> Fold:
    """The layout of `heat_grid`, below its line of head numbers."""
    assert view.snapshot is not None
    schedule = view.snapshot.schedule
    return fold(schedule.num_layers, schedule.num_heads, width, height - 1, widest=_WIDEST, layer=view.cursor.layer)


def grid_width(view: View, width: int, height: int) -> int:
    """Columns that the grid needs, at most its share of the width."""
    if view.snapshot is None:
        return width
    share = int(width * _SHARE)
    layout = grid_fold(view, share, height)
    return max(layout.blocks * layout.block_width, min(share, _ROOM_FOR_WORDS))


def grid_hit(view: View, width: int, height: int, x: int, y: int) -> Cursor | None:
    """The cell of `heat_grid` at a place."""
    if view.snapshot is None or y < 1:
        return None
    return _hit(view, grid_fold(view, width, height), x, y - 1)


def head_strip(view: View, width: int, height: int) -> list[Strip]:
    """One character a head: what is kept of the cursor's source scale after its query scale."""
    snapshot, ink = view.snapshot, view.ink
    if snapshot is None:
        return [rule("layers × heads", width, ink)]
    cursor = view.cursor
    grid_height, grid_side = snapshot.schedule.scales.sizes[cursor.source_scale]
    title = f"layers × heads, kept of source scale {cursor.source_scale} ({grid_height}×{grid_side})"
    where = f"query scale {cursor.query_scale} · L{cursor.layer} h{cursor.head} · {cell_text(snapshot, 'kept', cursor)}"
    layout = _strip_fold(view, width, height)
    cells, num_layers = _Cells.of(view, "kept"), snapshot.schedule.num_layers
    if layout.blocks * layout.rows < num_layers:
        title += f", L{layout.first}–L{layout.layer_at(layout.rows - 1, layout.blocks - 1)} of {num_layers}"
    lines = [row(_line_parts(view, layout, y, num_layers, cells)) for y in range(layout.rows)]
    return [rule(title, width, ink, tag=where, tag_style=ink.text), *lines]


def strip_height(view: View, width: int) -> int:
    if view.snapshot is None:
        return 2
    return 1 + _strip_fold(view, width, 1000).rows


def strip_hit(view: View, width: int, height: int, x: int, y: int) -> Cursor | None:
    """The cell of `head_strip` at a place."""
    if view.snapshot is None or y < 1:
        return None
    return _hit(view, _strip_fold(view, width, height), x, y - 1)


def legend(view: View, width: int, _height: int) -> list[Strip]:
    """What colours and glyphs mean, with the values at both ends; and whether they are logarithmic."""
    snapshot, ink = view.snapshot, view.ink
    if snapshot is None:
        return []
    metric, is_log = METRICS[view.metric], _is_log(view, METRICS[view.metric])
    volume, (low, high) = volume_of(snapshot, view.metric), (0.0, 0.0)
    if view.cursor.query_scale < len(volume.values):
        low, high = metric.bounds(snapshot, volume, view.cursor)
    low = log_floor(low, high) if is_log else low
    scale: list[Part] = [(BLOCK, style) for style in ink.heat]
    if metric.amount or ink.glyphs:
        in_part = snapshot.schedule.online
        scale = [(RAMP[:-1] if metric.amount and not in_part else RAMP, ink.calm if metric.amount else ink.text)]
    lowest, highest = (metric.words(snapshot, value) for value in (low, high))
    parts: list[Part] = [(f" {'≤ ' * is_log}{lowest} ", ink.muted), *scale, (f" {highest}", ink.muted)]
    whole = [f"{RAMP[-1]} whole"] * (metric.amount and snapshot.schedule.online)
    unknown = CHOSEN if metric.name == "drop_step" and snapshot.schedule.online else units.NOT_MEASURED
    for sign in (*whole, *["logarithmic"] * is_log, f"{DROPPED} dropped", f"{UNKNOWN} {unknown}"):
        entry = (f"   {sign}", ink.muted)
        parts += [entry] if parts_width([*parts, entry]) <= width else []
    return [row(parts, width)]


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """How each cell of one query and source scale looks."""

    view: View
    values: NDArray[np.float64]
    """[layer, head], as their colours have them: in logarithms where heat is logarithmic."""
    cells: NDArray[np.uint8]
    """[layer, head]."""
    low: float
    high: float
    amount: bool
    selection: Selection | None
    in_part: bool
    """Head-scales may be there in part: what is whole looks like nothing else."""

    @classmethod
    def of(cls, view: View, metric_name: str, selection: Selection | None = None) -> _Cells:
        assert view.snapshot is not None  # the painters ask before
        metric, volume, cursor = METRICS[metric_name], volume_of(view.snapshot, metric_name), view.cursor
        in_part = view.snapshot.schedule.online
        if cursor.query_scale >= len(volume.values):
            shape = volume.values.shape[1:3]
            nothing = np.full(shape, Cell.UNWRITTEN, np.uint8)
            return cls(view, np.zeros(shape), nothing, 0.0, 0.0, metric.amount, selection, in_part)
        place = (cursor.query_scale, slice(None), slice(None), cursor.source_scale)
        values, (low, high) = volume.values[place], metric.bounds(view.snapshot, volume, cursor)
        if _is_log(view, metric):
            values, low, high = in_log(values, low, high)
        return cls(view, values, volume.cells[place], low, high, metric.amount, selection, in_part)

    def parts(self, layer: int, head: int, width: int) -> list[Part]:
        """A cell of this many columns; framed if the cursor is on it, without a gap if it is in the selection."""
        text, style = self._look(layer, head)
        if (layer, head) != (self.view.cursor.layer, self.view.cursor.head):
            if self.selection is not None and (layer, head) in self.selection:
                return [("■" if width == 1 and text == BLOCK else text * width, _underlined(style))]
            filled = text not in _ABSENT.values()
            return [((text * max(1, width - 1) if filled else text.center(width)).ljust(width)[:width], style)]
        ink = self.view.ink
        if width == 1:
            return [(text if text in (DROPPED, UNKNOWN) else "◆", ink.cursor)]
        frame: list[Part] = [("▐", ink.accent), (text, style)]
        return frame if width == 2 else [*frame, ("▌", ink.accent)]

    def _look(self, layer: int, head: int) -> Part:
        ink, cell, value = self.view.ink, Cell(int(self.cells[layer, head])), float(self.values[layer, head])
        if cell is not Cell.VALUE:
            return _ABSENT[cell], ink.muted
        if self.amount and self.in_part and value >= self.high:
            return RAMP[-1], ink.calm
        if self.amount:
            return RAMP[level(value, self.low, self.high, levels=len(RAMP) - 1)], ink.calm
        if ink.glyphs:
            return glyph(value, self.low, self.high), ink.text
        return BLOCK, ink.heat[level(value, self.low, self.high)]


def _is_log(view: View, metric: Metric) -> bool:
    return view.choices["heat"] == "log" and not metric.amount


@lru_cache(maxsize=64)
def _underlined(style: Style) -> Style:
    # One object for equal styles, so that runs merge.
    return style + Style(underline=True)


_ABSENT = {Cell.DROPPED: DROPPED, Cell.UNKNOWN: UNKNOWN, Cell.UNWRITTEN: UNWRITTEN}


def _absence(view: View, snapshot: Snapshot) -> str:
    """Why there is no cell to draw at all; empty: there are."""
    query, source = view.cursor.query_scale, view.cursor.source_scale
    if query >= snapshot.scales_done:
        return "no scale yet" if snapshot.status == "live" else "no scale was recorded"
    return f"source scale {source} comes after query scale {query}" if source > query else ""


def _line_parts(view: View, layout: Fold, y: int, num_layers: int, cells: _Cells) -> Iterator[Part]:
    ink = view.ink
    for block in range(layout.blocks):
        layer = layout.layer_at(y, block)
        if layer >= num_layers:
            return
        style: Style = ink.accent if layer == view.cursor.layer else ink.muted
        yield f" L{layer:<{_LABEL - 2}}", style
        for head in range(layout.heads):
            yield from cells.parts(layer, head, layout.cell)
        yield " " * _GAP, ink.muted


def _head_numbers(view: View, layout: Fold) -> Strip:
    """Head indices above the first of each group of cells wide enough for them; the cursor's stands out."""
    ink = view.ink
    every = 1 if layout.cell >= 3 else 2 if layout.cell == 2 else 4
    parts: list[Part] = []
    for _ in range(layout.blocks):
        parts.append((" " * _LABEL, ink.muted))
        for head in range(0, layout.heads, every):
            room = min(every, layout.heads - head) * layout.cell
            near = head <= view.cursor.head < head + every
            parts.append((f"{head:<{room}}"[:room], ink.accent if near else ink.muted))
        parts.append((" " * _GAP, ink.muted))
    return row(parts)


def _strip_fold(view: View, width: int, height: int) -> Fold:
    """As many blocks as fit beside each other, to be low."""
    assert view.snapshot is not None
    schedule = view.snapshot.schedule
    blocks = max(1, width // (_LABEL + schedule.num_heads + _GAP))
    rows = min(height - 1, -(-schedule.num_layers // blocks))
    return fold(schedule.num_layers, schedule.num_heads, width, max(1, rows), widest=1, layer=view.cursor.layer)


def _hit(view: View, layout: Fold, x: int, y: int) -> Cursor | None:
    snapshot: Snapshot | None = view.snapshot
    assert snapshot is not None
    block, inside = divmod(x, layout.block_width)
    head, layer = (inside - _LABEL) // layout.cell, layout.layer_at(y, block)
    if inside < _LABEL or head >= layout.heads or y >= layout.rows or block >= layout.blocks:
        return None
    return replace(view.cursor, layer=layer, head=head) if layer < snapshot.schedule.num_layers else None
