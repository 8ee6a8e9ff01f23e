"""The viewer on real runs of the tiny model, each in a process of its own: attach, pause, step, stop, kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from kvscope.control.client import ask
from kvscope.recorder import Recorder
from kvscope.tui.editing import EditOptions
from kvscope.tui.messages import RunTold
from kvscope.tui.remote import Remote


class Run:
    """A `kvscope run` that is held after its first scale, as if it were slow."""

    def __init__(self, folder: Path, fake_run: ModuleType) -> None:
        self.path = folder / "held.h5"
        runtime = folder / "r"
        runtime.mkdir()
        command = "run --model infinity-tiny --threads 1 --seed 5 --no-attention-mass -o held.h5"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvscope", *command.split()],
            cwd=folder,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": str(runtime)},
        )
        fake_run.wait_for(lambda: list(runtime.glob("kvscope/*.sock")), seconds=120)
        self.socket = str(next(runtime.glob("kvscope/*.sock")))
        ask(self.socket, "pause", timeout_s=120)  # before its first scale
        fake_run.wait_for(lambda: ask(self.socket, timeout_s=120).progress.state == "paused", seconds=120)
        ask(self.socket, "step", timeout_s=120)
        fake_run.wait_for(lambda: self.scales_done == 1, seconds=120)
        fake_run.wait_for_scales(self.path, 1)

    @property
    def scales_done(self) -> int:
        return ask(self.socket, timeout_s=120).progress.scales_done


@pytest.fixture
def held_run(tmp_path: Path, fake_run: ModuleType) -> Iterator[Run]:
    run = Run(tmp_path, fake_run)
    yield run
    if run.process.poll() is None:
        run.process.kill()
    run.process.wait()


def test_the_viewer_shows_what_was_before_it_came_and_steers_the_run(drive, held_run: Run) -> None:
    async def script(viewer) -> None:
        await viewer.until(lambda: viewer.app.view.link is not None and viewer.app.view.link.connected)
        assert viewer.app.view.snapshot.scales_done == held_run.scales_done == 1
        assert "■ run paused" in viewer.text("top")

        await viewer.press("full_stop")
        await viewer.until(lambda: viewer.app.view.snapshot.scales_done == 2, seconds=120)
        await viewer.until(lambda: viewer.app.view.link.state == "paused", seconds=120)
        await viewer.press("P")
        await viewer.until(lambda: viewer.app.view.snapshot.status == "done", seconds=120)

        assert viewer.app.view.snapshot.scales_done == 7
        assert "✓ done" in viewer.text("top")

    drive(held_run.path, script, size=(120, 40))


def test_a_run_that_is_ended_from_the_viewer_is_shown_as_cancelled(drive, held_run: Run) -> None:
    async def script(viewer) -> None:
        await viewer.until(lambda: viewer.app.view.link is not None and viewer.app.view.link.connected)
        await viewer.press("X")
        await viewer.press("y")
        await viewer.until(lambda: viewer.app.view.snapshot.status == "cancelled", seconds=120)
        assert "run cancelled after" in viewer.text("notice")

    drive(held_run.path, script, size=(120, 40))
    assert held_run.process.wait(30) == 130


def test_a_run_that_is_killed_is_shown_as_crashed_with_what_is_safe(drive, held_run: Run) -> None:
    async def script(viewer) -> None:
        held_run.process.send_signal(signal.SIGKILL)
        held_run.process.wait()
        await viewer.until(lambda: viewer.app.view.snapshot.status == "crashed", seconds=120)
        assert "run crashed at scale 1; 1 scale is safe" in viewer.text("notice")
        await viewer.press("2", "P")
        assert viewer.app.view.screen == "map"

    drive(held_run.path, script, size=(120, 40))


def test_two_viewers_come_and_go_and_the_run_does_not_notice(drive, held_run: Run) -> None:
    async def script(viewer) -> None:
        await viewer.until(lambda: viewer.app.view.link is not None and viewer.app.view.link.connected)

    drive(held_run.path, script)
    drive(held_run.path, script)

    assert ask(held_run.socket, timeout_s=120).progress.state == "paused"


def test_a_paused_view_stands_still_while_the_run_goes_on_and_then_shows_all(
    drive, tmp_path: Path, fake_run: ModuleType
) -> None:
    recorder = Recorder(tmp_path / "live.h5", fake_run.fake_job())
    schedule = fake_run.fake_schedule()
    recorder.run_started(fake_run.fake_start(schedule))
    fake_run.run_scale(recorder, schedule, 0)
    fake_run.wait_for_scales(recorder.path, 1)

    async def script(viewer) -> None:
        await viewer.press("space")
        for scale in (1, 2):
            fake_run.run_scale(recorder, schedule, scale)
        await viewer.until(lambda: viewer.app.view.behind == 2)
        assert viewer.app.view.snapshot.scales_done == 1
        assert "this view is paused; the run goes on, 2 scales further" in viewer.text("notice")

        await viewer.press("space")
        await viewer.until(lambda: viewer.app.view.snapshot.scales_done == 3)
        assert viewer.app.view.behind == 0
        assert len(viewer.app.view.snapshot.steps) == 3 * schedule.num_layers

    drive(recorder.path, script, size=(120, 40))
    recorder.finish()


@pytest.mark.parametrize("key", ["P", "R", "full_stop"])
def test_a_run_that_is_over_cannot_be_steered_and_that_is_said(drive, tiny_trace: Path, key: str) -> None:
    async def script(viewer) -> None:
        await viewer.press(key)
        assert "the run is over (done)" in " ".join(str(toast.message) for toast in viewer.app._notifications)

    drive(tiny_trace, script)


def test_a_remote_that_never_followed_sends_nothing() -> None:
    told: list[RunTold] = []
    remote = Remote(told.append)  # type: ignore[arg-type]
    remote.close()

    assert told == []


def test_an_edited_schedule_is_handed_to_the_run_itself_after_a_word(drive, held_run: Run, tmp_path: Path) -> None:
    async def script(viewer) -> None:
        await viewer.until(lambda: viewer.app.view.edit is not None)
        await viewer.until(lambda: viewer.app.view.link is not None and viewer.app.view.link.connected)
        viewer.app.edit(lambda _: "drop l0 h1 s3 after q4")
        await viewer.until(lambda: viewer.app.view.edit.draft.is_changed)
        await viewer.press("a", "y")
        assert "the run itself goes on with it" in viewer.text("words")
        await viewer.press(*"revise", "enter")
        await viewer.until(lambda: viewer.app.view.applied is not None)
        assert viewer.app.view.applied.refused == ""
        assert "from scale 1 on" in viewer.app.view.applied.where

        await viewer.press("full_stop")
        await viewer.until(lambda: len(viewer.app.view.snapshot.plans) == 2, seconds=120)
        await viewer.until(lambda: viewer.app.view.applied.as_planned is True)
        assert viewer.app.view.snapshot.schedule.content_hash == viewer.app.view.edit.schedule.content_hash

    drive(held_run.path, script, size=(120, 40), edit=EditOptions(held_run.path), screen="schedule")


def test_a_viewer_that_does_not_edit_changes_nothing_of_a_run(drive, held_run: Run) -> None:
    async def script(viewer) -> None:
        await viewer.until(lambda: viewer.app.view.link is not None and viewer.app.view.link.connected)
        before = sorted(Path.cwd().iterdir())
        await viewer.press("a", "y", *"revise", "enter", "escape")
        assert viewer.app.view.applied is None
        assert sorted(Path.cwd().iterdir()) == before

    drive(held_run.path, script, size=(120, 40), screen="schedule")
    assert ask(held_run.socket, timeout_s=120).progress.state == "paused"
