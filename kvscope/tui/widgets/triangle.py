"""The Mass screen's parts: one head's attention as a triangle of query × source scales, and all heads in order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from rich.style import Style
from textual.strip import Strip

from kvscope import units
from kvscope.tui.metrics import Cell, in_log, log_floor
from kvscope.tui.palette import BLOCK, DROPPED, NUM_LEVELS, RAMP, UNKNOWN, glyph, level
from kvscope.tui.ranking import MASS_METRICS, HeadMass, Ranking, absence_of_mass, head_mass, ranking_at
from kvscope.tui.widgets.canvas import Part, View, centred, fit, paragraph, parts_width, row, rule
from kvscope.tui.widgets.heat import grid_fold, grid_hit, heat_grid

if TYPE_CHECKING:
    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot

_LABEL, _SUM = 10, 5
_WIDEST = 8
_ROOM_FOR_VALUES = 5
_ROOM_FOR_GLYPHS = 7


@dataclass(frozen=True, slots=True)
class Layout:
    """How [query_scale, source_scale] is laid out below a rule and a line of numbers."""

    cell: int
    """Columns of one cell."""
    scales: int
    first: int
    """The first query scale shown."""
    rows: int


def triangle(view: View, width: int, height: int) -> list[Strip]:
    """One line per query scale, one cell per source scale that it could read; at the right each line's sum."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None:
        return [rule("attention", width, ink)]
    guidance, cursor = view.choices["guidance"], view.cursor
    title = f"L{cursor.layer} h{cursor.head} · {guidance} attention · query ↓ source →"
    absence = absence_of_mass(snapshot, guidance)
    if absence:
        words = [[(absence, ink.muted)]] if len(absence) < width else []
        lines = centred(words, width, height - 1) if words else paragraph(absence, ink.muted, width)
        return [rule(title, width, ink), *lines]
    layout, mass = _layout(view, snapshot, width, height), head_mass(snapshot, guidance, cursor)
    shade = _Shade.of(view, mass)
    queries = range(layout.first, layout.first + layout.rows)
    return [
        rule(title, width, ink, tag=snapshot.summary.tags["scales"]),
        _source_numbers(view, layout),
        *(_query_line(view, snapshot, mass, shade, layout, query, width) for query in queries),
        *_foot(view, shade, layout, width, height),
    ]


def triangle_height(view: View, _width: int) -> int:
    """Its rule, the source scales, every query scale, and what the colours mean."""
    snapshot = view.snapshot
    if snapshot is None or absence_of_mass(snapshot, view.choices["guidance"]):
        return 4
    return 3 + snapshot.schedule.scales.num_scales


def triangle_hit(view: View, width: int, height: int, x: int, y: int) -> Cursor | None:
    """The cell of `triangle` at a place, of those that can hold something."""
    snapshot = view.snapshot
    if snapshot is None or absence_of_mass(snapshot, view.choices["guidance"]) or y < 2:
        return None
    layout = _layout(view, snapshot, width, height)
    query, source = layout.first + y - 2, (x - _LABEL) // layout.cell
    if y - 2 >= layout.rows or query >= snapshot.scales_done or not 0 <= source <= query:
        return None
    return replace(view.cursor, query_scale=query, source_scale=source)


def heads_grid(view: View, width: int, height: int) -> list[Strip]:
    """All heads at the cursor's query and source scale, layers × heads."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None:
        return [rule("layers × heads", width, ink)]
    cursor = view.cursor
    title = f"layers × heads · query {cursor.query_scale} ← source {cursor.source_scale}"
    if height < 3 or _ranking_absence(view, snapshot):
        return []
    tag, layout = snapshot.summary.tags["scales"], grid_fold(view, width, height - 1)
    last, num_layers = layout.layer_at(layout.rows - 1, layout.blocks - 1), snapshot.schedule.num_layers
    if last - layout.first + 1 < num_layers:
        title += f" · L{layout.first}–L{last} of {num_layers}"
    return [rule(title, width, ink, tag=tag), *heat_grid(_as_mass(view), width, height - 1)]


def heads_hit(view: View, width: int, height: int, x: int, y: int) -> Cursor | None:
    """The head of `heads_grid` at a place."""
    if view.snapshot is None or y < 1 or height < 3 or _ranking_absence(view, view.snapshot):
        return None
    return grid_hit(_as_mass(view), width, height - 1, x, y - 1)


def percent_text(fraction: float) -> str:
    """A fraction in percent in at most four columns and without its sign: `100`, `45.2`, `0.12`, `<.01`."""
    # 0.00005: what is less would be rounded to 0.00 %, which is not what it is.
    if 0 < fraction < 0.00005:
        return "<.01"
    text = units.fraction_text(round(fraction, 4)).removesuffix(" %")
    return text if len(text) <= 4 else text[:4].rstrip(".")


def ranked_heads(view: View, width: int, height: int) -> list[Strip]:
    """All heads at the cursor's query and source scale as one falling curve, and where the cursor's head is in it."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None:
        return [rule("all heads", width, ink)]
    cursor = view.cursor
    title = f"all heads · query {cursor.query_scale} ← source {cursor.source_scale}, most attention first"
    if absence_of_mass(snapshot, view.choices["guidance"]):
        return []
    absence = _ranking_absence(view, snapshot)
    if absence:
        return [rule(title, width, ink), *paragraph(absence, ink.muted, width)][:height]
    ranking = ranking_at(snapshot, view.choices["guidance"], cursor)
    words = _ranking_words(view, ranking, width)
    room = height - 1 - len(words) - 1
    curve = [*_curve(view, ranking, width, room), _marker(view, ranking, width)] if room > 0 else []
    return [rule(title, width, ink, tag=snapshot.summary.tags["scales"]), *words, *curve][:height]


def ranked_hit(view: View, width: int, _height: int, x: int, y: int) -> Cursor | None:
    """The head that the column of `ranked_heads` at a place begins with."""
    snapshot = view.snapshot
    if snapshot is None or _ranking_absence(view, snapshot) or y < 1:
        return None
    ranking = ranking_at(snapshot, view.choices["guidance"], view.cursor)
    columns = _columns(ranking, width)
    if y <= len(_ranking_words(view, ranking, width)) or not 0 <= x - 1 < columns:
        return None
    index = -(-(x - 1) * ranking.mass.size // columns)
    return replace(view.cursor, layer=int(ranking.layers[index]), head=int(ranking.heads[index]))


@dataclass(frozen=True, slots=True)
class _Shade:
    """From a share of attention to its colour: linear or logarithmic, up to the most in the triangle."""

    high: float
    is_log: bool

    @classmethod
    def of(cls, view: View, mass: HeadMass) -> _Shade:
        known = mass.mass[np.isfinite(mass.mass)]
        return cls(float(known.max()) if known.size else 0.0, view.choices["heat"] == "log")

    def level(self, fraction: float) -> int:
        return level(*self._ends(fraction))

    def glyph(self, fraction: float) -> str:
        return glyph(*self._ends(fraction))

    @property
    def low(self) -> float:
        return log_floor(0.0, self.high) if self.is_log else 0.0

    def _ends(self, fraction: float) -> tuple[float, float, float]:
        if not self.is_log:
            return fraction, 0.0, self.high
        values, low, high = in_log(np.array([fraction]), 0.0, self.high)
        return float(values[0]), low, high


def _as_mass(view: View) -> View:
    """The view with the metric that this screen shows."""
    return replace(view, metric=MASS_METRICS[view.choices["guidance"]], span=None)


def _layout(view: View, snapshot: Snapshot, width: int, height: int) -> Layout:
    scales = snapshot.schedule.scales.num_scales
    cell = max(1, min(_WIDEST, (width - _LABEL - _SUM) // scales))
    room = max(1, height - 2)
    rows = min(scales, room)
    first = max(0, min(view.cursor.query_scale - room // 2, scales - rows))
    return Layout(cell, scales, first, rows)


def _source_numbers(view: View, layout: Layout) -> Strip:
    """The source scales' indices above their cells, and above the sums what these are."""
    ink = view.ink
    parts: list[Part] = [(" " * _LABEL, ink.muted)]
    for source in range(layout.scales):
        chosen = source == view.cursor.source_scale
        text = str(source) if layout.cell > 2 or chosen or source % 2 == 0 else ""
        parts.append((f"{text:^{layout.cell}}"[: layout.cell], ink.accent if chosen else ink.muted))
    return row([*parts, ("sum".rjust(_SUM), ink.muted)])


def _query_line(
    view: View, snapshot: Snapshot, mass: HeadMass, shade: _Shade, layout: Layout, query: int, width: int
) -> Strip:
    ink, chosen = view.ink, query == view.cursor.query_scale
    height, side = snapshot.schedule.scales.sizes[query]
    label = f"{'▸' if chosen else ' '}{query:>2} {f'{height}×{side}':<{_LABEL - 4}}"
    frame = "▐" if chosen and view.cursor.source_scale == 0 and query < snapshot.scales_done else " "
    label = label[: _LABEL - 1].ljust(_LABEL - 1) + frame
    parts: list[Part] = [(label, ink.accent if chosen else ink.muted)]
    if query >= snapshot.scales_done:
        words = "not reached" if snapshot.status == "live" else "not recorded"
        return row(fit([*parts, (f" {words}", ink.faint if ink.colour else ink.muted)], width, ink.muted))
    for source in range(layout.scales):
        parts += _cell_parts(view, mass, shade, layout.cell, query, source)
    total = float(mass.sums[query])
    text = UNKNOWN if np.isnan(total) else percent_text(total)
    return row([*parts, (f"{text:>{_SUM}}", ink.muted)])


def _cell_parts(view: View, mass: HeadMass, shade: _Shade, width: int, query: int, source: int) -> list[Part]:
    text, style = _cell_look(view, mass, shade, width, query, source)
    return _gapped(text, style, width, source, view, in_row=query == view.cursor.query_scale)


def _cell_look(view: View, mass: HeadMass, shade: _Shade, width: int, query: int, source: int) -> Part:
    """Its value as text where there is room, on the colour or beside the glyph of its level; or why there is none."""
    ink, cell = view.ink, Cell(int(mass.cells[query, source]))
    if cell is not Cell.VALUE:
        return {Cell.DROPPED: DROPPED, Cell.UNKNOWN: UNKNOWN}.get(cell, " "), ink.muted
    value = float(mass.mass[query, source])
    is_coloured = ink.colour and not ink.glyphs
    if width < _ROOM_FOR_VALUES:
        text, style = (BLOCK, ink.heat[shade.level(value)]) if is_coloured else (shade.glyph(value), ink.text)
        return text * max(1, width - 1), style
    text = percent_text(value)
    if is_coloured:
        return text, _on_heat(ink.heat[shade.level(value)])
    return (f"{shade.glyph(value)} {text:<4}" if width >= _ROOM_FOR_GLYPHS else text), ink.text


def _gapped(text: str, style: Style, width: int, source: int, view: View, *, in_row: bool) -> list[Part]:
    """The text in the middle of a cell, and the column that keeps it from the next one: the cursor's frame is there."""
    ink, cursor = view.ink, view.cursor
    here, next_is = in_row and source == cursor.source_scale, in_row and source + 1 == cursor.source_scale
    if width == 1:
        return [(text[:1], ink.cursor if here else style)]
    gap = "▌" if here else "▐" if next_is else " "
    return [(f"{text:^{width - 1}}"[: width - 1], style), (gap, ink.accent)]


def _foot(view: View, shade: _Shade, layout: Layout, width: int, height: int) -> list[Strip]:
    """What colours, numbers and signs mean, if there is a line left for it."""
    ink = view.ink
    if layout.rows + 2 >= height:
        return []
    ramp: list[Part] = [(BLOCK, style) for style in ink.heat]
    if ink.glyphs or not ink.colour:
        ramp = [(RAMP, ink.text)]
    low = f"≤ {units.fraction_text(shade.low)}" if shade.is_log else "0 %"
    parts: list[Part] = [(f" {low} ", ink.muted), *ramp, (f" {units.fraction_text(shade.high)}", ink.muted)]
    has_room = layout.cell >= _ROOM_FOR_VALUES
    numbers = ["% of the head's attention"] if has_room else ["sums in %"]
    for words in (*["logarithmic"] * shade.is_log, *numbers, f"{DROPPED} dropped", f"{UNKNOWN} not measured"):
        entry = (f"   {words}", ink.muted)
        parts += [entry] if parts_width([*parts, entry]) <= width else []
    return [row(parts, width)]


@lru_cache(maxsize=NUM_LEVELS * 4)
def _on_heat(heat: Style) -> Style:
    """Black or white, whichever is read better, on the colour of a level."""
    if heat.color is None:
        return heat
    red, green, blue = (_linear(channel) for channel in heat.color.get_truecolor())
    # As WCAG has it: at this luminance black and white have the same contrast.
    is_light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179
    return Style(color="#000000" if is_light else "#ffffff", bgcolor=heat.color)


def _linear(channel: int) -> float:
    share = channel / 255
    return share / 12.92 if share <= 0.04045 else float(((share + 0.055) / 1.055) ** 2.4)


def _ranking_absence(view: View, snapshot: Snapshot) -> str:
    """Why there is nothing to put in order; empty: there is."""
    guidance, cursor = view.choices["guidance"], view.cursor
    absence = absence_of_mass(snapshot, guidance)
    if absence:
        return absence
    if cursor.query_scale >= snapshot.scales_done:
        return "not reached"
    if cursor.source_scale > cursor.query_scale:
        return f"source scale {cursor.source_scale} comes after query scale {cursor.query_scale}"
    ranking = ranking_at(snapshot, guidance, cursor)
    if ranking.mass.size:
        return ""
    return units.NOT_MEASURED if ranking.unmeasured else "every head has dropped it"


def _ranking_words(view: View, ranking: Ranking, width: int) -> list[Strip]:
    """The cursor's head among the others, then the first heads of the order."""
    ink, cursor = view.ink, view.cursor
    place = ranking.place_of(cursor)
    name = f" L{cursor.layer} h{cursor.head} "
    if place is None:
        here: list[Part] = [(name, ink.accent), ("did not read it", ink.text)]
    else:
        share = units.fraction_text(float(ranking.mass[place]))
        here = [(name, ink.accent), (share, ink.strong), (f" · rank {place + 1} of {ranking.mass.size}", ink.text)]
    facts = [f"median {units.fraction_text(ranking.median)}", f"{ranking.dropped} of {ranking.num_heads} dropped it"]
    for fact in facts:
        entry: Part = (f" · {fact}", ink.muted)
        here += [entry] if parts_width([*here, entry]) <= width else []
    most: list[Part] = [(" most ", ink.muted)]
    for index in range(ranking.mass.size):
        share = units.fraction_text(float(ranking.mass[index]))
        entry = (f" L{ranking.layers[index]} h{ranking.heads[index]} {share} ", ink.text)
        if parts_width([*most, entry]) > width:
            break
        most.append(entry)
    return [row(fit(here, width, ink.muted)), row(fit(most, width, ink.muted))]


def _columns(ranking: Ranking, width: int) -> int:
    """Columns of the curve: never more than heads."""
    return max(1, min(width - 2, ranking.mass.size))


def _column_of(ranking: Ranking, width: int, place: int) -> int:
    return place * _columns(ranking, width) // ranking.mass.size


def _curve(view: View, ranking: Ranking, width: int, height: int) -> list[Strip]:
    """The most of each column's heads, from 0 at the bottom; the cursor's column stands out."""
    ink, columns = view.ink, _columns(ranking, width)
    # The order falls, so the first head of a column is its most.
    firsts = -(-np.arange(columns) * ranking.mass.size // columns)
    values, top = ranking.mass[firsts], float(ranking.mass[0])
    place = ranking.place_of(view.cursor)
    chosen = None if place is None else _column_of(ranking, width, place)
    eighths = np.ceil(values / top * height * len(RAMP)).astype(int) if top > 0 else np.zeros(columns, int)
    lines = []
    for line in range(height):
        filled = np.clip(eighths - (height - 1 - line) * len(RAMP), 0, len(RAMP)).tolist()
        signs = [RAMP[count - 1] if count else " " for count in filled]
        parts: list[Part] = [(" ", ink.muted)]
        parts += [(sign, ink.accent if column == chosen else ink.calm) for column, sign in enumerate(signs)]
        lines.append(row(parts))
    return lines


def _marker(view: View, ranking: Ranking, width: int) -> Strip:
    """An arrow below the cursor's column."""
    place = ranking.place_of(view.cursor)
    if place is None:
        return Strip([])
    return row([(" " * (1 + _column_of(ranking, width, place)), view.ink.muted), ("↑", view.ink.accent)])
