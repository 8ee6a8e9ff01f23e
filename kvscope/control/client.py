"""The viewer's end of the control socket: a Client that follows a run from its own thread, and `ask` for one answer.

A viewer may come and go as it likes: the run does not notice.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvscope.control import places
from kvscope.control.protocol import (
    KINDS,
    VERSION,
    Accepted,
    Bye,
    Disconnected,
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
from kvscope.errors import ControlError

ANSWER_S = 5.0
"""How long an answer is waited for."""

_CONNECT_S = 1.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_BACK_OFF = 2.0
_FAREWELL_S = 0.2
_JOIN_S = 0.45
_READ_BYTES = 1 << 16
_MOST_UNSENT_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run answers to one request."""

    welcome: Welcome
    progress: Progress
    reply: Accepted | Refused | None
    """None: nothing but a hello was sent."""


class Client:
    """Follows one run until `close` or the run's bye; connects again by itself when the connection is lost.

    `on_message` is called from the client's thread with every message, and with Disconnected when there is no
    connection, once for each reason. A path may lead to another run than before: compare `run_id`.
    """

    def __init__(self, path: str, on_message: Callable[[Message], None]) -> None:
        self.path = path
        self._on_message = on_message
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._connected = self._closing = False
        self._waker, self._woken = socket.socketpair()
        for one in (self._waker, self._woken):
            one.setblocking(False)
        self._lost: str | None = None
        # A daemon, so that a viewer ends even if a callback hangs.
        self._thread = threading.Thread(target=self._run, name="kvscope-client", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, kind: str, **fields: Any) -> bool:  # Any: JSON values
        """Send a request; False: there is no connection. Raises ControlError for a request that is none."""
        line = encode(_request(kind, fields))
        with self._lock:
            if not self._connected or len(self._unsent) + len(line) > _MOST_UNSENT_BYTES:
                return False
            self._unsent += line
        self._wake()
        return True

    def close(self) -> None:
        """Send what is left, and end the thread; takes less than half a second."""
        self._closing = True
        self._wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    # In the client's thread.

    def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        try:
            while not self._closing:
                begin = time.monotonic()
                if self._follow():
                    return
                if time.monotonic() - begin > _LONGEST_WAIT_S:
                    wait_s = _FIRST_WAIT_S
                self._rest(wait_s)
                wait_s = min(_LONGEST_WAIT_S, wait_s * _BACK_OFF)
        finally:
            for one in (self._waker, self._woken):
                one.close()

    def _follow(self) -> bool:
        """Connect and listen; True: there is nothing more to come."""
        try:
            link = places.connect(self.path, _CONNECT_S)
        except ControlError as error:
            self._lose(str(error))
            return False
        with link, selectors.DefaultSelector() as selector:
            link.setblocking(False)
            selector.register(link, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            with self._lock:
                self._unsent = bytearray(_hello())
            try:
                return self._talk(link, selector)
            except (OSError, ProtocolError) as error:
                self._lose(f"{self.path}: {getattr(error, 'strerror', None) or error}")
                return False
            finally:
                with self._lock:
                    self._connected = False

    def _talk(self, link: socket.socket, selector: selectors.BaseSelector) -> bool:
        lines = Lines()
        while True:
            self._send_some(link)
            if self._closing:
                self._farewell(link)
                return True
            with self._lock:
                waits = selectors.EVENT_WRITE if self._unsent else 0
            selector.modify(link, selectors.EVENT_READ | waits)
            for key, events in selector.select():
                if key.fileobj is self._woken:
                    self._hush()
                elif events & selectors.EVENT_READ:
                    data = link.recv(_READ_BYTES)
                    if not data:
                        self._lose(f"{self.path}: the run closed the connection")
                        return False
                    if self._hear(lines.feed(data)):
                        return True

    def _hear(self, lines: Iterator[bytes]) -> bool:
        """Pass messages on; True: one of them was the last."""
        for line in lines:
            message = decode(line)
            if message is None or self._closing:
                continue
            if isinstance(message, Welcome):
                self._lost = None
                with self._lock:
                    self._connected = True
            self._on_message(message)
            if isinstance(message, Bye):
                return True
            if isinstance(message, Refused) and not message.request and not self._connected:
                # Not even a hello: asking again changes nothing.
                self._lose(message.reason)
                return True
        return False

    def _send_some(self, link: socket.socket) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._unsent:
                del self._unsent[: link.send(self._unsent)]

    def _farewell(self, link: socket.socket) -> None:
        deadline = time.monotonic() + _FAREWELL_S
        while self._unsent and time.monotonic() < deadline:
            self._send_some(link)
            time.sleep(_FAREWELL_S / 20)

    def _rest(self, seconds: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            if not self._closing and selector.select(seconds):
                self._hush()

    def _hush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(_READ_BYTES)

    def _lose(self, reason: str) -> None:
        if reason != self._lost and not self._closing:
            self._lost = reason
            self._on_message(Disconnected(reason))


def ask(path: str, kind: str = "hello", *, timeout_s: float = ANSWER_S, **fields: Any) -> Answer:  # Any: JSON values
    """One request to the run behind a socket, and its answer. Raises ControlError if there is none."""
    request = _request(kind, {"version": VERSION, **fields} if kind == Hello.kind else fields)
    deadline = time.monotonic() + timeout_s
    with places.connect(path, timeout_s) as link:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said why
            link.sendall(_hello() + (b"" if isinstance(request, Hello) else encode(request)))
        return _answer(path, link, request, deadline)


def _answer(path: str, link: socket.socket, request: Message, deadline: float) -> Answer:
    welcome: Welcome | None = None
    progress: Progress | None = None
    for message in _messages(path, link, deadline):
        match message:
            case Welcome():
                welcome = message
            case Progress():
                progress = message
            case Refused(request=""):
                raise ControlError(f"{path}: {message.reason}")
            case Bye():
                break
        reply = message if isinstance(message, (Accepted, Refused)) and message.request == request.kind else None
        if welcome and progress and (reply or isinstance(request, Hello)):
            return Answer(welcome, progress, reply)
    raise ControlError(f"{path}: the run ended before it answered")


def _messages(path: str, link: socket.socket, deadline: float) -> Iterator[Message]:
    lines = Lines()
    while True:
        link.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = link.recv(_READ_BYTES)
        except TimeoutError:
            raise ControlError(f"{path}: the run does not answer; it may be stopped (kill -CONT)") from None
        except OSError as error:
            raise ControlError(f"{path}: the connection broke ({error.strerror or error})") from None
        if not data:
            return
        for line in lines.feed(data):
            message = decode(line)
            if message is not None:
                yield message


def _request(kind: str, fields: dict[str, Any]) -> Message:  # Any: JSON values
    if kind not in KINDS:
        raise ControlError(f"no request {kind!r}; known: {', '.join(KINDS)}")
    return KINDS[kind].from_json(fields)


def _hello() -> bytes:
    return encode(Hello(VERSION, program()))


@dataclass(frozen=True, slots=True)
class Found:
    """A socket of this user that some process listens on."""

    path: str
    answer: Answer | None
    problem: str | None
    """Why it does not answer; None: it does."""

    @property
    def pid(self) -> int:
        return self.answer.welcome.pid if self.answer else int(Path(self.path).name.partition("-")[0])


def live_runs(*, timeout_s: float = 1.0) -> list[Found]:
    """Every run of this user that can be controlled, oldest first."""
    found = []
    for path in sorted(places.live_sockets(), key=_age):
        try:
            found.append(Found(str(path), ask(str(path), timeout_s=timeout_s), None))
        except ControlError as error:
            if path.exists():  # it did not end just now
                found.append(Found(str(path), None, str(error)))
    return found


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
