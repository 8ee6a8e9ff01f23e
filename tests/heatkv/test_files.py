"""Small files are read with a clear error and written whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from heatkv.errors import OrdersError, OutputError
from heatkv.files import read_json, write_new

if TYPE_CHECKING:
    from pathlib import Path


def test_an_existing_file_is_kept_unless_overwriting_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_new(path, b"first")

    with pytest.raises(OutputError, match=r"out\.json: exists; choose another name"):
        write_new(path, b"second")
    assert path.read_bytes() == b"first"

    write_new(path, b"third", overwrite=True)
    assert path.read_bytes() == b"third"


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "is-a-folder"
    target.mkdir()

    with pytest.raises(OutputError, match="cannot be written"):
        write_new(target, b"content", overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        write_new(tmp_path / "absent" / "out.json", b"content")

    assert [path.name for path in tmp_path.iterdir()] == ["is-a-folder"]
    assert not list(target.iterdir())


def test_reading_names_the_path_and_what_was_expected(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.json"
    damaged.write_text("[1, 2")

    with pytest.raises(OrdersError, match=r"absent\.json: cannot be read .*; expected orders"):
        read_json(tmp_path / "absent.json", expected="orders", error=OrdersError)
    with pytest.raises(OrdersError, match=r"damaged\.json: not JSON .*; expected orders"):
        read_json(damaged, expected="orders", error=OrdersError)


def test_bytes_that_are_no_text_are_not_json(tmp_path: Path) -> None:
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\x89HDF\r\n\x1a\n\xff")

    with pytest.raises(OrdersError, match="not JSON"):
        read_json(binary, expected="orders", error=OrdersError)
