"""`run --open`: the run in a process of its own, and a viewer on it from its first moment.

The viewer never shares a process with torch; leaving the screen leaves the run going.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from kvscope.errors import KVScopeError

_ENDING_S = 1.0
"""A run whose trace is closed needs a moment to exit."""
_MOST_SAID = 1 << 16
_CANCELLED = 130


class Launched:
    """A `kvscope` command in a process of its own, which goes on when the viewer ends."""

    def __init__(self, arguments: Sequence[str], path: Path) -> None:
        self.path = path
        """The trace that it writes; it need not be there yet."""
        self._spoken = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the run may speak
        self._num_bytes = 0
        self._lines: tuple[str, ...] = ()
        self._run = subprocess.Popen(
            [sys.executable, "-m", "kvscope", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._spoken,
            start_new_session=True,  # the screen's Ctrl-C is not the run's
        )

    @property
    def pid(self) -> int:
        return self._run.pid

    def said(self) -> tuple[str, ...]:
        """Its lines so far; of very many, the last."""
        if self._spoken.closed:
            return self._lines
        num_bytes = os.fstat(self._spoken.fileno()).st_size
        if num_bytes != self._num_bytes:
            # pread: the run writes at the file's own offset.
            begin = max(0, num_bytes - _MOST_SAID)
            text = os.pread(self._spoken.fileno(), _MOST_SAID, begin).decode("utf-8", "replace")
            self._num_bytes = num_bytes
            self._lines = tuple(line.removeprefix("kvscope: ") for line in text.splitlines() if line.strip())
        return self._lines

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that killed it; None: it runs."""
        code = self._run.poll()
        if code is not None:
            self.close()
        return code

    def wait(self, seconds: float) -> int | None:
        """Its exit code, waited for at most so long; None: it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._run.wait(seconds)
        return self.poll()

    def end(self) -> None:
        """End it as SIGTERM does, and wait until it has."""
        self._run.terminate()
        self._run.wait()
        self.close()

    def close(self) -> None:
        """Listen no more; what it said so far stays."""
        self.said()
        self._spoken.close()


def run_and_open(
    arguments: Sequence[str],
    out: Path,
    *,
    narrate: Callable[[str], None],
    show: Callable[[Path, Launched], int],
) -> int:
    """Start `kvscope` with `arguments` (a run that writes `out`), and `show` it, its trace there or not yet.

    Returns the viewer's exit code, or the run's if that has ended otherwise than well.
    """
    run = Launched(arguments, out)
    try:
        return _shown(run, out, narrate, show)
    finally:
        run.close()


def _shown(run: Launched, out: Path, narrate: Callable[[str], None], show: Callable[[Path, Launched], int]) -> int:
    try:
        code = show(out, run)
    except KVScopeError:
        if not run.wait(_ENDING_S):
            raise
        code = 1  # a run that failed is told of as such, below
    except KeyboardInterrupt:
        if not out.exists():
            run.end()
        raise
    ended = run.wait(_ENDING_S)
    if ended is None:
        narrate(f"the run goes on as process {run.pid}, and writes {out}")
        narrate(f"`kvscope attach {run.pid}` shows it again, `kvscope control stop {run.pid}` ends it")
        return code
    if ended == 0:
        narrate(f"the run is done: {out}")
        return code
    return _told(run, ended, out, narrate)


def _told(run: Launched, ended: int, out: Path, narrate: Callable[[str], None]) -> int:
    """Say how a run ended that did not end well; returns its exit code."""
    if ended < 0:
        holds = f"{out} holds what was recorded" if out.exists() else "nothing was recorded"
        raise KVScopeError(f"run {run.pid} was killed by signal {-ended}; {holds}")
    if ended == _CANCELLED and out.exists():
        narrate(f"the run was stopped; what it recorded is in {out}")
    else:
        sys.stderr.write("".join(f"kvscope: {line}\n" for line in run.said()))
    return ended
