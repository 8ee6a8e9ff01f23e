"""Dots: a chart's field of dots, two by four in a character, in named layers; and one line of text written in places.

Braille where there is Unicode; in ASCII a character says how high it is filled, or what kind of dot it has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from textual.strip import Strip

from kvscope.tui.palette import RAMP
from kvscope.tui.widgets.canvas import Part, row

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.style import Style

DOTS = 4
"""Rows of dots in one row of the screen."""

_WEIGHTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_BRAILLE = 0x2800


@dataclass(frozen=True, slots=True, eq=False)
class Dots:
    """Layers of dots by name, bool [rows of dots from the bottom, half-columns]; an earlier layer lies above."""

    rows: int
    columns: int
    top: float
    """The value at the upper edge; the lower edge is 0."""
    layers: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def fill(self, name: str, values: NDArray[np.float64]) -> None:
        """Dots from the bottom up to each half-column's value; NaN and nothing have none."""
        self._add(name, self._levels <= self._heights(values))

    def checker(self, name: str, values: NDArray[np.float64]) -> None:
        """The same with every other dot."""
        every_other = (self._levels + np.arange(2 * self.columns)) % 2 == 0
        self._add(name, (self._levels <= self._heights(values)) & every_other)

    def outline(self, name: str, values: NDArray[np.float64], *, every: int = 1) -> None:
        """One dot at each value; of `every` half-columns only the first has it."""
        drawn = np.arange(2 * self.columns) % every == 0
        self._add(name, (self._levels == self._heights(values)) & drawn)

    def across(self, name: str, value: float, *, every: int = 1) -> None:
        """A line at one value, drawn in one column of `every`."""
        drawn = np.arange(2 * self.columns) // 2 % every == 0
        self._add(name, (self._levels == self.dot_of(value)) & drawn)

    def notch(self, name: str, values: NDArray[np.float64]) -> None:
        """Take away a layer's dot at each value."""
        self.layers[name][self._levels == self._heights(values)] = False

    def dot_of(self, value: float) -> int:
        """The dot that a value reaches, from the bottom."""
        return int(self._heights(np.array([value]))[0])

    def row_of(self, value: float) -> int:
        """The row that a value reaches, from the top."""
        return self.rows - 1 - max(0, self.dot_of(value)) // DOTS

    def cells(self, name: str) -> NDArray[np.int64]:
        """A layer's dots as the bits of Braille: [row from the top, column]."""
        groups = self.layers[name][::-1].reshape(self.rows, DOTS, self.columns, 2)
        bits: NDArray[np.int64] = (groups * _WEIGHTS[None, :, None, :]).sum(axis=(1, 3))
        return bits

    def free(self) -> NDArray[np.bool_]:
        """The cells that have no dot: [row from the top, column]."""
        free = np.ones((self.rows, self.columns), dtype=np.bool_)
        for name in self.layers:
            free &= self.cells(name) == 0
        return free

    @property
    def _levels(self) -> NDArray[np.int64]:
        """The rows of dots, as a column: [rows × DOTS, 1]."""
        return np.arange(self.rows * DOTS)[:, None]

    def _heights(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The dot that each value reaches, at least one for what is not nothing; -1: none."""
        known = np.nan_to_num(values)
        heights = np.clip(np.rint(known / self.top * self.rows * DOTS) - 1, 0, self.rows * DOTS - 1)
        return np.where(known > 0, heights, -1).astype(np.int64)

    def _add(self, name: str, dots: NDArray[np.bool_]) -> None:
        self.layers[name] = self.layers[name] | dots if name in self.layers else dots


def dots_text(bits: int) -> str:
    """The character of some dots."""
    return chr(_BRAILLE + bits)


def filled_text(bits: int) -> str:
    """Where there is no Braille: how high a cell is filled."""
    filled = sum(bool(bits & int(weights.sum())) for weights in _WEIGHTS)
    return RAMP[2 * filled - 1]


class TextLine:
    """A line that texts are put into at their columns; a later one covers what was there."""

    def __init__(self, columns: int, sign: str, style: Style) -> None:
        self.columns = columns
        self._signs: list[Part] = [(sign, style)] * columns
        self._taken = 0

    def put(self, column: int, text: str, style: Style) -> None:
        """Write a text, as far as the line goes."""
        for offset, sign in enumerate(text):
            if 0 <= column + offset < self.columns:
                self._signs[column + offset] = sign, style

    def put_between(self, column: int, sign: str, style: Style) -> None:
        """Write a sign where no text stands."""
        if 0 <= column < self.columns and self._signs[column][0] in "─━┴":
            self._signs[column] = sign, style

    def put_if_room(self, column: int, text: str, style: Style) -> None:
        """Write a text if it fits to the right of those that were written like this."""
        if column >= self._taken and column + len(text) <= self.columns:
            self.put(column, text, style)
            self._taken = column + len(text) + 1

    def strip(self, left: list[Part]) -> Strip:
        """The line, with something before it."""
        return row([*left, *self._signs])
