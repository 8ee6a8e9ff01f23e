"""How SIGTERM and SIGHUP end a command: as one KeyboardInterrupt in its main thread, as Ctrl-C does.

No second one follows while the command closes its files, and none after its end.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time

_AGAIN_S = 0.02
_ENDING = (signal.SIGTERM, signal.SIGHUP)
QUIET_S = 10.0
"""For so long after a stop, or after the command's end, another signal is the same one: closing takes less."""


class Stops:
    """Hears SIGTERM and SIGHUP from `listen` on."""

    def __init__(self) -> None:
        self._quiet_until_s = 0.0
        self._unraisable = sys.unraisablehook

    def listen(self) -> None:
        for ending in _ENDING:
            signal.signal(ending, self._hear)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._again
        atexit.register(_ignore)

    def end(self) -> None:
        """The command is ending by itself: what comes now comes too late."""
        self._hush()
        sys.unraisablehook = self._unraisable

    def _hear(self, *_: object) -> None:
        if time.monotonic() >= self._quiet_until_s:
            self._hush()
            raise KeyboardInterrupt

    def _hush(self) -> None:
        self._quiet_until_s = time.monotonic() + QUIET_S

    def _again(self, unraisable: sys.UnraisableHookArgs) -> None:
        """A stop that came in a callback of the interpreter, as imports have many, is dropped by Python: once more."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._unraisable(unraisable)
            return
        self._quiet_until_s = 0.0
        later = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGTERM))
        later.daemon = True
        later.start()


def forget_interrupt() -> None:
    """Let the process's exit code stand, once a KeyboardInterrupt is caught.

    One that has passed through an `exec` of text, as dataclasses make while torch is imported, leaves a mark in CPython
    that only the next `exec` of text takes away; with it, `python -m` ends by SIGINT whatever code it exits with.
    """
    exec("")


def _ignore() -> None:
    # Python itself puts back what was before it while it ends, which kills; but it leaves what is ignored.
    for ending in _ENDING:
        signal.signal(ending, signal.SIG_IGN)
