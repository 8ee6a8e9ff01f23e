"""Why: the whole story of one head-scale: which rule keeps or drops it, what was seen of it, and what went with it."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

from rich.cells import cell_len
from textual.binding import Binding
from textual.strip import Strip

from kvscope import units
from kvscope.tui.actions import keys_shown
from kvscope.tui.history import (
    History,
    Moment,
    history_of,
    lost_words,
    observed_words,
    planned_words,
    rank_words,
    rule_words,
    size_words,
)
from kvscope.tui.metrics import why
from kvscope.tui.screens.help import Overlay
from kvscope.tui.widgets.canvas import Canvas, Part, View, bar, fit, paragraph, row, rule

if TYPE_CHECKING:
    from kvscope.tui.app import KVScopeApp
    from kvscope.tui.feed import Snapshot

_NAME, _TAG = 11, 10
_SHORTEST_BAR = 4
_ROOM_FOR_KEYS = 90
_NOTHING = "no trace is open: there is no cell to tell of"


class WhyScreen(Overlay):
    """One head-scale; keys move on to others as on the Map, and pages scroll."""

    ACTION = "enter"

    BINDINGS: ClassVar = [
        Binding("left,h", "turn('head', -1)", show=False),
        Binding("right,l", "turn('head', 1)", show=False),
        Binding("up,k", "turn('layer', -1)", show=False),
        Binding("down,j", "turn('layer', 1)", show=False),
        Binding("left_square_bracket", "turn('query_scale', -1)", show=False),
        Binding("right_square_bracket", "turn('query_scale', 1)", show=False),
        Binding("left_curly_bracket", "turn('source_scale', -1)", show=False),
        Binding("right_curly_bracket", "turn('source_scale', 1)", show=False),
    ]

    DEFAULT_CSS = "WhyScreen #page { width: 104; }"

    def pages(self) -> list[Canvas]:
        return [Canvas(why_lines, id="why", height=why_height)]

    def action_turn(self, axis: str, by: int) -> None:
        """Move the cursor of the screen below, and tell of that cell."""
        app = cast("KVScopeApp", self.app)
        app.action_move(axis, by)  # type: ignore[arg-type]  # an axis of the cursor, from the bindings above
        self._view = app.view
        for canvas in self.query(Canvas):
            canvas.show(self._view)


def why_lines(view: View, width: int, _height: int) -> list[Strip]:
    """Where it is, the rule, the facts with how they are known, then every query scale that could read it."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None:
        return [rule("why", width, ink), *paragraph(_NOTHING, ink.muted, width)]
    cursor = view.cursor
    history = history_of(snapshot, cursor.layer, cursor.head, cursor.source_scale)
    rows, columns = snapshot.schedule.scales.sizes[history.source_scale]
    cell = f"layer {history.layer} · head {history.head} · source scale {history.source_scale} ({rows}×{columns})"
    # As things stand now, wherever the cursor is.
    newest = replace(cursor, query_scale=max(0, snapshot.scales_done - 1))
    closes = keys_shown("enter", view.keymap)
    tag = f"arrows {{ }} move · {closes} closes" if width >= _ROOM_FOR_KEYS else f"{closes} closes"
    return [
        rule(f"why · {cell}", width, ink, tag=tag),
        *paragraph(why(snapshot, newest), ink.strong, width),
        *paragraph(rule_words(snapshot, history), ink.text, width),
        *_facts(view, snapshot, history, width),
        *_table(view, snapshot, history, width),
    ]


def why_height(view: View, width: int) -> int:
    return len(why_lines(view, width, 0))


def _facts(view: View, snapshot: Snapshot, history: History, width: int) -> list[Strip]:
    """Plan, observation, rank, size and loss, one after another."""
    ran = snapshot.summary.tags["scales"]
    measured = ran if "mass" in snapshot.header.tiers else ""
    facts = (
        ("planned", planned_words(history), "planned"),
        ("observed", observed_words(history), ran),
        ("S-CAS", rank_words(history), measured),
        ("takes", size_words(history), "defined"),
        ("lost", lost_words(history), measured),
    )
    return [line for name, text, tag in facts for line in _fact(view, name, text, tag, width)]


def _fact(view: View, name: str, text: str, tag: str, width: int) -> list[Strip]:
    """A name, its words on as many lines as they need, and on the first how they are known."""
    ink, room = view.ink, max(10, width - _NAME - _TAG - 2)
    style = ink.warn if "not as planned" in text else ink.text
    lines = textwrap.wrap(units.printable(text), room) or [""]
    head: list[Part] = [
        (f" {name:<{_NAME - 1}}", ink.muted),
        (f"{lines[0]:<{room}}", style),
        (f" {tag:>{_TAG}}", ink.muted),
    ]
    return [row(head), *(row([(" " * _NAME + line, style)]) for line in lines[1:])]


def _table(view: View, snapshot: Snapshot, history: History, width: int) -> list[Strip]:
    """One line per finished query scale from the head-scale's own on."""
    ink = view.ink
    ran = snapshot.summary.tags["scales"]
    head = rule("at each query scale", width, ink, tag=ran)
    if not history.moments:
        return [head, *paragraph(f"not written yet: scale {history.source_scale} has not run", ink.muted, width)]
    columns = _columns(snapshot)
    titles = "".join(f"{title:>{size}}" for title, size, _ in columns)
    top = max((one.mass for one in history.moments if one.mass == one.mass), default=0.0)
    lines = [_moment_line(view, snapshot, one, history.source_scale, columns, top, width) for one in history.moments]
    notes = ["mass: share of this head's attention. of cache: share of what it paid to earlier scales."]
    if not view.snapshot or "mass" not in snapshot.header.tiers:
        notes = ["attention mass was not recorded: run without --no-attention-mass"]
    elif "mass_uncond" not in snapshot.header.tiers:
        notes.append("Unconditional rows were not recorded: run with --attention-uncond.")
    note = [line for text in notes for line in paragraph(text, ink.muted, width)]
    return [head, row(fit([(f" {'scale':<10}{titles}", ink.muted)], width, ink.muted)), *lines, *note]


_Column = tuple[str, int, str]
"""A title, its width, and what of a Moment it shows."""


def _columns(snapshot: Snapshot) -> list[_Column]:
    wide = 12 if snapshot.schedule.online else 8
    columns = [("kept", wide, "kept_tokens"), ("bytes", 10, "kept_bytes"), ("read", 8, "read_tokens")]
    if "mass" in snapshot.header.tiers:
        columns += [("mass", 10, "mass"), ("of cache", 10, "of_cache")]
    if "mass_uncond" in snapshot.header.tiers:
        columns.append(("uncond", 10, "mass_uncond"))
    return columns


def _moment_line(
    view: View,
    snapshot: Snapshot,
    moment: Moment,
    source_scale: int,
    columns: list[_Column],
    top: float,
    width: int,
) -> Strip:
    ink, chosen = view.ink, moment.query_scale == view.cursor.query_scale
    rows, side = snapshot.schedule.scales.sizes[moment.query_scale]
    label = f"{'▸' if chosen else ' '}{moment.query_scale:>2} {rows}×{side}"
    parts: list[Part] = [(f"{label:<11}", ink.accent if chosen else ink.muted)]
    is_there = moment.read_tokens > 0
    style = ink.strong if chosen else ink.text
    for _, size, name in columns:
        text = _value_text(moment, name)
        if name == "kept_tokens" and snapshot.schedule.online and moment.kept_tokens:
            text += f" of {snapshot.schedule.scales.tokens[source_scale]:,}"
        parts.append((" " * max(0, size - cell_len(text)) + text, style if is_there else ink.muted))
    if not moment.as_planned:
        return row(fit([*parts, ("  not as planned", ink.warn)], width, ink.muted))
    room = min(24, width - 11 - sum(size for _, size, _ in columns) - 3)
    if room >= _SHORTEST_BAR and is_there and top > 0 and moment.mass == moment.mass:
        parts += [("  ", ink.muted), *bar(moment.mass, top, room, ink.accent, ink)]
    return row(parts, width)


def _value_text(moment: Moment, name: str) -> str:
    """A value of the table; a dot where the head-scale is gone, `?` where nothing was measured."""
    value = getattr(moment, name)
    if name in ("kept_tokens", "read_tokens"):
        return f"{value:,}" if value else "·"
    if name == "kept_bytes":
        return units.bytes_text(value) if value else "·"
    if not moment.read_tokens:
        return "·"
    if name == "of_cache" and value != value and moment.mass == moment.mass:
        return "–"
    return units.fraction_text(value, absent="?")
