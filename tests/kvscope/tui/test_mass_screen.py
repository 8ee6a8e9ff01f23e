from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from kvscope.recorder import Recorder
from kvscope.trace import Trace
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.metrics import Cell, volume_of
from kvscope.tui.palette import DARK, DROPPED, LIGHT, ink
from kvscope.tui.ranking import absence_of_mass, head_mass, ranking_at
from kvscope.tui.screens.mass import MassScreen
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Painter
from kvscope.tui.widgets.triangle import (
    _on_heat,
    heads_grid,
    heads_hit,
    percent_text,
    ranked_heads,
    ranked_hit,
    triangle,
    triangle_height,
    triangle_hit,
)
from kvscope.tui.write import records_text

PAINTERS: dict[str, Painter] = {"triangle": triangle, "ranked": ranked_heads, "heads": heads_grid}
SIZES = ((50, 8), (80, 17), (120, 20), (160, 30), (220, 40))
INKS = {
    "dark": ink(DARK),
    "light": ink(LIGHT),
    "glyphs": ink(DARK, glyphs=True),
    "plain": ink(DARK, plain=True),
    "no colour": ink(DARK, colour=False),
    "16": ink(DARK, colours="16"),
}


def snapshot_of(path: Path) -> Snapshot:
    with Trace.open(path) as trace:
        return take_snapshot(path, trace, None)


@pytest.fixture(scope="module")
def wide(wide_trace: Path) -> Snapshot:
    return snapshot_of(wide_trace)


@pytest.fixture
def both(maps_trace: Path) -> Snapshot:
    return snapshot_of(maps_trace)


@pytest.fixture
def states(
    tiny_snapshot: Snapshot, live_snapshot: Snapshot, gpu_trace: Path, empty_trace: Path, cancelled_trace: Path
) -> dict[str, Snapshot | None]:
    return {
        "none": None,
        "done": tiny_snapshot,
        "live": live_snapshot,
        "no mass": snapshot_of(gpu_trace),
        "empty": snapshot_of(empty_trace),
        "cancelled": snapshot_of(cancelled_trace),
    }


@pytest.fixture
def still_empty(tmp_path: Path, fake_run: ModuleType) -> Iterator[Snapshot]:
    """A live run before its first scale."""
    with Recorder(tmp_path / "new.h5", fake_run.fake_job()) as recorder:
        recorder.run_started(fake_run.fake_start())
        yield snapshot_of(recorder.path)


def text_of(paint: Painter, view: View, width: int = 80, height: int = 17) -> str:
    return "\n".join(strip.text for strip in paint(view, width, height))


@pytest.mark.parametrize("name", PAINTERS)
@pytest.mark.parametrize("mode", INKS)
def test_every_part_fits_its_room_in_every_state_and_mode(
    states: dict[str, Snapshot | None], wide: Snapshot, name: str, mode: str
) -> None:
    for snapshot in (*states.values(), wide):
        for cursor in (Cursor(), Cursor(2, 1, 1, 1), Cursor(4, 2, 0, 4), Cursor(1, 0, 0, 3)):
            for view in (View(INKS[mode], snapshot, cursor), View(INKS[mode], snapshot, cursor).chosen("heat", 1)):
                for width, height in SIZES:
                    lines = PAINTERS[name](view, width, height)
                    assert len(lines) <= height
                    assert all(cell_len(strip.text) <= width for strip in lines)


@pytest.mark.parametrize(("width", "height"), [(80, 17), (120, 20), (60, 10)])
def test_a_click_goes_to_the_scales_that_are_drawn_there(wide: Snapshot, width: int, height: int) -> None:
    here = View(ink(DARK), wide, Cursor(6, 3, 2, 0))
    seen = set()
    for y in range(height):
        for x in range(width):
            cursor = triangle_hit(here, width, height, x, y)
            if cursor is None:
                continue
            assert (cursor.layer, cursor.head) == (3, 2)
            assert cursor.source_scale <= cursor.query_scale
            seen.add((cursor.query_scale, cursor.source_scale))
            line = triangle(View(ink(DARK), wide, cursor), width, height)[y]
            assert line.text.startswith("▸")

    assert seen == {(query, source) for query in range(7) for source in range(query + 1)}


@pytest.mark.parametrize("width", [80, 120])
def test_values_are_the_traces_in_percent_where_there_is_room(wide: Snapshot, width: int) -> None:
    cursor = Cursor(6, 3, 2, 0)
    lines = triangle(View(ink(DARK), wide, cursor), width, 17)[2:]

    found = head_mass(wide, "conditional", cursor)
    for query in range(7):
        known = found.cells[query] == Cell.VALUE
        expected = [percent_text(float(value)) for value in found.mass[query][known]]
        drawn = lines[query].text.replace("▐", " ").replace("▌", " ").replace("▸", " ").split()[2:]
        assert [one for one in drawn if one != DROPPED] == [*expected, "100"]
        assert drawn.count(DROPPED) == (found.cells[query] == Cell.DROPPED).sum()


def test_where_there_is_no_room_for_values_glyphs_tell_them_without_colour(wide: Snapshot) -> None:
    text = text_of(triangle, View(ink(DARK, glyphs=True), wide, Cursor(6, 3, 2, 0)), 40, 17)

    assert len(set("▁▂▃▄▅▆▇█") & set(text.split("sum")[1].rsplit("\n", 1)[0])) >= 4


def test_the_cursors_cell_is_framed_whatever_the_colours(wide: Snapshot) -> None:
    for mode, style in INKS.items():
        line = triangle(View(style, wide, Cursor(6, 3, 2, 1)), 80, 17)[8].text
        assert line.startswith("▸"), mode
        assert "▐" in line, mode
        assert "▌" in line, mode


@given(fraction=st.floats(0, 1))
def test_percent_takes_four_columns_and_is_right_to_a_hundredth_or_three_digits(fraction: float) -> None:
    text = percent_text(fraction)

    assert 1 <= len(text) <= 4
    if text.startswith("<"):
        assert 0 < fraction < 0.00005
    else:
        assert abs(float(text) - 100 * fraction) <= max(0.0051, 0.0051 * 100 * fraction)


def test_rows_add_up_to_all_attention(wide: Snapshot) -> None:
    np.testing.assert_allclose(head_mass(wide, "conditional", Cursor(0, 5, 5, 0)).sums, 1, atol=1e-5)  # float32 mass


def test_u_shows_the_unconditional_rows(both: Snapshot) -> None:
    view = View(ink(DARK), both, Cursor(4, 0, 0, 2)).chosen("guidance", 1)

    text = text_of(triangle, view)

    assert "unconditional attention" in text
    assert percent_text(float(both.attention_mass_uncond[4, 0, 0, 2])) in text


@pytest.mark.parametrize("name", ["triangle"])
def test_what_was_not_recorded_is_said_with_the_way_to_record_it(
    tiny_snapshot: Snapshot, states: dict[str, Snapshot | None], name: str
) -> None:
    uncond = View(ink(DARK), tiny_snapshot).chosen("guidance", 1)

    assert "not recorded: run with --attention-uncond" in text_of(PAINTERS[name], uncond)
    assert "run without --no-attention-mass" in text_of(PAINTERS[name], View(ink(DARK), states["no mass"]))


def test_before_the_first_scale_the_screen_says_so(still_empty: Snapshot, states: dict[str, Snapshot | None]) -> None:
    assert absence_of_mass(still_empty, "conditional") == "no scale yet"
    assert "no scale yet" in text_of(triangle, View(ink(DARK), still_empty))
    assert "no scale was recorded" in text_of(triangle, View(ink(DARK), states["empty"]))
    assert triangle_hit(View(ink(DARK), still_empty), 80, 17, 12, 3) is None


def test_scales_that_have_not_run_are_named_and_cannot_be_clicked(live_snapshot: Snapshot) -> None:
    view = View(ink(DARK), live_snapshot, Cursor(2, 0, 0, 1))

    assert text_of(triangle, view).count("not reached") == 2
    assert triangle_hit(view, 80, 17, 12, 2 + 3) is None


def test_the_ranking_is_every_head_that_read_it_most_first(wide: Snapshot) -> None:
    cursor = Cursor(6, 3, 2, 4)
    ranking, volume = ranking_at(wide, "conditional", cursor), volume_of(wide, "mass")

    seen = volume.cells[6, :, :, 4] == Cell.VALUE
    np.testing.assert_array_equal(ranking.mass, np.sort(volume.values[6, :, :, 4][seen])[::-1])
    np.testing.assert_array_equal(ranking.mass, volume.values[6, ranking.layers, ranking.heads, 4])
    assert ranking.dropped == (~seen).sum()


def test_the_cursors_head_is_named_with_its_rank_and_pointed_at(wide: Snapshot) -> None:
    ranking = ranking_at(wide, "conditional", Cursor(6, 0, 0, 4))
    cursor = Cursor(6, int(ranking.layers[100]), int(ranking.heads[100]), 4)

    lines = text_of(ranked_heads, View(ink(DARK), wide, cursor), 120, 9).split("\n")

    assert f"rank 101 of {ranking.mass.size}" in lines[1]
    assert lines[-1].index("↑") == 1 + 100 * 118 // ranking.mass.size


def test_a_head_that_dropped_it_has_no_place(tiny_snapshot: Snapshot) -> None:
    text = text_of(ranked_heads, View(ink(DARK), tiny_snapshot, Cursor(4, 0, 1, 1)), 80, 8)

    assert "L0 h1 did not read it" in text
    assert "↑" not in text


@pytest.mark.parametrize("width", [30, 80, 220])
def test_a_click_on_the_curve_goes_to_a_head_of_that_column(wide: Snapshot, width: int) -> None:
    view = View(ink(DARK), wide, Cursor(6, 0, 0, 4))
    ranking = ranking_at(wide, "conditional", view.cursor)
    columns = min(width - 2, ranking.mass.size)

    for x in range(1, columns + 1):
        cursor = ranked_hit(view, width, 8, x, 5)
        assert cursor is not None
        marker = text_of(ranked_heads, View(ink(DARK), wide, cursor), width, 8).split("\n")[-1]
        assert marker.index("↑") == x
    assert ranked_hit(view, width, 8, 0, 5) is None
    assert ranked_hit(view, width, 8, columns + 1, 5) is None


def test_a_click_on_the_small_map_goes_to_its_head(wide: Snapshot) -> None:
    view = View(ink(DARK), wide, Cursor(6, 0, 0, 4))

    hits = {heads_hit(view, 80, 18, x, y) for x in range(80) for y in range(18)} - {None}

    assert {(cursor.layer, cursor.head) for cursor in hits if cursor} == set(np.ndindex(32, 16))


def test_numbers_on_heat_have_contrast() -> None:
    def luminance(style: object) -> float:
        channels = [channel / 255 for channel in style.get_truecolor()]  # type: ignore[attr-defined]
        linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for theme in (DARK, LIGHT):
        for heat in ink(theme).heat:
            style = _on_heat(heat)
            lighter, darker = sorted((luminance(style.color), luminance(style.bgcolor)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_records_are_what_the_triangle_draws(both: Snapshot) -> None:
    view = View(ink(DARK), both, Cursor(4, 0, 1, 1))

    records = MassScreen().records(view)

    assert len(records) == 15
    for record in records:
        place = (record["query_scale"], 0, 1, record["source_scale"])
        for name, array in (("mass", both.attention_mass), ("mass_uncond", both.attention_mass_uncond)):
            expected = float(array[place])  # type: ignore[index]
            is_there = both.read_tokens[place] > 0 and np.isfinite(expected)  # type: ignore[index]
            assert record[name] == (expected if is_there else None)
    lines = list(csv.DictReader(io.StringIO(records_text(records, "csv"))))
    assert lines[0]["read_tokens"] == "1"


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (160, 48), (220, 50)])
def test_the_screen_shows_head_rank_and_picture(drive, maps_trace: Path, size: tuple[int, int]) -> None:
    async def script(viewer) -> None:
        await viewer.press("4")
        await viewer.until(lambda: viewer.app.view.attention is not None)
        assert "100" in viewer.text("triangle")
        assert "most" in viewer.text("ranked")
        assert "brightest" in viewer.text("attention")
        assert viewer.canvas("heads").display == (size[1] >= 34)

    drive(maps_trace, script, size=size)


def test_arrows_move_scales_letters_move_heads_and_u_turns_rows(drive, maps_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("4", "up", "right", "right", "j", "l")
        assert viewer.app.view.cursor == Cursor(3, 1, 1, 3)
        await viewer.press("down", "left", "k", "h")
        assert viewer.app.view.cursor == Cursor(4, 0, 0, 2)
        await viewer.press("u")
        assert "unconditional" in viewer.text("triangle")

    drive(maps_trace, script)


def test_without_maps_the_triangle_has_the_whole_width(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("4")
        assert not viewer.canvas("attention").display
        assert viewer.canvas("triangle").size.width == 80

    drive(tiny_trace, script)


def test_heights_asked_for_hold_every_scale(wide: Snapshot) -> None:
    view = View(ink(DARK), wide, Cursor(6, 0, 0, 0))

    lines = triangle(view, 80, triangle_height(view, 80))

    assert "6 16×16" in lines[8].text
    assert "dropped" in lines[9].text
