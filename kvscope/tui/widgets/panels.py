"""Layers × heads of two runs on one colour scale, and their difference: A │ B │ B - A, or one of them.

A difference is told by shape first: ▲ B has more, ▼ B has less, = no difference; its colour is a second sign.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal, cast

from rich.style import Style
from textual.strip import Strip

from kvscope.tui.beside import Beside, Mark, beside, bounds_of, limit_of
from kvscope.tui.metrics import METRICS, Cell, cell_text, volume_of
from kvscope.tui.palette import BLOCK, DROPPED, RAMP, UNKNOWN, UNWRITTEN, glyph, level
from kvscope.tui.widgets.canvas import Part, View, centred, fit, paragraph, parts_width, row, rule
from kvscope.tui.widgets.compare import absence, comparison_of, difference_text
from kvscope.tui.widgets.heat import Fold, fold

if TYPE_CHECKING:
    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot
    from kvscope.tui.palette import Ink

Side = Literal["a", "b", "difference"]
ALL: tuple[Side, ...] = ("a", "b", "difference")

ABOUT_PANELS = (
    "Layers × heads of A and of B on one colour scale, and B - A: ▲ B has more, ▼ B has less, = no difference, "
    "a or b: only that run has the cell. In ASCII ▲ and ▼ are + and -. Where one panel fits, d changes which."
)

LESS = ("#005fd7", "#5f87af", "#5fafd7", "#5fd7ff")
MORE = ("#875f00", "#d75f00", "#ff8700", "#ffaf87")
"""Four levels each way on a dark ground, small to large; level by level of one luminance, and of the 256 colours."""

_NAMES = {"a": "A", "b": "B", "difference": "B - A"}
_WIDEST = 3
_LABEL = 5
_ROOM_FOR_ALL = 100
_ROOM_FOR_WORDS = 72
_SEPARATOR = " │ "
_MOST_ROWS = (16, 12)
"""Layers below each other, if there is room for a block beside: of three panels, and of one."""
_LINES_ABOVE = 4
"""The rule, the cell's words, the legend, and the head numbers or the panels' names."""


def panels(view: View, width: int, height: int) -> list[Strip]:
    """The rule, what the cell under the cursor holds, the legend, and the panels."""
    found = comparison_of(view)
    if found is None:
        return _no_panels(view, width, height)
    a, b, comparison = found
    cursor, metric = view.cursor, METRICS[view.metric]
    sides, layout = _layout(view, a, width, height)
    title = f"{metric.title} · query scale {cursor.query_scale} ← source scale {cursor.source_scale}"
    if len(sides) == 1:
        where = f"{metric.label} · q{cursor.query_scale} s{cursor.source_scale}"
        title = f"{_NAMES[sides[0]]} · {title if width >= _ROOM_FOR_WORDS else where}"
    tag = comparison.total("storage_peak_bytes").tag if metric.measured else "plan"
    lines = [rule(title, width, view.ink, tag=tag)]
    missing = _missing(view, comparison.scales_shared)
    if missing:
        return [*lines, *centred([[(missing, view.ink.muted)]], width, height - 1)]
    look = _Look.of(view, a, b)
    lines += [_words(look, width), _legend(look, sides, width)]
    if len(sides) > 1:
        lines.append(_joined([_named(side, look, width, len(sides)) for side in sides], view, width))
    lines.append(_joined([_head_numbers(view, layout)] * len(sides), view, width))
    signs = [look.signs(side, layout.cell) for side in sides]
    for y in range(layout.rows):
        lines.append(_joined([list(_line(one, view, layout, y)) for one in signs], view, width))
    return lines[:height]


def panels_height(view: View, width: int) -> int:
    """Lines that the panels make use of, where layers may go on in a block beside."""
    found = comparison_of(view)
    if found is None:
        return 1
    for most in _MOST_ROWS:
        sides, layout = _layout(view, found[0], width, _LINES_ABOVE + 1 + most)
        if len(sides) > 1:
            break
    return _LINES_ABOVE + (len(sides) > 1) + layout.rows


def panels_hit(view: View, width: int, height: int, x: int, y: int) -> Cursor | None:
    """The cell that is drawn at a place, of whichever panel."""
    found = comparison_of(view)
    if found is None or _missing(view, found[2].scales_shared):
        return None
    sides, layout = _layout(view, found[0], width, height)
    panel = _panel_width(width, len(sides))
    inside, line = x % (panel + len(_SEPARATOR)), y - _LINES_ABOVE - (len(sides) > 1)
    block, column = divmod(inside, layout.block_width)
    head, layer = (column - _LABEL) // layout.cell, layout.layer_at(line, block)
    schedule = found[0].schedule
    if not 0 <= line < layout.rows or block >= layout.blocks or column < _LABEL or inside >= panel:
        return None
    if x // (panel + len(_SEPARATOR)) >= len(sides) or head >= schedule.num_heads or layer >= schedule.num_layers:
        return None
    return replace(view.cursor, layer=layer, head=head)


def difference_styles(ink: Ink) -> tuple[tuple[Style, ...], tuple[Style, ...]]:
    """(less, more): a style for each level of a difference, small to large."""
    if ink.glyphs or ink.text.color is None:
        # No colours to rely on: quiet, plain, bold.
        return ((ink.muted, ink.text, ink.text, ink.strong),) * 2
    return _colours(sum(ink.text.color.get_truecolor()) > _MIDDLE)


def sign_of(difference: float, ink: Ink) -> str:
    """The shape of a difference's sign."""
    if difference == 0:
        return "="
    more, less = ("+", "-") if ink.plain else ("▲", "▼")
    return more if difference > 0 else less


_MIDDLE = 3 * 128


@cache
def _colours(on_dark: bool) -> tuple[tuple[Style, ...], tuple[Style, ...]]:
    """What stands out most is the lightest on a dark ground, the darkest on a light one."""
    ordered = (LESS, MORE) if on_dark else (LESS[::-1], MORE[::-1])
    less, more = (tuple(Style(color=colour) for colour in colours) for colours in ordered)
    return less, more


@dataclass(frozen=True, slots=True)
class _Look:
    """Both runs at the cursor's query and source scale, and the values at the ends of the colours."""

    view: View
    a: Snapshot
    b: Snapshot
    both: Beside
    low: float
    high: float
    limit: float

    @classmethod
    def of(cls, view: View, a: Snapshot, b: Snapshot) -> _Look:
        both = beside(a, b, view.metric)
        return cls(view, a, b, both, *bounds_of(a, b, view.metric, view.cursor), limit_of(both, view.cursor))

    def signs(self, side: Side, cell: int) -> list[list[Part]]:
        """What is drawn, and its style, for each [layer][head] in cells of so many columns."""
        query, source = self.view.cursor.query_scale, self.view.cursor.source_scale
        if side == "difference":
            values, cells = self.both.difference, self.both.marks
        else:
            volume = volume_of(self.a if side == "a" else self.b, self.view.metric)
            values, cells = volume.values, volume.cells
        sign = self._difference if side == "difference" else self._value
        if side == "difference" and self.view.ink.glyphs and cell == _WIDEST:
            sign = self._sized_difference
        pairs = zip(values[query, :, :, source].tolist(), cells[query, :, :, source].tolist(), strict=True)
        return [[sign(value, cell) for value, cell in zip(*lines, strict=True)] for lines in pairs]

    def _value(self, value: float, cell: int) -> Part:
        ink = self.view.ink
        if cell != Cell.VALUE:
            return {Cell.DROPPED: DROPPED, Cell.UNKNOWN: UNKNOWN}.get(Cell(cell), UNWRITTEN), ink.muted
        if METRICS[self.view.metric].amount:
            return RAMP[level(value, self.low, self.high, levels=len(RAMP) - 1)], ink.calm
        if ink.glyphs:
            return glyph(value, self.low, self.high), ink.text
        return BLOCK, ink.heat[level(value, self.low, self.high)]

    def _difference(self, value: float, mark: int) -> Part:
        ink = self.view.ink
        if mark != Mark.VALUE:
            return _ABSENT[Mark(mark)], ink.muted
        if value == 0:
            return sign_of(value, ink), ink.muted
        less, more = difference_styles(ink)
        styles = more if value > 0 else less
        return sign_of(value, ink), styles[level(abs(value), 0, self.limit, levels=len(styles))]

    def _sized_difference(self, value: float, mark: int) -> Part:
        """A sign with how much beside it."""
        sign, style = self._difference(value, mark)
        return (sign + glyph(abs(value), 0, self.limit) if mark == Mark.VALUE and value else sign), style


_ABSENT = {
    Mark.DROPPED: DROPPED,
    Mark.UNKNOWN: UNKNOWN,
    Mark.UNWRITTEN: UNWRITTEN,
    Mark.ONLY_A: "a",
    Mark.ONLY_B: "b",
}


def _layout(view: View, a: Snapshot, width: int, height: int) -> tuple[tuple[Side, ...], Fold]:
    """All three beside each other where they fit whole, else the one that is chosen."""
    schedule, layer = a.schedule, view.cursor.layer
    shape = schedule.num_layers, schedule.num_heads
    room = max(1, height - _LINES_ABOVE)
    if width >= _ROOM_FOR_ALL and room > 1:
        layout = fold(*shape, _panel_width(width, len(ALL)), room - 1, widest=_WIDEST, layer=layer)
        if layout.blocks * layout.rows >= schedule.num_layers:
            return ALL, layout
    side = cast(Side, view.choices["side"])
    return (side,), fold(*shape, width, room, widest=_WIDEST, layer=layer)


def _panel_width(width: int, count: int) -> int:
    return (width - len(_SEPARATOR) * (count - 1)) // count


def _joined(panels: list[list[Part]], view: View, width: int) -> Strip:
    """The lines of the panels beside each other, each as wide as the others."""
    each, parts = _panel_width(width, len(panels)), list[Part]()
    for index, panel in enumerate(panels):
        parts += [(_SEPARATOR, view.ink.faint)] if index else []
        parts += panel
        parts.append((" " * (each - parts_width(panel)), view.ink.muted))
    return row(parts, width)


def _no_panels(view: View, width: int, height: int) -> list[Strip]:
    """Why nothing is compared, in the middle of the room."""
    room = min(width, 76)
    lines = [strip for text in absence(view) for strip in paragraph(text, view.ink.text, room)]
    margin = row([(" " * ((width - room) // 2), view.ink.text)])
    return [Strip([])] * max(0, (height - len(lines)) // 2) + [Strip.join([margin, line]) for line in lines]


def _missing(view: View, shared: int) -> str:
    """Why the cursor's scales have no cells; empty: they have."""
    query, source = view.cursor.query_scale, view.cursor.source_scale
    if query >= shared:
        return f"query scale {query} is not in both yet: [ goes back to {shared - 1}"
    return f"source scale {source} comes after query scale {query}" if source > query else ""


def _words(look: _Look, width: int) -> Strip:
    """The cell under the cursor: A, B, difference."""
    view, cursor, metric = look.view, look.view.cursor, METRICS[look.view.metric]
    ink, place = view.ink, (cursor.query_scale, cursor.layer, cursor.head, cursor.source_scale)
    a, b = (cell_text(snapshot, view.metric, cursor, brief=True) for snapshot in (look.a, look.b))
    both: list[Part] = [("  A ", ink.muted), (a, ink.text), ("  B ", ink.muted), (b, ink.text)]
    difference: list[Part] = []
    if look.both.marks[place] == Mark.VALUE:
        text = difference_text(metric, look.a, float(look.both.difference[place]))
        difference = [("  B - A " if width >= _ROOM_FOR_WORDS else "  ", ink.muted), (text, ink.strong)]
    # What is cut where there is little room is what the other two tell.
    told = [*both, *difference] if width >= _ROOM_FOR_WORDS else [*difference, *both]
    return row(fit([(f" L{cursor.layer} h{cursor.head}", ink.accent), *told], width, ink.muted))


def _legend(look: _Look, sides: tuple[Side, ...], width: int) -> Strip:
    """What signs and colours mean, with the values at their ends."""
    ink, metric = look.view.ink, METRICS[look.view.metric]
    entries: list[list[Part]] = []
    if "difference" in sides:
        less, more = difference_styles(ink)
        signs = [(sign_of(-1, ink), style) for style in reversed(less)]
        signs += [("=", ink.muted), *((sign_of(1, ink), style) for style in more)]
        low, high = (difference_text(metric, look.a, value) for value in (-look.limit, look.limit))
        entries.append([(f"{low} ", ink.muted), *signs, (f" {high}", ink.muted)])
    if sides != ("difference",):
        scale: list[Part] = [(BLOCK, style) for style in ink.heat]
        if metric.amount or ink.glyphs:
            scale = [(RAMP[:-1] if metric.amount else RAMP, ink.calm if metric.amount else ink.text)]
        low, high = (metric.words(look.a, value, brief=True) for value in (look.low, look.high))
        entries.insert(0, [(f"{low} ", ink.muted), *scale, (f" {high}", ink.muted)])
    if "difference" in sides and not metric.amount:
        entries.append([("a b only in that run", ink.muted)])
    entries.append([(f"{DROPPED} dropped", ink.muted)])
    entries.append([(f"{UNKNOWN} not measured", ink.muted)])
    parts: list[Part] = []
    for entry in entries:
        more_parts: list[Part] = [("   " if parts else " ", ink.muted), *entry]
        parts += more_parts if parts_width([*parts, *more_parts]) <= width else []
    return row(parts, width)


def _named(side: Side, look: _Look, width: int, count: int) -> list[Part]:
    ink, room = look.view.ink, _panel_width(width, count)
    name: list[Part] = [(f" {_NAMES[side]}", ink.strong)]
    if side != "difference":
        snapshot = look.a if side == "a" else look.b
        name.append((f"  {snapshot.path.name}", ink.muted))
    return fit(name, room, ink.muted)


def _head_numbers(view: View, layout: Fold) -> list[Part]:
    """Head indices above the first of each group of cells wide enough for them; the cursor's stands out."""
    ink, parts = view.ink, list[Part]()
    every = {1: 4, 2: 2}.get(layout.cell, 1)
    for _ in range(layout.blocks):
        parts.append((" " * _LABEL, ink.muted))
        for head in range(0, layout.heads, every):
            room = min(every, layout.heads - head) * layout.cell
            near = head <= view.cursor.head < head + every
            parts.append((f"{head:<{room}}"[:room], ink.accent if near else ink.muted))
        parts.append((" " * (layout.block_width - _LABEL - layout.heads * layout.cell), ink.muted))
    return parts


def _line(signs: list[list[Part]], view: View, layout: Fold, y: int) -> Iterator[Part]:
    """One line of a panel: of each block, a layer's name and its cells."""
    ink, cursor = view.ink, view.cursor
    for block in range(layout.blocks):
        layer = layout.layer_at(y, block)
        if layer >= len(signs):
            return
        yield f" L{layer:<{_LABEL - 2}}", ink.accent if layer == cursor.layer else ink.muted
        for head, (sign, style) in enumerate(signs[layer]):
            if (layer, head) == (cursor.layer, cursor.head):
                yield from _framed(sign, style, layout.cell, ink)
            else:
                filled = sign in RAMP or sign == BLOCK
                yield (sign * max(1, layout.cell - 1) if filled else sign).ljust(layout.cell), style
        yield " " * (layout.block_width - _LABEL - layout.heads * layout.cell), ink.muted


def _framed(sign: str, style: Style, cell: int, ink: Ink) -> list[Part]:
    """The cell under the cursor."""
    if cell == 1:
        return [(sign if sign not in RAMP and sign != BLOCK else "◆", ink.cursor)]
    frame: list[Part] = [("▐", ink.accent), (sign[0], style)]
    return frame if cell == 2 else [*frame, ("▌", ink.accent)]
