"""Where the head under the cursor looks: its attention map of the cursor's source scale, over the picture.

A cell of the map is a token, or several where the grid has more than 16 × 16, not the same number in each; so what is
drawn is attention per token. See maps.MAP_GRID.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from rich.color import Color
from textual.strip import Strip

from kvscope import units
from kvscope.maps import MAP_CELLS, MAP_FLOOR
from kvscope.tui.palette import NUM_LEVELS, Ink
from kvscope.tui.pixels import fitted_size, halves_fit, levels_of, looks_of, resized, rgb_lines
from kvscope.tui.widgets.canvas import View, fit, paragraph, row, rule
from kvscope.tui.widgets.picture import picture_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.tui.feed import Snapshot

NOT_RECORDED = "not recorded: run with --attention-map"

_LEAST_HEAT, _MOST_HEAT = 0.15, 0.85
"""How much of a pixel is heat, at the lowest and the highest level; the rest is picture."""
_DARKENED = 0.6


def attention_over_picture(view: View, width: int, height: int) -> list[Strip]:
    """The map over the picture, or alone where there is none; or why there is no map."""
    snapshot, ink = view.snapshot, view.ink
    if snapshot is None:
        return [rule("attention", width, ink)]
    head = rule(_title(view, snapshot), width, ink, tag="measured" if "maps" in snapshot.header.tiers else "")
    absence = attention_absence(view, snapshot)
    if absence:
        words = paragraph(absence, ink.muted, width)
        return [head, *[Strip([])] * max(0, (height - 1 - len(words)) // 2), *words][:height]
    if height < 4:
        return [head]
    grid = snapshot.schedule.scales.sizes[view.cursor.source_scale]
    cells = _cells(view, grid)
    caption = row(fit([(_caption(cells), ink.muted)], width, ink.muted))
    return [head, *_drawn(view, snapshot, cells, width, height - 2), caption]


def attention_absence(view: View, snapshot: Snapshot) -> str:
    """Why there is no map of the cell under the cursor; empty: there is one."""
    cursor = view.cursor
    if "maps" not in snapshot.header.tiers:
        return NOT_RECORDED
    if cursor.query_scale >= snapshot.scales_done:
        return "not reached"
    if cursor.source_scale > cursor.query_scale:
        return f"source scale {cursor.source_scale} comes after query scale {cursor.query_scale}"
    if not snapshot.read_tokens[cursor.query_scale, cursor.layer, cursor.head, cursor.source_scale]:
        return f"dropped: this head did not read source scale {cursor.source_scale}"
    read = view.attention
    if read is None or read.place != (cursor.query_scale, cursor.layer, cursor.head):
        return "loading…"
    if read.maps is None:
        return NOT_RECORDED
    return units.NOT_MEASURED if np.isnan(read.maps[cursor.source_scale]).all() else ""


def _title(view: View, snapshot: Snapshot) -> str:
    cursor, sizes = view.cursor, snapshot.schedule.scales.sizes
    height, width = sizes[cursor.source_scale]
    scales = f"query {cursor.query_scale} ← source {cursor.source_scale} ({height}×{width})"
    return f"attention L{cursor.layer} h{cursor.head} · {scales}"


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """One map: [row, column] of as many cells as the grid of its source scale has."""

    fractions: NDArray[np.float64]
    """Of all attention."""
    tokens: NDArray[np.int64]
    grid: tuple[int, int]

    @property
    def per_token(self) -> NDArray[np.float64]:
        return self.fractions / self.tokens

    @property
    def levels(self) -> NDArray[np.uint8]:
        return levels_of(self.per_token, 0.0, max(MAP_FLOOR, float(np.nanmax(self.per_token))))

    def at_size(self, rows: int, columns: int) -> NDArray[np.uint8]:
        """[rows, columns]: the level of the cell that the token at each place lies in."""
        sizes = zip((rows, columns), self.grid, self.fractions.shape, strict=True)
        ys, xs = (_cell_of(np.arange(size) * tokens // size, tokens, cells) for size, tokens, cells in sizes)
        return self.levels[ys[:, None], xs]


def _cells(view: View, grid: tuple[int, int]) -> _Cells:
    assert view.attention is not None
    assert view.attention.maps is not None  # attention_absence has told
    rows, columns = (min(length, MAP_CELLS) for length in grid)
    down, across = (np.bincount(_cell_of(np.arange(n), n, min(n, MAP_CELLS))) for n in grid)
    fractions = view.attention.maps[view.cursor.source_scale, :rows, :columns].astype(np.float64)
    return _Cells(fractions, down[:, None] * across, grid)


def _cell_of(tokens: NDArray[np.int64], length: int, cells: int) -> NDArray[np.int64]:
    """The index of the cell that each token lies in, along one side of a grid."""
    return tokens * cells // length


def _caption(cells: _Cells) -> str:
    """What the highest level stands for, how many tokens a cell has, and of how many cells none was left to read."""
    most = units.fraction_text(float(np.nanmax(cells.per_token)))
    whole = units.fraction_text(float(np.nansum(cells.fractions)))
    least, largest = int(cells.tokens.min()), int(cells.tokens.max())
    size = units.tokens_text(largest) if least == largest else f"{least} to {units.tokens_text(largest)}"
    gone = int(np.isnan(cells.fractions).sum())
    left = f" · {gone} of {cells.fractions.size} cells gone" if gone else ""
    return f" brightest {most} a token{left} · {whole} in all · a cell is {size}"


def _drawn(view: View, snapshot: Snapshot, cells: _Cells, width: int, height: int) -> list[Strip]:
    ink, room = view.ink, (2 * height, width - 2)
    pixels, _ = picture_of(snapshot, view.cursor.query_scale)
    if not halves_fit(ink):
        lines = looks_of(ink).single_rows(cells.at_size(*_glyph_size(cells, width - 2, height)))
    elif pixels is None:
        lines = looks_of(ink).half_blocks(cells.at_size(*fitted_size(cells.grid, room)))
    else:
        rows, columns = fitted_size((pixels.shape[0], pixels.shape[1]), room)
        lines = rgb_lines(_blended(resized(pixels, rows, columns), cells.at_size(rows, columns), ink))
    return [_indented(line, width) for line in lines]


def _glyph_size(cells: _Cells, width: int, height: int) -> tuple[int, int]:
    """Rows and columns of glyphs: whole multiples of the cells, twice as wide as high, where there is room."""
    rows, columns = cells.fractions.shape
    times = min(height // rows, width // (2 * columns))
    return (rows * times, 2 * columns * times) if times else (min(rows, height), min(columns, width))


def _blended(picture: NDArray[np.float64], levels: NDArray[np.uint8], ink: Ink) -> NDArray[np.uint8]:
    """Heat over the darkened picture: the more attention, the more heat; what is not measured has none."""
    share = np.minimum(levels, NUM_LEVELS - 1)[..., None] / (NUM_LEVELS - 1)
    weight = _LEAST_HEAT + (_MOST_HEAT - _LEAST_HEAT) * share
    weight[levels >= NUM_LEVELS] = 0
    heat = _heat_rgb(ink)[np.minimum(levels, NUM_LEVELS - 1)]
    mixed: NDArray[np.float64] = picture * _DARKENED * (1 - weight) + heat * weight
    return mixed.round().astype(np.uint8)


@lru_cache(maxsize=8)
def _heat_rgb(ink: Ink) -> NDArray[np.float64]:
    """[level, 3]."""
    colours = [style.color or Color.default() for style in ink.heat]
    return np.array([colour.get_truecolor() for colour in colours], dtype=np.float64)


def _indented(line: Strip, width: int) -> Strip:
    room = max(0, (width - line.cell_length) // 2)
    return Strip.join([Strip.blank(room), line]) if room else line
