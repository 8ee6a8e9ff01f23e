"""The Timeline and the Schedule in a running viewer: their sizes, keys and mouse."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvscope.tui.cursor import Cursor

SIZES = ((80, 24), (120, 40), (160, 48), (220, 50))
PARTS = {"time": ("bytes", "machine", "work", "readout"), "schedule": ("plan", "lanes", "cell", "totals")}
TRACES = ("tiny_trace", "live_trace", "crashed_trace", "cancelled_trace", "empty_trace", "hostile_trace", "gpu_trace")


@pytest.mark.parametrize("screen", PARTS)
@pytest.mark.parametrize("trace", TRACES)
def test_a_screen_opens_on_every_kind_of_trace(drive, request, screen: str, trace: str) -> None:
    async def script(viewer) -> None:
        await viewer.press(*("a" if screen == "time" else ""), "z", "space")
        for name in PARTS[screen]:
            assert viewer.text(name).strip()

    drive(request.getfixturevalue(trace), script, screen=screen)


@pytest.mark.parametrize("screen", PARTS)
@pytest.mark.parametrize("size", SIZES)
def test_every_part_has_room_at_every_size(drive, wide_trace: Path, screen: str, size: tuple[int, int]) -> None:
    async def script(viewer) -> None:
        body = sum(viewer.canvas(name).size.height for name in PARTS[screen])
        assert body <= size[1] - 2
        for name in PARTS[screen]:
            assert all(len(line.strip()) for line in viewer.lines(name)[:1])
        assert viewer.canvas(PARTS[screen][-1]).region.bottom <= size[1] - 1

    drive(wide_trace, script, screen=screen, size=size)


@pytest.mark.parametrize("screen", PARTS)
def test_in_ascii_there_is_nothing_else(drive, wide_trace: Path, screen: str) -> None:
    async def script(viewer) -> None:
        await viewer.press("v", "left_square_bracket")
        for name in PARTS[screen]:
            assert viewer.text(name).isascii()

    drive(wide_trace, script, screen=screen, size=(160, 48), plain=True)


def test_the_timelines_keys_step_select_zoom_and_turn_to_time(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        assert viewer.app.view.cursor == Cursor(4, 0, 0, 1)
        await viewer.press("left")
        assert "step 11 of 0–14 · query scale 3 (4×4) · layer 2" in viewer.text("readout")
        await viewer.press("v", "left", "left")
        assert "range 9–11" in viewer.text("readout")
        assert "━" in viewer.text("bytes")
        await viewer.press("z")
        assert viewer.app.view.window == (9, 12)
        assert "steps 9–11" in viewer.text("bytes")
        assert "zoomed to steps 9–11" in viewer.text("readout")
        await viewer.press("escape", "a")
        assert "bytes over" in viewer.text("bytes")
        assert viewer.app.view.window is None

    drive(tiny_trace, script, screen="time")


def test_the_timeline_is_clicked_and_hovered(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.pilot.click("#bytes", offset=(11, 3))
        assert viewer.app.view.cursor == Cursor(0, 0, 0, 1)
        await viewer.pilot.click("#work", offset=(78, 2))
        assert viewer.app.view.cursor == Cursor(4, 2, 0, 1)
        await viewer.pilot.hover("#bytes", offset=(30, 3))
        assert viewer.app.view.hover is not None

    drive(tiny_trace, script, screen="time")


def test_the_schedules_keys_go_from_head_to_head_and_scale_to_scale(drive, wide_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("pagedown", "down", "right", "right")
        cursor = viewer.app.view.cursor
        assert (cursor.layer, cursor.head, cursor.source_scale) == (1, 1, 5)
        assert "▸L1 h1" in viewer.text("lanes")
        assert "L1 h1 s5" in viewer.text("cell")

    drive(wide_trace, script, screen="schedule")


def test_a_click_on_a_lane_and_on_the_totals(drive, wide_trace: Path) -> None:
    async def script(viewer) -> None:
        lanes = viewer.lines("lanes")
        y = next(index for index, line in enumerate(lanes) if "L0 h4" in line)
        await viewer.pilot.click("#lanes", offset=(12, y))
        cursor = viewer.app.view.cursor
        assert (cursor.layer, cursor.head, cursor.source_scale) == (0, 4, 0)
        await viewer.pilot.click("#totals", offset=(12, 2))
        assert viewer.app.view.cursor.query_scale == 0

    drive(wide_trace, script, screen="schedule")
