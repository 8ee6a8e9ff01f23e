"""A folder for sockets that only one test sees, and real runs of the tiny model in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvscope.control.client import Answer, ask
from kvscope.control.gate import Gate
from kvscope.control.protocol import Bye
from kvscope.control.server import Server

TINY_RUN = ("run", "--model", "infinity-tiny", "--threads", "1", "--seed", "5")


def until(condition: Callable[[], object], *, seconds: float = 120.0) -> None:
    """Return as soon as the condition holds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


class Started:
    """A `kvscope` process, and its socket."""

    def __init__(self, arguments: tuple[str, ...], folder: Path, runtime: Path) -> None:
        self.folder, self._runtime = folder, runtime
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvscope", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    @property
    def socket(self) -> str:
        """Where it listens, waited for."""
        until(lambda: self._sockets() or self.process.poll() is not None)
        return str(self._sockets()[0])

    def ask(self, kind: str = "hello", **fields: object) -> Answer:
        return ask(self.socket, kind, timeout_s=30, **fields)

    def until_state(self, state: str) -> None:
        until(lambda: self.ask().progress.state == state)

    def finish(self) -> tuple[int, str]:
        """Its exit code, and what it said."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said

    def _sockets(self) -> list[Path]:
        return sorted(self._runtime.glob(f"kvscope/{self.process.pid}-*.sock"))


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that XDG_RUNTIME_DIR names; not the one of the runs, where Python would take it for a package.

    The other place for sockets is empty too: runs of whoever works on this machine are none of these tests'.
    """
    folder, elsewhere = tmp_path / "r", tmp_path / "t"
    for one in (folder, elsewhere):
        one.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def start(tmp_path: Path, runtime: Path) -> Iterator[Callable[..., Started]]:
    """Starts `kvscope` with arguments in the test's folder; what is left of it is killed after the test."""
    begun: list[Started] = []

    def one(*arguments: str) -> Started:
        begun.append(Started(arguments, tmp_path, runtime))
        return begun[-1]

    yield one
    for each in begun:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGKILL)
        each.process.communicate()


@pytest.fixture
def tiny_run() -> tuple[str, ...]:
    return TINY_RUN


@pytest.fixture
def wait_until() -> Callable[..., None]:
    return until


@pytest.fixture
def gate() -> Gate:
    """The gate of a process that takes jobs, and finds nothing wrong with any."""
    return Gate(check=lambda _: None)


@pytest.fixture
def server(runtime: Path, gate: Gate) -> Iterator[Server]:
    one = Server(gate)
    yield one
    one.close(Bye("done"))
