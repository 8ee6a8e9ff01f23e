from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvscope.trace import Trace
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.metrics import METRICS, Cell, volume_of
from kvscope.tui.palette import DARK, RAMP, ink, level
from kvscope.tui.view import View
from kvscope.tui.widgets.panorama import panorama, panorama_fits, panorama_hit

LABEL, BLOCK = 5, 18
ALL = (LABEL + 7 * BLOCK, 34)
"""Room for the 7 source scales of 32 layers × 16 heads, one layer a line."""


@pytest.fixture(scope="module")
def wide(wide_trace: object) -> Snapshot:
    with Trace.open(wide_trace) as trace:  # type: ignore[arg-type]
        return take_snapshot(trace.path, trace, None)


def view_of(snapshot: Snapshot, cursor: Cursor, metric: str = "mass", *, glyphs: bool = False) -> View:
    return View(ink(DARK, glyphs=glyphs), snapshot, cursor, metric)


def texts(view: View, size: tuple[int, int]) -> list[str]:
    return [strip.text for strip in panorama(view, *size)]


@pytest.mark.parametrize("size", [ALL, (80, 20), (131, 18), (40, 8), (20, 3), (300, 60)])
@pytest.mark.parametrize("glyphs", [False, True])
def test_it_stays_within_its_room(wide: Snapshot, size: tuple[int, int], glyphs: bool) -> None:
    lines = panorama(view_of(wide, Cursor(6, 20, 5, 4), glyphs=glyphs), *size)

    assert len(lines) <= size[1]
    assert all(line.cell_length <= size[0] for line in lines)


@pytest.mark.parametrize("metric", METRICS)
def test_without_colour_every_cell_shows_its_value_or_its_absence(wide: Snapshot, metric: str) -> None:
    cursor = Cursor(5, 31, 15, 4)
    lines, volume = texts(view_of(wide, cursor, metric, glyphs=True), ALL)[1:-1], volume_of(wide, metric)
    ramp = RAMP[:-1] if METRICS[metric].amount else RAMP
    ends = [METRICS[metric].bounds(wide, volume, replace(cursor, source_scale=scale)) for scale in range(7)]
    common = min(low for low, _ in ends[:6]), max(high for _, high in ends[:6])

    for scale in range(7):
        low, high = ends[scale] if METRICS[metric].amount else common
        for layer in range(31):
            for head in range(16):
                drawn = lines[layer][LABEL + scale * BLOCK + head]
                place = (5, layer, head, scale)
                absent = {Cell.DROPPED: "·", Cell.UNKNOWN: "?", Cell.UNWRITTEN: " "}.get(Cell(int(volume.cells[place])))
                if absent:
                    assert drawn == absent
                    continue
                # The glyph is chosen by one of 24 levels, so at an edge it may be the next one.
                near = abs(ramp.find(drawn) - level(volume.values[place], low, high, levels=len(ramp)))
                assert drawn in ramp
                assert near <= 1


def test_fractions_share_one_scale_so_that_equal_mass_has_equal_colour(wide: Snapshot) -> None:
    mass = np.full_like(wide.attention_mass, 0.1)
    mass[..., 2] = 0.2
    even = replace(wide, attention_mass=mass)

    lines = texts(view_of(even, Cursor(5, 31, 15, 0), "mass", glyphs=True), ALL)

    blocks = [{lines[1][LABEL + scale * BLOCK + head] for head in range(16)} - {"·"} for scale in range(5)]
    assert blocks[2] == {"█"}
    assert blocks[0] == blocks[1] == blocks[3] == blocks[4] != blocks[2]
    assert "for all source scales" in lines[-1]


def test_logarithmic_heat_tells_small_values_apart(wide: Snapshot) -> None:
    mass = np.full_like(wide.attention_mass, 1e-3)
    mass[..., 1], mass[..., 2] = 1e-2, 1.0
    linear = view_of(replace(wide, attention_mass=mass), Cursor(5, 31, 15, 0), glyphs=True)

    drawn = [
        [texts(view, ALL)[1][LABEL + scale * BLOCK] for scale in range(3)]
        for view in (linear, linear.chosen("heat", 1))
    ]

    assert len(set(drawn[0])) == 2
    assert len(set(drawn[1])) == 3
    assert "logarithmic" in texts(linear.chosen("heat", 1), ALL)[-1]


def test_amounts_are_shares_of_their_own_source_scale(wide: Snapshot) -> None:
    lines = texts(view_of(wide, Cursor(5, 31, 15, 0), "kept"), ALL)

    assert lines[1][LABEL : LABEL + 16] == "▇" * 16
    assert lines[1][LABEL + 2 * BLOCK :][:16] == "▇" * 16
    assert "tokens of its source scale" in lines[-1]


def test_where_lines_are_few_two_layers_share_one(wide: Snapshot) -> None:
    lines = panorama(view_of(wide, Cursor(6, 31, 15, 6)), ALL[0], 18)

    assert len(lines) == 18
    assert "▀" in lines[1].text + lines[2].text
    assert "blank: dropped" in lines[-1].text
    assert "of 32" not in lines[-1].text


def test_glyphs_never_share_a_line_and_scroll_with_the_cursor(wide: Snapshot) -> None:
    lines = texts(view_of(wide, Cursor(6, 20, 15, 6), glyphs=True), (ALL[0], 12))

    assert any(line.startswith("▸L20") for line in lines)
    assert "L15–L24 of 32" in lines[-1]
    assert "▀" not in "".join(lines)


@pytest.mark.parametrize(("source", "left", "right"), [(0, 0, 5), (3, 2, 3), (6, 5, 0)])
def test_source_scales_that_do_not_fit_are_counted_and_the_cursors_is_there(
    wide: Snapshot, source: int, left: int, right: int
) -> None:
    width = LABEL + 2 * BLOCK - 1
    lines = texts(view_of(wide, Cursor(6, 0, 0, source)), (width, 34))

    height, side = wide.schedule.scales.sizes[source]
    assert f"▸{source} {height}×{side}" in lines[0]
    assert (f"‹ {left} more" in lines[-1]) == (left > 0)
    assert (f"{right} more ›" in lines[-1]) == (right > 0)


@pytest.mark.parametrize(
    ("size", "fits"), [(ALL, True), ((ALL[0], 18), True), ((ALL[0], 17), False), ((80, 34), False)]
)
def test_it_fits_where_nothing_is_hidden(wide: Snapshot, size: tuple[int, int], fits: bool) -> None:
    view = view_of(wide, Cursor(6, 0, 0, 3))

    assert panorama_fits(view, *size) is fits
    hidden = texts(view, size)[-1]
    assert ("more" in hidden or "of 32" in hidden) is not fits


@pytest.mark.parametrize("size", [ALL, (90, 18), (80, 16)])
@pytest.mark.parametrize("glyphs", [False, True])
def test_a_click_goes_to_the_cell_that_is_drawn_there(wide: Snapshot, size: tuple[int, int], glyphs: bool) -> None:
    view = view_of(wide, Cursor(6, 5, 5, 3), glyphs=glyphs)
    for y in range(size[1]):
        for x in range(0, size[0], 3):
            cursor = panorama_hit(view, *size, x, y)
            if cursor is None:
                continue
            shown = replace(view, cursor=replace(view.cursor, layer=cursor.layer, head=cursor.head))
            # With the same source scale in the middle, the same layout.
            if cursor.source_scale == view.cursor.source_scale and cursor.layer in range(3, 8):
                (drawn,) = panorama(shown, *size)[y].crop(x, x + 1)
                assert drawn.style == view.ink.cursor


def test_every_cell_can_be_clicked(wide: Snapshot) -> None:
    view = view_of(wide, Cursor(6, 5, 5, 3))
    places = [(x, y) for y in range(34) for x in range(ALL[0])]

    found = {panorama_hit(view, *ALL, x, y) for x, y in places} - {None}

    assert {(one.layer, one.head, one.source_scale) for one in found if one} == {
        (layer, head, scale) for layer in range(32) for head in range(16) for scale in range(7)
    }


def test_a_second_click_on_two_layers_goes_to_the_lower(wide: Snapshot) -> None:
    view = view_of(wide, Cursor(6, 31, 15, 0))
    upper = panorama_hit(view, ALL[0], 18, LABEL + 3, 3)
    assert upper is not None

    lower = panorama_hit(replace(view, cursor=upper), ALL[0], 18, LABEL + 3, 3)

    assert (upper.layer, lower and lower.layer) == (4, 5)


def test_the_cursor_is_marked_by_shape(wide: Snapshot) -> None:
    lines = texts(view_of(wide, Cursor(6, 7, 2, 0)), ALL)

    assert lines[1 + 7][LABEL + 2] == "◆"
    assert lines[1 + 7].startswith("▸L7")
    assert "▸0 1×1" in lines[0]


def test_without_a_scale_it_says_so(wide: Snapshot) -> None:
    assert "no scale was recorded" in "\n".join(texts(view_of(wide, Cursor(query_scale=7)), ALL))
    assert panorama(View(ink(DARK)), 80, 20) == []
