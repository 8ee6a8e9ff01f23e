"""Finding: one thing in a trace that is not as it must be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvscope.units import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Finding:
    """Where, what was found there, and what was expected."""

    where: str
    found: str
    expected: str

    @property
    def text(self) -> str:
        """One line, whatever a trace put into it."""
        return printable(f"{self.where}: {self.found}; expected {self.expected}")


def unequal(name: str, found: NDArray[np.generic], expected: NDArray[np.generic], *, why: str) -> Iterator[Finding]:
    """One finding for the first of the cells that differ, telling how many do; none if all are equal."""
    if found.shape != expected.shape:
        yield Finding(name, f"shape {list(found.shape)}", f"{list(expected.shape)}: {why}")
        return
    wrong = np.argwhere(found != expected)
    if len(wrong):
        place = tuple(int(index) for index in wrong[0])
        value = f"{found[place]}{more_text(len(wrong))}"
        yield Finding(f"{name}[{', '.join(map(str, place))}]", value, f"{expected[place]}: {why}")


def more_text(count: int) -> str:
    """How many more there are than the one that is told of."""
    return "" if count < 2 else f", and {count - 1:,} more like it"
