"""`run --open` without a screen: the run is a real process, the viewer a function of this test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvscope.cli import main
from kvscope.control.client import ask
from kvscope.errors import KVScopeError
from kvscope.live import Launched, run_and_open
from kvscope.trace import Trace

TINY_RUN = ["run", "--model", "infinity-tiny", "--random-weights", "--threads", "1"]


@pytest.fixture(autouse=True)
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine takes its time to end a process; and sockets are this test's own."""
    monkeypatch.setattr("kvscope.live._ENDING_S", 60)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_the_viewer_opens_before_there_is_a_trace_and_sees_the_run_to_its_end(tmp_path: Path) -> None:
    out, said, seen = tmp_path / "run.h5", [], []

    def show(path: Path, run: Launched) -> int:
        seen.append(path.exists())
        wait_for(lambda: path.exists() or run.poll() is not None)
        seen.append("random weights" in " ".join(run.said()))
        with Trace.open(path) as trace:
            wait_for(lambda: trace.refresh() or trace.status != "live")
            wait_for(lambda: not trace.refresh() and trace.status != "live")
            seen.append(trace.status)
        return 0

    assert run_and_open([*TINY_RUN, "-o", str(out)], out, narrate=said.append, show=show) == 0
    assert seen == [False, True, "done"]
    assert said == [f"the run is done: {out}"]


def test_a_run_that_never_starts_passes_on_its_complaint_and_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.h5"

    def show(path: Path, run: Launched) -> int:
        wait_for(lambda: run.poll() is not None)
        raise KVScopeError(run.said()[-1])  # as a viewer does that has nothing to show

    code = run_and_open([*TINY_RUN, "--device", "tpu", "-o", str(out)], out, narrate=lambda _: None, show=show)

    assert code == 2
    assert "unknown device 'tpu'" in capsys.readouterr().err


def test_a_run_that_outlives_its_viewer_says_how_to_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvscope.live._ENDING_S", 0.1)
    out, said, runs = tmp_path / "run.h5", [], []

    def show(path: Path, run: Launched) -> int:
        runs.append(run)
        wait_for(lambda: list(tmp_path.glob("kvscope/*.sock")))
        ask(str(next(tmp_path.glob("kvscope/*.sock"))), "pause")
        return 0

    assert run_and_open([*TINY_RUN, "-o", str(out)], out, narrate=said.append, show=show) == 0

    pid = runs[0].pid
    assert str(out) in said[0]
    assert f"kvscope attach {pid}" in said[1]
    assert f"kvscope control stop {pid}" in said[1]
    runs[0].end()
    assert runs[0].poll() == 130


def test_a_run_that_a_viewer_stops_is_told_of_in_one_line(tmp_path: Path) -> None:
    out, said = tmp_path / "run.h5", []

    def show(path: Path, run: Launched) -> int:
        wait_for(lambda: list(tmp_path.glob("kvscope/*.sock")))
        ask(str(next(tmp_path.glob("kvscope/*.sock"))), "stop")
        return 0

    assert run_and_open([*TINY_RUN, "-o", str(out)], out, narrate=said.append, show=show) == 130
    assert said == [f"the run was stopped; what it recorded is in {out}"]


def test_a_killed_run_is_an_error_of_one_line(tmp_path: Path) -> None:
    out = tmp_path / "run.h5"

    def show(path: Path, run: Launched) -> int:
        os.kill(run.pid, signal.SIGKILL)
        return 0

    with pytest.raises(KVScopeError, match="killed by signal 9; nothing was recorded"):
        run_and_open([*TINY_RUN, "-o", str(out)], out, narrate=lambda _: None, show=show)


def test_a_run_that_nobody_has_seen_yet_ends_with_its_viewer(tmp_path: Path) -> None:
    out, runs = tmp_path / "run.h5", []

    def show(path: Path, run: Launched) -> int:
        runs.append(run)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_and_open([*TINY_RUN, "-o", str(out)], out, narrate=lambda _: None, show=show)

    assert runs[0].poll() is not None


def test_a_bug_in_the_viewer_is_not_hidden_by_a_run_that_does_well(tmp_path: Path) -> None:
    out = tmp_path / "run.h5"

    def show(path: Path, run: Launched) -> int:
        raise KVScopeError("the screen broke")

    with pytest.raises(KVScopeError, match="the screen broke"):
        run_and_open([*TINY_RUN, "-o", str(out)], out, narrate=lambda _: None, show=show)


def test_without_a_terminal_nothing_is_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY_RUN, "--open", "-o", str(tmp_path / "run.h5")]) == 7

    assert "run without --open" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
