"""The viewer's end: it follows a run, comes back when it is lost, and is quick to go."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvscope.control.client import Client, ask, live_runs
from kvscope.control.gate import Gate
from kvscope.control.protocol import Accepted, Bye, Disconnected, Message, Progress, Refused, Welcome
from kvscope.control.server import Server
from kvscope.errors import ControlError

Wait = Callable[..., None]


def kinds(heard: list[Message]) -> list[str]:
    return [message.kind for message in heard]


def test_a_client_hears_all_and_its_requests_are_answered(server: Server, wait_until: Wait) -> None:
    heard: list[Message] = []
    client = Client(server.path, heard.append)
    client.start()
    wait_until(lambda: "progress" in kinds(heard))

    assert client.send("pause")
    assert client.send("pause")

    wait_until(lambda: "refused" in kinds(heard))
    client.close()
    assert isinstance(heard[0], Welcome)
    assert Accepted("pause", "it pauses before its first scale") in heard
    assert [one.request for one in heard if isinstance(one, Refused)] == ["pause"]


def test_a_client_comes_back_when_the_run_does(runtime: Path, gate: Gate, wait_until: Wait) -> None:
    heard: list[Message] = []
    first = Server(gate)
    path = first.path
    client = Client(path, heard.append)
    client.start()
    wait_until(lambda: "progress" in kinds(heard))
    for viewer in list(first._viewers):
        viewer.link.shutdown(2)  # as when ssh drops a forwarded socket

    wait_until(lambda: kinds(heard).count("welcome") == 2)

    client.close()
    first.close(Bye("done"))
    assert "disconnected" in kinds(heard)


def test_one_reason_for_no_connection_is_told_once(runtime: Path, wait_until: Wait) -> None:
    heard: list[Message] = []
    client = Client(str(runtime / "absent.sock"), heard.append)
    client.start()
    wait_until(lambda: heard)
    time.sleep(0.5)

    assert not client.send("pause")
    client.close()
    assert kinds(heard) == ["disconnected"]


def test_after_a_bye_the_client_tries_no_more(runtime: Path, gate: Gate, wait_until: Wait) -> None:
    heard: list[Message] = []
    server = Server(gate)
    client = Client(server.path, heard.append)
    client.start()
    wait_until(lambda: "progress" in kinds(heard))

    server.close(Bye("cancelled", "stopped by the user"))

    wait_until(lambda: not client._thread.is_alive())
    assert heard[-1] == Bye("cancelled", "stopped by the user")


def test_closing_sends_what_is_left_and_does_not_wait_for_an_answer(
    server: Server, gate: Gate, wait_until: Wait
) -> None:
    heard: list[Message] = []
    client = Client(server.path, heard.append)
    client.start()
    wait_until(lambda: "progress" in kinds(heard))

    client.send("stop")
    begin = time.monotonic()
    client.close()

    assert time.monotonic() - begin < 20
    wait_until(lambda: gate.progress.state == "stopping")


def test_a_client_of_another_version_is_told_why_and_tries_no_more(
    server: Server, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvscope.control.client.VERSION", 2)
    heard: list[Message] = []
    client = Client(server.path, heard.append)
    client.start()

    wait_until(lambda: not client._thread.is_alive())

    assert isinstance(heard[-1], Disconnected)
    assert "version 2" in heard[-1].reason
    with pytest.raises(ControlError, match="version 2"):
        ask(server.path)


def test_live_runs_are_listed_with_how_they_stand(server: Server, gate: Gate) -> None:
    gate.loading("/nowhere/run.h5")

    (found,) = live_runs()

    assert found.path == server.path
    assert found.answer is not None
    assert found.answer.progress == Progress("loading", "/nowhere/run.h5")


def test_a_request_of_an_unknown_kind_is_refused_here(server: Server) -> None:
    with pytest.raises(ControlError, match="known: "):
        ask(server.path, "dance")
    with pytest.raises(ControlError, match="trace is missing"):
        ask(server.path, "submit", job={})
