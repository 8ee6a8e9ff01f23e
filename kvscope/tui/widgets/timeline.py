"""The Timeline's charts, one above the other on one x: bytes after each step, the machine's memory, each step's work.

Shape before colour: what ran is filled, what is planned is a checker, what is held between two steps is an outline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
from textual.strip import Strip

from kvscope import units
from kvscope.tui.timeline import (
    Across,
    By,
    Columns,
    Samples,
    across,
    byte_axis,
    clock_ticks,
    columns_of,
    machine_samples,
    series_of,
    step_of,
    ticks,
)
from kvscope.tui.widgets.canvas import Part, View, fit, parts_width, row, rule
from kvscope.tui.widgets.dots import DOTS, Dots, TextLine, dots_text, filled_text
from kvscope.tui.widgets.machine import gpu_reason

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.style import Style

    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot
    from kvscope.tui.palette import Ink

_AXIS = 10
"""Columns of the labels left of an axis."""

_ROOM_FOR_CLOCK = 9
_ROOM_FOR_WORDS = 100
_FULL_FITS = 1.3
"""The full history is drawn where it is at most this much above all else."""

_HELD_EVERY = 3
"""Half-columns to one dot where the last sample still stands for the machine's memory."""


def by_of(view: View) -> By:
    """What lies along x."""
    return cast(By, view.choices["axis"])


def bytes_chart(view: View, width: int, height: int) -> list[Strip]:
    """A rule, the bytes after each step, the axis of scales, and a line of marks: the peak, and where a run is."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None or height < 5:
        return [rule("bytes after each step", width, ink)]
    frame = _Frame.of(view, snapshot, width)
    head = rule(_title(frame, width), width, ink, tag=_tag(frame) if frame.x.shown else "")
    if not frame.x.shown:
        words = " none of these steps has run yet, so none has a time; by steps there is the plan"
        return [head, row(fit([(words, ink.muted)], width, ink.muted))]
    clock = [_clock_line(frame)] if frame.by == "time" and height >= _ROOM_FOR_CLOCK else []
    body = _bytes_rows(frame, height - 3 - len(clock))
    return [head, *body, _scale_line(frame), *clock, _marks_line(frame)]


def machine_chart(view: View, width: int, height: int) -> list[Strip]:
    """A rule and lines of the allocator's and the GPU's bytes, from the least to the most; or why there are none."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None or height < 2:
        return [rule("memory of the machine", width, ink)]
    frame = _Frame.of(view, snapshot, width)
    lines = machine_samples(snapshot, frame.columns, view.window, frame.by)
    head = _machine_rule(view, lines, gpu_reason(snapshot), width)
    if not lines:
        words = gpu_reason(snapshot) or "nothing was sampled while these steps ran"
        return [head, row(fit([(f" {words}", ink.muted)], width, ink.muted))]
    return [head, *_machine_rows(frame, lines, height - 1)]


def work_chart(view: View, width: int, height: int) -> list[Strip]:
    """A rule, the time of each step, and below it the tokens that it freed."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None or height < 3:
        return [rule("each step", width, ink)]
    frame = _Frame.of(view, snapshot, width)
    columns = columns_of(snapshot, frame.columns, view.window, frame.by)
    title = f"each step: time {clock_name(snapshot)}, and head-tokens freed"
    if not np.isfinite(columns.step_ns).any():
        return [rule("each step", width, ink), row([(" none of these steps has run yet", ink.muted)])]
    upper = height // 2
    head = rule(title, width, ink, tag=snapshot.summary.tags["seconds"])
    times = _bars(frame, columns.step_ns, upper, "time", units.duration_text)
    freed = _bars(frame, columns.freed, height - 1 - upper, "freed", lambda count: f"{count:,.0f}")
    return [head, *times, *freed]


def timeline_hit(view: View, width: int, _height: int, x: int, _y: int) -> Cursor | None:
    """The step that is drawn in a column: of several, the one with the most bytes; None: none of a finished scale."""
    snapshot = view.snapshot
    if snapshot is None:
        return None
    frame = _Frame.of(view, snapshot, width)
    column = x - _AXIS - 1
    steps = frame.x.steps_in(column) if 0 <= column < frame.columns else range(0)
    accounted = np.nan_to_num(series_of(snapshot).accounted_bytes[steps.start : steps.stop], nan=-1.0)
    if not accounted.size or accounted.max() < 0:
        return None
    scale, layer = divmod(steps[int(accounted.argmax())], snapshot.schedule.num_layers)
    return replace(view.cursor, query_scale=scale, layer=layer) if scale < snapshot.scales_done else None


def clock_name(snapshot: Snapshot) -> str:
    """Whose clock the time of a step is from."""
    return "on the device" if series_of(snapshot).on_device else "on the host"


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """What all charts share: the x, and what is marked on it."""

    view: View
    snapshot: Snapshot
    columns: int
    by: By
    x: Across
    cursor: int | None
    """The column of the cursor's step; None: it is not shown."""
    chosen: range
    """The columns of the cursor's query scale."""
    span: range
    """The columns of the selected range."""

    @classmethod
    def of(cls, view: View, snapshot: Snapshot, width: int) -> _Frame:
        columns, by, layers = max(1, width - _AXIS - 2), by_of(view), snapshot.schedule.num_layers
        x, step = across(snapshot, columns, view.window, by), step_of(snapshot, view.cursor)
        scale = range(step - step % layers, step - step % layers + layers)
        span = range(0)
        if view.span is not None:
            other = step_of(snapshot, view.span)
            span = x.columns_of(range(min(step, other), max(step, other) + 1))
        return cls(view, snapshot, columns, by, x, x.column_of(step), x.columns_of(scale), span)


def _title(frame: _Frame, width: int) -> str:
    """What is drawn, and by time how much of it was spent in steps."""
    shown, summary = frame.x.shown, frame.snapshot.summary
    part = f", steps {shown.start}–{shown.stop - 1}" if frame.view.window and shown else ""
    if frame.by == "steps":
        return f"bytes after each step{part}"
    if part or not shown:
        return f"bytes over time{part}"
    seconds, inside = units.seconds_text(summary.seconds), units.seconds_text(summary.layer_seconds)
    outline = "; outlined: held between steps" if width >= _ROOM_FOR_WORDS else ""
    return f"bytes over {seconds}, {inside} of it in steps{outline}"


def _tag(frame: _Frame) -> str:
    snapshot, shown = frame.snapshot, frame.x.shown
    how = snapshot.summary.tags["accounted_peak_bytes"]
    if frame.by == "time" or shown.stop <= len(snapshot.steps):
        return how
    return f"{how} · planned dotted" if shown.start < len(snapshot.steps) else "planned"


def _bytes_rows(frame: _Frame, rows: int) -> list[Strip]:
    """The bytes: areas, lines across with their names, and the labels of the axis."""
    snapshot, ink = frame.snapshot, frame.view.ink
    columns, summary = columns_of(snapshot, frame.columns, frame.view.window, frame.by), snapshot.summary
    budget, full = summary.budget_bytes, summary.full_history_bytes
    most = max(columns.top, budget or 0)
    full_fits = full <= _FULL_FITS * most and full != budget
    axis = byte_axis(full if full_fits and full > most else most, rows)
    dots = _areas(Dots(rows, frame.columns, axis.top), columns)
    free = dots.free()
    named: list[tuple[str, float, Style]] = []
    if np.isfinite(columns.stored).any():
        dots.outline("stored", columns.stored)
        named.append(("stored", float(np.nanmax(columns.stored)), ink.muted))
    if budget is not None:
        dots.across("budget", budget, every=2)
        named.append(("budget", budget, ink.text))
    if full_fits:
        dots.across("full history", full, every=4)
        named.append(("full history", full, ink.muted))
    over = None if budget is None else dots.dot_of(budget)
    styles = {"ran": ink.calm, "plan": ink.muted, "held": ink.calm} | {name: style for name, _, style in named}
    field = _Field(frame, dots, styles, over)
    for name, value, style in named:
        field.label(dots.row_of(value), f"{name} {units.bytes_text(value)}", style, free)
    return [field.strip(y, units.bytes_text(axis.tick(y), absent="")) for y in range(rows)]


def _areas(dots: Dots, columns: Columns) -> Dots:
    """What ran, filled; what is planned and has not run, a checker; where a run did not obey, its plan as a line."""
    ran = np.isfinite(columns.accounted)
    disobeyed = np.where(ran & (columns.accounted != columns.planned), columns.planned, np.nan)
    dots.fill("ran", columns.accounted)
    dots.notch("ran", disobeyed)
    dots.checker("plan", np.where(ran, np.nan, columns.planned))
    dots.outline("plan", np.where(columns.planned > columns.accounted, disobeyed, np.nan))
    dots.outline("held", columns.held)
    return dots


class _Field:
    """Dots as lines of the screen, with the cursor, the selected range and labels."""

    def __init__(self, frame: _Frame, dots: Dots, styles: dict[str, Style], over: int | None = None) -> None:
        self._frame, self._rows, self._over = frame, dots.rows, over
        self._layers = [(name, dots.cells(name), styles[name]) for name in dots.layers]
        self._labels: dict[tuple[int, int], Part] = {}

    def label(self, y: int, text: str, style: Style, free: NDArray[np.bool_]) -> None:
        """Put a text on a row, or the one above, at the first free place, and take that; nowhere, if there is none."""
        text = f" {text} "
        for row_index in (y, y - 1) if y else (y,):
            for begin in range(2, free.shape[1] - len(text)):
                place = row_index, slice(begin, begin + len(text))
                if free[place].all():
                    free[place] = False
                    self._labels.update({(row_index, begin + at): (sign, style) for at, sign in enumerate(text)})
                    return

    def strip(self, y: int, label: str) -> Strip:
        """A row with its label left of the axis."""
        ink = self._frame.view.ink
        head: list[Part] = [(f"{label:>{_AXIS}}", ink.muted), ("┤" if label else _upright(ink), ink.faint)]
        return row([*head, *(self._cell(y, column) for column in range(self._frame.columns))])

    def _cell(self, y: int, column: int) -> Part:
        ink, frame = self._frame.view.ink, self._frame
        if (y, column) in self._labels:
            return self._labels[y, column]
        here = [(name, int(cells[y, column]), style) for name, cells, style in self._layers if cells[y, column]]
        if not here:
            if column == frame.cursor:
                return _upright(ink), ink.accent
            return ("·", ink.muted) if column in frame.span else (" ", ink.faint)
        name, bits, style = here[0]
        style = self._ran_style(y, column) if name == "ran" else ink.accent if column == frame.cursor else style
        if ink.plain:
            return (filled_text(bits) if name == "ran" else ":" if name == "plan" else "-"), style
        for _, more, _ in here[1:]:
            bits |= more
        return dots_text(bits), style

    def _ran_style(self, y: int, column: int) -> Style:
        ink, frame = self._frame.view.ink, self._frame
        if self._over is not None and (self._rows - 1 - y) * DOTS > self._over:
            return ink.bad
        if column == frame.cursor:
            return ink.strong
        return ink.accent if column in frame.chosen else ink.calm


def _upright(ink: Ink) -> str:
    return "|" if ink.plain else "│"


def _scale_line(frame: _Frame) -> Strip:
    """The x axis: a tick where each scale begins, the selected range thick, the cursor's step."""
    ink, snapshot = frame.view.ink, frame.snapshot
    line = TextLine(frame.columns, "─", ink.faint)
    line.put(frame.span.start, "━" * len(frame.span), ink.accent)
    places, sizes = ticks(snapshot, frame.x), snapshot.schedule.scales.sizes
    sides = [f"{height}×{width}" for height, width in sizes]
    roomy = frame.columns // max(1, len(places)) > max(map(len, sides)) + 1
    for tick in places:
        scale = sides[tick.scale] if roomy else str(tick.scale)
        chosen = tick.scale == frame.view.cursor.query_scale
        text = f"┴{scale}" if tick.layer is None else f"┴L{tick.layer}"
        line.put_if_room(tick.half // 2, text, ink.accent if chosen else ink.muted)
    if frame.cursor is not None:
        line.put_between(frame.cursor, "◆", ink.accent)
    return line.strip([(f"{'0 B':>{_AXIS}}", ink.muted), ("┼", ink.faint)])


def _clock_line(frame: _Frame) -> Strip:
    """Time since the first step began."""
    ink, x = frame.view.ink, frame.x
    line = TextLine(frame.columns, " ", ink.faint)
    for since_ns in clock_ticks(x, most=frame.columns // 12):
        column = int((since_ns - x.begin_ns) / (x.end_ns - x.begin_ns) * frame.columns)
        text = units.duration_text(since_ns) if since_ns else "0 s"
        line.put_if_room(column, f"{_upright(ink)}{text}", ink.muted)
    return line.strip([(f"{'time':>{_AXIS}}", ink.muted), (" ", ink.faint)])


def _marks_line(frame: _Frame) -> Strip:
    """Where the peak is and how much, and where a live run is."""
    ink, snapshot, x = frame.view.ink, frame.snapshot, frame.x
    line = TextLine(frame.columns, " ", ink.faint)
    peak, place = snapshot.summary.accounted_peak_bytes, snapshot.summary.accounted_peak_step
    taken = range(0)
    if place is not None:
        step = place.query_scale * snapshot.schedule.num_layers + place.layer
        text = f"peak {units.bytes_text(peak)}, scale {place.query_scale} L{place.layer}"
        column, sign = x.column_of(step), "^" if ink.plain else "▲"
        if column is None:
            text = f"← {text}" if step < x.shown.start else f"{text} →"
            begin = 0 if step < x.shown.start else frame.columns - len(text)
        else:
            on_left = column > len(text)
            text = f"{text} {sign}" if on_left else f"{sign} {text}"
            begin = column - len(text) + 1 if on_left else column
        line.put(begin, text, ink.muted if column is None else ink.strong)
        taken = range(begin, begin + len(text) + 1)
    now = x.column_of(len(snapshot.steps)) if snapshot.status == "live" and frame.by == "steps" else None
    if now is not None:
        line.put(taken.stop if now in taken else now, "● now", ink.accent)
    return line.strip([(" " * (_AXIS + 1), ink.faint)])


def _machine_rule(view: View, lines: tuple[Samples, ...], absence: str | None, width: int) -> Strip:
    """The newest value of each line, and why there is none of the GPU, in the most words that there is room for."""
    title, ink = "memory of the machine", view.ink
    if not lines:
        return rule(title, width, ink)
    values = " · ".join(f"{line.name} {units.bytes_text(line.newest)}" for line in lines)
    tags = ["measured"]
    if absence and not any(line.name == "GPU used" for line in lines):
        tags = [f"GPU: {absence} · measured", "no GPU samples · measured", *tags]
    for words, tag in [(f"{title}: {values}", tags[0]), *((values, tag) for tag in tags)]:
        if parts_width([(words + tag, ink.text)]) + 8 <= width:
            return rule(words, width, ink, tag=tag)
    return rule(values, width, ink)


def _machine_rows(frame: _Frame, lines: tuple[Samples, ...], rows: int) -> list[Strip]:
    """Lines between the least and the most of what was sampled; dotted where the last sample still stands."""
    ink = frame.view.ink
    low, high = min(line.bounds[0] for line in lines), max(line.bounds[1] for line in lines)
    # One dot of room below the least, so that it is seen too.
    rest = (high - low) / (rows * DOTS - 1) if high > low else 1.0
    dots = Dots(rows, frame.columns, high - low + rest)
    for line in lines:
        dots.outline(line.name, line.sampled - low + rest)
        dots.outline(line.name, line.held - low + rest, every=_HELD_EVERY)
    field = _Field(frame, dots, {line.name: ink.text if line.name == "GPU used" else ink.calm for line in lines})
    if len(lines) > 1:
        names = np.ones((rows, frame.columns), dtype=np.bool_)
        for line in lines:
            field.label(dots.row_of(line.newest - low + rest), line.name, ink.muted, names)
    labels = {0: units.bytes_text(high)}
    if low < high and rows > 1:
        labels[rows - 1] = units.bytes_text(low)
    return [field.strip(y, labels.get(y, "")) for y in range(rows)]


def _bars(
    frame: _Frame, values: NDArray[np.float64], rows: int, name: str, words: Callable[[float], str]
) -> list[Strip]:
    """A filled chart from 0 to the most; its first row is labelled with that, the second with its name."""
    most = float(np.nanmax(values))
    dots = Dots(rows, frame.columns, max(most, 1.0))
    dots.fill("ran", values)
    field = _Field(frame, dots, {"ran": frame.view.ink.calm})
    labels = {0: words(most), 1: name} if rows > 1 else {0: f"{name} {words(most)}"[:_AXIS]}
    return [field.strip(y, labels.get(y, "")) for y in range(rows)]
