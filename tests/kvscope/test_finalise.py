"""Finalising: the new file says all that the recorded one did, is smaller, and nothing can be lost on the way."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from kvscope import finalise
from kvscope.finalise import CHUNK_BYTES, NotFinalisedError, final_image, replace_content
from kvscope.format import TABLES
from kvscope.placing import TraceFile
from kvscope.recorder import Recorder
from kvscope.trace import Trace

_ADDED = {"cost", "commit"}
"""Tables that get a row more, or whose last row tells of it."""


@pytest.fixture(params=["gzip", "none"])
def recorded(request: pytest.FixtureRequest, tmp_path: Path, fake_run: ModuleType) -> Path:
    """A closed trace as it was recorded, every tier on."""

    def stay(_file: TraceFile, **_: object) -> None:
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TraceFile, "settle", stay)
        job = fake_run.fake_job(attention_mass_uncond=True, attention_map="float32")
        with Recorder(tmp_path / "a.h5", job, preview=fake_run.fake_preview, filter=request.param) as recorder:
            fake_run.run(recorder)
    return tmp_path / "a.h5"


def finalised(path: Path) -> Path:
    new = path.with_name("new.h5")
    new.write_bytes(final_image(path, path.stat()))
    return new


def test_every_table_and_header_key_is_as_it_was_recorded(recorded: Path) -> None:
    with h5py.File(recorded) as old, h5py.File(finalised(recorded)) as new:
        assert set(old) == set(new)
        for name in set(TABLES) - _ADDED:
            assert new[name][...].tobytes() == old[name][...].tobytes()  # rows with NaN equal nothing
            assert new[name].dtype == old[name].dtype
            assert new[name].attrs["long_name"] == old[name].attrs["long_name"]
            assert new[name].dims[0][0].name == old[name].dims[0][0].name
        assert {key: old.attrs[key] for key in old.attrs} == {
            key: new.attrs[key] for key in new.attrs if key != "finalised"
        }


def test_the_new_file_is_smaller_and_in_chunks_that_are_quick_to_read(recorded: Path) -> None:
    new = finalised(recorded)

    assert new.stat().st_size < 0.7 * recorded.stat().st_size
    with h5py.File(new) as file:
        for name in TABLES:
            table = file[name]
            assert np.prod(table.chunks) * table.dtype.itemsize <= CHUNK_BYTES
            assert (table.compression is None) == (TABLES[name].compressed and file.attrs["filter"] == b"none")


def test_what_it_took_is_the_last_row_of_cost(recorded: Path) -> None:
    with Trace.open(recorded) as old, Trace.open(finalised(recorded)) as new:
        assert len(new.cost) == len(old.cost) + 1
        assert new.cost["writer_ns"][-1] > 0
        assert old.committed_ns <= new.cost["t_ns"][-1] <= new.committed_ns
        assert new.status == "done"


def test_a_table_that_was_never_written_takes_no_room(gpu_trace: Path) -> None:
    with h5py.File(gpu_trace) as file:
        assert file.attrs["finalised"] == 1
        assert file["attention_mass"].id.get_storage_size() == 0
        assert np.isnan(file["attention_mass"][...]).all()


def test_a_large_array_is_taken_over_as_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finalise, "CHUNK_BYTES", 1 << 10)
    values = np.random.default_rng(0).integers(0, 9, (4, 32, 32, 3), np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        old = file.create_dataset("preview", data=values, chunks=(1, 32, 32, 3), compression="gzip", compression_opts=1)
        new = file.create_dataset("copy", shape=values.shape, chunks=old.chunks, dtype="u1", compression="gzip")

        assert finalise._is_final(old, finalise.FILTERS["gzip"])
        finalise._copy_chunks(old, new)

        np.testing.assert_array_equal(new[...], values)
        assert new.id.get_storage_size() == old.id.get_storage_size()


def test_a_large_file_stays_as_it_was_recorded(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finalise, "MOST_BYTES", 1000)

    with pytest.raises(NotFinalisedError, match="would take long"):
        final_image(recorded, recorded.stat())


def test_a_run_that_goes_on_is_not_finalised(live_trace: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    copy.write_bytes(live_trace.read_bytes())

    with pytest.raises((NotFinalisedError, OSError)):
        final_image(copy, copy.stat())


def test_another_file_in_its_place_is_neither_read_nor_replaced(recorded: Path) -> None:
    made, content = recorded.stat(), final_image(recorded, recorded.stat())
    recorded.rename(recorded.with_name("kept.h5"))
    recorded.write_text("another")

    with pytest.raises(NotFinalisedError, match="replaced"):
        final_image(recorded, made)
    with pytest.raises(NotFinalisedError, match="replaced"):
        replace_content(recorded, content, made)

    assert recorded.read_text() == "another"
    assert sorted(path.name for path in recorded.parent.iterdir()) == ["a.h5", "kept.h5"]


def test_mode_bits_are_kept(recorded: Path) -> None:
    recorded.chmod(0o640)

    replace_content(recorded, final_image(recorded, recorded.stat()), recorded.stat())

    assert recorded.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_recorded_file(
    tmp_path: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        fake_run.run(recorder)
        fake_run.wait_for_scales(tmp_path / "a.h5", 5)
        monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), failing)

    monkeypatch.undo()
    assert recorder.failed is None
    assert recorder.problem is None
    assert recorder.file.not_finalised == "No space left on device"
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    with Trace.open(tmp_path / "a.h5") as trace:
        assert (trace.status, trace.scales_done) == ("done", 5)
        assert trace.image is not None


def test_a_process_that_dies_while_finalising_leaves_the_recorded_file(tmp_path: Path, fake_run: ModuleType) -> None:
    program = Path(__file__).with_name("fake_run.py")
    command = [sys.executable, str(program), str(tmp_path / "a.h5"), "--kill-finalising"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == -9
    with Trace.open(tmp_path / "a.h5") as trace:
        assert (trace.status, trace.scales_done) == ("done", 5)
        np.testing.assert_array_equal(trace.kept_tokens, fake_run.fake_schedule().kept_tokens())


def test_a_viewer_that_has_the_trace_open_goes_on_and_sees_its_end(tmp_path: Path, fake_run: ModuleType) -> None:
    with Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        fake_run.run(recorder)
        trace = Trace.open(tmp_path / "a.h5")
        before = recorder.file.status

    assert recorder.file.finalised is not None
    assert before is not None
    assert not os.path.samestat(before, (tmp_path / "a.h5").stat())
    assert recorder.is_in_place
    assert trace.refresh()
    assert trace.status == "done"
    np.testing.assert_array_equal(trace.kept_tokens, fake_run.fake_schedule().kept_tokens())
    assert trace.image is not None
    trace.close()
