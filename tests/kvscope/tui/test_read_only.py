"""Whatever is pressed: a trace stays as it was, a run hears only what was asked of it, and the screen still draws."""

from __future__ import annotations

import hashlib
import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest

from kvscope.recorder import Recorder
from kvscope.tui import app as app_module
from kvscope.tui.actions import ACTIONS, actions_of, keys_of
from kvscope.tui.screens import OVERLAYS, SCREENS
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Canvas

LEAVE = {*keys_of("quit"), *keys_of("quit.now")}
WRITE = {key for action in ACTIONS if action.id.startswith("write.") for key in action.keys}
ASK = {key for action in ACTIONS if action.id.startswith("run.") for key in action.keys}
START = {*keys_of("runs.demo")}
UNUSED = ["A", "f5", "ctrl+t", "0", "6", "tilde", "backspace", "delete", "insert", "ctrl+up", "shift+left", "tab"]


class Asked:
    """A remote that sends nothing and keeps what it was asked."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def follow(self, snapshot: object) -> None:
        pass

    def ask(self, kind: str, view: View) -> str | None:
        self.kinds.append(kind)
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def sealed(tmp_path: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trace that nobody may write to, in a folder beside the current one, which is empty."""
    home, here, folder = (tmp_path / name for name in ("home", "here", "traces"))
    for path in (home, here, folder):
        path.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.chdir(here)
    monkeypatch.setattr(app_module, "start_demo", refuse_to_start)
    trace = folder / "sealed.h5"
    with Recorder(trace, fake_run.fake_job(attention_map="uint8"), preview=fake_run.fake_preview) as recorder:
        fake_run.run(recorder)
    trace.chmod(0o444)
    return trace


def refuse_to_start(folder: Path) -> None:
    raise AssertionError("a key that was not pressed has started a run")


def loadable(target: str) -> bool:
    return importlib.util.find_spec(target.partition(":")[0]) is not None


def opens_what_is_missing(key: str, screen: str) -> bool:
    """Whether a key shows something that does not exist yet."""
    for action in actions_of(screen):
        if key in action.keys:
            name = action.command.partition("'")[2].partition("'")[0]
            target = OVERLAYS.get(name) or (SCREENS[name].target if name in SCREENS else None)
            return (target is not None and not loadable(target)) or (
                action.id == "enter" and not loadable(OVERLAYS["why"])
            )
    return False


def keys_on(screen: str) -> list[str]:
    known = [key for action in actions_of(screen) for key in action.keys]
    return [key for key in [*known, *UNUSED] if key not in LEAVE and not opens_what_is_missing(key, screen)]


def fingerprint(path: Path) -> tuple[str, int, int, list[str]]:
    facts = path.stat()
    names = sorted(one.name for one in path.parent.iterdir())
    return hashlib.sha256(path.read_bytes()).hexdigest(), facts.st_mtime_ns, facts.st_mode, names


async def back_to(viewer, screen: str) -> None:
    """Out of every overlay, and to the screen."""
    while len(viewer.app.screen_stack) > 2:
        await viewer.press("escape")
    if viewer.app.view.screen != screen:
        viewer.app.action_show(screen)
        await viewer.pilot.pause()


def assert_drawn(viewer, key: str) -> None:
    width, height = viewer.app.size
    strips = viewer.app.screen._compositor.render_strips()
    assert len(strips) == height, key
    assert all(strip.cell_length == width for strip in strips), key
    assert any(canvas.size.height and canvas.render_line(0).text.strip() for canvas in viewer.app.screen.query(Canvas))


@pytest.mark.parametrize("screen", SCREENS)
def test_no_key_writes_or_sends_anything_but_those_that_say_so(drive, sealed: Path, screen: str) -> None:
    if not loadable(SCREENS[screen].target):
        pytest.skip(f"screen {screen} is not there yet")
    before, asked, here = fingerprint(sealed), Asked(), Path.cwd()

    async def script(viewer) -> None:
        viewer.app._remote.close()
        viewer.app._remote = asked
        for key in keys_on(screen):
            await back_to(viewer, screen)
            if key in START and screen == "runs":
                continue
            sent, files = list(asked.kinds), len(list(here.iterdir()))
            await viewer.pilot.press(key)
            assert_drawn(viewer, key)
            assert (asked.kinds != sent) == (key in ASK - {"X"}), key
            assert len(list(here.iterdir())) == files + (key in WRITE), key

    drive(sealed, script, folder=sealed.parent)

    assert fingerprint(sealed) == before
    assert asked.kinds == ["pause", "resume", "step"]
    assert {path.suffix for path in here.iterdir()} == {".svg", ".csv", ".json"}


@pytest.mark.parametrize("seed", range(3))
def test_no_order_of_keys_breaks_the_viewer(drive, sealed: Path, seed: int) -> None:
    before, asked, chance = fingerprint(sealed), Asked(), random.Random(seed)
    pressed: list[str] = []

    async def script(viewer) -> None:
        viewer.app._remote.close()
        viewer.app._remote = asked
        for _ in range(60):
            screen = viewer.app.view.screen
            usable = [key for key in keys_on(screen) if key not in WRITE | ASK | START]
            pressed.append(chance.choice([*usable, "escape", "escape"]))
            await viewer.pilot.press(pressed[-1])
            assert viewer.app.is_running, pressed
        await back_to(viewer, "live")
        await viewer.press("2")
        assert_drawn(viewer, " ".join(pressed))

    drive(sealed, script, size=(120, 40), folder=sealed.parent)

    assert fingerprint(sealed) == before
    assert asked.kinds == []
    assert list(Path.cwd().iterdir()) == []
