"""Bytes per step as columns: measured so far, planned beyond, the budget as a line, one tick per scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.strip import Strip

from kvscope import units
from kvscope.tui.figures import bytes_in_columns
from kvscope.tui.palette import RAMP
from kvscope.tui.widgets.canvas import Part, View, row, rule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvscope.tui.feed import Snapshot
    from kvscope.tui.palette import Ink

_AXIS = 10
_EIGHTHS = len(RAMP)


def step_chart(view: View, width: int, height: int) -> list[Strip]:
    """A rule, the columns, and the axis with each scale's side under the step where it begins."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None or height < 4:
        return [rule("bytes per step", width, ink)]
    plot = _Plot.of(view, snapshot, width - _AXIS - 1, height - 2)
    how = snapshot.summary.tags["accounted_peak_bytes"]
    tag = "planned" if not plot.measured.any() else f"{how} · planned dim" if plot.planned.any() else how
    lines = [_plot_line(ink, plot, y) for y in range(plot.rows)]
    return [rule("bytes per step", width, ink, tag=tag), *lines, _axis_line(view, snapshot, plot.columns)]


@dataclass(frozen=True, slots=True, eq=False)
class _Plot:
    """What is drawn, and where: bytes per column, bytes at the top, the rows above the budget."""

    rows: int
    measured: NDArray[np.float64]
    planned: NDArray[np.float64]
    top: float
    budget: int | None
    headroom: int
    """Rows above the budget; the budget's line is the lower edge of the last of them."""
    chosen: range
    """The columns of the cursor's query scale."""

    @property
    def columns(self) -> int:
        return len(self.measured)

    @classmethod
    def of(cls, view: View, snapshot: Snapshot, columns: int, rows: int) -> _Plot:
        measured, planned = bytes_in_columns(snapshot, columns)
        budget, num_scales = snapshot.summary.budget_bytes, snapshot.schedule.scales.num_scales
        peak, headroom = max(measured.max(), planned.max(), 1.0), 0
        top = float(peak)
        if budget:
            # The budget falls on the edge between two rows, where its line can be drawn exactly.
            headroom = min(rows - 1, max(1, math.ceil(rows * (1 - budget / peak))))
            top = budget * rows / (rows - headroom)
        scale = view.cursor.query_scale
        begin, end = round(scale * columns / num_scales), round((scale + 1) * columns / num_scales)
        return cls(rows, measured, planned, top, budget, headroom, range(begin, end))


def _plot_line(ink: Ink, plot: _Plot, y: int) -> Strip:
    parts: list[Part] = [_label(ink, plot, y), ("┤", ink.faint)]
    is_budget, above = y == plot.headroom - 1, y < plot.headroom
    for column, (value, plan) in enumerate(zip(plot.measured, plot.planned, strict=True)):
        eighths = round((value or plan) / plot.top * plot.rows * _EIGHTHS) - (plot.rows - 1 - y) * _EIGHTHS
        if eighths <= 0:
            parts.append(("_" if is_budget else " ", ink.text if is_budget else ink.faint))
            continue
        measured = ink.bad if above else ink.accent if column in plot.chosen else ink.calm
        parts.append((RAMP[min(eighths, _EIGHTHS) - 1], measured if value else ink.faint))
    return row(parts)


def _label(ink: Ink, plot: _Plot, y: int) -> Part:
    if plot.budget is not None and y == plot.headroom - 1:
        return f"{units.bytes_text(plot.budget):>{_AXIS}}", ink.text
    if plot.budget is None and y == 0:
        return f"{units.bytes_text(plot.top):>{_AXIS}}", ink.muted
    return " " * _AXIS, ink.muted


def _axis_line(view: View, snapshot: Snapshot, columns: int) -> Strip:
    """Ticks where scales begin; the cursor's query scale stands out. By side, or by index where that is too long."""
    ink, scales = view.ink, snapshot.schedule.scales
    begins = [round(scale * columns / scales.num_scales) for scale in range(scales.num_scales)]
    sides = [f"{height}×{width}" for height, width in scales.sizes]
    roomy = columns // scales.num_scales > max(map(len, sides))
    parts: list[Part] = [(f"{'0 B':>{_AXIS}}", ink.muted), ("┼", ink.faint)]
    filled = 0
    for scale, begin in enumerate(begins):
        text = sides[scale] if roomy else str(scale)
        if begin < filled or len(text) + 1 > columns - begin:
            continue
        chosen = scale == view.cursor.query_scale
        parts += [("─" * (begin - filled), ink.faint), (f"┴{text}", ink.accent if chosen else ink.muted)]
        filled = begin + 1 + len(text)
    return row([*parts, ("─" * (columns - filled), ink.faint)])
