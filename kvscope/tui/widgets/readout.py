"""The Timeline's cursor in words: its step's numbers, and what the selected range comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.strip import Strip

from kvscope import units
from kvscope.tui.actions import keys_shown
from kvscope.tui.timeline import series_of, step_of, stretch
from kvscope.tui.widgets.canvas import Part, View, fit, parts_width, row, rule
from kvscope.tui.widgets.timeline import clock_name

if TYPE_CHECKING:
    from kvscope.tui.feed import Snapshot
    from kvscope.tui.palette import Ink

_GAP = 3

_Fact = tuple[str, str, str]
"""A name, a value, and what more there is to say."""


def readout(view: View, width: int, height: int) -> list[Strip]:
    """The cursor's step in numbers, then the selected range."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None:
        return [rule("step", width, ink)]
    step, schedule = step_of(snapshot, view.cursor), snapshot.schedule
    rows, columns = schedule.scales.sizes[view.cursor.query_scale]
    ran = bool(series_of(snapshot).recorded[step])
    tag = snapshot.summary.tags["accounted_peak_bytes"] if ran else "not run yet"
    place = f"query scale {view.cursor.query_scale} ({rows}×{columns}) · layer {view.cursor.layer}"
    title = f"step {step} of 0–{schedule.num_steps - 1} · {place}"
    facts = _flow(_facts(snapshot, step, view.cursor.query_scale), width, ink)
    return [rule(title, width, ink, tag=tag), *facts[: max(0, height - 2)], _range_line(view, snapshot, width)]


def readout_height(view: View, width: int) -> int:
    """The lines of `readout`, the same for every step: two of facts, one on a wide terminal."""
    return 2 if view.snapshot is None else 4 if width < 150 else 3


def _facts(snapshot: Snapshot, step: int, scale: int) -> list[_Fact]:
    series = series_of(snapshot)
    planned: _Fact = ("planned", units.bytes_text(series.planned_bytes[step]), "")
    if not series.recorded[step]:
        return [planned]
    accounted, budget = float(series.accounted_bytes[step]), snapshot.summary.budget_bytes
    of, whole = ("budget", budget) if budget else ("full history", snapshot.summary.full_history_bytes)
    share = f"{units.fraction_text(accounted / whole)} of {of}" if whole else ""
    step_ns, tokens = float(series.step_ns[step]), snapshot.schedule.scales.tokens[scale]
    return [
        ("accounted", units.bytes_text(accounted), share),
        ("stored", units.bytes_text(series.storage_bytes[step]), ""),
        planned,
        ("freed", units.head_tokens_text(int(series.freed_tokens[step])), ""),
        ("time", units.duration_text(step_ns), clock_name(snapshot)),
        ("", units.duration_text(step_ns / tokens), "a token"),
    ]


def _flow(facts: list[_Fact], width: int, ink: Ink) -> list[Strip]:
    """The facts one after another, in as many lines as they need."""
    lines: list[list[Part]] = [[]]
    for name, value, more in facts:
        parts: list[Part] = [(f" {name} " if name else " ", ink.muted), (value, ink.strong)]
        parts.append((f" {more}" if more else "", ink.muted))
        gap: list[Part] = [(" " * (_GAP - 1), ink.muted)] if lines[-1] else []
        if parts_width([*lines[-1], *gap, *parts]) > width:
            lines.append([])
            gap = []
        lines[-1] += [*gap, *parts]
    return [row(fit(line, width, ink.muted)) for line in lines]


def _range_line(view: View, snapshot: Snapshot, width: int) -> Strip:
    """The selected range in numbers; else how to select one, or how to leave the zoom."""
    ink = view.ink
    if view.span is None:
        return row(fit([(f" {_hint(view)}", ink.muted)], width, ink.muted))
    part = stretch(snapshot, view.cursor, view.span)
    head: list[Part] = [(" range ", ink.accent), (f"{part.first}–{part.last}", ink.strong)]
    if part.peak_place is None:
        return row(fit([*head, ("  none of them has run yet", ink.muted)], width, ink.muted))
    place = f" scale {part.peak_place.query_scale} L{part.peak_place.layer}"
    body: list[Part] = [
        ("  peak ", ink.muted),
        (units.bytes_text(part.peak_bytes), ink.strong),
        (place, ink.muted),
        ("  freed ", ink.muted),
        (units.head_tokens_text(part.freed_tokens), ink.strong),
        ("  in ", ink.muted),
        (units.seconds_text(part.seconds), ink.strong),
    ]
    inside: list[Part] = [(f", {units.seconds_text(part.layer_seconds)} of it in steps", ink.muted)]
    line = [*head, *body, *inside]
    return row(fit(line if parts_width(line) <= width else [*head, *body], width, ink.muted))


def _hint(view: View) -> str:
    """How to select a range, or how to leave the zoom."""
    span, zoom, clear, axis = (
        keys_shown(name, view.keymap) for name in ("time.span", "time.zoom", "clear", "time.axis")
    )
    along = f"{axis} by {'time' if view.choices['axis'] == 'steps' else 'steps'}"
    if view.window is None:
        return f"{span} selects a range · {zoom} zooms to it, or to the scale · {along}"
    return f"zoomed to steps {view.window[0]}–{view.window[1] - 1} · {zoom} or {clear} shows all again · {along}"
