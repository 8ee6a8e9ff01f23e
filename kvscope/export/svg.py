"""Charts as inline SVG. Colours are classes that the page's style defines, so that a chart follows its theme.

Knows no trace: arrays and words in, markup out. Words must be escaped by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvscope.units import bytes_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WIDTH, _HEIGHT = 960, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 12, 10, 40
_MOST_TICKS = 5
_CELL = 8
_DOT = 0.16
"""Side of the mark of a dropped cell, as a part of the cell's."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: a class of the style, its value after each step, and what it is, in words."""

    style: str
    values: Sequence[float]
    words: str


@dataclass(frozen=True, slots=True)
class Level:
    """A value that does not change over the steps."""

    style: str
    value: float
    words: str


def bytes_chart(lines: Sequence[Line], levels: Sequence[Level], spans: Sequence[tuple[int, str]], title: str) -> str:
    """Bytes over steps. `spans`: (number of steps, label) of each scale; they are told apart by their ground."""
    steps = sum(length for length, _ in spans)
    top = max([*(level.value for level in levels), *(value for line in lines for value in line.values), 1])
    ticks = byte_ticks(top)
    plot = _Plot(steps, ticks[-1])
    parts = [
        *_grounds(plot, spans),
        *(_tick(plot, value) for value in ticks),
        *(f'<path class="{line.style}" d="{plot.stairs(line.values)}"/>' for line in lines),
        *(f'<path class="{level.style}" d="M{_LEFT} {plot.y(level.value)}H{_WIDTH - _RIGHT}"/>' for level in levels),
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) // 2}" y="{_HEIGHT - 4}" text-anchor="middle">scale; '
        "within it, one step per layer</text>",
    ]
    return _svg(_WIDTH, _HEIGHT, title, parts)


def byte_ticks(top: float) -> list[float]:
    """0 and round numbers of bytes up to the first at or above `top`; at most 6 in all."""
    unit = 1024 ** max(0, int(math.log(max(top, 1), 1024)))
    steps = [unit * factor * 10**power for power in range(-1, 4) for factor in (1, 2, 5)]
    step = next(step for step in steps if step * _MOST_TICKS >= top and step >= 1)
    return [step * index for index in range(math.ceil(top / step) + 1)]


def bar(share: float, style: str) -> str:
    """A bar of a table cell, as long as its share of 1."""
    width = round(120 * min(max(share, 0), 1), 1)
    shown = f'<rect class="{style}" width="{width}" height="10"/>'
    return f'<svg class="bar" width="120" height="10" aria-hidden="true">{shown}</svg>'


def cells(shares: NDArray[np.float64], title: str) -> str:
    """A map of cells [row, column]: a square is as large as its share of 1; a dot is 0, nothing is NaN."""
    rows, columns = shares.shape
    kept, dropped = [], []
    for row in range(rows):
        for column in range(columns):
            share = float(shares[row, column])
            if share > 0:
                kept.append(_square(row, column, 0.25 + 0.65 * math.sqrt(min(share, 1))))
            elif share == 0:
                dropped.append(_square(row, column, _DOT))
    parts = [f'<path class="kept" d="{"".join(kept)}"/>', f'<path class="dropped" d="{"".join(dropped)}"/>']
    return _svg(columns * _CELL, rows * _CELL, title, parts, style="cells")


def _square(row: int, column: int, side: float) -> str:
    x, y, size = (column + (1 - side) / 2) * _CELL, (row + (1 - side) / 2) * _CELL, side * _CELL
    return f"M{x:.1f} {y:.1f}h{size:.1f}v{size:.1f}h-{size:.1f}z"


@dataclass(frozen=True, slots=True)
class _Plot:
    """Where a value stands on the chart."""

    steps: int
    top: float

    def x(self, step: int) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(self.steps, 1), 1)

    def y(self, value: float) -> float:
        return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - value / self.top), 1)

    def stairs(self, values: Sequence[float]) -> str:
        """A path that stays level through each step."""
        if not values:
            return "M0 0"
        begin = f"M{self.x(0)} {self.y(values[0])}"
        return begin + "".join(f"V{self.y(value)}H{self.x(step + 1)}" for step, value in enumerate(values))


def _grounds(plot: _Plot, spans: Sequence[tuple[int, str]]) -> Iterable[str]:
    begin = 0
    for index, (length, label) in enumerate(spans):
        left, right = plot.x(begin), plot.x(begin + length)
        style = "ground odd" if index % 2 else "ground"
        yield (
            f'<rect class="{style}" x="{left}" y="{_TOP}" width="{right - left:.1f}" '
            f'height="{_HEIGHT - _TOP - _BOTTOM}"/>'
            f'<text class="axis" x="{(left + right) / 2:.1f}" y="{_HEIGHT - _BOTTOM + 15}" '
            f'text-anchor="middle">{label}</text>'
        )
        begin += length


def _tick(plot: _Plot, value: float) -> str:
    y = plot.y(value)
    return (
        f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>'
        f'<text class="axis" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{bytes_text(value)}</text>'
    )


def _svg(width: int, height: int, title: str, parts: Iterable[str], *, style: str = "chart") -> str:
    return (
        f'<svg class="{style}" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{''.join(parts)}</svg>"
    )
