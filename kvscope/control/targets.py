"""Targets: which run a command line means, by its trace, its process or its socket, or because there is only one."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvscope.control.client import Answer, Found, ask, live_runs
from kvscope.control.protocol import Progress
from kvscope.errors import ControlError

_OVER = ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Target:
    """One run that can be asked."""

    socket: str
    run_id: str | None = None
    """The run that is meant; None: whichever the process is at."""

    def ask(self, kind: str = "hello", **fields: Any) -> Answer:  # Any: JSON values
        """One request, and its answer. Raises ControlError, also if the process is at another run by now."""
        if self.run_id is not None:
            now = ask(self.socket).progress
            if now.run_id != self.run_id:
                raise ControlError(f"{self.socket}: its process is at another run by now ({now.trace}); name that one")
        return ask(self.socket, kind, **fields)


def find_target(named: str | None) -> Target:
    """The run that is meant by a trace file, a process number, a socket, or by nothing. Raises ControlError."""
    if named is None:
        return _only()
    path = Path(named)
    if named.isascii() and named.isdigit() and not path.exists():
        return _of_process(int(named))
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
    except (OSError, ValueError):
        is_socket = False
    return Target(named) if is_socket else _of_trace(path)


def _only() -> Target:
    runs = live_runs()
    if not runs:
        raise ControlError("no run of yours can be controlled now; `kvscope run` starts one")
    if len(runs) > 1:
        raise ControlError(f"{len(runs)} runs live; name one of them: {'; '.join(map(_run_text, runs))}")
    return Target(runs[0].path)


def _of_process(pid: int) -> Target:
    runs = live_runs()
    mine = [run for run in runs if run.pid == pid]
    if not mine:
        others = f"expected one of: {'; '.join(map(_run_text, runs))}" if runs else "no run of yours lives now"
        raise ControlError(f"process {pid} is no run of yours that can be controlled; {others}")
    return Target(mine[-1].path)


def _of_trace(path: Path) -> Target:
    # Deferred: h5py, which the other ways need not.
    from kvscope.trace import Trace

    with Trace.open(path) as trace:
        socket, run_id, status = trace.header.control_socket, trace.header.run_id, trace.status
    if status in _OVER:
        raise ControlError(f"{path}: its run is over ({status}); `kvscope control list` shows those that live")
    if socket is None:
        raise ControlError(f"{path}: its run cannot be controlled: the trace names no socket")
    return Target(socket, run_id)


def _run_text(run: Found) -> str:
    state = run.answer.progress if run.answer else None
    return f"{run.pid} ({'silent' if state is None else f'{state.state}, {Path(state.trace).name}'})"


def run_record(run: Found) -> dict[str, Any]:  # Any: JSON values
    """A run as a JSON object."""
    progress = run.answer.progress if run.answer else Progress("ended")
    record = progress.to_json() | {"pid": run.pid, "socket": run.path, "problem": run.problem}
    del record["kind"]
    return record if run.answer else {key: record[key] for key in ("pid", "socket", "problem")}
