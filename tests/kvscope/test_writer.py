"""TraceWriter: SWMR's rules, room before growth, and reasons in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from kvscope import liveness
from kvscope.format import COMMIT, TABLES, Status
from kvscope.writer import NoRoomError, TraceWriter, reason_text

LENGTHS = {"layer": 3, "head": 2, "source_scale": 4, "map_y": 16, "map_x": 16, "bit": 8, "rgb": 3}
FIXED = {
    "scale_height": np.arange(1, 5),
    "scale_width": np.arange(1, 5),
    "drop_step": np.arange(24).reshape(3, 2, 4),
}


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[TraceWriter]:
    writer = TraceWriter.create(tmp_path / "a.h5", {"format": "test"}, LENGTHS, FIXED)
    yield writer
    writer.close()


def a_scale() -> dict[str, np.ndarray]:
    return {name: np.ones((3, 2, 4), TABLES[name].dtype) for name in ("kept_tokens", "read_tokens")}


def test_a_new_trace_is_live_at_once_under_its_own_name(tmp_path: Path, writer: TraceWriter) -> None:
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    assert liveness.is_held(writer.path) is liveness.SUPPORTED
    with h5py.File(writer.path, swmr=True) as file:
        assert file["commit"].shape == (1,)
        assert file["commit"][0]["status"] == Status.RUNNING


def test_every_dataset_is_chunked_and_no_text_is_of_variable_length(writer: TraceWriter) -> None:
    with h5py.File(writer.path, swmr=True) as file:
        for name in file:
            dataset = file[name]
            assert dataset.chunks
            fields = dataset.dtype.fields or {}
            assert not any(h5py.check_string_dtype(kind) and kind.kind == "O" for kind, _ in fields.values())
            assert dataset.dtype.kind != "O"


def test_what_is_not_committed_is_not_counted(writer: TraceWriter) -> None:
    writer.append_scale(a_scale())
    writer.append_rows("steps", np.zeros(3, TABLES["steps"].row_dtype))

    with h5py.File(writer.path, swmr=True) as file:
        assert file["commit"][-1]["scales_done"] == 0
        writer.commit(Status.RUNNING)
        file["commit"].refresh()
        assert file["commit"][-1]["scales_done"] == 1
        assert file["commit"][-1]["steps_rows"] == 3


def test_commits_are_appended_and_never_changed(writer: TraceWriter) -> None:
    for _ in range(100):
        writer.commit(Status.RUNNING)

    with h5py.File(writer.path, swmr=True) as file:
        assert file["commit"]["epoch"].tolist() == list(range(101))
        assert (np.diff(file["commit"]["t_ns"]) >= 0).all()


def test_room_is_there_before_hdf5_grows(tmp_path: Path) -> None:
    writer = TraceWriter.create(tmp_path / "b.h5", {"format": "test"}, LENGTHS, FIXED)
    sizes = [writer.file_bytes]
    for _ in range(4):
        writer.append_scale(a_scale())
        writer.append_bits(np.zeros((1, 2000, 8), np.uint8))
        sizes.append(writer.file_bytes)
        writer.commit(Status.RUNNING)
        assert writer.file_bytes == sizes[-1]  # flushing and committing found their room reserved
    writer.close()

    assert sizes == sorted(sizes)
    with h5py.File(tmp_path / "b.h5") as file:
        assert file.id.get_filesize() == (tmp_path / "b.h5").stat().st_size  # unused room is given back


def test_a_table_that_is_not_written_takes_no_room(tmp_path: Path, writer: TraceWriter) -> None:
    before = writer.file_bytes
    writer.append_scale(a_scale())

    map_bytes = 3 * 2 * 4 * 16 * 16
    room = writer.file_bytes - before
    writer.append_scale(a_scale() | {"attention_map": np.ones((3, 2, 4, 16, 16), np.uint8)})
    with_map = writer.file_bytes - before - room

    assert with_map - room >= map_bytes
    with h5py.File(tmp_path / "a.h5", swmr=True) as file:
        assert file["attention_map"].id.get_storage_size() == map_bytes  # one scale, as it is while the run goes on


def test_a_growth_without_room_leaves_the_last_commit_and_can_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = TraceWriter.create(tmp_path / "b.h5", {"format": "test"}, LENGTHS, FIXED)
    writer.append_scale(a_scale())
    writer.commit(Status.RUNNING)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(NoRoomError, match="No space left"):
            writer.append_scale(a_scale())
        writer.end_early("no space left")

    with h5py.File(tmp_path / "b.h5") as file:
        last = file["commit"][-1]
        assert (last["status"], last["scales_done"]) == (Status.FAILED, 1)
        expected = b"recording stopped: no space left; the run went on, 1 scale is recorded"
        assert last["message"].tobytes().rstrip(b"\0") == expected


def test_what_was_whole_when_the_room_ended_is_in_the_trace(tmp_path: Path) -> None:
    writer = TraceWriter.create(tmp_path / "b.h5", {"format": "test"}, LENGTHS, FIXED)
    writer.append_scale(a_scale())
    writer.mark_whole()
    writer.append_scale(a_scale())

    writer.end_early("no space left")

    with h5py.File(tmp_path / "b.h5") as file:
        assert file["commit"][-1]["scales_done"] == 1


def test_previews_take_their_size_from_the_first(tmp_path: Path, writer: TraceWriter) -> None:
    for scale in range(3):
        writer.append_scale(a_scale() | {"preview": np.full((5, 7, 3), scale, np.uint8)})
    writer.commit(Status.RUNNING)

    with h5py.File(tmp_path / "a.h5", swmr=True) as file:
        assert file["preview"].shape == (3, 5, 7, 3)
        assert file["preview"][:, 0, 0, 0].tolist() == [0, 1, 2]


def test_a_message_is_kept_within_its_column(tmp_path: Path) -> None:
    writer = TraceWriter.create(tmp_path / "b.h5", {"format": "test"}, LENGTHS, FIXED)
    writer.commit(Status.FAILED, message="ä" * 1000)
    writer.close()

    with h5py.File(tmp_path / "b.h5") as file:
        assert file["commit"].dtype == COMMIT.row_dtype
        assert file["commit"][-1]["message"].tobytes().decode().rstrip("\0").endswith("ä…")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (RuntimeError("Unable to flush (errno = 28, error message = 'No space left', buf = 0)"), "No space left"),
        (RuntimeError("one line\nand more"), "one line"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_reasons_are_the_systems_words(error: Exception, text: str) -> None:
    assert reason_text(error) == text
