"""The run's end of the control socket: one thread that answers viewers. The run never waits for it, nor for them.

Whatever a viewer sends, or does not read, costs that viewer its connection and the run nothing.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kvscope.control import places
from kvscope.control.gate import STOPPED, Gate
from kvscope.control.protocol import (
    REQUESTS,
    VERSION,
    Bye,
    Hello,
    Lines,
    Message,
    Progress,
    ProtocolError,
    Refused,
    Welcome,
    decode,
    encode,
    program,
)
from kvscope.errors import ControlError, RunStopped

MOST_VIEWERS = 16
"""More are turned away."""

MOST_UNREAD_BYTES = 256 * 1024
"""A viewer that leaves more of what it is told is dropped."""

MOST_LINES_A_SECOND = 200
"""A viewer that sends more is dropped, so that it cannot take the run's processor."""

HELLO_S = 5.0
"""A viewer that has not said hello by then is dropped."""

_TICK_S = 0.5
"""How often viewers hear of a new layer."""
_READ_BYTES = 1 << 16
_ACCEPTS = 16
_FAREWELL_S = 0.5
_JOIN_S = 2.0


@dataclass(slots=True, eq=False)
class _Viewer:
    """One connection."""

    link: socket.socket
    lines: Lines = field(default_factory=Lines)
    unread: bytearray = field(default_factory=bytearray)
    since: float = field(default_factory=time.monotonic)
    greeted: bool = False
    second: int = 0
    """The second of the clock that `said` lines came in."""
    said: int = 0


class Server:
    """Answers viewers of a gate on a socket of its own until `close`. Raises ControlError if there can be none."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._listening, place = places.listen()
        self.path = str(place)
        self._waker, self._woken = socket.socketpair()
        for one in (self._waker, self._woken):
            one.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._viewers: list[_Viewer] = []
        self._told: Progress | None = None
        self._bye: Bye | None = None
        self._thread = threading.Thread(target=self._run, name="kvscope-control", daemon=True)
        gate.on_change = self._wake
        self._thread.start()

    def close(self, bye: Bye) -> None:
        """Tell viewers that it is over, and remove the socket."""
        self._gate.on_change = lambda: None
        self._bye = bye
        self._wake()
        self._thread.join(_JOIN_S)
        self._waker.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake, or about to be; closed: it is over
            self._waker.send(b"\0")

    # In the server's thread.

    def _run(self) -> None:
        try:
            while self._bye is None:
                self._turn(self._selector.select(_TICK_S if self._viewers else None))
            self._say_bye(self._bye)
        finally:
            Path(self.path).unlink(missing_ok=True)
            for viewer in list(self._viewers):
                self._drop(viewer)
            self._selector.close()
            for one in (self._listening, self._woken):
                one.close()

    def _turn(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        """All that can be done now, without waiting."""
        for key, events in ready:
            if key.fileobj is self._listening:
                self._accept()
            elif key.fileobj is self._woken:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(_READ_BYTES)
            elif events & selectors.EVENT_READ:
                self._read(key.data)
        self._tell_all()
        for viewer in list(self._viewers):
            if not viewer.greeted and time.monotonic() - viewer.since > HELLO_S:
                self._expel(viewer, f"no hello for {HELLO_S:g} s")
            else:
                self._send(viewer)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                link, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError:  # too many open files: the run needs them more
                time.sleep(_TICK_S / 10)
                return
            link.setblocking(False)
            viewer = _Viewer(link)
            self._viewers.append(viewer)
            self._selector.register(link, selectors.EVENT_READ, viewer)
            if not places.is_ours(link):
                self._drop(viewer)
            elif len(self._viewers) > MOST_VIEWERS:
                self._expel(viewer, f"{MOST_VIEWERS} viewers are connected already")

    def _read(self, viewer: _Viewer) -> None:
        try:
            data = viewer.link.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(viewer)
            return
        try:
            for line in viewer.lines.feed(data):
                self._answer(viewer, line)
        except ProtocolError as error:
            self._expel(viewer, str(error))

    def _answer(self, viewer: _Viewer, line: bytes) -> None:
        """Raises ProtocolError for what ends the connection."""
        second = int(time.monotonic())
        viewer.said = viewer.said + 1 if second == viewer.second else 1
        viewer.second = second
        if viewer.said > MOST_LINES_A_SECOND:
            raise ProtocolError(f"more than {MOST_LINES_A_SECOND} lines in a second")
        message = decode(line)
        if isinstance(message, Hello):
            self._greet(viewer, message)
        elif not viewer.greeted:
            raise ProtocolError("no hello; expected it as the first line")
        elif isinstance(message, REQUESTS):
            self._queue(viewer, self._gate.ask(message))

    def _greet(self, viewer: _Viewer, hello: Hello) -> None:
        we = program()
        if hello.version != VERSION:
            who = hello.client[:80] or "the viewer"
            raise ProtocolError(
                f"{who} speaks version {hello.version} of the protocol, this run ({we}) {VERSION}; use one kvscope"
            )
        viewer.greeted = True
        now = self._gate.progress
        self._queue(viewer, Welcome(VERSION, we, os.getpid(), now.state, now.trace, now.run_id, self._gate.commands))
        self._queue(viewer, now)

    def _tell_all(self) -> None:
        now = self._gate.progress
        if now == self._told:
            return
        self._told = now
        for viewer in list(self._viewers):
            if viewer.greeted:
                self._queue(viewer, now)

    def _queue(self, viewer: _Viewer, message: Message) -> None:
        viewer.unread += _line_of(message)
        if len(viewer.unread) > MOST_UNREAD_BYTES:
            self._send(viewer)
        if len(viewer.unread) > MOST_UNREAD_BYTES:
            self._drop(viewer)

    def _send(self, viewer: _Viewer) -> None:
        """Send what the viewer takes now; the rest when it can take more."""
        if viewer not in self._viewers:
            return
        try:
            if viewer.unread:
                del viewer.unread[: viewer.link.send(viewer.unread)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(viewer)
            return
        waits = selectors.EVENT_WRITE if viewer.unread else 0
        self._selector.modify(viewer.link, selectors.EVENT_READ | waits, viewer)

    def _expel(self, viewer: _Viewer, reason: str) -> None:
        """Close a connection, with a last word if it is read at once."""
        viewer.unread += encode(Refused("", reason))
        self._send(viewer)
        self._drop(viewer)

    def _drop(self, viewer: _Viewer) -> None:
        if viewer in self._viewers:
            self._viewers.remove(viewer)
            self._selector.unregister(viewer.link)
            viewer.link.close()

    def _say_bye(self, bye: Bye) -> None:
        self._tell_all()
        for viewer in list(self._viewers):
            if viewer.greeted:
                self._queue(viewer, bye)
        deadline = time.monotonic() + _FAREWELL_S
        for viewer in list(self._viewers):
            while viewer in self._viewers and viewer.unread and time.monotonic() < deadline:
                self._send(viewer)
                if viewer.unread:
                    self._selector.select(_FAREWELL_S / 10)


@contextmanager
def served(gate: Gate, narrate: Callable[[str], None]) -> Iterator[str | None]:
    """The gate on a socket as long as the context lasts: its path, or None and a line about why there is none."""
    try:
        server = Server(gate)
    except ControlError as error:
        narrate(f"no viewer can control this run: {error}")
        yield None
        return
    bye = Bye("done")
    try:
        yield server.path
    except (KeyboardInterrupt, RunStopped) as stop:
        bye = Bye("cancelled", STOPPED if isinstance(stop, RunStopped) else "stopped by the user")
        raise
    except BaseException as error:
        bye = Bye("failed", str(error)[:1000])
        raise
    finally:
        gate.ended(bye.message)
        server.close(bye)


def _line_of(message: Message) -> bytes:
    try:
        return encode(message)
    except ProtocolError as error:  # a reason that quotes what was too long
        return encode(Refused(message.kind, str(error)))
