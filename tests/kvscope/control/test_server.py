"""The server under viewers of every kind: it answers the good ones, drops the others, and never makes the run wait."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvscope.control import server as server_module
from kvscope.control.client import ask
from kvscope.control.gate import Gate
from kvscope.control.protocol import Bye
from kvscope.control.server import MOST_LINES_A_SECOND, MOST_VIEWERS, Server, served
from kvscope.errors import ControlError

Wait = Callable[..., None]
HELLO = b'{"kind": "hello", "version": 1}\n'


class Raw:
    """A connection without manners."""

    def __init__(self, path: str) -> None:
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.link.settimeout(10)
        self.link.connect(path)
        self.rest = b""

    def say(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.link.sendall(data)

    def hear(self) -> dict[str, object] | None:
        """The next message; None: the connection is closed."""
        while b"\n" not in self.rest:
            try:
                data = self.link.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def hear_all(self) -> list[dict[str, object]]:
        """Everything until the connection is closed."""
        return list(iter(self.hear, None))


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[[], Raw]]:
    open_ones: list[Raw] = []

    def one() -> Raw:
        open_ones.append(Raw(server.path))
        return open_ones[-1]

    yield one
    for each in open_ones:
        each.link.close()


def test_a_hello_is_answered_by_welcome_and_progress(server: Server, gate: Gate) -> None:
    gate.loading("/nowhere/run.h5")

    answer = ask(server.path)

    assert answer.welcome.version == 1
    assert answer.welcome.commands == ("pause", "resume", "step", "stop", "revise", "submit")
    assert answer.progress.state == "loading"
    assert answer.progress.trace == "/nowhere/run.h5"


def test_every_viewer_hears_of_what_one_of_them_asked(connect: Callable[[], Raw], gate: Gate) -> None:
    first, second = connect(), connect()
    for one in (first, second):
        one.say(HELLO)
        assert [one.hear()["kind"], one.hear()["kind"]] == ["welcome", "progress"]  # type: ignore[index]

    first.say(b'{"kind": "pause"}\n')

    assert first.hear()["kind"] == "accepted"  # type: ignore[index]
    for one in (first, second):
        told = one.hear()
        assert told is not None
        assert told["message"] == "it pauses before its first scale"


def test_another_version_is_refused_and_both_are_named(connect: Callable[[], Raw]) -> None:
    viewer = connect()

    viewer.say(b'{"kind": "hello", "version": 2, "client": "kvscope 9.0", "colour": "red"}\n')

    (refused,) = viewer.hear_all()
    assert refused["kind"] == "refused"
    assert "kvscope 9.0 speaks version 2" in str(refused["reason"])
    assert refused["reason"].endswith("1; use one kvscope")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\xff\xfe\n",
        b"\n",
        b'{"kind": "pause"}\n',
        HELLO + b"{}\n",
        HELLO + b"[" * 60_000 + b"\n",
        HELLO + b"x" * 70_000,
        HELLO + b'{"kind": "submit", "job": {}, "trace": 7}\n',
        HELLO + b'{"kind": "pause", "x": ' + b"9" * 20_000 + b"}\n",
    ],
    ids=["http", "bytes", "empty", "no hello", "no kind", "deep", "endless", "wrong type", "huge number"],
)
def test_a_hostile_line_gets_one_refusal_and_the_connection_is_closed(
    data: bytes, connect: Callable[[], Raw], server: Server
) -> None:
    viewer = connect()

    viewer.say(data)

    heard = [one for one in viewer.hear_all() if one["kind"] not in ("welcome", "progress")]
    assert [(one["kind"], one["request"]) for one in heard] == [("refused", "")]
    assert ask(server.path).progress.state == "loading"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=200) | st.sampled_from([HELLO, b'{"kind":"dance"}\n', b"{", b"\n"]), max_size=6))
def test_no_bytes_at_all_stop_the_server_from_answering_others(server: Server, parts: list[bytes]) -> None:
    viewer = Raw(server.path)
    for part in parts:
        viewer.say(part)
    viewer.link.close()

    assert ask(server.path).progress.state == "loading"


def test_half_a_line_is_waited_for(connect: Callable[[], Raw]) -> None:
    viewer = connect()

    viewer.say(HELLO[:10])
    time.sleep(0.05)
    viewer.say(HELLO[10:])

    assert viewer.hear()["kind"] == "welcome"  # type: ignore[index]


def test_a_viewer_that_does_not_read_is_dropped_and_the_run_is_never_held_up(
    connect: Callable[[], Raw], server: Server, gate: Gate, wait_until: Wait
) -> None:
    viewer = connect()
    viewer.say(HELLO)
    wait_until(lambda: viewer.link.recv(1, socket.MSG_PEEK))
    slowest = 0.0

    def tell() -> bool:
        nonlocal slowest
        for number in range(50):
            begin = time.monotonic()
            gate.loading("/nowhere/run.h5", f"{number} " + "x" * 30_000)
            slowest = max(slowest, time.monotonic() - begin)
        time.sleep(0.01)
        return not server._viewers

    wait_until(tell)

    assert slowest < 20  # a run that is held up waits without end
    assert ask(server.path).progress.trace == "/nowhere/run.h5"


def test_more_viewers_than_there_is_room_for_are_turned_away(connect: Callable[[], Raw], server: Server) -> None:
    inside = [connect() for _ in range(MOST_VIEWERS)]
    for one in inside:
        one.say(HELLO)
        assert one.hear() is not None

    (refused,) = connect().hear_all()

    assert "viewers are connected already" in str(refused["reason"])
    inside[0].link.close()
    for _ in range(2000):
        with contextlib.suppress(ControlError):
            assert ask(server.path)
            return
        time.sleep(0.05)
    raise AssertionError("there was no room again")


def test_a_viewer_that_floods_is_dropped(connect: Callable[[], Raw], server: Server) -> None:
    viewer = connect()

    viewer.say(HELLO + b'{"kind": "resume"}\n' * (MOST_LINES_A_SECOND * 3))

    assert "lines in a second" in str(viewer.hear_all()[-1]["reason"])
    assert ask(server.path)


def test_a_viewer_without_a_hello_is_dropped(
    connect: Callable[[], Raw], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HELLO_S", 0.05)

    (refused,) = connect().hear_all()

    assert "no hello" in str(refused["reason"])


def test_a_layer_that_is_done_is_told_of_without_the_run_doing_anything_for_it(
    connect: Callable[[], Raw], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_TICK_S", 0.02)
    gate.run_started(SimpleNamespace(scales=SimpleNamespace(num_scales=2)))
    viewer = connect()
    viewer.say(HELLO)

    gate.step_done(SimpleNamespace(layer=3))

    while (told := viewer.hear()) is not None and told.get("layer") != 3:
        pass
    assert told is not None
    assert told["query_scale"] == 0


def test_the_end_is_told_and_the_socket_is_gone(runtime: Path) -> None:
    gate = Gate()
    with served(gate, print) as path:
        assert path is not None
        viewer = Raw(path)
        viewer.say(HELLO)
        assert viewer.hear() is not None

    told = viewer.hear_all()
    viewer.link.close()
    assert told[-1] == Bye("done").to_json()
    assert told[-2]["state"] == "ended"
    assert list((runtime / "kvscope").iterdir()) == []


def test_a_run_that_fails_says_so_in_its_bye(runtime: Path) -> None:
    with contextlib.suppress(ValueError), served(Gate(), print) as path:
        viewer = Raw(str(path))
        viewer.say(HELLO)
        assert viewer.hear() is not None
        raise ValueError("no memory")

    assert viewer.hear_all()[-1] == Bye("failed", "no memory").to_json()
    viewer.link.close()


def test_passing_scales_costs_next_to_nothing_when_nobody_looks(server: Server, gate: Gate) -> None:
    step = SimpleNamespace(layer=3)
    gate.run_started(SimpleNamespace(scales=SimpleNamespace(num_scales=10_000)))
    begin = time.perf_counter()

    for _ in range(10_000):
        gate.step_done(step)
    for scale in range(100):
        gate.scale_done(SimpleNamespace(query_scale=scale))

    assert time.perf_counter() - begin < 20
