"""Listing: the one thread that reads folders of traces and posts what is there; and the demo run that Runs can start.

A folder is read once; after that only files that changed are opened, as long as Runs is looked at.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kvscope.errors import TraceError
from kvscope.live import Launched
from kvscope.tui.messages import RunsListed

if TYPE_CHECKING:
    from textual.message import Message

    from kvscope.runs import Run, Runs, Unreadable

AGAIN_S = 2.0
"""The time between two looks at a folder that is shown."""
PATIENCE_S = 20.0
"""A folder is not looked into for longer; what lies deepest is then left out."""

_CHEAP_S = 0.5
"""A folder that takes longer is listed again only when it is asked for."""
_TELL_S = 0.5
"""The time between two posts of a list that grows."""
_JOIN_S = 0.8

_MAY_CHANGE = ("live", "crashed")
"""Whether a live run has crashed is told by the time that its file does not change, so these are always opened."""

_Stamp = tuple[int, int, int]
"""What changes when a file or its permissions do: its time of change, size and number."""


class Listing:
    """Lists one folder at a time; the last one asked for wins. Posts RunsListed, with words where it is not whole."""

    def __init__(
        self, post: Callable[[Message], object], *, again_s: float = AGAIN_S, patience_s: float = PATIENCE_S
    ) -> None:
        self._post, self._again_s, self._patience_s = post, again_s, patience_s
        self._folder: Path | None = None
        self._asked = 0
        """How often a folder was asked for; what was begun for an earlier one is dropped."""
        self._done = 0
        """Which of these was answered last."""
        self._shown = False
        self._stopping = False
        self._known: dict[Path, tuple[_Stamp, Run | Unreadable]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self, folder: Path) -> None:
        """List this folder now, and again when it changes, until `rest`."""
        with self._changed:
            self._folder, self._shown = folder, True
            self._asked += 1
            self._changed.notify()
        if self._thread is None:
            # A daemon, so that a folder on a dead disk cannot keep the process alive.
            self._thread = threading.Thread(target=self._run, name="kvscope-listing", daemon=True)
            self._thread.start()

    def rest(self) -> None:
        """Nobody looks: read nothing until the next `start`."""
        with self._changed:
            self._shown = False

    def stop(self, *, wait: bool = True) -> None:
        """Ask the thread to end; with `wait`, for less than a second, until it has."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if wait and self._thread is not None:
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        cheap = False
        posted: tuple[Runs | None, str | None] | None = None
        while not self._stopping:
            with self._changed:
                again_s = self._again_s if cheap and self._shown else None
                self._changed.wait_for(lambda: self._stopping or self._asked != self._done, again_s)
                folder, asked, is_new = self._folder, self._asked, self._asked != self._done
                if self._stopping or folder is None:
                    return
                if not (self._shown or is_new):
                    continue
            begun = time.monotonic()
            found = self._listed(folder, asked, silent=not is_new)
            cheap = time.monotonic() - begun < _CHEAP_S
            if found is None:
                continue
            self._done = asked
            if is_new or found != posted:
                posted = found
                self._tell(asked, *found)

    def _listed(self, folder: Path, asked: int, *, silent: bool) -> tuple[Runs | None, str | None] | None:
        """What is there, and why that is not all; None: another folder was asked for meanwhile."""
        # Deferred: h5py takes longer to import than the first frame to paint.
        from kvscope.runs import runs_of, walk

        begun = told = time.monotonic()
        found: dict[Path, Run | Unreadable] = {}
        words = None
        try:
            for paths in walk(folder):
                for path in paths:
                    found[path] = self._run_of(path, folder)
                    if self._stopping or self._asked != asked:
                        return None
                    if not silent and time.monotonic() - told > _TELL_S:
                        told = time.monotonic()
                        self._tell(asked, runs_of(folder, found.values()), "still looking")
                if self._stopping or self._asked != asked:
                    return None
                if time.monotonic() - begun > self._patience_s:
                    words = f"looked for {self._patience_s:.0f} s; what lies deeper is left out: choose a nearer folder"
                    break
        except TraceError as error:
            return None, str(error)
        return runs_of(folder, found.values()), words

    def _run_of(self, path: Path, folder: Path) -> Run | Unreadable:
        """What a file is; not opened again where it cannot have changed."""
        from kvscope.runs import Run, run_of

        stamp = _stamp(path)
        before = self._known.get(path)
        if before is not None and before[0] == stamp and before[1].file == str(path.relative_to(folder)):
            return before[1]
        one = run_of(path, folder)
        if stamp is not None and not (isinstance(one, Run) and one.status in _MAY_CHANGE):
            self._known[path] = stamp, one
        return one

    def _tell(self, asked: int, runs: Runs | None, words: str | None) -> None:
        if not self._stopping and self._asked == asked:
            self._post(RunsListed(runs, words))


def start_demo(folder: Path) -> Launched:
    """Record a demo run in this folder, as `kvscope demo` does, in a process that goes on when the viewer ends."""
    path = folder / f"demo-heatkv-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}.h5"
    return Launched(["demo", "--json", "--output", str(path)], path)


def _stamp(path: Path) -> _Stamp | None:
    """None: it is gone."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ctime_ns, state.st_size, state.st_ino
