"""The ledger's parts: the answer, the lines of the sum with their bars, and what the chosen line is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from textual.strip import Strip

from kvscope import units
from kvscope.ledger_report import answer_text
from kvscope.ledger_sheet import NOT_RUN
from kvscope.tui.ledger_rows import (
    REST,
    SAVED,
    LedgerRow,
    ceiling,
    cells_of,
    column_of,
    divided,
    ledger_rows,
    log_floor,
    num_rows,
    scale_parts,
    shares_of,
    stacked,
)
from kvscope.tui.palette import DROPPED, UNKNOWN, glyph
from kvscope.tui.widgets.canvas import Part, View, bar, fit, paragraph, parts_width, row, rule, spread

if TYPE_CHECKING:
    from rich.style import Style

    from kvscope.ledger import Ledger
    from kvscope.ledger_sheet import Amount, Line
    from kvscope.tui.cursor import Cursor
    from kvscope.tui.palette import Ink

_NAME, _AMOUNT, _KIND = 36, 10, 10
_ROOM_FOR_BARS, _ROOM_FOR_SCALES = 94, 150
_SHORT_ANSWER = 3
_SHARE_SIGNS = "█▆▅▄▃▂▁"
"""Of the parts of the whole, the largest first."""
_CACHE_KEYS = ("kept", "free_slots", "index")
_NOT_PREDICTED = "–"
_SIGNS = {"level": "=", "part": "+", "residual": "~"}
_KINDS = {"level": "counted", "part": "part", "residual": "residual"}

ABOUT_ANSWER = (
    "What a smaller cache saved of all memory. A budget bounds kept tokens; the cache is what was allocated for them; "
    "the process is everything. The bar is what a full history would need in all, divided into the parts that the "
    "process holds and what was saved (·); every part has one column at least. Keys and values are in the accent."
)
ABOUT_TABLE = (
    "The sum, from the tokens up, the most of each line. = is counted by somebody (the run, torch, the system, the "
    "driver), + is a part known by itself, ~ is a residual: what is left between two counts. Each count is the one "
    "above it and the parts between. Predicted is made from the schedule before the run, differs is measured less "
    "predicted, ? is not measured. Bars lead from count to count: █ a count, ━ a part, ─ a residual, ← less than "
    "nothing; → goes on beyond what the process holds. [ ] changes the scale, L makes bars logarithmic."
)
ABOUT_SCALES = (
    "Every query scale's memory in all, as a bar of the same parts and signs as the answer's. [ ] or a click chooses "
    "a finished scale."
)
ABOUT_LINE = (
    "The chosen line: what it is, from which table and column of the trace it was measured, what it is predicted "
    "from, and how it went scale by scale (dim: predicted). Enter on kept or stored puts the cursor where it peaked."
)


def answer(view: View, width: int, height: int) -> list[Strip]:
    """Budget, cache and process as shares of a full history; where there is room in words; and the whole as a bar."""
    ink = view.ink
    if view.snapshot is None or view.snapshot.ledger is None:
        return [rule("where the memory went", width, ink)]
    ledger = view.snapshot.ledger
    found = ledger.answer
    tag = "planned" if found is None or found.column == "predicted" else "measured"
    title = rule("where the memory went", width, ink, tag=tag)
    if found is None:
        return [title, *paragraph(answer_text(ledger), ink.muted, width)]
    shares = shares_of(found, ledger.run.lines[0].entry.name)
    words = paragraph(answer_text(ledger), ink.text, width) if height > 1 + _SHORT_ANSWER else []
    return [title, row(fit(_chain(ledger, ink), width, ink.muted)), *words, *_whole(shares, ledger, width, ink)]


def answer_height(view: View, width: int, *, wordy: bool = False) -> int:
    """`wordy`: there is room for the sentences."""
    return len(answer(view, width, 20 if wordy else 1 + _SHORT_ANSWER))


def wordy_answer_height(view: View, width: int) -> int:
    return answer_height(view, width, wordy=True)


def table(view: View, width: int, height: int) -> list[Strip]:
    """The titles, and as many lines round the chosen one as fit."""
    ink = view.ink
    if view.snapshot is None or view.snapshot.ledger is None:
        return [rule("ledger", width, ink)]
    ledger = view.snapshot.ledger
    rows = ledger_rows(ledger, view.cursor.query_scale)
    chosen, room = _chosen(view, len(rows)), max(1, height - 2)
    first = first_shown(chosen, len(rows), room)
    floor = log_floor(rows, ceiling(rows)) if view.choices["heat"] == "log" else 0
    title = "the sum, from the tokens up" + (", bars logarithmic" if floor and width >= _ROOM_FOR_BARS else "")
    lines = [
        _table_line(one, first + index == chosen, width, ink, (ceiling(rows), floor))
        for index, one in enumerate(rows[first : first + room])
    ]
    place = f"{chosen + 1} of {len(rows)}" if len(rows) > room else "measured beside predicted"
    return [rule(title, width, ink, tag=place), _titles(view, width), *lines]


def table_height(view: View, width: int) -> int:  # noqa: ARG001 - a Canvas asks for a width
    return 1 if view.snapshot is None or view.snapshot.ledger is None else 2 + num_rows(view.snapshot.ledger)


def table_hit(view: View, width: int, height: int, x: int, y: int) -> int | None:  # noqa: ARG001 - a whole line counts
    """The line that is drawn there."""
    if view.snapshot is None or view.snapshot.ledger is None or y < 2:
        return None
    count = num_rows(view.snapshot.ledger)
    index = first_shown(_chosen(view, count), count, max(1, height - 2)) + y - 2
    return index if index < count else None


def line_words(view: View, width: int, height: int) -> list[Strip]:
    """What the chosen line is, where its numbers come from, and how it went over the scales."""
    ink = view.ink
    if view.snapshot is None or view.snapshot.ledger is None:
        return []
    ledger = view.snapshot.ledger
    rows = ledger_rows(ledger, view.cursor.query_scale)
    one = rows[_chosen(view, len(rows))]
    entry = one.run.entry
    kind = {"defined": "defined", "beside": "beside the sum"}.get(one.group, _KINDS[entry.kind])
    lines = [
        rule(entry.name, width, ink, tag=f"{kind}, {entry.unit}"),
        *paragraph(entry.definition, ink.text, width),
        *_amount_lines("measured", one.run.measured, entry.source, width, ink),
        *_amount_lines("predicted", one.run.predicted, entry.formula, width, ink),
    ]
    if one.group == "defined":
        return [*lines[:-1], *_scale_part([], view, width, 0)] if one.run.measured == one.run.predicted else lines
    return lines + _scale_part(
        [next(line for line in (*sheet.lines, *sheet.beside) if line.key == one.run.key) for sheet in ledger.scales],
        view,
        width,
        height - len(lines),
    )


def line_height(view: View, width: int) -> int:
    return len(line_words(view, width, 0))


def first_shown(chosen: int, count: int, room: int) -> int:
    """The first of `count` lines that is shown where `room` lines fit and the chosen one is to be among them."""
    return max(0, min(chosen - room // 2, count - room))


def scale_sums(view: View, width: int, height: int) -> list[Strip]:
    """Each query scale's sum as one bar of the answer's parts, all on one scale."""
    ink = view.ink
    found = view.snapshot.ledger.answer if view.snapshot and view.snapshot.ledger else None
    if view.snapshot is None or view.snapshot.ledger is None or found is None:
        return []
    ledger = view.snapshot.ledger
    names = [name for name, _, _ in shares_of(found, ledger.run.lines[0].entry.name) if name not in (SAVED, REST)]
    signs = [(sign, style) for sign, style, _ in _looks(names, ledger, ink)]
    sums = [scale_parts(sheet, names) for sheet in ledger.scales]
    top = max((sum(sizes) for sizes in sums), default=0)
    room = max(1, height - 1)
    first = first_shown(view.cursor.query_scale, len(sums), room)
    lines = [rule("the sum of each scale", width, ink, tag="dim: planned, as far as predicted")]
    for sheet, sizes in list(zip(ledger.scales, sums, strict=True))[first : first + room]:
        is_planned = column_of(sheet) == "predicted"
        chosen = sheet.scale == view.cursor.query_scale
        style = ink.muted if is_planned else ink.strong if chosen else ink.text
        head: list[Part] = [
            ("▸" if chosen else " ", ink.accent),
            (f"scale {sheet.scale:<3}{units.bytes_text(sum(sizes)):>{_AMOUNT}}  ", style),
        ]
        cells = stacked(sizes, top, width - parts_width(head) - 1)
        looks = [
            (sign * wide, ink.faint if is_planned else paint) for (sign, paint), wide in zip(signs, cells, strict=True)
        ]
        lines.append(row([*head, *looks]))
    return lines


def scale_hit(view: View, width: int, height: int, x: int, y: int) -> Cursor | None:  # noqa: ARG001 - a whole line counts
    """The query scale that is drawn there."""
    if view.snapshot is None or view.snapshot.ledger is None or y < 1:
        return None
    index = first_shown(view.cursor.query_scale, len(view.snapshot.ledger.scales), max(1, height - 1)) + y - 1
    return replace(view.cursor, query_scale=index) if index < view.snapshot.scales_done else None


def _chosen(view: View, count: int) -> int:
    return max(0, min(view.row, count - 1))


def _chain(ledger: Ledger, ink: Ink) -> list[Part]:
    """What is kept at each level, as a share of what a full history needs there."""
    found = ledger.answer
    assert found is not None  # answer has asked
    budget = "no budget" if ledger.budget is None else units.fraction_text(ledger.budget)
    cache = units.fraction_text(found.stored_bytes / found.full_bytes if found.full_bytes else None)
    arrow: Part = (" ▸ ", ink.accent)
    return [
        (" budget ", ink.muted),
        (budget, ink.strong),
        arrow,
        ("cache ", ink.muted),
        (cache, ink.strong),
        arrow,
        ("process ", ink.muted),
        (units.fraction_text(1 - found.saved_fraction), ink.strong),
        ("  of what a full history takes", ink.muted),
    ]


def _whole(shares: tuple[tuple[str, int, float], ...], ledger: Ledger, width: int, ink: Ink) -> list[Strip]:
    """What a full history needs in all as one bar, and the names of its parts: first of the cache and what it saved."""
    looks = _looks([name for name, _, _ in shares], ledger, ink)
    columns = divided([share for _, _, share in shares], max(0, width - 2))
    body = [(sign * wide, style) for (sign, style, _), wide in zip(looks, columns, strict=True)]
    names: list[Part] = []
    for (sign, style, is_first), (name, _, share) in sorted(
        zip(looks, shares, strict=True), key=lambda pair: not pair[0][2]
    ):
        said = ink.text if is_first else ink.muted
        names += [(f" {sign} ", style), (f"{name} ", said), (f"{units.fraction_text(share)} ", ink.text)]
    return [row([(" ", ink.muted), *body]), row(fit(names, width, ink.muted))]


def _looks(names: list[str], ledger: Ledger, ink: Ink) -> list[tuple[str, Style, bool]]:
    """Sign and style of each part of the whole, and whether it is of the cache, or was saved by it."""
    cache = {line.entry.name for line in ledger.run.lines if line.key in _CACHE_KEYS}
    looks: list[tuple[str, Style, bool]] = []
    for index, name in enumerate(names):
        sign = DROPPED if name == SAVED else _SHARE_SIGNS[min(index, len(_SHARE_SIGNS) - 1)]
        style = ink.accent if name in cache else ink.good if name == SAVED else ink.calm
        looks.append((sign, style, name in cache or name == SAVED))
    return looks


def _titles(view: View, width: int) -> Strip:
    ink, scale = view.ink, f"scale {view.cursor.query_scale}"
    heads = ["predicted", "measured", "differs"]
    heads += [f"{scale}:", *heads] if width >= _ROOM_FOR_SCALES else [scale]
    parts: list[Part] = [(" " * _NAME, ink.muted), *((f"{head:>{_AMOUNT}}", ink.muted) for head in heads)]
    return row(fit(parts, width, ink.muted))


def _table_line(one: LedgerRow, chosen: bool, width: int, ink: Ink, axis: tuple[int, int]) -> Strip:
    entry = one.run.entry
    is_sum = one.group == "sum"
    style = ink.strong if is_sum and entry.is_level else ink.text if is_sum else ink.muted
    sign = f"{'' if entry.is_level else '  '}{_SIGNS[entry.kind]} " if is_sum else "  "
    name: list[Part] = [
        ("▸" if chosen else " ", ink.accent),
        (sign, ink.accent if entry.is_level else ink.muted),
        (entry.name, style),
    ]
    name = fit(name, _NAME, ink.muted)
    parts = [*name, (" " * (_NAME - parts_width(name)), ink.muted), *_amounts(one, width, style, ink)]
    if width >= _ROOM_FOR_BARS:
        room = width - parts_width(parts) - 1
        parts += [("  ", ink.muted), *_bar(one, room - 2, ink, axis)]
    strip = row(fit(parts, width, ink.muted))
    return row([(strip.text, ink.strong)]) if chosen and not ink.colour else strip


def _amounts(one: LedgerRow, width: int, style: Style, ink: Ink) -> list[Part]:
    """The whole run, then the cursor's scale."""
    if one.group == "defined":
        parts = [_cell(_predicted_text(one.run.predicted), ink.text), _cell("defined", ink.muted), _cell("", ink.muted)]
    else:
        parts = _three(one.run, style, ink)
    if width >= _ROOM_FOR_SCALES:
        return [*parts, _cell("", ink.muted), *(_three(one.scale, style, ink) if one.scale else [_cell("", style)] * 3)]
    if one.scale is None:
        return [*parts, _cell("", ink.muted)]
    if one.scale.measured == NOT_RUN:
        return [*parts, _cell(_predicted_text(one.scale.predicted), ink.muted)]
    return [*parts, _cell(_measured_text(one.scale.measured), style)]


def _three(line: Line, style: Style, ink: Ink) -> list[Part]:
    difference = line.difference
    sign = "+" if difference is not None and difference > 0 else ""
    return [
        _cell(_predicted_text(line.predicted), ink.muted),
        _cell(_measured_text(line.measured), style),
        _cell(sign + units.bytes_text(difference, absent=""), ink.good if difference == 0 else ink.text),
    ]


def _cell(text: str, style: Style) -> Part:
    return f"{text:>{_AMOUNT}}", style


def _measured_text(amount: Amount) -> str:
    """Blank: not written yet. `?`: not measured."""
    return "" if amount == NOT_RUN else units.bytes_text(amount.num_bytes, absent=UNKNOWN)


def _predicted_text(amount: Amount) -> str:
    return units.bytes_text(amount.num_bytes, absent=_NOT_PREDICTED)


def _bar(one: LedgerRow, width: int, ink: Ink, axis: tuple[int, int]) -> list[Part]:
    """Where the line stands in the sum; or why that is not known."""
    if one.span is None:
        note = (one.run.measured if one.run.measured != NOT_RUN else one.run.predicted).note
        return fit([(note, ink.muted)], width, ink.muted)
    top, floor = axis
    begin, end = cells_of(one.span, top, width, floor=floor)
    is_less, goes_on = one.span[1] < one.span[0], max(one.span) > top
    sign = "←" if is_less else {"level": "█", "part": "━", "residual": "─"}[one.run.entry.kind]
    style = ink.accent if one.run.key in _CACHE_KEYS or one.run.key == "stored" else ink.calm
    if one.span[0] == one.span[1]:
        return []
    body = sign * (end - begin)
    if goes_on:
        body = body[:-1] + "→"
    return [(" " * begin, style), (body, style)]


def _amount_lines(name: str, amount: Amount, source: str, width: int, ink: Ink) -> list[Strip]:
    """An amount, where it comes from, and at what moment; or why there is none."""
    if amount.num_bytes is None:
        value, more = amount.note or "not known", ""
    else:
        value, more = units.bytes_text(amount.num_bytes), " · ".join(filter(None, (source, amount.note)))
    lines = paragraph(f"{value}  {more}" if more else value, ink.text, width - 11, indent=0)
    heads = [f" {name:<10}", *[" " * 11] * (len(lines) - 1)]
    return [Strip([*row([(head, ink.muted)]), *line]) for head, line in zip(heads, lines, strict=True)]


def _scale_part(lines: list[Line], view: View, width: int, room: int) -> list[Strip]:
    """The line over the query scales: a bar each where they fit, else one glyph each."""
    sizes = [_of_scale(line) for line in lines]
    top = max((size for size, _ in sizes if size is not None), default=0)
    if top <= 0:
        return []
    if room > len(sizes):
        return [Strip([]), *(_scale_line(index, view, size, top, width) for index, size in enumerate(sizes))][:room]
    ink = view.ink
    parts: list[Part] = [(" by scale  0 ", ink.muted)]
    for index, (size, is_planned) in enumerate(sizes):
        style = ink.cursor if index == view.cursor.query_scale else ink.muted if is_planned else ink.accent
        parts.append((UNKNOWN if size is None else glyph(max(0, size), 0, top), style))
    parts += [(f" {len(sizes) - 1}", ink.muted), (f"  up to {units.bytes_text(top)}", ink.text)]
    return [row(fit(parts, width, ink.muted))]


def _scale_line(index: int, view: View, one: tuple[int | None, bool], top: int, width: int) -> Strip:
    ink, (size, is_planned) = view.ink, one
    chosen = index == view.cursor.query_scale
    style = ink.strong if chosen else ink.muted if is_planned else ink.text
    head: list[Part] = [
        ("▸" if chosen else " ", ink.accent),
        (f"scale {index:<3}", style),
        (f"{units.bytes_text(size, absent=UNKNOWN):>{_AMOUNT}}  ", style),
    ]
    tail: list[Part] = [("  planned " if is_planned else " ", ink.muted)]
    room = min(60, width - parts_width([*head, *tail]))
    if size is None or size < 0 or room < 1:
        return spread(head, tail, width, fill=(" ", ink.muted))
    return row([*head, *bar(size, top, room, ink.muted if is_planned else ink.accent, ink), *tail])


def _of_scale(line: Line) -> tuple[int | None, bool]:
    """Bytes, and whether they are only planned."""
    if line.measured == NOT_RUN:
        return line.predicted.num_bytes, True
    return line.measured.num_bytes, False
