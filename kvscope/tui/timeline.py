"""What the Timeline counts: the run's steps as series, where they lie along x, and what a range of them comes to.

Pure numpy over a Snapshot. A column of the screen is two half-columns; each half-column stands for the steps, or the
time, that fall into it, and takes the most of their values, so that no peak is lost at any width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from kvscope.analysis import StepPlace
from kvscope.tui.figures import planned_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot

By = Literal["steps", "time"]

Window = tuple[int, int] | None
"""The steps [begin, end) to show; None: all."""

_ROWS_PER_TICK = (2, 3, 4, 5)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One value per step of the whole run, float64 [num_steps]; NaN: not recorded, or not yet."""

    accounted_bytes: NDArray[np.float64]
    storage_bytes: NDArray[np.float64]
    planned_bytes: NDArray[np.float64]
    """What the plan says, for every step."""
    freed_tokens: NDArray[np.float64]
    """Over all layers and heads."""
    begin_ns: NDArray[np.float64]
    """Since the first recorded step began; so is end_ns."""
    end_ns: NDArray[np.float64]
    device_ns: NDArray[np.float64]

    @property
    def recorded(self) -> NDArray[np.bool_]:
        """Which steps ran: [num_steps]."""
        return np.isfinite(self.accounted_bytes)

    @property
    def host_ns(self) -> NDArray[np.float64]:
        return self.end_ns - self.begin_ns

    @property
    def on_device(self) -> bool:
        """The device's time is known of every step that ran; else the host's is all there is for some."""
        recorded = self.recorded
        return bool(recorded.any() and np.isfinite(self.device_ns[recorded]).all())

    @property
    def step_ns(self) -> NDArray[np.float64]:
        """How long each step took, on the device if `on_device`, else on the host."""
        return self.device_ns if self.on_device else self.host_ns


@lru_cache(maxsize=4)
def series_of(snapshot: Snapshot) -> Series:
    """The recorded steps, each in its place."""
    rows, num_steps = snapshot.steps, snapshot.schedule.num_steps
    steps = rows["query_scale"].astype(np.int64) * snapshot.schedule.num_layers + rows["layer"]
    inside = (steps >= 0) & (steps < num_steps)
    rows, steps = rows[inside], steps[inside]
    # Whole numbers until the start is taken off: float64 has no room for a clock's nanoseconds.
    start = rows["begin_ns"].min() if rows.size else 0

    def placed(values: NDArray[np.generic]) -> NDArray[np.float64]:
        series = np.full(num_steps, np.nan)
        series[steps] = values
        return series

    return Series(
        accounted_bytes=placed(rows["accounted_bytes"]),
        storage_bytes=placed(rows["storage_bytes"]),
        planned_bytes=planned_bytes(snapshot).astype(np.float64),
        freed_tokens=placed(rows["evicted_tokens"]),
        begin_ns=placed(rows["begin_ns"] - start),
        end_ns=placed(rows["end_ns"] - start),
        device_ns=placed(rows["device_ns"]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Across:
    """Where steps lie along x: half-column i stands for the steps [first[i], stop[i]); none: between two steps."""

    first: NDArray[np.int64]
    stop: NDArray[np.int64]
    shown: range
    """The steps that are shown; by time, those of them that ran."""
    begin_ns: float = 0.0
    """By time: the left edge, since the first recorded step began."""
    end_ns: float = 0.0
    """By time: the right edge; 0: by steps, or no step ran."""

    @property
    def halves(self) -> int:
        return len(self.first)

    @property
    def between(self) -> NDArray[np.bool_]:
        """The half-columns in which no step ran."""
        return self.first >= self.stop

    @property
    def held(self) -> NDArray[np.int64]:
        """The last step that had begun by each half-column."""
        return np.maximum(self.stop - 1, 0)

    def most(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The most within each half-column; NaN where nothing is known."""
        found = np.full(self.halves, np.nan)
        for index, (first, stop) in enumerate(zip(self.first.tolist(), self.stop.tolist(), strict=True)):
            part = values[first:stop]
            known = part[np.isfinite(part)]
            if known.size:
                found[index] = known.max()
        return found

    def halves_of(self, step: int) -> range:
        """The half-columns that stand for a step; empty: it is not shown."""
        (inside,) = np.nonzero((self.first <= step) & (step < self.stop))
        return range(int(inside[0]), int(inside[-1]) + 1) if inside.size else range(0)

    def column_of(self, step: int) -> int | None:
        """The column in the middle of a step; None: it is not shown."""
        halves = self.halves_of(step)
        return halves[len(halves) // 2] // 2 if halves else None

    def columns_of(self, steps: range) -> range:
        """The columns from the first of some steps to the last, as far as they are shown."""
        steps = range(max(steps.start, self.shown.start), min(steps.stop, self.shown.stop))
        first, last = (self.halves_of(steps[0]), self.halves_of(steps[-1])) if steps else (range(0), range(0))
        return range(first[0] // 2, last[-1] // 2 + 1) if first and last else range(0)

    def steps_in(self, column: int) -> range:
        """The steps that a column stands for; between two steps, the one before."""
        halves = slice(2 * column, 2 * column + 2)
        first, stop = int(self.first[halves].min()), int(self.stop[halves].max())
        return range(min(first, max(stop - 1, self.shown.start)), stop) if self.shown else range(0)


@lru_cache(maxsize=16)
def across(snapshot: Snapshot, columns: int, window: Window, by: By) -> Across:
    """How the steps of a window, by number or by time, lie along so many columns."""
    num_steps, halves = snapshot.schedule.num_steps, 2 * max(1, columns)
    begin, end = window or (0, num_steps)
    begin = max(0, min(num_steps - 1, begin))
    end = max(begin + 1, min(num_steps, end))
    if by == "time":
        return _by_time(series_of(snapshot), range(begin, end), halves)
    edges = begin + np.arange(halves + 1) * (end - begin) // halves
    return Across(edges[:-1], np.maximum(edges[:-1] + 1, edges[1:]), range(begin, end))


def _by_time(series: Series, window: range, halves: int) -> Across:
    none = np.zeros(halves, dtype=np.int64)
    (ran,) = np.nonzero(series.recorded[window.start : window.stop])
    if not ran.size:
        return Across(none, none, range(0))
    shown = range(window.start + int(ran[0]), window.start + int(ran[-1]) + 1)
    # A clock that goes back, as in a damaged file, must not make the search wrong; nor may a step take no time.
    begins = np.fmax.accumulate(series.begin_ns[shown.start : shown.stop])
    ends = np.maximum(np.fmax.accumulate(series.end_ns[shown.start : shown.stop]), begins + 1)
    edges = np.linspace(begins[0], ends[-1], halves + 1)
    first = np.searchsorted(ends, edges[:-1], side="right") + shown.start
    stop = np.searchsorted(begins, edges[1:], side="left") + shown.start
    return Across(first, stop, shown, float(edges[0]), float(edges[-1]))


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What is drawn in each half-column: [halves] each, NaN where there is nothing to draw."""

    accounted: NDArray[np.float64]
    """Bytes, the most of the steps that ran there."""
    held: NDArray[np.float64]
    """Bytes accounted after the step before, where none ran: between two steps the cache keeps what it has."""
    planned: NDArray[np.float64]
    """Bytes, the most of the plan."""
    stored: NDArray[np.float64]
    step_ns: NDArray[np.float64]
    freed: NDArray[np.float64]

    @property
    def top(self) -> float:
        """The most bytes of all that is drawn; 1 where nothing is."""
        known = np.concatenate([self.accounted, self.held, self.planned, self.stored])
        return float(np.nanmax(known)) if np.isfinite(known).any() else 1.0


@lru_cache(maxsize=16)
def columns_of(snapshot: Snapshot, columns: int, window: Window, by: By) -> Columns:
    """Every series in half-columns."""
    series, x = series_of(snapshot), across(snapshot, columns, window, by)
    known = x.between & (x.stop > x.shown.start)
    return Columns(
        accounted=x.most(series.accounted_bytes),
        held=np.where(known, series.accounted_bytes[x.held], np.nan),
        planned=x.most(series.planned_bytes),
        stored=np.where(known, series.storage_bytes[x.held], x.most(series.storage_bytes)),
        step_ns=x.most(series.step_ns),
        freed=x.most(series.freed_tokens),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """A memory value of the machine along x: [halves] each, NaN where there is none."""

    name: str
    sampled: NDArray[np.float64]
    """The most of the samples taken there."""
    held: NDArray[np.float64]
    """The newest sample by then, where none was taken."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most of what is drawn."""
        drawn = np.concatenate([self.sampled, self.held])
        return float(np.nanmin(drawn)), float(np.nanmax(drawn))

    @property
    def newest(self) -> float:
        """The last that is drawn."""
        drawn = np.where(np.isfinite(self.sampled), self.sampled, self.held)
        return float(drawn[np.isfinite(drawn)][-1])


@lru_cache(maxsize=16)
def machine_samples(snapshot: Snapshot, columns: int, window: Window, by: By) -> tuple[Samples, ...]:
    """The allocator's bytes, or without CUDA the process', and the GPU's; only what was recorded."""
    allocator, gpu = snapshot.allocator, snapshot.gpu
    column, name = "process_rss_bytes", "process RSS"
    if np.isfinite(allocator["allocated_bytes"]).any():
        column, name = "allocated_bytes", "CUDA allocated"
    x = across(snapshot, columns, window, by)
    lines = [
        _samples(snapshot, x, by, name, allocator["t_ns"], allocator[column]),
        _samples(snapshot, x, by, "GPU used", gpu["t_ns"], gpu["used_bytes"]),
    ]
    return tuple(line for line in lines if np.isfinite([line.sampled, line.held]).any())


def _samples(
    snapshot: Snapshot, x: Across, by: By, name: str, t_ns: NDArray[np.int64], values: NDArray[np.float64]
) -> Samples:
    """The samples in their half-columns; those after the last step that ran are where it ended."""
    sampled, held = np.full(x.halves, np.nan), np.full(x.halves, np.nan)
    series = series_of(snapshot)
    (ran,) = np.nonzero(series.recorded)
    drawn = int((x.first <= ran[-1]).sum()) if ran.size and x.shown else 0
    known = np.isfinite(values)
    if not drawn or not known.any():
        return Samples(name, sampled, held)
    since = np.minimum(_since_first(snapshot, t_ns[known]), float(np.nanmax(series.end_ns)))
    low, high = (x.begin_ns, x.end_ns) if by == "time" else (x.shown.start, x.shown.stop)
    places = since if by == "time" else _in_steps(series, since)
    halves = np.floor((places - low) / (high - low) * x.halves).astype(np.int64)
    # The right edge belongs to the last half-column, and so does that of a run that is not at its end yet.
    halves[halves == drawn] = drawn - 1
    for half, value in zip(halves.tolist(), values[known].tolist(), strict=True):
        if 0 <= half < drawn:
            sampled[half] = np.fmax(sampled[half], value)
        held[max(0, half) : drawn] = value
    held[np.isfinite(sampled)] = np.nan
    return Samples(name, sampled, held)


def _since_first(snapshot: Snapshot, t_ns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Times since the first recorded step began, in ns."""
    return np.asarray(t_ns - snapshot.steps["begin_ns"].min(), dtype=np.float64)


def _in_steps(series: Series, since_ns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Times as places among steps: within step i from i to i + 1, between two steps where they meet."""
    (ran,) = np.nonzero(series.recorded)
    times = np.maximum.accumulate(np.column_stack([series.begin_ns[ran], series.end_ns[ran]]).ravel())
    return np.interp(since_ns, times, np.column_stack([ran, ran + 1]).ravel())


@dataclass(frozen=True, slots=True)
class ByteAxis:
    """An axis of bytes from 0: equal rows, with a tick, a power of two, at the upper edge of every few."""

    rows: int
    row_bytes: float
    rows_per_tick: int

    @property
    def top(self) -> float:
        return self.rows * self.row_bytes

    def tick(self, y: int) -> float | None:
        """The bytes at the upper edge of row y, counted from the top; None: no tick there."""
        above_zero = self.rows - y
        return None if above_zero % self.rows_per_tick else above_zero * self.row_bytes


def byte_axis(most_bytes: float, rows: int) -> ByteAxis:
    """The axis with the least room over `most_bytes` whose ticks are powers of two times whole numbers."""
    least = max(most_bytes, 1.0) / rows

    def row_bytes(rows_per_tick: int) -> float:
        return float(2.0 ** math.ceil(math.log2(least * rows_per_tick)) / rows_per_tick)

    rows_per_tick = min((count for count in _ROWS_PER_TICK if count <= rows), key=row_bytes, default=1)
    return ByteAxis(rows, row_bytes(rows_per_tick), rows_per_tick)


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on the axis: where a scale begins, or with `layer` a layer of it."""

    half: int
    scale: int
    layer: int | None = None


def ticks(snapshot: Snapshot, x: Across) -> list[Tick]:
    """Where scales begin; of at most two scales, every few layers too."""
    layers = snapshot.schedule.num_layers
    places: list[Tick] = []
    apart = 1 << max(0, math.ceil(math.log2(max(1, len(x.shown)) * 12 / max(1, x.halves // 2))))
    for step in x.shown:
        scale, layer = divmod(step, layers)
        halves = x.halves_of(step)
        if not halves:
            continue
        if layer == 0:
            places.append(Tick(halves[0], scale))
        elif step == x.shown.start or (len(x.shown) <= 2 * layers and layer % apart == 0):
            places.append(Tick(halves[0], scale, layer))
    return places


def clock_ticks(x: Across, *, most: int) -> list[float]:
    """Round times within what is shown by time, at most so many: ns since the first recorded step began."""
    least = (x.end_ns - x.begin_ns) / max(1, most)
    power = 10.0 ** math.floor(math.log10(max(least, 1.0)))
    apart = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= least or nice == 10)
    return [index * apart for index in range(math.ceil(x.begin_ns / apart), math.floor(x.end_ns / apart) + 1)]


def step_of(snapshot: Snapshot, cursor: Cursor) -> int:
    """The step that a cursor is at."""
    return cursor.query_scale * snapshot.schedule.num_layers + cursor.layer


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a range of steps comes to, both ends included; None: none of it ran."""

    first: int
    last: int
    peak_bytes: int | None
    peak_place: StepPlace | None
    freed_tokens: int | None
    seconds: float | None
    """From the first step's begin to the last one's end."""
    layer_seconds: float | None
    """Of which inside layers."""


def stretch(snapshot: Snapshot, one: Cursor, other: Cursor) -> Stretch:
    """The steps from one cursor to another, in whatever order."""
    layers = snapshot.schedule.num_layers
    first, last = sorted(step_of(snapshot, cursor) for cursor in (one, other))
    series, part = series_of(snapshot), slice(first, last + 1)
    accounted = series.accounted_bytes[part]
    if not np.isfinite(accounted).any():
        return Stretch(first, last, None, None, None, None, None)
    peak = int(np.nanargmax(accounted))
    return Stretch(
        first,
        last,
        int(accounted[peak]),
        StepPlace(*divmod(first + peak, layers)),
        int(np.nansum(series.freed_tokens[part])),
        float(np.nanmax(series.end_ns[part]) - np.nanmin(series.begin_ns[part])) / 1e9,
        float(np.nansum(series.host_ns[part])) / 1e9,
    )


def sampled_in_steps(snapshot: Snapshot, t_ns: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The most of the samples taken from each step's begin to the next one's: [num_steps]; NaN: none was."""
    found = np.full(snapshot.schedule.num_steps, np.nan)
    series = series_of(snapshot)
    (ran,) = np.nonzero(series.recorded)
    if not ran.size:
        return found
    since = _since_first(snapshot, t_ns)
    rows = np.searchsorted(np.maximum.accumulate(series.begin_ns[ran]), since, side="right") - 1
    taken = np.isfinite(values) & (rows >= 0)
    np.fmax.at(found, ran[rows[taken]], values[taken])
    return found
