"""Signals are sent to real processes: what they do to an exit code shows nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kvscope.control.client import ask
from kvscope.trace import Trace

_COMMAND = """
import os, signal, sys
from kvscope import cli
from kvscope.commands import runs

def stop():
    os.kill(os.getpid(), signal.SIGTERM)

def run(args):
{body}
    return 0

runs.run = run
code = cli.main(["runs", "."])
{after}
sys.exit(code)
"""


def ended(folder: Path, body: str, *, after: str = "") -> tuple[int, str]:
    """The exit code and stderr of `python -m` of a command that does `body`."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    (folder / "command.py").write_text(_COMMAND.format(body=lines, after=after))
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-m", "command"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_stop_within_an_exec_of_text_ends_by_code_and_not_by_signal(tmp_path: Path) -> None:
    # As while torch is imported: its dataclasses are made by exec.
    assert ended(tmp_path, 'exec("stop()", {"stop": stop})') == (130, "kvscope: stopped\n")


def test_a_second_signal_does_not_break_what_the_first_one_closes(tmp_path: Path) -> None:
    body = "try:\n    stop()\nfinally:\n    stop()\n    sys.stderr.write('closed\\n')"

    assert ended(tmp_path, body) == (130, "closed\nkvscope: stopped\n")


def test_a_stop_while_an_error_is_told_is_still_a_stop(tmp_path: Path) -> None:
    body = "cli.narrate = lambda text: stop() if 'error' in text else None\nraise cli.UsageError('no')"

    assert ended(tmp_path, body) == (130, "")


def test_a_stop_that_python_drops_in_a_callback_comes_again(tmp_path: Path) -> None:
    body = (
        "class One:\n    def __del__(self):\n        stop()\n"
        "One()\nimport time\ntime.sleep(20)\nsys.stderr.write('went on\\n')"
    )

    assert ended(tmp_path, body) == (130, "kvscope: stopped\n")


def test_a_signal_after_the_end_changes_nothing(tmp_path: Path) -> None:
    assert ended(tmp_path, "pass", after="stop()") == (0, "")


def test_a_signal_while_python_ends_changes_nothing(tmp_path: Path) -> None:
    # Let go of when modules are: after atexit, as most of torch is.
    after = (
        "class Last:\n    def __del__(self, kill=os.kill, pid=os.getpid()):\n        kill(pid, 15)\nsys.last = Last()"
    )

    assert ended(tmp_path, "pass", after=after) == (0, "")


def test_a_paused_run_that_is_told_twice_closes_its_trace(
    tmp_path: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "run.h5"
    arguments = ["run", "--model", "infinity-tiny", "--random-weights", "--threads", "1", "-o", str(out)]
    run = subprocess.Popen([sys.executable, "-m", "kvscope", *arguments], stderr=subprocess.DEVNULL)
    fake_run.wait_for(lambda: list(tmp_path.glob("kvscope/*.sock")), seconds=120)
    socket = str(next(tmp_path.glob("kvscope/*.sock")))
    ask(socket, "pause")
    fake_run.wait_for(lambda: ask(socket).progress.state == "paused", seconds=120)

    run.terminate()
    run.terminate()

    assert run.wait(60) == 130
    with Trace.open(out) as trace:
        assert trace.status == "cancelled"


_INTERRUPTED = """
import sys, threading
sys.path.insert(0, {folder!r})
import fake_run
from kvscope.recorder import Recorder

class Slow(Recorder):
    def _write(self, writer, message):
        if type(message).__name__ == "_End":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        super()._write(writer, message)

import os, signal, time
with Slow({path!r}, fake_run.fake_job()) as recorder:
    fake_run.run(recorder)
"""


def test_a_stop_while_the_recorder_closes_waits_until_it_has(tmp_path: Path) -> None:
    # Thread.join, interrupted, would take the writer for dead; and Python, ending beside it, would hang in HDF5.
    script = _INTERRUPTED.format(folder=str(Path(__file__).parent), path=str(tmp_path / "run.h5"))
    body = f"exec({script!r}, {{}})"

    assert ended(tmp_path, body) == (130, "kvscope: stopped\n")
    with Trace.open(tmp_path / "run.h5") as trace:
        assert trace.status == "done"
