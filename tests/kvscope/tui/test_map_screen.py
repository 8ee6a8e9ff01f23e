from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from kvscope import units
from kvscope.trace import Trace
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.metrics import METRICS, Cell, volume_of
from kvscope.tui.palette import DARK, ink
from kvscope.tui.screens.map import MapScreen
from kvscope.tui.view import View
from kvscope.tui.widgets.cell import cell_words, range_height, range_words
from kvscope.tui.write import records_text


@pytest.fixture(scope="module")
def wide(wide_trace: Path) -> Snapshot:
    with Trace.open(wide_trace) as trace:
        return take_snapshot(wide_trace, trace, None)


def test_records_are_every_metric_of_every_head_as_it_is_drawn(wide: Snapshot) -> None:
    cursor = Cursor(query_scale=6, layer=3, head=2, source_scale=4)

    records = MapScreen().records(View(ink(DARK), wide, cursor))

    assert len(records) == 32 * 16
    for record in records:
        place = (6, record["layer"], record["head"], 4)
        for name, metric in METRICS.items():
            volume = volume_of(wide, name)
            value, cell = float(volume.values[place]), Cell(int(volume.cells[place]))  # type: ignore[index]
            expected = value if cell is Cell.VALUE else 0 if metric.amount else None
            assert record[metric.column] == expected
    assert {"kept_tokens", "entropy_bits", "mass", "rank", "drop_step"} < records[0].keys()
    assert len(json.loads(records_text(records, "json"))) == 512


def test_there_are_no_records_where_nothing_is_drawn(live_snapshot: Snapshot) -> None:
    assert MapScreen().records(View(ink(DARK))) == []
    assert MapScreen().records(View(ink(DARK), live_snapshot, Cursor(query_scale=3))) == []


@pytest.mark.parametrize(("size", "is_there"), [((80, 24), False), ((120, 40), False), ((160, 48), True)])
def test_wide_terminals_show_all_source_scales(
    drive, wide_trace: Path, size: tuple[int, int], *, is_there: bool
) -> None:
    async def script(viewer) -> None:
        await viewer.press("2", "m")
        assert viewer.canvas("panorama").display is is_there
        assert viewer.canvas("grid").display is not is_there
        if is_there:
            assert viewer.text("panorama").split("\n")[0].split()[-1] == "16×16"
            for name in ("words", "sources", "queries"):
                canvas = viewer.canvas(name)
                assert canvas.size.height > 5
                assert canvas.parent.region.contains_region(canvas.region)
            assert "dropped" in viewer.text("words")

    drive(wide_trace, script, size=size)


def test_a_click_in_the_panorama_goes_to_another_source_scale(drive, wide_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("2")
        titles = viewer.lines("panorama")[0]
        await viewer.pilot.click("#panorama", offset=(titles.index("5 12×12") + 3, 8))
        assert viewer.app.view.cursor.source_scale == 5
        assert "layer 14" in viewer.text("words")

    drive(wide_trace, script, size=(160, 48))


def test_a_terminal_that_shrinks_gets_the_grid_back(drive, wide_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("2")
        await viewer.pilot.resize_terminal(100, 30)
        await viewer.until(lambda: viewer.canvas("grid").display)
        assert not viewer.canvas("panorama").display

    drive(wide_trace, script, size=(160, 48))


def test_the_picture_of_attention_is_there_where_maps_are_and_room_is(drive, maps_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("2")
        await viewer.until(lambda: viewer.app.view.attention is not None)
        assert "brightest" in viewer.text("attention")

    drive(maps_trace, script, size=(160, 48))


def test_v_and_arrows_select_heads_that_are_summed_in_words(drive, wide_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("2", "m", "m", "v", "down", "down", "right")
        kept = viewer.app.view.snapshot.kept_tokens[6, :3, :2, viewer.app.view.cursor.source_scale]
        text = " ".join(viewer.text("range").split())
        assert "range L0–2 h0–1: 6 heads" in text
        assert f"{(kept > 0).sum()} keep it: {units.head_tokens_text(int(kept.sum()))}" in text
        assert "mass mean" in text
        await viewer.press("escape")
        assert viewer.canvas("range").size.height == 0

    drive(wide_trace, script)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_words_of_a_range_fit_and_lose_nothing(wide: Snapshot, metric: str, width: int) -> None:
    cursor = Cursor(query_scale=6, layer=20, head=9, source_scale=1)
    view = View(ink(DARK), wide, cursor, metric, span=replace(cursor, layer=3, head=2))

    lines = range_words(view, width, 0)

    assert len(lines) == range_height(view, width)
    assert all(cell_len(strip.text) <= width for strip in lines)
    text = " ".join(" ".join(strip.text for strip in lines).split())
    assert "range L3–20 h2–9: 144 heads" in text
    assert ("mean" in text) is not METRICS[metric].amount or metric == "mass_uncond"
    assert ("sum" in text) is (metric == "mass")


def test_a_range_of_one_head_has_no_plural(wide: Snapshot) -> None:
    cursor = Cursor(6, 3, 2, 1)
    view = View(ink(DARK), wide, cursor, span=cursor)

    assert "range L3 h2: 1 head " in range_words(view, 160, 0)[0].text


def test_the_cells_words_name_metrics_that_were_recorded_only(wide: Snapshot) -> None:
    view = View(ink(DARK), wide, Cursor(6, 3, 2, 1))

    text = "\n".join(strip.text for strip in cell_words(view, 80, 40))

    assert "unconditional" not in text
    for name, metric in METRICS.items():
        assert metric.title in text or name == "mass_uncond"


def test_where_there_is_little_room_the_chosen_metric_and_the_reason_stay(wide: Snapshot) -> None:
    view = View(ink(DARK), wide, Cursor(6, 3, 2, 1), "entropy")

    lines = [strip.text for strip in cell_words(view, 40, 6)]

    assert "bits" in lines[1]
    assert len(lines) <= 6
    assert "sink scale" in " ".join(lines)
