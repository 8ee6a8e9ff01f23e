"""One measure of the league as curves of letters, for a terminal: no colour, no picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvscope.league.chart import curves
from kvscope.league.settings import FULL
from kvscope.league.table import MEASURES
from kvscope.units import bytes_text

if TYPE_CHECKING:
    from kvscope.league.settings import Settings
    from kvscope.league.standings import Standing

_AXIS = 9
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHARED = "*"
"""Where several policies fall on one cell."""


def letter(settings: Settings, policy: str) -> str:
    """What stands for a policy in the plot; empty for full, which is not drawn."""
    drawn = [name for name in settings.policies if name != FULL]
    return _LETTERS[drawn.index(policy) % len(_LETTERS)] if policy in drawn else ""


def plot_lines(settings: Settings, table: Sequence[Standing], measure: str, *, width: int, height: int) -> list[str]:
    """The plot, `height` lines of at most `width` columns: true bytes to the right, on a logarithmic axis."""
    points = [
        (peak, mean.value, letter(settings, curve.policy))
        for curve in curves(settings, table, measure)
        for peak, mean in curve.points
    ]
    if not points or width < 2 * _AXIS or height < 4:
        return [f"{MEASURES[measure].title}: nothing measured under a budget yet"[:width]]
    columns, rows = width - _AXIS - 1, height - 2
    low, high = min(value for _, value, _ in points), max(value for _, value, _ in points)
    cells = [[" "] * columns for _ in range(rows)]
    least, most = min(peak for peak, _, _ in points), max(peak for peak, _, _ in points)
    for peak, value, mark in points:
        x = _at(math.log(peak), math.log(least), math.log(most), columns)
        y = rows - 1 - _at(value, low, high, rows)
        cells[y][x] = mark if cells[y][x] in (" ", mark) else SHARED
    labels = {0: f"{high:.4g}", rows - 1: f"{low:.4g}"}
    lines = [f"{labels.get(row, ''):>{_AXIS}}|{''.join(each).rstrip()}" for row, each in enumerate(cells)]
    ends = f"{bytes_text(least):<{columns // 2}}{bytes_text(most):>{columns - columns // 2}}"
    return [f"{MEASURES[measure].title}, true peak bytes to the right"[:width], *lines, " " * (_AXIS + 1) + ends]


def _at(value: float, low: float, high: float, cells: int) -> int:
    """The cell of a value between these ends; the middle where they are one."""
    return (cells - 1) // 2 if high == low else round((value - low) / (high - low) * (cells - 1))
