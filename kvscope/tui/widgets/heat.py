"""Layers × heads as cells: the grid of the Map and the one-character strip of the Live screen.

Layers that do not fit below each other go on in a block beside; what still does not fit scrolls with the cursor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from textual.strip import Strip

from kvscope.tui.metrics import METRICS, Cell, Volume, cell_text, volume_of
from kvscope.tui.palette import DROPPED, RAMP, UNKNOWN, UNWRITTEN, glyph, level
from kvscope.tui.widgets.canvas import Part, View, fit, row, rule

if TYPE_CHECKING:
    from rich.style import Style

    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot

_LABEL = 5
_GAP = 1
_WIDEST = 3
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
    for cell in range(widest, 0, -1):
        blocks = max(1, width // (_LABEL + num_heads * cell + _GAP))
        rows = -(-num_layers // blocks)
        if rows <= height and _LABEL + num_heads * cell <= width:
            return Fold(cell, -(-num_layers // rows), rows, num_heads, 0)
    blocks = max(1, width // (_LABEL + num_heads + _GAP))
    shown = blocks * height
    first = max(0, min(layer - shown // 2, num_layers - shown))
    return Fold(1, blocks, height, num_heads, first)


def heat_grid(view: View, width: int, height: int) -> list[Strip]:
    """The map: a line of head numbers, then the cells of the cursor's query and source scale."""
    snapshot = view.snapshot
    if snapshot is None:
        return []
    layout = grid_fold(view, width, height)
    volume = volume_of(snapshot, view.metric)
    painter = _GridPainter.of(view, volume)
    lines = [_cell_line(view, layout, y, snapshot.schedule.num_layers, painter) for y in range(layout.rows)]
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
    layout = grid_fold(view, int(width * _SHARE), height)
    return layout.blocks * layout.block_width


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
    painter = _StripPainter.of(view, volume_of(snapshot, "kept"))
    lines = [_cell_line(view, layout, y, snapshot.schedule.num_layers, painter) for y in range(layout.rows)]
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


def legend(view: View, width: int) -> Strip:
    """What colours and glyphs mean, with the values at both ends."""
    snapshot, ink = view.snapshot, view.ink
    assert snapshot is not None
    metric, volume = METRICS[view.metric], volume_of(snapshot, view.metric)
    low, high = metric.bounds(snapshot, volume, view.cursor) if snapshot.scales_done else (0.0, 0.0)
    scale: list[Part] = (
        [(RAMP, ink.text)] if ink.glyphs else [(" ", style) for style in ink.heat[:: 1 if width >= 70 else 2]]
    )
    parts: list[Part] = [(" ", ink.text), (f"{metric.text(snapshot, low)} ", ink.muted), *scale]
    parts += [(f" {metric.text(snapshot, high)}", ink.muted), ("   · dropped  ? not measured", ink.muted)]
    return row(fit(parts, width, ink.muted))


@dataclass(frozen=True, slots=True)
class _GridPainter:
    """Cells as wide as the fold allows, filled by level, or glyphs."""

    view: View
    volume: Volume
    low: float
    high: float

    @classmethod
    def of(cls, view: View, volume: Volume) -> _GridPainter:
        assert view.snapshot is not None
        if view.cursor.query_scale >= len(volume.values):
            return cls(view, volume, 0.0, 0.0)
        low, high = METRICS[view.metric].bounds(view.snapshot, volume, view.cursor)
        return cls(view, volume, low, high)

    def cell(self, layer: int, head: int, width: int) -> list[Part]:
        text, style = self._look(layer, head, width)
        if (layer, head) != (self.view.cursor.layer, self.view.cursor.head):
            return [(text, style)]
        ink, inner = self.view.ink, text.strip()[:1]
        if width == 1:
            return [(inner if inner in (DROPPED, UNKNOWN) else "◆", ink.cursor)]
        frame: list[Part] = [("▐", ink.accent), (inner or " ", style)]
        return frame if width == 2 else [*frame, ("▌", ink.accent)]

    def _look(self, layer: int, head: int, width: int) -> Part:
        ink, cursor = self.view.ink, self.view.cursor
        if cursor.query_scale >= len(self.volume.values):
            return UNWRITTEN.center(width), ink.muted
        place = (cursor.query_scale, layer, head, cursor.source_scale)
        cell = self.volume.cells[place]
        if cell != Cell.VALUE:
            return _absent(int(cell)).center(width), ink.muted
        value = float(self.volume.values[place])
        if ink.glyphs:
            return (glyph(value, self.low, self.high) * max(1, width - 1)).ljust(width), ink.text
        return " " * width, ink.heat[level(value, self.low, self.high)]


@dataclass(frozen=True, slots=True)
class _StripPainter(_GridPainter):
    """One glyph a head: full blocks for what is kept whole."""

    @classmethod
    def of(cls, view: View, volume: Volume) -> _StripPainter:
        assert view.snapshot is not None
        return cls(view, volume, 0.0, float(view.snapshot.schedule.scales.tokens[view.cursor.source_scale]))

    def _look(self, layer: int, head: int, width: int) -> Part:
        ink, cursor = self.view.ink, self.view.cursor
        if cursor.query_scale >= len(self.volume.values):
            return UNWRITTEN, ink.muted
        place = (cursor.query_scale, layer, head, cursor.source_scale)
        cell = self.volume.cells[place]
        if cell != Cell.VALUE:
            return _absent(int(cell)), ink.muted
        return RAMP[level(float(self.volume.values[place]), self.low, self.high, levels=len(RAMP) - 1)], ink.accent


def _cell_line(view: View, layout: Fold, y: int, num_layers: int, painter: _GridPainter) -> Strip:
    return row(_cell_parts(view, layout, y, num_layers, painter))


def _cell_parts(view: View, layout: Fold, y: int, num_layers: int, painter: _GridPainter) -> Iterator[Part]:
    ink = view.ink
    for block in range(layout.blocks):
        layer = layout.layer_at(y, block)
        if layer >= num_layers:
            return
        style: Style = ink.accent if layer == view.cursor.layer else ink.muted
        yield f" L{layer:<{_LABEL - 2}}", style
        for head in range(layout.heads):
            yield from painter.cell(layer, head, layout.cell)
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
    assert view.snapshot is not None
    schedule = view.snapshot.schedule
    return fold(schedule.num_layers, schedule.num_heads, width, height - 1, widest=1, layer=view.cursor.layer)


def _hit(view: View, layout: Fold, x: int, y: int) -> Cursor | None:
    snapshot: Snapshot | None = view.snapshot
    assert snapshot is not None
    block, inside = divmod(x, layout.block_width)
    head, layer = (inside - _LABEL) // layout.cell, layout.layer_at(y, block)
    if inside < _LABEL or head >= layout.heads or y >= layout.rows or block >= layout.blocks:
        return None
    return replace(view.cursor, layer=layer, head=head) if layer < snapshot.schedule.num_layers else None


def _absent(cell: int) -> str:
    return {Cell.DROPPED: DROPPED, Cell.UNKNOWN: UNKNOWN}.get(Cell(cell), UNWRITTEN)

