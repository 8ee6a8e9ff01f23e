from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvscope.trace import Trace
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.metrics import METRICS, Cell, volume_of
from kvscope.tui.palette import DARK, RAMP, ink, level
from kvscope.tui.widgets.canvas import View
from kvscope.tui.widgets.heat import fold, grid_fold, grid_hit, grid_width, head_strip, heat_grid, legend, strip_hit


@pytest.fixture(scope="module")
def wide(wide_trace: object) -> Snapshot:
    with Trace.open(wide_trace) as trace:  # type: ignore[arg-type]
        return take_snapshot(trace.path, trace, None)


def view_of(snapshot: Snapshot, cursor: Cursor, metric: str = "mass", *, glyphs: bool = False) -> View:
    return View(ink(DARK, glyphs=glyphs), snapshot, cursor, metric)


@given(
    num_layers=st.integers(1, 64),
    num_heads=st.integers(1, 32),
    width=st.integers(48, 220),
    height=st.integers(4, 48),
    data=st.data(),
)
def test_a_fold_fits_its_room_and_shows_the_cursors_layer(
    num_layers: int, num_heads: int, width: int, height: int, data: st.DataObject
) -> None:
    layer = data.draw(st.integers(0, num_layers - 1))

    layout = fold(num_layers, num_heads, width, height, widest=3, layer=layer)

    shown = {layout.layer_at(y, block) for block in range(layout.blocks) for y in range(layout.rows)}
    assert layer in shown
    assert layout.rows <= height
    assert layout.blocks * layout.block_width <= max(width, layout.block_width)


@pytest.mark.parametrize(("width", "height"), [(80, 20), (120, 36), (220, 46)])
def test_a_click_goes_to_the_cell_that_is_drawn_there(wide: Snapshot, width: int, height: int) -> None:
    width = grid_width(view_of(wide, Cursor()), width, height)
    seen = set()
    for y in range(height):
        for x in range(width):
            cursor = grid_hit(view_of(wide, Cursor(6, 5, 5, 3)), width, height, x, y)
            if cursor is not None:
                seen.add((cursor.layer, cursor.head))
                view = view_of(wide, cursor)
                (drawn,) = heat_grid(view, width, height)[y].crop(x, x + 1)
                cell = grid_fold(view, width, height).cell
                framed = "▐" in heat_grid(view, width, height)[y].crop(x - cell + 1, x + 1).text
                assert drawn.style == view.ink.cursor or framed

    assert len(seen) == 32 * 16


def test_a_click_beside_the_cells_moves_nothing(wide: Snapshot) -> None:
    assert grid_hit(view_of(wide, Cursor()), 72, 36, 0, 5) is None
    assert grid_hit(view_of(wide, Cursor()), 72, 36, 10, 0) is None
    assert strip_hit(view_of(wide, Cursor()), 120, 8, 10, 0) is None


@pytest.mark.parametrize("metric", METRICS)
def test_without_colour_every_cell_shows_its_level_or_its_absence(wide: Snapshot, metric: str) -> None:
    cursor = Cursor(query_scale=5, layer=31, head=15, source_scale=4)
    view, volume = view_of(wide, cursor, metric, glyphs=True), volume_of(wide, metric)
    low, high = METRICS[metric].bounds(wide, volume, cursor)
    lines = [strip.text for strip in heat_grid(view, 72, 36)][1:]
    ramp = RAMP[:-1] if METRICS[metric].amount else RAMP

    for layer in range(32):
        for head in range(16):
            if (layer, head) == (31, 15):
                continue
            drawn = lines[layer][5 + 3 * head : 8 + 3 * head].strip()
            cell, value = volume.cells[5, layer, head, 4], volume.values[5, layer, head, 4]
            expected = {Cell.DROPPED: "·", Cell.UNKNOWN: "?"}.get(Cell(int(cell)))
            assert drawn == (expected or ramp[level(value, low, high, levels=len(ramp))] * 2)


def test_with_colour_cells_of_different_levels_have_different_styles(wide: Snapshot) -> None:
    cursor = Cursor(query_scale=5, layer=31, head=15, source_scale=4)
    view, volume = view_of(wide, cursor), volume_of(wide, "mass")
    low, high = METRICS["mass"].bounds(wide, volume, cursor)
    lines = heat_grid(view, 72, 36)[1:]

    for layer in range(31):
        for head in range(16):
            if volume.cells[5, layer, head, 4] == Cell.VALUE:
                style = next(iter(lines[layer].crop(5 + 3 * head, 6 + 3 * head))).style
                assert style == view.ink.heat[level(volume.values[5, layer, head, 4], low, high)]


def test_the_strip_shows_which_heads_keep_the_source_scale(wide: Snapshot) -> None:
    cursor = Cursor(query_scale=6, layer=0, head=0, source_scale=4)

    lines = [strip.text for strip in head_strip(view_of(wide, cursor), 120, 8)][1:]

    for layer in range(1, 7):
        kept = wide.kept_tokens[6, layer, :, 4] > 0
        assert [glyph != "·" for glyph in lines[layer][5:21]] == kept.tolist()


@pytest.mark.parametrize(
    ("cursor", "words"),
    [
        (Cursor(query_scale=1, source_scale=4), "source scale 4 comes after query scale 1"),
        (Cursor(query_scale=7, source_scale=4), "no scale was recorded"),
    ],
)
def test_a_map_without_cells_says_why(wide: Snapshot, cursor: Cursor, words: str) -> None:
    text = "\n".join(strip.text for strip in heat_grid(view_of(wide, cursor), 72, 20))

    assert words in text


def test_the_legend_names_both_ends(wide: Snapshot) -> None:
    view = replace(view_of(wide, Cursor(5, 0, 0, 4)), metric="kept")
    text = legend(view, 100, 1)[0].text

    assert "0 tokens = 0 B" in text
    assert "64 tokens = 64.0 KiB" in text
    assert "· dropped" in text
