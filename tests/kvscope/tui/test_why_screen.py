from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from kvscope import units
from kvscope.trace import Trace
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.palette import DARK, ink
from kvscope.tui.screens.picture import PictureScreen, scale_strip
from kvscope.tui.screens.why import WhyScreen, why_height, why_lines
from kvscope.tui.view import View


def snapshot_of(path: Path) -> Snapshot:
    with Trace.open(path) as trace:
        return take_snapshot(path, trace, None)


def text_of(view: View, width: int = 80) -> str:
    return "\n".join(strip.text for strip in why_lines(view, width, 0))


@pytest.mark.parametrize("width", [62, 80, 104])
def test_every_cell_has_a_story_that_fits(tiny_snapshot: Snapshot, live_snapshot: Snapshot, width: int) -> None:
    for snapshot in (tiny_snapshot, live_snapshot):
        for query, layer, head, source in np.ndindex(5, 3, 2, 5):
            view = View(ink(DARK, plain=bool(query % 2)), snapshot, Cursor(query, layer, head, source))
            lines = why_lines(view, width, 0)
            assert len(lines) == why_height(view, width) <= 24
            assert all(cell_len(strip.text) <= width for strip in lines)


def test_a_dropped_head_scale_is_told_from_rule_to_loss_with_tags(tiny_snapshot: Snapshot) -> None:
    text = text_of(View(ink(DARK), tiny_snapshot, Cursor(2, 0, 1, 1)))
    lines = [" ".join(line.split()) for line in text.split("\n")]

    assert "why · layer 0 · head 1 · source scale 1 (2×2)" in lines[0]
    assert lines[1] == "dropped after scale 2, layer 0: freed 4 tokens = 256 B"
    assert "planned dropped after scale 2, layer 0 planned" in lines
    assert "observed gone after scale 2, which read it: as planned measured" in lines
    assert any(line.startswith("S-CAS") and "of 5; median" in line for line in lines)
    assert "takes 4 tokens = 256 B, freed defined" in lines
    assert "unknown since" in text
    mass = units.fraction_text(float(tiny_snapshot.attention_mass[2, 0, 1, 1]))
    assert any(line.startswith("▸ 2 3×3 · · 4") and mass in line for line in lines)
    assert "run with --attention-uncond" in " ".join(lines)


def test_both_rows_are_shown_where_both_were_recorded(maps_trace: Path) -> None:
    snapshot = snapshot_of(maps_trace)

    text = text_of(View(ink(DARK), snapshot, Cursor(4, 0, 0, 2)), 104)

    assert "uncond" in text
    assert units.fraction_text(float(snapshot.attention_mass_uncond[4, 0, 0, 2])) in text
    assert "--attention-uncond" not in text


def test_without_mass_the_table_has_tokens_and_says_how_to_get_more(gpu_trace: Path) -> None:
    text = text_of(View(ink(DARK), snapshot_of(gpu_trace), Cursor(3, 0, 0, 1)))

    assert "run without --no-attention-mass" in text
    assert "of cache" not in text


def test_what_is_not_there_yet_is_said(live_snapshot: Snapshot) -> None:
    assert "not written yet: scale 3 has not run" in text_of(View(ink(DARK), live_snapshot, Cursor(2, 0, 0, 3)))
    assert "no trace is open" in text_of(View(ink(DARK)))


def test_enter_tells_why_and_its_keys_go_on_to_other_cells(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("2", "enter")
        assert isinstance(viewer.app.screen, WhyScreen)
        assert "layer 0 · head 0 · source scale 1" in viewer.text("why")
        await viewer.press("right", "down", "right_curly_bracket", "left_square_bracket")
        assert "layer 1 · head 1 · source scale 2" in viewer.text("why")
        assert viewer.app.view.cursor == Cursor(3, 1, 1, 2)
        await viewer.press("left", "up", "j", "k")
        assert "layer 0 · head 0 · source scale 2" in viewer.text("why")

    drive(tiny_trace, script)


@pytest.mark.parametrize("key", ["escape", "enter", "q"])
def test_the_story_closes_by_each_of_its_keys(drive, tiny_trace: Path, key: str) -> None:
    async def script(viewer) -> None:
        await viewer.press("2", "enter", key)
        assert not isinstance(viewer.app.screen, WhyScreen)
        assert not viewer.app._exit

    drive(tiny_trace, script)


def test_a_double_click_on_a_cell_tells_why(drive, wide_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("2")
        await viewer.pilot.click("#grid", offset=(5 + 3 * 7 + 1, 1 + 20), times=2)
        await viewer.until(lambda: isinstance(viewer.app.screen, WhyScreen))
        assert "layer 20 · head 7" in viewer.text("why")

    drive(wide_trace, script, size=(120, 40))


def test_i_shows_the_picture_and_brackets_step_through_the_scales(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("i")
        assert isinstance(viewer.app.screen, PictureScreen)
        assert viewer.canvas("large").size.height == 23
        assert "24×24 pixels" in viewer.text("large")
        await viewer.press("left_square_bracket")
        assert "image after scale 3" in viewer.text("large")
        assert "▸3" in viewer.text("strip")
        await viewer.press(*["left_square_bracket"] * 9)
        assert "image after scale 0" in viewer.text("large")
        await viewer.press("right_square_bracket", "i")
        assert not isinstance(viewer.app.screen, PictureScreen)
        assert viewer.app.view.cursor.query_scale == 4

    drive(tiny_trace, script)


def test_the_picture_screen_says_where_there_is_none(drive, gpu_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("i")
        assert "no picture in this trace" in viewer.text("large")
        await viewer.press("escape")
        assert not isinstance(viewer.app.screen, PictureScreen)

    drive(gpu_trace, script)


@pytest.mark.parametrize("width", [20, 40, 80])
def test_the_strip_of_scales_fits(tiny_snapshot: Snapshot, width: int) -> None:
    for snapshot in (None, tiny_snapshot):
        (line,) = scale_strip(View(ink(DARK), snapshot, Cursor(2)), width, 1)
        assert cell_len(line.text) <= width


def test_real_pixels_take_the_place_of_half_blocks_where_there_are_some(
    drive, tiny_trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from textual.widgets import Static

    from kvscope.tui.widgets import real_pixels

    monkeypatch.setattr(real_pixels, "real_picture", lambda rgb: Static(f"pixels {rgb.shape}", id="real"))

    async def script(viewer) -> None:
        await viewer.press("i", "left_square_bracket", "left_square_bracket")
        await viewer.until(lambda: len(viewer.app.screen.query("#real")) == 1)
        assert viewer.canvas("large").size.height == 1
        assert "12, 12, 3" in str(viewer.app.screen.query_one("#real", Static).render())

    drive(tiny_trace, script)
