"""METRICS: what the map can show of a head-scale, and the words for one cell. Pure numpy over a Snapshot.

Values are float64 [query_scale, layer, head, source_scale] with a Cell beside each, because a number alone cannot
say whether a head-scale is gone, was never measured, or is not written yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from kvscope import units

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot


class Cell(IntEnum):
    """What stands where a value may be."""

    VALUE = 0
    DROPPED = 1
    UNKNOWN = 2
    UNWRITTEN = 3


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """One metric of a whole trace, [query_scale, layer, head, source_scale]."""

    values: NDArray[np.float64]
    cells: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Metric:
    """One way to look at a head-scale."""

    name: str
    title: str
    label: str
    """The title in a word or two, where there is little room."""
    amount: bool
    """Tokens held or read: drawn as how much of the whole, in the colour of memory. Else drawn as heat."""
    measured: bool
    """Recorded by the run; else read from its plan."""
    volume: Callable[[Snapshot], Volume]
    bounds: Callable[[Snapshot, Volume, Cursor], tuple[float, float]]
    """The values of the lowest and highest colour, for the cursor's query and source scale."""
    text: Callable[[Snapshot, float], str]
    brief_text: Callable[[Snapshot, float], str] | None = None
    """The same in fewer words, where there is little room; None: there are none."""

    def words(self, snapshot: Snapshot, value: float, *, brief: bool = False) -> str:
        """The value with its unit."""
        return (self.brief_text if brief and self.brief_text else self.text)(snapshot, value)


NEVER_CACHED = "never cached"
"""Of the last scale: nothing reads it after its own step."""


@lru_cache(maxsize=8)
def volume_of(snapshot: Snapshot, name: str) -> Volume:
    """The volume of a metric, computed once for a snapshot."""
    return METRICS[name].volume(snapshot)


def cell_text(snapshot: Snapshot, name: str, cursor: Cursor, *, brief: bool = False) -> str:
    """The value of one cell in words and units; `brief`: in few words, where there is little room."""
    volume = volume_of(snapshot, name)
    place = _place(cursor)
    if cursor.query_scale >= len(volume.values):
        return "not reached"
    cell = Cell(int(volume.cells[place]))
    if cell is Cell.VALUE:
        return METRICS[name].words(snapshot, float(volume.values[place]), brief=brief)
    if cell is Cell.DROPPED and cursor.source_scale == snapshot.schedule.scales.num_scales - 1:
        return NEVER_CACHED
    return {Cell.DROPPED: "dropped", Cell.UNKNOWN: units.NOT_MEASURED, Cell.UNWRITTEN: "not written yet"}[cell]


def why(snapshot: Snapshot, cursor: Cursor) -> str:
    """Why the head-scale under the cursor is in the cache or not, from the plan in force: one sentence."""
    schedule, source = snapshot.schedule, cursor.source_scale
    drop_step = int(schedule.drop_step[cursor.layer, cursor.head, source])
    now = cursor.query_scale * schedule.num_layers + cursor.layer
    reached = source <= cursor.query_scale < snapshot.scales_done
    if source == schedule.scales.num_scales - 1:
        return "the last scale is never cached: only its own step reads it"
    if source < schedule.sink_scales:
        return f"sink scale: the first {schedule.sink_scales} are never evicted"
    if drop_step == schedule.num_steps - 1:
        return "kept to the end of the run" if reached else "planned to be kept to the end of the run"
    if drop_step == source * schedule.num_layers + cursor.layer:
        return f"read at its own step only, never kept: saves {_freed(snapshot, source)}"
    after = f"after scale {drop_step // schedule.num_layers}, layer {drop_step % schedule.num_layers}"
    if reached and drop_step <= now:
        return f"dropped {after}: freed {_freed(snapshot, source)}"
    return f"will be dropped {after}: frees {_freed(snapshot, source)}"


def _freed(snapshot: Snapshot, source_scale: int) -> str:
    tokens = snapshot.schedule.scales.tokens[source_scale]
    return f"{units.tokens_text(tokens)} = {units.bytes_text(tokens * snapshot.header.bytes_per_token)}"


def _place(cursor: Cursor) -> tuple[int, int, int, int]:
    return cursor.query_scale, cursor.layer, cursor.head, cursor.source_scale


def _cells(present: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """VALUE where present, else DROPPED; UNWRITTEN for source scales after the query scale."""
    cells = np.where(present, Cell.VALUE, Cell.DROPPED).astype(np.uint8)
    for query_scale in range(len(cells)):
        cells[query_scale, :, :, query_scale + 1 :] = Cell.UNWRITTEN
    return cells


def _kept(snapshot: Snapshot) -> Volume:
    return Volume(snapshot.kept_tokens.astype(np.float64), _cells(snapshot.kept_tokens > 0))


def _read(snapshot: Snapshot) -> Volume:
    return Volume(snapshot.read_tokens.astype(np.float64), _cells(snapshot.read_tokens > 0))


def _mass(snapshot: Snapshot) -> Volume:
    values = snapshot.attention_mass.astype(np.float64)
    cells = _cells(snapshot.read_tokens > 0)
    cells[(cells == Cell.VALUE) & np.isnan(values)] = Cell.UNKNOWN
    return Volume(values, cells)


def _mass_per_token(snapshot: Snapshot) -> Volume:
    mass = _mass(snapshot)
    return Volume(mass.values / np.maximum(snapshot.read_tokens, 1), mass.cells)


def _drop_step(snapshot: Snapshot) -> Volume:
    values = np.broadcast_to(snapshot.schedule.drop_step.astype(np.float64), snapshot.kept_tokens.shape)
    return Volume(values, _cells(np.ones(values.shape, dtype=np.bool_)))


def _source_tokens(snapshot: Snapshot, _volume: Volume, cursor: Cursor) -> tuple[float, float]:
    return 0.0, float(snapshot.schedule.scales.tokens[cursor.source_scale])


def _largest(_snapshot: Snapshot, volume: Volume, cursor: Cursor) -> tuple[float, float]:
    grid = volume.values[cursor.query_scale, :, :, cursor.source_scale]
    known = grid[volume.cells[cursor.query_scale, :, :, cursor.source_scale] == Cell.VALUE]
    return 0.0, float(known.max()) if known.size else 0.0


def _lifetime(snapshot: Snapshot, _volume: Volume, cursor: Cursor) -> tuple[float, float]:
    return float(cursor.source_scale * snapshot.schedule.num_layers), float(snapshot.schedule.num_steps - 1)


def _tokens_text(_snapshot: Snapshot, value: float) -> str:
    return units.tokens_text(round(value))


def _kept_text(snapshot: Snapshot, value: float) -> str:
    return f"{units.tokens_text(round(value))} = {units.bytes_text(value * snapshot.header.bytes_per_token)}"


def _fraction_text(_snapshot: Snapshot, value: float) -> str:
    return units.fraction_text(value)


def _per_token_text(_snapshot: Snapshot, value: float) -> str:
    return f"{units.fraction_text(value)} per token"


def _step_text(snapshot: Snapshot, value: float) -> str:
    scale, layer = divmod(round(value), snapshot.schedule.num_layers)
    return "never" if value == snapshot.schedule.num_steps - 1 else f"after scale {scale} layer {layer}"


def _brief_step_text(snapshot: Snapshot, value: float) -> str:
    scale, layer = divmod(round(value), snapshot.schedule.num_layers)
    return "never" if value == snapshot.schedule.num_steps - 1 else f"scale {scale} L{layer}"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("kept", "kept after the step", "kept", True, True, _kept, _source_tokens, _kept_text, _tokens_text),
        Metric("read", "read at the step", "read", True, True, _read, _source_tokens, _tokens_text),
        Metric("mass", "attention mass", "mass", False, True, _mass, _largest, _fraction_text),
        Metric(
            "mass_per_token",
            "attention mass per token",
            "mass/token",
            False,
            True,
            _mass_per_token,
            _largest,
            _per_token_text,
        ),
        Metric(
            "drop_step", "dropped when", "dropped", False, False, _drop_step, _lifetime, _step_text, _brief_step_text
        ),
    )
}
"""In the order that `m` goes through."""
