"""The cell under the cursor in words, and its history: a row over source scales, a column over query scales."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from textual.strip import Strip

from kvscope import units
from kvscope.tui.metrics import CHOSEN, METRICS, NEVER_CACHED, Cell, cell_text, recorded, volume_of, why
from kvscope.tui.palette import DROPPED, UNKNOWN, Ink
from kvscope.tui.selection import Selection, sum_of
from kvscope.tui.widgets.canvas import Part, View, bar, fit, paragraph, parts_width, row, rule

if TYPE_CHECKING:
    from kvscope.tui.cursor import Axis, Cursor
    from kvscope.tui.feed import Snapshot

_PLACE, _VALUE = 12, 25


def cell_words(view: View, width: int, height: int) -> list[Strip]:
    """Where the cursor is, the metric's value there, and why: one sentence; then as many other metrics as fit."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None:
        return []
    cursor = view.cursor
    how = snapshot.summary.tags["scales"] if METRICS[view.metric].measured else "plan"
    place = f"layer {cursor.layer} · head {cursor.head}"
    value = _metric_lines(view, snapshot, view.metric, width)
    sentence = paragraph(why(snapshot, cursor), ink.text, width)
    lines = [rule(place, width, ink, tag=how), *value, *sentence]
    for name in METRICS:
        if name == view.metric or not recorded(snapshot, name):
            continue
        more = _metric_lines(view, snapshot, name, width)
        if len(lines) + len(more) > height:
            break
        lines += more
    return lines


def words_height(view: View, width: int) -> int:
    return len(cell_words(view, width, 1000)) or 1


def range_words(view: View, width: int, _height: int) -> list[Strip]:
    """What the selected range comes to: its heads, what they keep, and the metric."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None or view.span is None or view.cursor.query_scale >= snapshot.scales_done:
        return []
    selection, metric = Selection.between(view.span, view.cursor), METRICS[view.metric]
    found = sum_of(snapshot, view.metric, selection, view.cursor)
    layers, heads = (f"{part[0]}" if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in _both(selection))
    noun = "head" if found.num_heads == 1 else "heads"
    parts: list[Part] = [(" range ", ink.accent), (f"L{layers} h{heads}: {found.num_heads} {noun}", ink.strong)]
    tokens = f"{units.head_tokens_text(found.kept_tokens)} = {units.bytes_text(found.kept_bytes)}"
    parts += [(f" · {found.kept_heads} keep it: ", ink.muted), (tokens, ink.text)]
    if found.values and not metric.amount:
        mean = metric.words(snapshot, found.mean, brief=True)
        parts += [(f" · {metric.label} mean ", ink.muted), (mean, ink.text)]
        if metric.name in _SUMMABLE:
            parts += [(" sum ", ink.muted), (metric.words(snapshot, found.total, brief=True), ink.text)]
    return _folded(parts, width, ink)


def range_height(view: View, width: int) -> int:
    return len(range_words(view, width, 0))


def over_sources(view: View, width: int, height: int) -> list[Strip]:
    """This head at the cursor's query scale, one bar per source scale."""
    return _bars(view, "source_scale", width, height)


def over_queries(view: View, width: int, height: int) -> list[Strip]:
    """This head-scale over all query scales, one bar each."""
    return _bars(view, "query_scale", width, height)


def bars_height(view: View, _width: int) -> int:
    """The lines of `over_sources` and `over_queries`: a rule, and one per scale."""
    return 1 if view.snapshot is None else 1 + view.snapshot.schedule.scales.num_scales


def _bars(view: View, axis: Axis, width: int, height: int) -> list[Strip]:
    ink, snapshot = view.ink, view.snapshot
    fixed = "query" if axis == "source_scale" else "source"
    other = view.cursor.query_scale if axis == "source_scale" else view.cursor.source_scale
    title = rule(f"over {axis.replace('_', ' ')}s · {fixed} {other}", width, ink)
    if snapshot is None:
        return [title]
    cursors = [replace(view.cursor, **{axis: index}) for index in range(snapshot.schedule.scales.num_scales)]
    room, here = max(1, height - 1), getattr(view.cursor, axis)
    first = max(0, min(here - room // 2, len(cursors) - room))
    top = max((_value(view, snapshot, cursor) or 0.0 for cursor in cursors), default=0.0)
    shown = cursors[first : first + room]
    hidden = _hidden_marks(len(shown), above=first > 0, below=first + room < len(cursors))
    lines = (_bar_line(view, snapshot, axis, one, top, width, mark) for one, mark in zip(shown, hidden, strict=True))
    return [title, *lines]


def _hidden_marks(lines: int, *, above: bool, below: bool) -> list[str]:
    """A sign on the first and last line where more scales lie beyond, one per line."""
    marks = [" "] * lines
    marks[-1] = "↓" if below else " "
    if above:
        marks[0] = "↑" if marks[0] == " " else "↕"
    return marks


def _bar_line(view: View, snapshot: Snapshot, axis: Axis, cursor: Cursor, top: float, width: int, more: str) -> Strip:
    ink, index = view.ink, getattr(cursor, axis)
    chosen = index == getattr(view.cursor, axis)
    height, side = snapshot.schedule.scales.sizes[index]
    head: list[Part] = [
        (more, ink.text),
        ("▸" if chosen else " ", ink.accent),
        (f"{index:>2} ", ink.strong if chosen else ink.muted),
    ]
    head.append((f"{f'{height}×{side}':<{_PLACE - 5}}", ink.muted))
    room = max(4, min(40, width - _PLACE - _VALUE - 1))
    value = _value(view, snapshot, cursor)
    text = cell_text(snapshot, view.metric, cursor)
    if _PLACE + room + 1 + len(text) > width:
        text = cell_text(snapshot, view.metric, cursor, brief=True)
    if value is None:
        mark = {"dropped": DROPPED, NEVER_CACHED: DROPPED, "not measured": UNKNOWN, CHOSEN: UNKNOWN}.get(text, " ")
        body: list[Part] = [(mark.ljust(room), ink.muted), (f" {text}", ink.muted)]
    else:
        body = [*bar(value, top, room, ink.accent, ink), (f" {text}", ink.strong if chosen else ink.text)]
    return row(fit([*head, *body], width, ink.muted))


def _value(view: View, snapshot: Snapshot, cursor: Cursor) -> float | None:
    """The metric's value there; None where there is none."""
    volume = volume_of(snapshot, view.metric)
    place = (cursor.query_scale, cursor.layer, cursor.head, cursor.source_scale)
    if cursor.query_scale >= len(volume.values) or volume.cells[place] != Cell.VALUE:
        return None
    return float(volume.values[place])


_SUMMABLE = ("mass", "mass_uncond")
"""Metrics whose sum over heads means something: shares of the attention of one head each."""


def _both(selection: Selection) -> tuple[range, range]:
    return selection.layers, selection.heads


def _folded(parts: list[Part], width: int, ink: Ink) -> list[Strip]:
    """The parts on one line, or where they are too long on as many as they need."""
    lines: list[list[Part]] = [[]]
    for text, style in parts:
        if lines[-1] and parts_width([*lines[-1], (text, style)]) > width:
            lines.append([])
            text = f"   {text.removeprefix(' · ')}"
        lines[-1].append((text, style))
    return [row(fit(line, width, ink.muted)) for line in lines]


def _metric_lines(view: View, snapshot: Snapshot, name: str, width: int) -> list[Strip]:
    """The metric's name and value; where that is too long the value goes on in a second line, or is told briefly."""
    ink, metric = view.ink, METRICS[name]
    label = f" {metric.title:<26}" if width >= 60 else f" {metric.label:<11}"
    style = ink.strong if name == view.metric else ink.text
    texts = [cell_text(snapshot, name, view.cursor)]
    if len(label) + len(texts[0]) > width:
        brief = cell_text(snapshot, name, view.cursor, brief=True)
        rest = texts[0].removeprefix(brief).strip()
        texts = [brief] if rest in ("", texts[0]) else [brief, rest]
    labels = [label, " " * len(label)]
    return [
        row(fit([(one, ink.muted), (text, style)], width, ink.muted)) for one, text in zip(labels, texts, strict=False)
    ]
