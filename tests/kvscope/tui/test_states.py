"""Every screen × every state × every size × every way to draw: what must hold of all of them, and text to look at.

`KVSCOPE_UPDATE_SNAPSHOTS=1` writes the text files of `snapshots/` anew; look at what changed before you keep it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
from rich.style import Style
from textual.strip import Strip

from kvscope.trace import Trace
from kvscope.tui.app import KVScopeApp, shape_of
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import AttentionRead, Snapshot, take_snapshot
from kvscope.tui.palette import ASCII, CONTRAST_LIGHT, DARK, LIGHT, Ink, ink
from kvscope.tui.screens import SCREENS
from kvscope.tui.shot import Look, shoot
from kvscope.tui.terminal import COLOURS
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Canvas

SIZES = ((80, 24), (120, 40), (160, 48), (220, 50))
INKS: dict[str, Ink] = {
    "dark": ink(DARK),
    "light": ink(LIGHT),
    "contrast": ink(CONTRAST_LIGHT),
    "glyphs": ink(DARK, glyphs=True),
    "plain": ink(DARK, plain=True),
    "256": ink(DARK, colours="256"),
    "16": ink(DARK, colours="16"),
    "none": ink(DARK, colours="none"),
}
STATES = {
    "empty": "no trace open",
    "opening": "opening",
    "loading": "loading",
    "first": "live",
    "live": "live",
    "paused": "view paused",
    "disconnected": "disconnected",
    "done": "done",
    "beside another": "done",
    "crashed": "crashed",
    "failed": "failed",
    "cancelled": "cancelled",
    "gpu": "done",
    "maps": "done",
    "wide": "done",
}
"""State → the words of the top line that say so."""

TAGS = ("measured", "forced", "planned", "plan", "est.", "defined", "NVML")
SNAPSHOTS = Path(__file__).parent / "snapshots"
TRACES = Path(__file__).resolve().parents[3] / "traces"


def missing(screen: str) -> str | None:
    """Why a screen cannot be tested; None: it can."""
    module = SCREENS[screen].target.partition(":")[0]
    return None if importlib.util.find_spec(module) else f"{module} is not there yet"


@pytest.fixture(params=SCREENS)
def screen(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if missing(name):
        pytest.skip(missing(name) or "")
    return name


def snapshot_of(path: Path) -> Snapshot:
    with Trace.open(path) as trace:
        return take_snapshot(path, trace, None)


@pytest.fixture(scope="module")
def views(
    tmp_path_factory: pytest.TempPathFactory,
    fake_run: ModuleType,
    tiny_trace: Path,
    gpu_trace: Path,
    wide_trace: Path,
) -> dict[str, View]:
    """A View in every state, with the ink yet to be chosen."""
    folder = tmp_path_factory.mktemp("states")
    any_ink = ink(DARK)

    def view(snapshot: Snapshot, **more: object) -> View:
        shape = shape_of(snapshot)
        cursor = Cursor(shape.query_scale - 1, 1, 1, min(1, shape.source_scale - 1))
        return replace(View(any_ink, snapshot=snapshot, cursor=cursor, name=snapshot.path.name), **more)

    def ended(name: str, status: str, scales: int) -> Snapshot:
        from kvscope.recorder import Recorder

        recorder = Recorder(folder / f"{name}.h5", fake_run.fake_job(), preview=fake_run.fake_preview)
        fake_run.run(recorder, scales=scales)
        recorder.finish(status, f"it {status}")
        return snapshot_of(recorder.path)

    done = snapshot_of(tiny_trace)
    live = replace(ended("live", "failed", 3), status="live", message="")
    maps = snapshot_of(_maps_trace(folder, fake_run))
    with Trace.open(maps.path) as trace:
        attention = AttentionRead(4, 1, 1, trace.attention_map(4, 1, 1))
    return {
        "empty": View(any_ink),
        "opening": View(any_ink, name="run.h5"),
        "loading": View(any_ink, name="run.h5", said=("reading weights", "loading the text encoder")),
        "first": view(replace(ended("first", "failed", 0), status="live", message="")),
        "live": view(live),
        "paused": view(live, paused=True, behind=2),
        "disconnected": view(live, lost="live.h5 is gone; what was read is shown"),
        "done": view(done),
        "beside another": view(done, other=live),
        "crashed": view(replace(live, status="crashed")),
        "failed": view(ended("failed", "failed", 0)),
        "cancelled": view(ended("cancelled", "cancelled", 2)),
        "gpu": view(snapshot_of(gpu_trace)),
        "maps": view(maps, attention=attention),
        "wide": view(snapshot_of(wide_trace)),
    }


def _maps_trace(folder: Path, fake_run: ModuleType) -> Path:
    from kvscope.recorder import Recorder

    path = folder / "maps.h5"
    with Recorder(path, fake_run.fake_job(attention_mass_uncond=True, attention_map="uint8")) as recorder:
        fake_run.run(recorder)
    return path


@dataclass(frozen=True)
class Part:
    """One part of a screen, with the room that it gets there."""

    name: str
    paint: Callable[[View, int, int], list[Strip]]
    height: Callable[[View, int], int] | None
    room: tuple[int, int]

    def lines(self, view: View) -> list[Strip]:
        width, height = self.room
        wished = self.height(view, width) if self.height else height
        return self.paint(view, width, max(1, min(wished, 60)))


@pytest.fixture(scope="module")
def parts(tiny_trace: Path) -> dict[tuple[str, tuple[int, int]], list[Part]]:
    """The parts of every screen at every size, as the app lays them out."""
    found: dict[tuple[str, tuple[int, int]], list[Part]] = {}

    async def lay_out(size: tuple[int, int]) -> None:
        app = KVScopeApp(tiny_trace)
        async with app.run_test(size=size) as pilot:
            while app.view.snapshot is None:
                await pilot.pause(0.02)
            for name in SCREENS:
                if missing(name):
                    continue
                app.action_show(name)
                await pilot.pause()
                await pilot.pause()
                found[name, size] = [
                    Part(canvas.id or "", canvas._paint, canvas._height, (canvas.size.width, canvas.size.height))
                    for canvas in app.screen.query(Canvas)
                    if canvas.size.width and canvas.size.height
                ]

    for size in SIZES:
        asyncio.run(lay_out(size))
    return found


def shown(view: View, screen: str, ink: Ink) -> View:
    return replace(view, screen=screen, ink=ink)


def styles_of(strips: list[Strip]) -> Iterator[Style]:
    yield from (segment.style for strip in strips for segment in strip if segment.style is not None)


def test_the_states_are_what_they_are_called(views: dict[str, View]) -> None:
    statuses = {name: view.snapshot.status if view.snapshot else None for name, view in views.items()}

    assert statuses == {
        **dict.fromkeys(("empty", "opening", "loading")),
        **dict.fromkeys(("first", "live", "paused", "disconnected"), "live"),
        **dict.fromkeys(("done", "beside another", "gpu", "maps", "wide"), "done"),
        **{name: name for name in ("crashed", "failed", "cancelled")},
    }
    for name, num_scales in (("first", 0), ("failed", 0), ("cancelled", 2), ("crashed", 3), ("done", 5)):
        snapshot = views[name].snapshot
        assert snapshot is not None
        assert snapshot.scales_done == num_scales
    assert views["paused"].paused
    assert views["disconnected"].lost
    gpu, done = views["gpu"].snapshot, views["done"].snapshot
    assert gpu is not None
    assert done is not None
    assert len(gpu.gpu)
    assert done.gpu_unavailable
    assert list(STATES) == list(views)


@pytest.mark.parametrize("state", STATES)
def test_every_part_in_every_state_size_and_mode_fits_and_steers_no_terminal(
    screen: str, state: str, views: dict[str, View], parts: dict[tuple[str, tuple[int, int]], list[Part]]
) -> None:
    for size in SIZES:
        for mode, how in INKS.items():
            view = shown(views[state], screen, how)
            for part in parts[screen, size]:
                strips = part.lines(view)
                where = f"{part.name} at {size} in {mode}"
                assert all(strip.cell_length <= part.room[0] for strip in strips), where
                assert all(strip.text.isprintable() for strip in strips), where
                if mode == "plain":
                    rest = {sign for strip in strips for sign in strip.text.translate(ASCII) if not sign.isascii()}
                    assert rest <= set("ünïcode"), where
                if mode in ("16", "none"):
                    assert not any(style.bgcolor for style in styles_of(strips)), where
                if mode == "16":
                    assert all(style.color is None or not style.color.triplet for style in styles_of(strips)), where


@pytest.mark.parametrize("state", STATES)
def test_colours_change_no_word_and_no_sign(
    screen: str, state: str, views: dict[str, View], parts: dict[tuple[str, tuple[int, int]], list[Part]]
) -> None:
    def text(part: Part, mode: str) -> list[str]:
        return [strip.text for strip in part.lines(shown(views[state], screen, INKS[mode]))]

    for size in SIZES[:2]:
        for part in parts[screen, size]:
            assert text(part, "light") == text(part, "256") == text(part, "dark"), part.name


@pytest.mark.parametrize("state", STATES)
def test_every_screen_says_what_state_it_is_in(
    screen: str, state: str, views: dict[str, View], parts: dict[tuple[str, tuple[int, int]], list[Part]]
) -> None:
    for size in SIZES:
        (top,) = [part for part in parts[screen, size] if part.name == "top"]

        assert STATES[state] in top.lines(shown(views[state], screen, INKS["none"]))[0].text


def test_numbers_have_a_tag_on_every_screen(
    screen: str, views: dict[str, View], parts: dict[tuple[str, tuple[int, int]], list[Part]]
) -> None:
    if screen == "runs":
        pytest.skip("a list of files: its numbers are those of their headers")
    for size in SIZES:
        view = shown(views["beside another"], screen, INKS["dark"])
        text = " ".join(strip.text for part in parts[screen, size] for strip in part.lines(view))

        assert any(re.search(rf"(?<!\w){re.escape(tag)}(?!\w)", text) for tag in TAGS)


def test_no_part_is_empty_when_there_is_nothing_to_show(
    screen: str, views: dict[str, View], parts: dict[tuple[str, tuple[int, int]], list[Part]]
) -> None:
    for state in ("empty", "opening", "loading", "first"):
        view = shown(views[state], screen, INKS["none"])
        body = [part for part in parts[screen, SIZES[0]] if part.name not in ("top", "notice", "keys", "too-small")]
        text = "".join(strip.text for part in body for strip in part.lines(view))

        assert re.search(r"\w{3}", text), state


@pytest.mark.parametrize("colours", COLOURS)
@pytest.mark.parametrize("size", SIZES)
def test_the_terminal_gets_whole_lines_of_its_width_and_no_colour_it_has_not(
    tiny_trace: Path, size: tuple[int, int], colours: str
) -> None:
    seen: list[tuple[str, list[Strip]]] = []

    async def main() -> None:
        app = KVScopeApp(tiny_trace, colours=colours)
        async with app.run_test(size=size) as pilot:
            while app.view.snapshot is None:
                await pilot.pause(0.02)
            for name in SCREENS:
                if missing(name):
                    continue
                app.action_show(name)
                await pilot.pause()
                await pilot.pause()
                assert app.view.screen == name
                seen.append((name, app.screen._compositor.render_strips()))

    asyncio.run(main())

    for name, strips in seen:
        assert len(strips) == size[1], name
        assert {strip.cell_length for strip in strips} == {size[0]}, name
        for style in styles_of(strips):
            for colour in (style.color, style.bgcolor):
                if colour is not None and colours in ("16", "none"):
                    assert colour.triplet is None, name
                    assert colours == "16" or colour.is_default, name
                if colour is not None and colours == "256":
                    assert colour.triplet is None or colour.number is not None, name


def test_a_terminal_that_is_too_small_says_what_is_needed_on_every_screen(tiny_trace: Path) -> None:
    async def main() -> None:
        app = KVScopeApp(tiny_trace)
        async with app.run_test(size=(62, 20)) as pilot:
            while app.view.snapshot is None:
                await pilot.pause(0.02)
            for name in SCREENS:
                if missing(name):
                    continue
                app.action_show(name)
                await pilot.pause()
                await pilot.pause()
                text = "\n".join(strip.text for strip in app.screen._compositor.render_strips())
                assert "too small: 80×24 needed, 62×20 here" in text, name
                assert "q quits" in text, name

    asyncio.run(main())


@pytest.mark.parametrize("keys", ["question_mark", "f1", "colon", "X", "enter", "i"])
def test_overlays_without_unicode_are_ascii(tiny_trace: Path, keys: str) -> None:
    overlays = {"enter": "why", "i": "picture"}
    if keys in overlays and not importlib.util.find_spec(f"kvscope.tui.screens.{overlays[keys]}"):
        pytest.skip(f"{overlays[keys]} is not there yet")
    look = Look(width=80, height=24, plain=True, colours="none")

    assert shoot(tiny_trace, "text", look, place="map", presses=[keys]).isascii()


@pytest.mark.parametrize("size", SIZES[:2], ids=lambda size: "x".join(map(str, size)))
def test_screens_look_as_they_did(screen: str, size: tuple[int, int]) -> None:
    if screen == "runs":
        pytest.skip("lists files by age")
    look = Look(width=size[0], height=size[1], glyphs=True, colours="none")
    other = TRACES / "infinity-tiny-heatkv-10.h5" if screen == "compare" else None

    text = shoot(TRACES / "infinity-tiny-heatkv-20.h5", "text", look, other=other, screen=screen, place="q5 l1 h0 s3")

    file = SNAPSHOTS / f"{screen}-{size[0]}x{size[1]}.txt"
    if os.environ.get("KVSCOPE_UPDATE_SNAPSHOTS"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "look at it; KVSCOPE_UPDATE_SNAPSHOTS=1 keeps it"
