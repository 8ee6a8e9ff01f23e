"""What Compare shows of two snapshots: the comparison, a metric's cells of both, what differs most. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from kvscope.compare import CellDifference, Comparison, compare, differences, largest
from kvscope.errors import UsageError
from kvscope.tui.metrics import METRICS, Cell, volume_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot

MOST_DIFFERENCES = 100
"""Lines of the list of differences."""


class Mark(IntEnum):
    """What stands where a difference may be."""

    VALUE = 0
    DROPPED = 1
    """In both."""
    UNKNOWN = 2
    """Not measured in one of them, or in both."""
    UNWRITTEN = 3
    ONLY_A = 4
    ONLY_B = 5


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """One metric of both, [query_scale, layer, head, source_scale], of the query scales that both have."""

    a: NDArray[np.float64]
    """NaN where there is no value; of tokens, a dropped head-scale has 0."""
    b: NDArray[np.float64]
    difference: NDArray[np.float64]
    """B − A where the mark is VALUE."""
    marks: NDArray[np.uint8]


@lru_cache(maxsize=4)
def compared(a: Snapshot, b: Snapshot) -> Comparison | str:
    """The comparison, or why there can be none."""
    try:
        return compare(a, b, (a.summary, b.summary))
    except UsageError as error:
        return str(error)


@lru_cache(maxsize=8)
def beside(a: Snapshot, b: Snapshot, metric: str) -> Beside:
    """A metric's cells of two comparable snapshots."""
    shared = min(a.scales_done, b.scales_done)
    counted = METRICS[metric].amount
    volumes = [volume_of(snapshot, metric) for snapshot in (a, b)]
    of_a, of_b = (_values(volume.values[:shared], volume.cells[:shared], counted=counted) for volume in volumes)
    cells = (volume.cells[:shared] for volume in volumes)
    return Beside(of_a, of_b, differences(of_a, of_b), _marks(*cells, counted=counted))


@lru_cache(maxsize=8)
def largest_differences(a: Snapshot, b: Snapshot, metric: str) -> list[CellDifference]:
    """The head-scales that differ most in a metric, most first; none where the two cannot be compared."""
    if isinstance(compared(a, b), str):
        return []
    both = beside(a, b, metric)
    return largest(both.a, both.b, MOST_DIFFERENCES)


def bounds_of(a: Snapshot, b: Snapshot, metric: str, cursor: Cursor) -> tuple[float, float]:
    """The values of the lowest and highest colour of both, for the cursor's query and source scale."""
    bounds = [METRICS[metric].bounds(one, volume_of(one, metric), cursor) for one in (a, b)]
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def limit_of(both: Beside, cursor: Cursor) -> float:
    """The largest difference of the cursor's query and source scale, whichever its sign."""
    place = cursor.query_scale, slice(None), slice(None), cursor.source_scale
    known = np.abs(both.difference[place])[both.marks[place] == Mark.VALUE]
    return float(known.max()) if known.size else 0.0


def _values(values: NDArray[np.float64], cells: NDArray[np.uint8], *, counted: bool) -> NDArray[np.float64]:
    known = np.where(cells == Cell.VALUE, values, np.nan)
    return np.where(cells == Cell.DROPPED, 0.0, known) if counted else known


def _marks(a: NDArray[np.uint8], b: NDArray[np.uint8], *, counted: bool) -> NDArray[np.uint8]:
    """`counted`: a metric of tokens, where dropped is a number too."""
    here = [cells == Cell.VALUE for cells in (a, b)]
    gone = [cells == Cell.DROPPED for cells in (a, b)]
    one = (here[0] & gone[1], gone[0] & here[1])
    marks = np.full(a.shape, Mark.UNKNOWN, np.uint8)
    marks[here[0] & here[1]] = Mark.VALUE
    marks[gone[0] & gone[1]] = Mark.DROPPED
    marks[one[0]] = Mark.VALUE if counted else Mark.ONLY_A
    marks[one[1]] = Mark.VALUE if counted else Mark.ONLY_B
    marks[(a == Cell.UNWRITTEN) | (b == Cell.UNWRITTEN)] = Mark.UNWRITTEN
    return marks
