"""Liveness: a lock that lives as long as its process, and is fooled by nothing less."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvscope import liveness

pytestmark = pytest.mark.skipif(not liveness.SUPPORTED, reason="this system has no open-file-description locks")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def test_a_lock_is_held_until_its_descriptor_is_closed(file: Path) -> None:
    assert not liveness.is_held(file)

    descriptor, locked = liveness.hold(file)

    assert locked
    assert liveness.is_held(file)
    os.close(descriptor)
    assert not liveness.is_held(file)


def test_opening_and_closing_the_file_elsewhere_does_not_lose_the_lock(file: Path) -> None:
    descriptor, _ = liveness.hold(file)

    file.read_bytes()

    assert liveness.is_held(file)
    os.close(descriptor)


def test_a_renamed_file_stays_locked_and_a_copy_is_not(file: Path) -> None:
    descriptor, _ = liveness.hold(file)

    moved = file.rename(file.with_name("moved"))
    copied = Path(shutil.copy(moved, file.with_name("copied")))

    assert liveness.is_held(moved)
    assert not liveness.is_held(copied)
    os.close(descriptor)


def test_a_killed_process_lets_go_of_its_lock(file: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from kvscope import liveness;"
        "liveness.hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert liveness.is_held(file)

        process.send_signal(signal.SIGKILL)
        process.wait()

        assert not liveness.is_held(file)


def test_a_second_recorder_of_the_same_file_does_not_get_the_lock(file: Path) -> None:
    first, _ = liveness.hold(file)

    with pytest.raises(BlockingIOError):
        liveness.hold(file)

    os.close(first)
    second, locked = liveness.hold(file)
    assert locked
    os.close(second)
