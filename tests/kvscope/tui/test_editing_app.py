"""Editing, reviewing, applying and playing in a running viewer."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kvscope.draft import Draft, ground_of
from kvscope.journal import Journal
from kvscope.planfile import PlanFile
from kvscope.trace import Trace
from kvscope.tui import app as app_module
from kvscope.tui import applying, goto
from kvscope.tui.editing import EditOptions
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.playback import SPEEDS, STEPS_PER_S, Playback, last_step, next_speed
from kvscope.tui.view import View

TRACES = Path(__file__).resolve().parents[3] / "traces"
SIZES = ((80, 24), (120, 40), (160, 48), (220, 50))


@pytest.fixture
def trace(wide_trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished trace of 32 layers, 16 heads and 7 scales, alone in the current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Path(shutil.copy(wide_trace, folder / "run.h5"))


def editing(trace: Path) -> dict[str, object]:
    """Options of the app: for editing, from the first head's first head-scale that can be dropped."""
    return {"edit": EditOptions(trace), "screen": "schedule", "place": goto.parse("l0 h0 s3")}


async def began(viewer) -> None:
    await viewer.until(lambda: viewer.app.view.edit is not None or viewer.app.view.edit_refused is not None)


def lines_of(trace: Path) -> list[str]:
    return trace.with_suffix(".kvs").read_text(encoding="utf-8").splitlines()[1:]


def test_every_key_of_the_editor_is_a_line_of_the_journal(drive, trace: Path) -> None:
    async def script(viewer) -> None:
        await began(viewer)
        await viewer.press("left_square_bracket", "d", "down", "D", "right", "p", "C", "minus", "plus")
        await viewer.press("v", "down", "down", "right", "D", "escape", "u", "u", "U")
        assert viewer.app.view.edit.num_undone == 1

    drive(trace, script, **editing(trace))

    assert lines_of(trace) == [
        "drop l0 h0 s3 after q5",
        "drop l0 h1 s3",
        "pin l0 h1 s4",
        "clear l0 h1 s4",
        "budget 158t",
        "budget 159t",
        "drop l0 h1-3 s4-5",
        "undo",
        "undo",
        "redo",
    ]


def test_without_edit_the_keys_say_how_and_write_nothing(drive, trace: Path) -> None:
    async def script(viewer) -> None:
        for key in ("d", "D", "p", "C", "backspace", "plus", "minus", "u", "U", "f"):
            await viewer.press(key)
            assert viewer.app.view.edit is None
        assert any("--edit" in notice.message for notice in viewer.app._notifications)
        await viewer.press("equals_sign", *"pin", "enter", "escape", "6")
        assert "Read-only" in viewer.text("totals")
        for key in ("s", "y", "enter", "x"):
            await viewer.press(key, "y", "escape")

    drive(trace, script, screen="schedule")

    assert [path.name for path in Path.cwd().iterdir()] == ["run.h5"]


def test_a_trace_of_an_unknown_model_is_only_read_and_that_is_said(drive, tiny_trace: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(tiny_trace, tmp_path / "tiny.h5"))

    async def script(viewer) -> None:
        await began(viewer)
        assert "fake" in (viewer.app.view.edit_refused or "")
        await viewer.press("p", "6")
        assert "This trace cannot be edited" in viewer.text("totals")

    drive(path, script, **editing(path))

    assert not path.with_suffix(".kvs").exists()


@pytest.mark.parametrize("size", SIZES)
def test_staged_edits_fit_every_size(drive, trace: Path, size: tuple[int, int]) -> None:
    async def script(viewer) -> None:
        await began(viewer)
        await viewer.press("D", "v", "right", "down")
        for screen, parts in (("schedule", ("plan", "lanes", "cell", "totals")), ("plan", ("totals", "edits", "run"))):
            viewer.app.action_show(screen)
            await viewer.pilot.pause()
            await viewer.pilot.pause()
            assert all(viewer.canvas(name).size.height for name in parts)
            assert viewer.canvas(parts[-1]).region.bottom <= size[1] - 1
            assert "est." in viewer.text()

    drive(trace, script, size=size, **editing(trace))


def test_a_typed_edit_is_staged_and_a_wrong_one_is_not(drive, trace: Path) -> None:
    async def script(viewer) -> None:
        await began(viewer)
        await viewer.press("equals_sign", *"pin", "space", *"l99", "enter")
        assert "there is no layer 99" in viewer.text("words")
        await viewer.press("backspace", "backspace", *"3", "enter")
        assert viewer.app.view.edit.edits == ("pin l3",)
        await viewer.press("equals_sign", "up", "enter")
        assert viewer.app.view.edit.edits == ("pin l3", "pin l3")

    drive(trace, script, **editing(trace))


def test_a_hundred_undos_in_the_viewer_lead_back_to_the_recorded_plan(drive, trace: Path) -> None:
    async def script(viewer) -> None:
        await began(viewer)
        recorded = viewer.app.view.edit.schedule.content_hash
        for _ in range(100):
            viewer.app.action_edit("never")
            viewer.app.action_lane(1)
        assert len(viewer.app.view.edit.edits) == 100
        for _ in range(100):
            viewer.app.action_edit("undo")
        await viewer.press("u")
        assert viewer.app.view.edit.schedule.content_hash == recorded
        assert "nothing to undo" in viewer.app.view.edit.words

    drive(trace, script, **editing(trace))


def test_the_edits_of_a_session_are_there_in_the_next(drive, trace: Path) -> None:
    async def first(viewer) -> None:
        await began(viewer)
        await viewer.press("p", "down", "D")

    async def second(viewer) -> None:
        await began(viewer)
        assert viewer.app.view.edit.edits == ("pin l0 h0 s3", "drop l0 h1 s3")
        assert any("2 edits resumed" in notice.message for notice in viewer.app._notifications)
        await viewer.press("6", "x", "n")
        assert viewer.app.view.edit.edits
        await viewer.press("x", "y")
        assert not viewer.app.view.edit.edits
        assert viewer.app.view.edit.num_undone == 2

    drive(trace, first, **editing(trace))
    drive(trace, second, **editing(trace))


@dataclass(frozen=True, slots=True)
class Terminal:
    """A terminal whose output a thread reads."""

    ours: int
    theirs: int


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))

    def read() -> None:
        with contextlib.suppress(OSError):
            while os.read(ours, 1 << 16):
                pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    yield Terminal(ours, theirs)
    os.close(theirs)
    reader.join(2)
    os.close(ours)


def test_a_viewer_that_is_killed_loses_no_edit(trace: Path, terminal: Terminal) -> None:
    command = [
        sys.executable,
        "-m",
        "kvscope",
        "open",
        str(trace),
        "--edit",
        "--screen",
        "schedule",
        "--goto",
        "l0 h0 s3",
    ]
    streams = {"stdin": terminal.theirs, "stdout": terminal.theirs, "stderr": terminal.theirs}
    viewer = subprocess.Popen(command, **streams, env=os.environ | {"TERM": "xterm-256color"}, start_new_session=True)
    journal, deadline = trace.with_suffix(".kvs"), time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.exists() and len(journal.read_text().splitlines()) > 3):
        os.write(terminal.ours, b"pD" if journal.exists() else b"")
        time.sleep(0.05)
    viewer.send_signal(signal.SIGKILL)
    viewer.wait()

    with Trace.open(trace) as opened:
        again = Journal(journal, Draft.of(opened.schedule, ground_of(opened.header)))
    again.close()
    assert again.history.at >= 3
    assert {edit.text.split()[0] for edit in again.history.edits} == {"pin", "drop"}


# Plans.


class Recorded:
    """A run that writes its trace at once: a copy of one that is there."""

    pid = 4711

    def __init__(self, arguments: list[str], path: Path) -> None:
        self.arguments = arguments
        shutil.copy(Path("other.h5"), path)

    def said(self) -> tuple[str, ...]:
        return ("it runs",)

    def poll(self) -> int | None:
        return 0

    def wait(self, _seconds: float) -> int | None:
        return 0


def test_a_plan_is_written_once_and_is_the_one_that_is_run(drive, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(trace, "other.h5")
    monkeypatch.setattr(applying, "Launched", Recorded)

    async def script(viewer) -> None:
        await began(viewer)
        viewer.app.edit(lambda _: "budget none")
        await viewer.press("D", "a", "s")
        await viewer.until(lambda: viewer.app.view.review is not None)
        assert "of what is staged, not stale" in viewer.text("run")
        await viewer.press("y", "n")
        assert viewer.app.view.applied is None
        await viewer.press("f", "enter", "y")
        await viewer.until(lambda: viewer.app.view.applied is not None and viewer.app.view.applied.after is not None)
        one = viewer.app.view.applied
        assert one.launched.arguments[:4] == ["apply", "run-plan-1.json", "--mode", "forced"]
        assert one.as_planned is False
        assert "NOT the plan" in viewer.text("run")
        assert "1 head-scales differ" in one.read_back
        assert viewer.app.view.other is not None
        viewer.app._desk.wait(5)

    drive(trace, script, size=(120, 40), **editing(trace))

    plan = PlanFile.load(Path("run-plan-1.json"))
    assert plan.edits == ("budget none", "drop l0 h0 s3")
    assert plan.stale() == []
    assert not Path("run-plan-2.json").exists()


@pytest.mark.slow
def test_a_plan_is_run_for_real_and_obeyed(drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    full = Path(shutil.copy(TRACES / "infinity-tiny-full.h5", tmp_path / "full.h5"))

    async def script(viewer) -> None:
        await began(viewer)
        await viewer.press("D", "a", "f", "y", "y")
        await viewer.until(lambda: viewer.app.view.applied is not None)
        await viewer.until(lambda: bool(viewer.app.view.applied.after or viewer.app.view.applied.refused), seconds=120)
        one = viewer.app.view.applied
        assert one.refused == ""
        assert one.as_planned
        assert one.after.steps_as_estimated == one.after.steps_compared == 42
        assert one.after.kl is not None
        assert "exactly the plan" in viewer.text("run")
        assert ", forced" in viewer.text("run")

    drive(full, script, size=(120, 40), **editing(full))


def test_a_plan_of_earlier_edits_is_said_to_be_that(drive, trace: Path) -> None:
    async def script(viewer) -> None:
        await began(viewer)
        viewer.app.edit(lambda _: "budget none")
        await viewer.press("D", "a", "s")
        await viewer.until(lambda: viewer.app.view.review is not None)
        await viewer.press("u")
        assert "of earlier edits" in viewer.text("run")
        await viewer.press("y")
        assert "Nothing is changed" in viewer.text("words")
        await viewer.press("escape", "U")
        trace.touch()
        with trace.open("ab") as file:
            file.write(b"more")
        await viewer.press("5", "6")
        await viewer.until(lambda: viewer.app.view.review.stale)
        assert "stale" in viewer.text("run")

    drive(trace, script, **editing(trace))


def test_a_live_run_is_handed_a_plan_only_after_a_word(drive, trace: Path) -> None:
    async def script(viewer) -> None:
        await began(viewer)
        viewer.app._show(replace(viewer.app.view, snapshot=replace(viewer.app.view.snapshot, status="live")))
        viewer.app.edit(lambda _: "budget none")
        await viewer.press("D", "a", "y")
        assert "type revise or apply" in viewer.text("words")
        await viewer.press("y", "enter")
        assert viewer.app.view.applied is None
        await viewer.press("backspace", *"apply", "enter")
        await viewer.until(lambda: viewer.app.view.applied is not None)
        assert "the run is live" in viewer.app.view.applied.refused

    drive(trace, script, **editing(trace))


def test_a_process_that_stays_is_handed_the_job(
    trace: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot
) -> None:
    from kvscope.control.client import Answer
    from kvscope.control.protocol import Accepted, Progress, Refused, Welcome
    from kvscope.tui.editing import Editor

    asked: list[dict[str, object]] = []
    replies = [Accepted("submit", "it is next"), Refused("submit", "it does not stay")]

    def ask(path: str, kind: str, **fields: object) -> Answer:
        asked.append({"path": path, "kind": kind, **fields})
        welcome = Welcome(1, "kvscope", os.getpid(), "idle", "", "", ("submit",))
        return Answer(welcome, Progress("idle"), replies[len(asked) - 1])

    monkeypatch.setattr(applying, "ask", ask)
    resident = replace(snapshot, header=replace(snapshot.header, control_socket="/run/one.sock"))
    editor = Editor.begin(resident, EditOptions(trace, script=("budget none", "drop l0 h0 s3")))
    review = applying.reviewed(resident, editor.state, None)

    taken = applying.applied(resident, review, mode="free", resident=True)
    refused = applying.applied(resident, review, mode="free", resident=True)

    job = asked[0]["job"]
    assert isinstance(job, dict)
    assert asked[0]["path"] == "/run/one.sock"
    assert (job["policy"], job["mode"], job["parent"]) == ("schedule", "free", str(trace))
    assert Path(str(job["schedule"])).is_absolute()
    assert taken.launched is not None
    assert taken.launched.poll() is None
    assert "it does not stay" in refused.refused


# Playback.


@pytest.fixture
def snapshot(trace: Path) -> Snapshot:
    with Trace.open(trace) as opened:
        return take_snapshot(trace, opened, None)


@pytest.mark.parametrize("speed", [name for name, factor in SPEEDS.items() if factor is not None])
def test_steps_follow_each_other_at_the_speed_and_stop_at_the_last(snapshot: Snapshot, speed: str) -> None:
    factor = SPEEDS[speed] or 0.0
    playback = Playback(speed, begun_s=10.0, first_step=5)

    assert playback.step_at(10.0, snapshot) == 5
    assert playback.step_at(10.0 + 3.01 / (STEPS_PER_S * factor), snapshot) == 8
    assert playback.step_at(1e6, snapshot) == last_step(snapshot) == 7 * 32 - 1


def test_real_time_is_that_of_the_steps(snapshot: Snapshot) -> None:
    playback = Playback("real time", begun_s=0.0, first_step=2)

    assert playback.step_at(0.0, snapshot) == 2
    assert playback.step_at(0.0105, snapshot) == 12  # the steps of this trace begin a millisecond apart
    assert playback.step_at(60.0, snapshot) == last_step(snapshot)


def test_speeds_come_round() -> None:
    speed = "1×"
    for _ in SPEEDS:
        speed = next_speed(speed, 1)
    assert speed == "1×"


class Clock:
    """Stands in for the time module of the viewer: every look at it moves it on, however busy the machine is."""

    def __init__(self, step_s: float) -> None:
        self.step_s, self.now_s = step_s, 0.0

    def monotonic(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def test_a_finished_run_is_played_to_its_end_by_the_space_bar(
    drive, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "time", Clock(step_s=1.0))  # 8 steps

    async def script(viewer) -> None:
        seen, show = [], viewer.app._show

        def noted(view: View) -> None:
            if view.playback is not None:
                seen.append(view.cursor.query_scale)
            show(view)

        viewer.app._show = noted
        await viewer.press("space")
        await viewer.until(lambda: viewer.app.view.playback is None)
        assert list(dict.fromkeys(seen)) == list(range(7))
        assert (viewer.app.view.cursor.query_scale, viewer.app.view.cursor.layer) == (6, 31)
        assert not viewer.app.view.paused

    drive(trace, script, screen="map")


def test_playing_is_stopped_by_the_same_key_and_scrubbed_by_moving(
    drive, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "time", Clock(step_s=0.0))

    async def script(viewer) -> None:
        await viewer.press("greater_than_sign", "right_square_bracket", "right_square_bracket")
        assert viewer.app.view.playback is not None
        assert viewer.app.view.cursor.query_scale == 2
        assert viewer.app.view.playback.first_step >= 64
        await viewer.press("S")
        assert viewer.app.view.playback.speed == "4×"
        await viewer.press("greater_than_sign")
        assert viewer.app.view.playback is None

    drive(trace, script, screen="time")


def test_a_live_view_is_paused_by_the_space_bar_and_not_played(drive, live_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("space")
        assert viewer.app.view.paused
        assert viewer.app.view.playback is None
        await viewer.press("space")
        assert not viewer.app.view.paused

    drive(live_trace, script)
