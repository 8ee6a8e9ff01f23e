"""Small files are read with a clear error and written whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from heatkv.errors import OrdersError, OutputError
from heatkv.files import check_new, place, read_json, write_new

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

    with pytest.raises(OutputError, match="is a folder"):
        write_new(target, b"content", overwrite=True)
    with pytest.raises(OutputError, match="does not exist; create it"):
        write_new(tmp_path / "absent" / "out.json", b"content")
    with pytest.raises(OutputError, match="File name too long"):
        write_new(tmp_path / ("n" * 250), b"content")  # room for the name, but not for the one beside it

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

    with pytest.raises(OrdersError, match="not text"):
        read_json(binary, expected="orders", error=OrdersError)


@pytest.mark.parametrize("overwrite", [False, True])
def test_only_a_regular_file_is_ever_replaced(tmp_path: Path, overwrite: bool) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("pipe")

    for path in (pipe, link):
        with pytest.raises(OutputError, match="not a regular file"):
            write_new(path, b"content", overwrite=overwrite)

    assert pipe.is_fifo()
    assert link.is_symlink()


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to("folder/target")

    with pytest.raises(OutputError, match="exists"):
        write_new(link, b"new")
    write_new(link, b"new", overwrite=True)

    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_link_that_leads_nowhere_exists(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("absent")

    with pytest.raises(OutputError, match=r"exists; choose another name, or overwrite it \(--overwrite\)"):
        write_new(link, b"content")
    write_new(link, b"content", overwrite=True)

    assert link.is_symlink()
    assert (tmp_path / "absent").read_bytes() == b"content"


def test_a_link_to_itself_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(OutputError, match="cannot be written"):
        check_new(tmp_path / "loop", overwrite=True)


def test_a_file_that_may_not_be_written_to_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "precious"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda asked, _mode: asked != path)  # as for anyone but root

    with pytest.raises(OutputError, match="no permission to overwrite"):
        write_new(path, b"new", overwrite=True)

    assert path.read_bytes() == b"old"


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300)

    with pytest.raises(OutputError, match="File name too long"):
        check_new(path)
    with pytest.raises(OrdersError, match="File name too long"):
        read_json(path, expected="orders", error=OrdersError)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_args, **_options: (_ for _ in ()).throw(PermissionError(1, "no")))
    beside, target = tmp_path / "beside", tmp_path / "target"
    beside.write_bytes(b"new")
    place(beside, target, overwrite=False)
    assert target.read_bytes() == b"new"
    assert not beside.exists()

    beside.write_bytes(b"newer")
    with pytest.raises(FileExistsError):
        place(beside, target, overwrite=False)

    assert target.read_bytes() == b"new"


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OrdersError, match="not a regular file; expected orders"):
        read_json(tmp_path / "pipe", expected="orders", error=OrdersError)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf[1]")

    assert read_json(tmp_path / "marked.json", expected="orders", error=OrdersError) == [1]
