"""Superblock: the length and state of a file, and what a clean close would have written."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from kvscope import superblock


@pytest.mark.parametrize(("content", "expected"), [(b"", 0xDEADBEEF), (b"Four score and seven years ago", 0x17770551)])
def test_the_checksum_is_jenkins_lookup3(content: bytes, expected: int) -> None:
    # Both values are from the self-test in the author's lookup3.c.
    assert superblock.checksum(content) == expected


def test_a_closed_file_says_its_length(tiny_trace: Path) -> None:
    block = superblock.parse(tiny_trace.read_bytes()[: superblock.SIZE])

    assert block == superblock.Superblock(is_closed=True, end=tiny_trace.stat().st_size)


def test_a_live_file_is_not_closed(live_trace: Path) -> None:
    block = superblock.parse(live_trace.read_bytes()[: superblock.SIZE])

    assert block is not None
    assert not block.is_closed


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", bytes(100)])
def test_what_is_no_superblock_of_version_3_is_none(content: bytes) -> None:
    assert superblock.parse(content) is None


def test_repairing_a_closed_file_changes_nothing(tiny_trace: Path) -> None:
    content = tiny_trace.read_bytes()

    assert superblock.repaired(content[: superblock.SIZE], len(content)) == content[: superblock.SIZE]


def test_a_crashed_file_opens_repaired_and_is_not_touched(crashed_trace: Path) -> None:
    before = crashed_trace.read_bytes()
    with pytest.raises(OSError, match="file"):
        h5py.File(crashed_trace)

    with h5py.File(superblock.RepairedFile(crashed_trace)) as file:
        assert file["commit"][-1]["scales_done"] == 3

    assert crashed_trace.read_bytes() == before


@pytest.mark.parametrize("position", [1 << 20, (1 << 64) - 8, -5])
def test_past_the_end_of_a_crashed_file_there_is_nothing(crashed_trace: Path, position: int) -> None:
    with superblock.RepairedFile(crashed_trace) as file:
        file.seek(crashed_trace.stat().st_size + position if position > 0 else position)

        assert file.readinto(bytearray(8)) == 0
