"""All source scales side by side: a block of layers × heads for each, for the cursor's query scale.

Source scales that do not fit beside the cursor's are counted, layers that do not fit scroll with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from textual.strip import Strip

from kvscope.tui.metrics import METRICS, Cell, Volume, in_log, log_floor, volume_of
from kvscope.tui.palette import BLOCK, DROPPED, RAMP, UNKNOWN
from kvscope.tui.pixels import (
    CURSOR_FLAG,
    DROPPED_LEVEL,
    UNKNOWN_LEVEL,
    UNWRITTEN_LEVEL,
    halves_fit,
    levels_of,
    looks_of,
)
from kvscope.tui.widgets.canvas import Part, View, centred, parts_width, row, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot

_LABEL = 5
_GAP = 2
_HEAD_LINES, _FOOT_LINES = 1, 1


@dataclass(frozen=True, slots=True)
class Layout:
    """How [source_scale, layer, head] is laid out in a rectangle."""

    heads: int
    block: int
    """Columns from one block to the next."""
    first_scale: int
    num_scales: int
    """Source scales shown."""
    first_layer: int
    num_layers: int
    """Layers shown."""
    per_line: int
    """Layers in a line: 1, or 2 by half blocks."""

    @property
    def scales(self) -> range:
        return range(self.first_scale, self.first_scale + self.num_scales)

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + self.num_layers)

    def layers_at(self, line: int) -> range:
        """The layers drawn in a line, 0 being the first with cells."""
        return self.layers[line * self.per_line : (line + 1) * self.per_line]


def panorama(view: View, width: int, height: int) -> list[Strip]:
    """A line of titles, the cells, and what the colours mean."""
    snapshot, ink = view.snapshot, view.ink
    if snapshot is None:
        return []
    if view.cursor.query_scale >= snapshot.scales_done:
        words = "no scale yet" if snapshot.status == "live" else "no scale was recorded"
        return centred([[(words, ink.muted)]], width, height)
    layout = _layout(view, snapshot, width, height)
    looks = looks_of(ink, amount=METRICS[view.metric].amount)
    levels = _levels(view, snapshot, layout)
    lines = looks.half_blocks(levels) if layout.per_line == 2 else looks.single_rows(levels)
    labelled = [Strip.join([_label(view, layout.layers_at(y)), line]) for y, line in enumerate(lines)]
    above_foot = [_titles(view, snapshot, layout), *labelled]
    return [*(line.crop(0, width) for line in above_foot), _foot(view, snapshot, layout, width)]


def panorama_fits(view: View, width: int, height: int) -> bool:
    """Whether all source scales and all layers are there at once."""
    if view.snapshot is None:
        return False
    schedule, layout = view.snapshot.schedule, _layout(view, view.snapshot, width, height)
    return layout.num_scales == schedule.scales.num_scales and layout.num_layers == schedule.num_layers


def panorama_hit(view: View, width: int, height: int, x: int, y: int) -> Cursor | None:
    """The cell of `panorama` at a place; of two in one character the upper, or the lower from the upper."""
    snapshot = view.snapshot
    if snapshot is None or view.cursor.query_scale >= snapshot.scales_done or y < _HEAD_LINES or x < _LABEL:
        return None
    layout = _layout(view, snapshot, width, height)
    layers = layout.layers_at(y - _HEAD_LINES)
    block, head = divmod(x - _LABEL, layout.block)
    if not layers or head >= layout.heads or block >= layout.num_scales:
        return None
    upper = replace(view.cursor, layer=layers[0], head=head, source_scale=layout.scales[block])
    return replace(upper, layer=layers[-1]) if upper == view.cursor else upper


def _layout(view: View, snapshot: Snapshot, width: int, height: int) -> Layout:
    schedule, cursor = snapshot.schedule, view.cursor
    total = schedule.scales.num_scales
    block = max(schedule.num_heads, *(len(_title(snapshot, scale)) + 1 for scale in range(total))) + _GAP
    shown = max(1, min(total, (width - _LABEL + _GAP) // block))
    first = max(0, cursor.source_scale - shown + 1)  # from the left: of the last scale nothing is ever kept
    lines = max(1, height - _HEAD_LINES - _FOOT_LINES)
    per_line = 2 if schedule.num_layers > lines and halves_fit(view.ink) else 1
    layers = min(schedule.num_layers, lines * per_line)
    top = max(0, min(cursor.layer - layers // 2, schedule.num_layers - layers)) // per_line * per_line
    return Layout(schedule.num_heads, block, first, shown, top, layers, per_line)


def _levels(view: View, snapshot: Snapshot, layout: Layout) -> NDArray[np.uint8]:
    """[layer, column] of what is shown, the gaps between the blocks not written."""
    volume, cursor = volume_of(snapshot, view.metric), view.cursor
    lows, highs = _bounds(view, snapshot, volume)
    scales, layers = slice(layout.scales.start, layout.scales.stop), slice(layout.layers.start, layout.layers.stop)
    place = (cursor.query_scale, layers, slice(None), scales)
    if _is_log(view):
        levels = levels_of(*in_log(volume.values[place], float(lows[0]), float(highs[0])))
    else:
        levels = levels_of(volume.values[place], lows[scales], highs[scales])
    cells = volume.cells[place]
    for cell, level in _ABSENT.items():
        levels[cells == cell] = level
    if cursor.layer in layout.layers and cursor.source_scale in layout.scales:
        here = (cursor.layer - layout.first_layer, cursor.head, cursor.source_scale - layout.first_scale)
        levels[here] += CURSOR_FLAG
    spaced = np.full((layout.num_layers, layout.num_scales, layout.block), UNWRITTEN_LEVEL, np.uint8)
    spaced[:, :, : layout.heads] = levels.transpose(0, 2, 1)
    return spaced.reshape(layout.num_layers, -1)


_ABSENT = {Cell.DROPPED: DROPPED_LEVEL, Cell.UNKNOWN: UNKNOWN_LEVEL, Cell.UNWRITTEN: UNWRITTEN_LEVEL}


def _bounds(view: View, snapshot: Snapshot, volume: Volume) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The values of the lowest and highest level by source scale: its own for amounts, else the same for all."""
    metric, cursor = METRICS[view.metric], view.cursor
    scales = range(snapshot.schedule.scales.num_scales)
    ends = [metric.bounds(snapshot, volume, replace(cursor, source_scale=scale)) for scale in scales]
    lows, highs = np.array(ends, dtype=np.float64).T
    if not metric.amount:
        written = slice(0, cursor.query_scale + 1)
        lows, highs = np.full_like(lows, lows[written].min()), np.full_like(highs, highs[written].max())
    return lows, highs


def _is_log(view: View) -> bool:
    return view.choices["heat"] == "log" and not METRICS[view.metric].amount


def _title(snapshot: Snapshot, scale: int) -> str:
    height, width = snapshot.schedule.scales.sizes[scale]
    return f"{scale} {height}×{width}"


def _titles(view: View, snapshot: Snapshot, layout: Layout) -> Strip:
    """The source scale and its grid above each block; the cursor's has a sign."""
    ink = view.ink
    parts: list[Part] = [(" " * _LABEL, ink.muted)]
    for scale in layout.scales:
        chosen = scale == view.cursor.source_scale
        text = f"{'▸' if chosen else ' '}{_title(snapshot, scale)}"
        parts.append((f"{text:<{layout.block}}", ink.accent if chosen else ink.muted))
    return row(parts)


def _label(view: View, layers: range) -> Strip:
    """The first layer of a line, or the cursor's."""
    chosen = view.cursor.layer in layers
    layer = view.cursor.layer if chosen else layers[0]
    sign = "▸" if chosen else " "
    return row([(f"{sign}L{layer:<{_LABEL - 2}}", view.ink.accent if chosen else view.ink.muted)])


def _foot(view: View, snapshot: Snapshot, layout: Layout, width: int) -> Strip:
    """What the levels and signs mean, and what is not shown."""
    ink = view.ink
    hidden: list[Part] = [(_hidden(snapshot, layout), ink.text)]
    parts: list[Part] = []
    room = width - parts_width(hidden)
    words = ((text, ink.muted) for text in _foot_words(view, layout))
    for group in (_scale_parts(view, snapshot, layout), *([word] for word in words)):
        parts += group if parts_width([*parts, *group]) <= room else []
    return spread(parts, hidden, width, fill=(" ", ink.muted))


def _scale_parts(view: View, snapshot: Snapshot, layout: Layout) -> list[Part]:
    ink, metric = view.ink, METRICS[view.metric]
    glyphs = metric.amount and layout.per_line == 1
    ramp: list[Part] = [(BLOCK, style) for style in ink.heat]
    if glyphs or ink.glyphs:
        ramp = [(RAMP[:-1] if glyphs else RAMP, ink.calm if glyphs else ink.text)]
    if metric.amount:
        return [(" none ", ink.muted), *ramp, (" all", ink.muted)]
    lows, highs = _bounds(view, snapshot, volume_of(snapshot, view.metric))
    low, high = float(lows[0]), float(highs[0])
    lowest = metric.words(snapshot, log_floor(low, high) if _is_log(view) else low, brief=True)
    at_most, highest = "≤ " * _is_log(view), metric.words(snapshot, high, brief=True)
    return [(f" {at_most}{lowest} ", ink.muted), *ramp, (f" {highest}", ink.muted)]


def _foot_words(view: View, layout: Layout) -> tuple[str, ...]:
    how = "logarithmic, " * _is_log(view)
    span = "tokens of its source scale" if METRICS[view.metric].amount else f"({how}for all source scales)"
    dropped = "blank: dropped or not written" if layout.per_line == 2 else f"{DROPPED} dropped"
    return f" {span}", f"   {dropped}", f"   {UNKNOWN} not measured"


def _hidden(snapshot: Snapshot, layout: Layout) -> str:
    """How many source scales are left and right of those shown, and which layers are shown if not all."""
    schedule = snapshot.schedule
    left, right = layout.first_scale, schedule.scales.num_scales - layout.first_scale - layout.num_scales
    words = [f"‹ {left} more"] * (left > 0) + [f"{right} more ›"] * (right > 0)
    if layout.num_layers < schedule.num_layers:
        words.append(f"L{layout.layers[0]}–L{layout.layers[-1]} of {schedule.num_layers}")
    return "  " + " · ".join(words) + " " if words else ""
