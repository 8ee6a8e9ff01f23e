"""What every screen of SCREENS owes: it opens on any trace at any size, and each state is told in words."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from kvscope.recorder import Recorder
from kvscope.trace import Trace
from kvscope.tui.app import KVScopeApp
from kvscope.tui.screens import SCREENS, load_screen
from kvscope.tui.screens.base import TraceScreen
from kvscope.tui.widgets.canvas import Canvas

SIZES = ((80, 24), (120, 40), (160, 48), (220, 50))

WORDS = {
    "done": "✓ done 5 of 5 scales",
    "live": "● live 3 of 5 scales",
    "crashed": "run crashed at scale 3; 3 scales are safe",
    "cancelled": "run cancelled after 2 of 5 scales: stopped by the user; 2 scales are safe",
    "empty": "no scale yet",
    "failed": "run failed at scale 0: out of memory; nothing was recorded",
}
"""State → what each screen says of it."""


def fake_run() -> ModuleType:
    """tests/kvscope/fake_run.py, which no package holds."""
    if "fake_run" not in sys.modules:
        path = Path(__file__).parent.parent / "kvscope" / "fake_run.py"
        spec = importlib.util.spec_from_file_location("fake_run", path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["fake_run"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["fake_run"])
    return sys.modules["fake_run"]


def scales_in(path: Path) -> int:
    with Trace.open(path) as trace:
        return trace.scales_done


@contextmanager
def trace_in(state: str, folder: Path) -> Iterator[Path]:
    """A trace in this state, recorded from a run without a model."""
    run, path = fake_run(), folder / f"{state}.h5"
    recorder = Recorder(path, run.fake_job(), preview=run.fake_preview)
    scales = {"done": 5, "live": 3, "crashed": 3, "cancelled": 2}.get(state, 0)
    run.run(recorder, scales=scales)
    run.wait_for_scales(path, scales)
    if state == "crashed":
        live, path = path, folder / "copy.h5"
        # A reader in the writer's own process sees a commit just before it is flushed to the file.
        run.wait_for(lambda: scales_in(shutil.copy(live, path)) == scales)
    if state in ("done", "cancelled", "failed"):
        recorder.finish(state, {"cancelled": "stopped by the user", "failed": "out of memory"}.get(state, ""))
    yield path
    recorder.finish()


def shown(path: Path, name: str, size: tuple[int, int]) -> list[tuple[str, list[str], tuple[int, int]]]:
    """(id, lines, size) of every part that a screen displays of this trace."""
    app, parts = KVScopeApp(path), []

    async def main() -> None:
        async with app.run_test(size=size) as pilot:
            for _ in itertools.takewhile(lambda _: app.view.snapshot is None, range(6000)):
                await pilot.pause(0.02)
            await pilot.press(SCREENS[name].key)
            await pilot.pause()
            await pilot.pause()
            for canvas in app.screen.query(Canvas):
                if canvas.display and canvas.size.height:
                    assert canvas.parent.region.contains_region(canvas.region), f"{canvas.id} is cut at {size}"
                    lines = [canvas.render_line(y).text for y in range(canvas.size.height)]
                    parts.append((str(canvas.id), lines, (canvas.size.width, canvas.size.height)))

    asyncio.run(main())
    return parts


@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_of_the_table_is_one_and_bears_its_name(name: str) -> None:
    screen = load_screen(name)

    assert issubclass(screen, TraceScreen)
    assert name == screen.NAME


def test_screens_have_different_keys() -> None:
    assert len({row.key for row in SCREENS.values()}) == len(SCREENS)


@pytest.mark.parametrize("state", WORDS)
@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_opens_at_every_size_and_tells_its_state(name: str, state: str, tmp_path: Path) -> None:
    with trace_in(state, tmp_path) as path:
        for size in SIZES:
            parts = shown(path, name, size)

            text = " ".join(" ".join(line.split()) for _, lines, _ in parts for line in lines)
            assert WORDS[state] in text, size
            assert all(len(line) <= width for _, lines, (width, _) in parts for line in lines)
            assert {"top", "keys"} <= {part for part, _, _ in parts}


@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_that_is_too_small_says_what_it_needs_and_nothing_else(name: str, tmp_path: Path) -> None:
    with trace_in("done", tmp_path) as path:
        ((part, lines, _),) = shown(path, name, (50, 12))

    assert part == "too-small"
    assert "too small: 80×24 needed, 50×12 here" in " ".join(line.strip() for line in lines)
