"""Cells as characters, fast: two rows a line by half blocks, or one row a line; runs of equal cells are one segment.

Knows levels and colours, not what they mean. A line is kept by its content: one that did not change is the same Strip
again, which Textual has styled and rendered already. So the levels are few, and lines of equal content share one Strip.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from kvscope.tui.palette import BLOCK, DROPPED, NUM_LEVELS, RAMP, UNKNOWN, UNWRITTEN, Ink

if TYPE_CHECKING:
    from numpy.typing import NDArray

DROPPED_LEVEL, UNKNOWN_LEVEL, UNWRITTEN_LEVEL = NUM_LEVELS, NUM_LEVELS + 1, NUM_LEVELS + 2
"""What stands in a level's place where there is no value."""

CURSOR_FLAG = 32
"""Added to the level of the cell under the cursor."""

_CODES = 64
_SHADES = " .:-=+*#%@"
_SIGNS = {DROPPED_LEVEL: DROPPED, UNKNOWN_LEVEL: UNKNOWN, UNWRITTEN_LEVEL: UNWRITTEN}
_CURSOR_SIGNS = {DROPPED_LEVEL: "○", UNKNOWN_LEVEL: UNKNOWN, UNWRITTEN_LEVEL: "○"}
_CURSOR_HALVES = {(True, False): "◓", (False, True): "◒", (True, True): "◆"}
_STEP, _STEPS = 8, 32
"""Pictures have 32 steps a channel: neighbours merge into runs, and styles are few."""

_Look = tuple[str, Style]
_KEPT_LINES = 1024
_LONGEST = 4096
"""More columns than a terminal has; what a run's key keeps room for."""


class _Runs(dict[int, Segment]):
    """The segment of a run by its key, code * _LONGEST + length; made when first asked for."""

    def __init__(self, look: Callable[[int], _Look]) -> None:
        super().__init__()
        self._look = look
        self._grounds: dict[Style, _Runs] = {}

    def __missing__(self, key: int) -> Segment:
        code, length = divmod(key, _LONGEST)
        text, style = self._look(code)
        made = self[key] = Segment(text * length, style)
        return made

    def on(self, ground: Style) -> _Runs:
        """The same runs over a style."""
        if ground not in self._grounds:
            self._grounds[ground] = _Runs(lambda code: _over(ground, self._look(code)))
        return self._grounds[ground]

    def line(self, codes: NDArray[np.integer]) -> Strip:
        """The line of these codes, one a column."""
        starts = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1])))
        lengths = np.diff(starts, append=len(codes))
        keys = codes[starts].astype(np.int64) * _LONGEST + lengths
        return _RunStrip(self, keys.tolist(), len(codes))


class _RunStrip(Strip):
    """A line of runs. Styling it looks its segments up; Textual would add styles and copy segments one by one."""

    def __init__(self, runs: _Runs, keys: list[int], cell_length: int) -> None:
        super().__init__(map(runs.__getitem__, keys), cell_length)
        self._runs, self._keys = runs, keys

    def apply_style(self, style: Style) -> Strip:
        cached = self._style_cache.get(style)
        if cached is None:
            cached = self._style_cache[style] = _RunStrip(self._runs.on(style), self._keys, self.cell_length)
        return cached


class Looks:
    """How every level looks in the colours of one Ink; heat, or with `amount` the height of a bar.

    Half blocks have room for colour only, so there an amount is drawn as heat too.
    """

    def __init__(self, ink: Ink, *, amount: bool = False) -> None:
        self._ink, self._amount = ink, amount
        self._singles, self._pairs = _Runs(self._single), _Runs(self._pair)
        self._line = lru_cache(_KEPT_LINES)(self._made_line)

    def half_blocks(self, levels: NDArray[np.uint8]) -> list[Strip]:
        """levels [rows, columns] as a line for every two rows; a last odd row has nothing below it."""
        if not levels.size:
            return []
        if len(levels) % 2:
            levels = np.vstack([levels, np.full_like(levels[:1], UNWRITTEN_LEVEL)])
        pairs = levels[0::2].astype(np.uint16) * _CODES + levels[1::2]
        return [self._line(line.tobytes(), halves=True) for line in pairs]

    def single_rows(self, levels: NDArray[np.uint8]) -> list[Strip]:
        """levels [rows, columns] as a line for every row: glyphs where the Ink wants them, and absence as a sign."""
        if not levels.size:
            return []
        return [self._line(line.tobytes(), halves=False) for line in levels.astype(np.uint16)]

    def _made_line(self, codes: bytes, *, halves: bool) -> Strip:
        return (self._pairs if halves else self._singles).line(np.frombuffer(codes, np.uint16))

    def _single(self, code: int) -> _Look:
        ink, level = self._ink, code % CURSOR_FLAG
        if code >= CURSOR_FLAG:
            return _CURSOR_SIGNS.get(level, "◆"), ink.cursor
        if level >= NUM_LEVELS:
            return _SIGNS[level], ink.muted
        if self._amount:
            return _ramped(level, RAMP[:-1]), ink.calm
        if ink.glyphs:
            return _ramped(level, RAMP), ink.text
        return BLOCK, ink.heat[level]

    def _pair(self, code: int) -> _Look:
        ink, (upper, lower) = self._ink, divmod(code, _CODES)
        here = (upper >= CURSOR_FLAG, lower >= CURSOR_FLAG)
        if any(here):
            return _CURSOR_HALVES[here], ink.cursor
        if UNKNOWN_LEVEL in (upper, lower):
            value = min(upper, lower)
            return UNKNOWN, _on(ink.muted, ink.heat[value]) if value < NUM_LEVELS else ink.muted
        if upper >= NUM_LEVELS and lower >= NUM_LEVELS:
            return " ", ink.muted
        if lower >= NUM_LEVELS:
            return "▀", ink.heat[upper]
        if upper >= NUM_LEVELS:
            return "▄", ink.heat[lower]
        return ("█", ink.heat[upper]) if upper == lower else ("▀", _on(ink.heat[upper], ink.heat[lower]))


@lru_cache(maxsize=16)
def looks_of(ink: Ink, *, amount: bool = False) -> Looks:
    """The Looks of an Ink, made once, so that the lines it keeps outlive a frame."""
    return Looks(ink, amount=amount)


def halves_fit(ink: Ink) -> bool:
    """Whether two rows may share a line: where there are colours, and characters besides ASCII."""
    return ink.colour and not ink.plain and not ink.glyphs


def levels_of(
    values: NDArray[np.floating], low: float | NDArray[np.floating], high: float | NDArray[np.floating]
) -> NDArray[np.uint8]:
    """The level of every value between low and high, as palette.level gives it; NaN is not measured."""
    spans = np.asarray(high, dtype=np.float64) - low
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        shares = np.where(spans > 0, (values - low) / spans, 1.0)
    known = ~np.isnan(values)
    steps = np.rint(np.where(known, shares, 0.0) * (NUM_LEVELS - 1)).clip(0, NUM_LEVELS - 1)
    return np.where(known, steps, UNKNOWN_LEVEL).astype(np.uint8)


def rgb_lines(pixels: NDArray[np.uint8]) -> list[Strip]:
    """pixels [rows, columns, 3] as half blocks; an even number of rows."""
    steps = pixels.astype(np.int64) // _STEP
    packed = (steps[..., 0] * _STEPS + steps[..., 1]) * _STEPS + steps[..., 2]
    pairs = packed[0::2] * _STEPS**3 + packed[1::2]
    runs = _Runs(_rgb_look)
    return [runs.line(line) for line in pairs]


def shaded_lines(pixels: NDArray[np.uint8], style: Style) -> list[Strip]:
    """pixels [rows, columns, 3] in characters of growing weight, one per two pixels, without Unicode or colour."""
    brightness = pixels.astype(np.float64).mean(axis=2).reshape(-1, 2, pixels.shape[1]).mean(axis=1)
    indices = (brightness / 256 * len(_SHADES)).astype(int)
    return [Strip([Segment("".join(_SHADES[index] for index in line), style)], len(line)) for line in indices.tolist()]


def resized(pixels: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.float64]:
    """[height, width, …] averaged, or repeated, to rows × columns."""
    return _averaged(_averaged(pixels.astype(np.float64), rows, axis=0), columns, axis=1)


def fitted_size(size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """The largest (rows, columns) of this shape within the room; an even number of rows."""
    scale = min(room[0] / size[0], room[1] / size[1])
    return max(2, int(size[0] * scale) // 2 * 2), max(1, int(size[1] * scale))


def _averaged(pixels: NDArray[np.float64], size: int, *, axis: int) -> NDArray[np.float64]:
    edges = np.arange(size) * pixels.shape[axis] // size
    ends = np.append(edges[1:], pixels.shape[axis])
    sums = np.add.reduceat(pixels, edges, axis=axis)
    shape = [1] * pixels.ndim
    shape[axis] = size
    mean: NDArray[np.float64] = sums / np.maximum(ends - edges, 1).reshape(shape)
    return mean


def _over(ground: Style, look: _Look) -> _Look:
    return look[0], ground + look[1]


def _ramped(level: int, ramp: str) -> str:
    return ramp[round(level * (len(ramp) - 1) / (NUM_LEVELS - 1))]


@lru_cache(maxsize=4096)
def _on(front: Style, ground: Style) -> Style:
    """A style of the colours of two others: one in front, one behind."""
    return Style(color=front.color, bgcolor=ground.color)


def _rgb_look(code: int) -> _Look:
    upper, lower = divmod(code, _STEPS**3)
    return ("█", _rgb_style(upper, None)) if upper == lower else ("▀", _rgb_style(upper, lower))


@lru_cache(maxsize=16384)
def _rgb_style(upper: int, lower: int | None) -> Style:
    return Style(color=_rgb(upper), bgcolor=None if lower is None else _rgb(lower))


def _rgb(packed: int) -> Color:
    rest, blue = divmod(packed, _STEPS)
    red, green = divmod(rest, _STEPS)
    return Color.from_rgb(*(step * _STEP + _STEP // 2 for step in (red, green, blue)))
