"""Where sockets are: private, short, and none of a process that is gone."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kvscope.control import places
from kvscope.control.gate import Gate
from kvscope.control.server import served
from kvscope.errors import ControlError

LONG = "x" * 90


def test_the_folder_is_0700_and_the_socket_0600(runtime: Path) -> None:
    listening, path = places.listen()

    with listening:
        assert path.parent == runtime / "kvscope"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def make_link(folder: Path) -> None:
    (folder.parent / "real").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "real")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder.mkdir(mode=0o755), "0755"),
        (lambda folder: folder.write_text(""), "no folder"),
        (make_link, "a link"),
    ],
    ids=["open to others", "a file", "a link"],
)
def test_a_folder_that_others_could_have_made_is_refused(
    tmp_path: Path, make: object, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    make(tmp_path / f"kvscope-{os.geteuid()}")  # type: ignore[operator]

    with pytest.raises(ControlError, match=says):
        places.listen()


@pytest.mark.skipif(os.geteuid() != 0, reason="only the administrator can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kvscope").mkdir(mode=0o700)
    os.chown(tmp_path / "kvscope", 65534, 65534)

    with pytest.raises(ControlError, match="user 65534"):
        places.private_folder(tmp_path / "kvscope")


def test_a_name_too_long_for_a_socket_falls_back_to_the_next_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / LONG).mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / LONG))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    listening, path = places.listen()

    with listening:
        assert path.parent.parent == tmp_path


def test_where_no_socket_can_be_made_the_run_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / LONG).mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / LONG))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / LONG))
    said: list[str] = []

    with served(Gate(), said.append) as path:
        assert path is None

    assert len(said) == 1
    assert "too long" in said[0]


def test_a_system_without_unix_sockets_runs_without_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SUPPORTED", False)
    said: list[str] = []

    with served(Gate(), said.append) as path:
        assert path is None

    assert said == ["no viewer can control this run: this system has no Unix sockets"]
    assert places.live_sockets() == []


def test_sockets_of_dead_processes_are_removed_and_those_of_living_ones_stay(runtime: Path) -> None:
    code = "import os; from kvscope.control import places; print(places.listen()[1], flush=True); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    dead = Path(done.stdout.strip())
    listening, path = places.listen()
    with listening:
        was_there = dead.exists()
        unfinished = dead.with_suffix(".new")
        unfinished.touch()
        stranger = dead.with_name("notes.sock")
        stranger.touch()

        assert places.live_sockets() == [path]
        assert not was_there
        assert not unfinished.exists()
        assert stranger.exists()


@pytest.mark.parametrize("name", ["absent.sock", "file.sock", "nul\0.sock", "x" * 300])
def test_a_path_that_is_no_runs_socket_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.sock").touch()

    with pytest.raises(ControlError) as refused:
        places.connect(str(tmp_path / name), 1)

    assert "\n" not in str(refused.value)


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="this system does not tell who is at the other end")
def test_a_process_of_another_user_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    uid = os.geteuid()

    with ours, theirs:
        assert places.is_ours(ours)
        if uid != 0:
            monkeypatch.setattr("os.geteuid", lambda: uid + 1)
            assert not places.is_ours(ours)
