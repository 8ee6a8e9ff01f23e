"""How SIGTERM and SIGHUP end a command: as one KeyboardInterrupt in its main thread, as Ctrl-C does.

No second one follows while the command closes its files, and none after its end.
"""

from __future__ import annotations

import atexit
import signal
import time

_ENDING = (signal.SIGTERM, signal.SIGHUP)
QUIET_S = 10.0
"""For so long after a stop, or after the command's end, another signal is the same one: closing takes less."""


class Stops:
    """Hears SIGTERM and SIGHUP from `listen` on."""

    def __init__(self) -> None:
        self._quiet_until_s = 0.0

    def listen(self) -> None:
        for ending in _ENDING:
            signal.signal(ending, self._hear)
        atexit.register(_ignore)

    def hush(self) -> None:
        """The command is ending by itself: what comes now comes too late."""
        self._quiet_until_s = time.monotonic() + QUIET_S

    def _hear(self, *_: object) -> None:
        if time.monotonic() >= self._quiet_until_s:
            self.hush()
            raise KeyboardInterrupt


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
