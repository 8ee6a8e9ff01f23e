from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvscope import units
from kvscope.trace import Trace
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.metrics import METRICS, Cell, log_floor, volume_of
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


def test_the_selected_range_is_marked_by_shape_in_cells_of_every_width(wide: Snapshot) -> None:
    cursor = Cursor(query_scale=6, layer=9, head=5, source_scale=1)
    plain = replace(view_of(wide, cursor, glyphs=True), span=None)
    chosen = replace(plain, span=replace(cursor, layer=8, head=2))

    for width, cell in ((72, 3), (40, 2), (24, 1)):
        before, after = (heat_grid(view, width, 36)[1:] for view in (plain, chosen))
        assert grid_fold(plain, width, 36).cell == cell
        for layer in range(32):
            inside = 5 + cell * 2, 5 + cell * 6
            same = [
                strip.crop(0, inside[0]).text + strip.crop(inside[1]).text for strip in (before[layer], after[layer])
            ]
            assert same[0] == same[1]
            if layer not in (8, 9):
                assert before[layer].text == after[layer].text
        (first, *_) = after[8].crop(5 + cell * 2, 5 + cell * 3)
        assert first.style is not None
        assert first.style.underline
        assert " " not in after[8].crop(*inside).text


def test_a_range_in_narrow_cells_of_colour_has_another_sign(wide: Snapshot) -> None:
    cursor = Cursor(query_scale=6, layer=9, head=5, source_scale=1)
    view = replace(view_of(wide, cursor), span=replace(cursor, layer=8, head=2))

    assert heat_grid(view, 24, 36)[9].text.count("■") == 4
    assert "■" not in heat_grid(replace(view, span=None), 24, 36)[9].text


def test_logarithmic_heat_is_lighter_where_values_are_small_and_says_so(wide: Snapshot) -> None:
    cursor = Cursor(query_scale=5, layer=31, head=15, source_scale=4)
    linear = view_of(wide, cursor, glyphs=True)
    log, volume = linear.chosen("heat", 1), volume_of(wide, "mass")
    values = volume.values[5, :, :, 4]
    low, high = METRICS["mass"].bounds(wide, volume, cursor)

    shown, (floor, top) = [strip.text for strip in heat_grid(log, 72, 36)][1:], np.log10([log_floor(low, high), high])
    for layer in range(31):
        for head in range(16):
            if volume.cells[5, layer, head, 4] == Cell.VALUE:
                expected = RAMP[level(max(floor, np.log10(values[layer, head])), floor, top, levels=len(RAMP))]
                assert shown[layer][5 + 3 * head] == expected
    assert "logarithmic" in legend(log, 100, 1)[0].text
    assert f" ≤ {units.fraction_text(high / 1000)}" in legend(log, 100, 1)[0].text
    assert "logarithmic" not in legend(linear, 100, 1)[0].text


def test_tokens_are_never_logarithmic(wide: Snapshot) -> None:
    view = view_of(wide, Cursor(5, 31, 15, 4), "kept")

    assert [one.text for one in heat_grid(view.chosen("heat", 1), 72, 36)] == [
        one.text for one in heat_grid(view, 72, 36)
    ]
    assert "logarithmic" not in legend(view.chosen("heat", 1), 100, 1)[0].text
