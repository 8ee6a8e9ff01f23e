"""The lines round every screen: what run in what state, what is wrong with it if anything, and the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.strip import Strip

from kvscope import units
from kvscope.format import RECORDING_STOPPED
from kvscope.tui.actions import hints_of, keys_shown, last_hints
from kvscope.tui.metrics import METRICS, cell_text
from kvscope.tui.screens import SCREENS
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Part, fit, paragraph, parts_width, row, spread

if TYPE_CHECKING:
    from rich.style import Style

    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot
    from kvscope.tui.palette import Ink

NEEDED = (80, 24)
"""Columns and rows that every screen works in."""

_ROOM_FOR_NAMES = 120
"""Columns from which on the footer names all screens."""


def top_line(view: View, width: int, _height: int) -> list[Strip]:
    """What run · what state · how honest."""
    ink = view.ink
    left: list[Part] = [(" kvscope " if width >= 100 or view.snapshot is None else "", ink.accent), (" ", ink.muted)]
    if view.snapshot is None:
        word = "◌ loading " if view.said else "◌ opening " if view.name else "○ no trace open "
        right = [(word, ink.accent)]
        return [spread([*left, (units.printable(view.name), ink.text)], right, width, fill=(" ", ink.muted))]
    left += _run_parts(view.snapshot, ink)
    right = [(f"  {honesty_text(view.snapshot)}  ", ink.muted), *_state_parts(view), (" ", ink.muted)]
    return [spread(left, right, width, fill=(" ", ink.muted))]


def notice(view: View, width: int, _height: int) -> list[Strip]:
    """What is out of the ordinary, and what of the run is safe; nothing where all is well."""
    text, style = notice_of(view)
    return paragraph(text, style, width) if text else []


def notice_height(view: View, width: int) -> int:
    return len(notice(view, width, 0))


def notice_of(view: View) -> tuple[str, Style]:
    """The words of `notice`; empty where all is well."""
    snapshot, ink = view.snapshot, view.ink
    if snapshot is None:
        held = f"; {view.link.words}" if view.link is not None and view.link.words else ""
        return (f"the run is loading: {view.said[-1]}{held}", ink.muted) if view.said else ("", ink.muted)
    if view.paused:
        newer = f", {view.behind} scale{'s' if view.behind > 1 else ''} further" if view.behind else ""
        key = keys_shown("view.pause", view.keymap)
        return f"this view is paused; the run goes on{newer}, and nothing is lost: {key} shows the newest", ink.warn
    if view.lost is not None:
        return f"disconnected: {view.lost}", ink.warn
    done, total = snapshot.scales_done, snapshot.schedule.scales.num_scales
    safe = "nothing was recorded" if not done else f"{done} scale{'s are' if done > 1 else ' is'} safe"
    words = f": {snapshot.message}" if snapshot.message else ""
    if snapshot.status == "crashed":
        return f"run crashed at scale {done}; {safe}", ink.bad
    if snapshot.message.startswith(RECORDING_STOPPED):
        return snapshot.message, ink.bad
    if snapshot.status == "failed":
        return f"run failed at scale {done}{words}; {safe}", ink.bad
    if snapshot.status == "cancelled":
        return f"run cancelled after {units.scales_text(done, total)}{words}; {safe}", ink.warn
    if not done:
        return "no scale yet: the first one is being made; until then the plan is shown, dim", ink.muted
    return "", ink.muted


def key_line(view: View, width: int, _height: int) -> list[Strip]:
    """The footer: the cell under the mouse, if there is one; else what can be pressed here, most important first."""
    ink = view.ink
    if view.hover is not None and view.snapshot is not None:
        return [row(fit([(f" {_hover_text(view, view.hover)}", ink.text)], width, ink.muted))]
    last = last_hints(view.screen, view.keymap)
    tail = [part for keys, word in last for part in ((f" {keys}", ink.accent), (f" {word} ", ink.muted))]
    screens = {keys_shown(f"screen.{name}", view.keymap) for name in SCREENS}
    parts: list[Part] = []
    for keys, word in hints_of(view.screen, view.keymap):
        here = word == SCREENS[view.screen].hint
        entry: list[Part] = [(f" {keys}", ink.accent)]
        # Where there is little room, the other screens are their keys alone.
        if here or width >= _ROOM_FOR_NAMES or keys not in screens:
            entry.append((f" {word} ", ink.strong if here else ink.muted))
        if parts_width([*parts, *entry, *tail]) > width:
            break
        parts += entry
    return [spread(parts, tail, width, fill=(" ", ink.muted))]


def too_small(view: View, width: int, height: int) -> list[Strip]:
    """What there is to say where a screen does not fit."""
    needed = f"too small: {NEEDED[0]}×{NEEDED[1]} needed, {width}×{height} here"
    way_out = f"{keys_shown('quit', view.keymap)} quits"
    lines = [line for text in (needed, way_out) for line in paragraph(text, view.ink.text, width)]
    return [Strip([])] * max(0, (height - len(lines)) // 2) + lines


def honesty_text(snapshot: Snapshot) -> str:
    """How far the numbers of this run can be taken for those of an ordinary one."""
    job = snapshot.header.job
    doubts = [
        word
        for word, holds in (
            ("random weights", job.random_weights),
            ("forced", job.mode == "forced"),
            ("perturbed", snapshot.header.perturbed),
        )
        if holds
    ]
    return " · ".join(doubts) or "measured"


def _run_parts(snapshot: Snapshot, ink: Ink) -> list[Part]:
    job, scales = snapshot.header.job, snapshot.schedule.scales
    height, width = scales.sizes[-1]
    named = scales.resolution not in ("custom", "native")
    size = f"{units.printable(scales.resolution)} {_aspect_text(scales.aspect)}" if named else f"{height}×{width}"
    budget = snapshot.schedule.budget
    policy = units.printable(snapshot.schedule.policy) + (
        f" {units.fraction_text(budget)}" if budget is not None else ""
    )
    facts = f" {size} · {policy} · seed {job.seed} · "
    model, prompt = units.printable(snapshot.header.model), units.printable(job.prompt)
    return [(model, ink.strong), (facts, ink.text), (f"“{prompt}”", ink.muted)]


def _aspect_text(aspect: float) -> str:
    return "1:1" if aspect == 1 else f"h:w {aspect:g}"


def _state_parts(view: View) -> list[Part]:
    snapshot, ink = view.snapshot, view.ink
    assert snapshot is not None  # top_line has said so
    progress = f" {units.scales_text(snapshot.scales_done, snapshot.schedule.scales.num_scales)}"
    if snapshot.awaits_image:
        progress += ", making the picture"
    if view.lost is not None:
        return [("○ disconnected", ink.warn), (progress, ink.muted)]
    if view.playback is not None:
        return [(f"▸ playing {view.playback.speed}", ink.accent), (progress, ink.muted)]
    if view.paused:
        return [("■ view paused", ink.warn), (progress, ink.muted)]
    if snapshot.status == "live" and view.link is not None and view.link.state != "running":
        return [(f"■ run {view.link.state}", ink.warn), (progress, ink.muted)]
    glyph, style = {
        "live": ("●", ink.accent),
        "done": ("✓", ink.good),
        "cancelled": ("■", ink.warn),
    }.get(snapshot.status, ("✗", ink.bad))
    return [(f"{glyph} {snapshot.status}", style), (progress, ink.muted)]


def _hover_text(view: View, cursor: Cursor) -> str:
    """A cell in one line: where it is, and what the metric says there."""
    assert view.snapshot is not None  # key_line asks before
    place = f"query {cursor.query_scale} · L{cursor.layer} h{cursor.head} · source {cursor.source_scale}"
    return f"{place} · {METRICS[view.metric].title}: {cell_text(view.snapshot, view.metric, cursor)}"
