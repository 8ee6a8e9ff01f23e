"""Remote: the viewer's end of a run's control socket. Connects to the run whose trace names one, and tells the app.

It sends nothing but what a key asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvscope.tui.messages import RunTold
from kvscope.tui.view import Link, View

if TYPE_CHECKING:
    from textual.message import Message as AppMessage

    from kvscope.control.client import Client
    from kvscope.control.protocol import Message
    from kvscope.tui.feed import Snapshot

ENDED = "ended"


class Remote:
    """At most one connection to a run."""

    def __init__(self, post: Callable[[AppMessage], object]) -> None:
        self._post = post
        self._client: Client | None = None
        self._run_id = ""
        self._link = Link(connected=False, state="")

    def listen(self, socket: str) -> None:
        """Connect to a process that has no trace yet."""
        if self._client is None:
            self._connect(socket, "")

    def follow(self, snapshot: Snapshot) -> None:
        """Connect to the run that writes this trace, if it lives and its trace names a socket."""
        socket = snapshot.header.control_socket
        if socket is None or snapshot.status != "live":
            return
        if self._client is not None and self._client.path == socket:
            self._run_id = snapshot.header.run_id
            return
        self.close()
        self._connect(socket, snapshot.header.run_id)

    def _connect(self, socket: str, run_id: str) -> None:
        # Deferred: only a live run has a socket.
        from kvscope.control.client import Client

        self._run_id, self._link = run_id, Link(connected=False, state="")
        self._client = Client(socket, self._hear)
        self._client.start()

    def ask(self, kind: str, view: View) -> str | None:
        """Send a request; returns why it cannot be sent, or None."""
        if view.snapshot is None and self._client is None:
            return "there is no run yet"
        if view.snapshot is not None and view.snapshot.status != "live":
            return f"the run is over ({view.snapshot.status})"
        if view.snapshot is not None and view.snapshot.header.control_socket is None:
            return "this run cannot be controlled: its trace names no socket"
        if view.link is None or not view.link.connected or self._client is None:
            return "no connection to the run; trying again"
        return None if self._client.send(kind) else "the run takes no more requests; trying again"

    def close(self) -> None:
        """Let the run go on without this viewer."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _hear(self, message: Message) -> None:
        """In the client's thread: what the run says becomes a message to the app."""
        # Deferred, as in `follow`.
        from kvscope.control.protocol import Accepted, Bye, Disconnected, Progress, Refused

        state, words = self._link.state, ""
        connected = True
        match message:
            case Progress(run_id=run_id) if run_id and self._run_id and run_id != self._run_id:
                # A process that stays is at another job by now.
                connected, state = False, ENDED
            case Progress():
                state = message.state
            case Accepted():
                words = message.message or f"{message.request}: accepted"
            case Refused():
                words = f"{message.request or 'the run'}: {message.reason}"
            case Bye():
                connected, state = False, ENDED
            case Disconnected():
                connected = False
            case _:
                return
        link = Link(connected=connected, state=state, words=words)
        if link != self._link or words:
            self._link = link
            self._post(RunTold(link))
