"""One measure of the league over true bytes, for a terminal: the policy that is looked at among all. No colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kvscope.league.chart import curves
from kvscope.league.table import MEASURES
from kvscope.units import bytes_text, fraction_text, printable

if TYPE_CHECKING:
    from kvscope.league.settings import Settings
    from kvscope.league.standings import Standing

OTHER, LOOKED_AT, BUDGET = ".", "O", ":"
"""A policy, the one that is looked at, and the line of the budget that is."""

_AXIS = 10
_NARROW = 1.2
_WIDE = 30.0
"""Values that are all above zero and so many times apart stand on a logarithmic axis."""


def plot_lines(
    settings: Settings,
    table: Sequence[Standing],
    measure: str,
    policy: str | None,
    target_bytes: int | None,
    *,
    width: int,
    height: int,
) -> list[str]:
    """`height` lines of at most `width` columns; bytes to the right, on a logarithmic axis with the targets below."""
    points = [(peak, mean.value, one.policy) for one in curves(settings, table, measure) for peak, mean in one.points]
    title = MEASURES[measure].title
    if not points or width < 3 * _AXIS or height < 5:
        return [f"{title}: nothing measured under a budget yet"[:width]]
    columns, rows = width - _AXIS - 1, height - 3
    values = [value for _, value, _ in points]
    goes_by = math.log if min(values) > 0 and max(values) / min(values) >= _WIDE else float
    sizes = [*settings.targets, *(peak for peak, _, _ in points)]
    if max(sizes) < _NARROW * min(sizes):  # one target: a few bytes apart would look like much
        sizes += [round(min(sizes) / _NARROW), round(max(sizes) * _NARROW)]
    across = _axis(sizes, math.log, columns)
    up = _axis(values, goes_by, rows)
    cells = [[" "] * columns for _ in range(rows)]
    if target_bytes is not None:
        for row in cells:
            row[across(target_bytes)] = BUDGET
    for peak, value, name in sorted(points, key=lambda point: point[2] == policy):
        cells[rows - 1 - up(value)][across(peak)] = LOOKED_AT if name == policy else OTHER
    labels = _labels(min(values), max(values), rows, is_log=goes_by is math.log)
    lines = [f"{labels.get(row, ''):>{_AXIS}}|{''.join(each).rstrip()}" for row, each in enumerate(cells)]
    axes = "both logarithmic" if goes_by is math.log else "bytes logarithmic"
    signs = f"{LOOKED_AT} {printable(policy or 'none')}, {OTHER} others, {BUDGET} this budget"
    heading = f"{signs}; {title} over true bytes, {axes}"
    return [heading[:width], *lines, *_feet(settings, across, columns)]


def _axis(values: Sequence[float], goes_by: Callable[[float], float], cells: int) -> Callable[[float], int]:
    """From a value to its cell; the middle where all are one."""
    low, high = goes_by(min(values)), goes_by(max(values))
    if low == high:
        return lambda _: (cells - 1) // 2
    return lambda value: round((goes_by(value) - low) / (high - low) * (cells - 1))


def _labels(low: float, high: float, rows: int, *, is_log: bool) -> dict[int, str]:
    """Row from above → the value there, at the ends and in the middle; one where all values are one."""
    middle = (rows - 1) // 2
    if low == high:
        return {rows - 1 - middle: f"{low:.4g}"}
    share = middle / (rows - 1)
    between = math.exp(math.log(low) + share * math.log(high / low)) if is_log else low + share * (high - low)
    return {0: f"{high:.4g}", rows - 1 - middle: f"{between:.4g}", rows - 1: f"{low:.4g}"}


def _feet(settings: Settings, across: Callable[[float], int], columns: int) -> list[str]:
    """The targets below the axis, both ways where all have room; else their shares, without those that have none."""
    targets = {target: fraction_text(target / settings.history_bytes) for target in sorted(settings.targets)}
    both = {target: f"{share} {bytes_text(target)}" for target, share in targets.items()}
    for texts in (both, targets):
        line, shown = "", 0
        for target, text in texts.items():
            begin = min(max(across(target) - len(text) // 2, 0), columns - len(text))
            if not line or begin > len(line):
                line, shown = line.ljust(begin) + text, shown + 1
        if shown == len(texts):
            break
    return [" " * _AXIS + "+" + "-" * columns, " " * (_AXIS + 1) + line]
