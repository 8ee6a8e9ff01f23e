"""`run --open`: the run in a process of its own, its trace on the screen from the first commit.

The viewer never shares a process with torch; leaving the screen leaves the run going.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from kvscope.errors import KVScopeError

_POLL_S = 0.1
_ENDING_S = 1.0
"""A run whose trace is closed needs a moment to exit."""


def run_and_open(
    arguments: Sequence[str], out: Path, *, narrate: Callable[[str], None], show: Callable[[Path], int]
) -> int:
    """Start `kvscope` with `arguments` (a run that writes `out`), and `show` the trace when it appears.

    Returns the viewer's exit code, or the run's if it ended before it had a trace.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        run = subprocess.Popen(
            [sys.executable, "-m", "kvscope", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # the screen's Ctrl-C is not the run's
        )
        narrate(f"run {run.pid} is loading; the screen opens with its first step")
        _wait_for(out, run)
        code = show(out) if out.exists() else run.wait()
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(_ENDING_S)
        if run.poll() is None:
            narrate(f"the run goes on as process {run.pid} (kill -INT {run.pid} stops it); it writes {out}")
        elif run.returncode < 0:
            raise KVScopeError(f"run {run.pid} was killed by signal {-run.returncode}; {out} holds what was recorded")
        elif run.returncode:
            _repeat(said)
            code = run.returncode
    return code


def _wait_for(out: Path, run: subprocess.Popen[bytes]) -> None:
    try:
        while not out.exists() and run.poll() is None:
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        run.terminate()
        run.wait()
        raise


def _repeat(said: IO[str]) -> None:
    said.seek(0)
    sys.stderr.write(said.read())
