"""Trace: opens live, ended and crashed recordings, also with others' readers, and refuses the rest in one line."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import xarray

from kvscope import liveness
from kvscope import trace as trace_module
from kvscope.errors import TraceError, TraceFormatError, TraceVersionError
from kvscope.format import AXES, TABLES, VERSION
from kvscope.maps import MAP_ERROR
from kvscope.recorder import Recorder
from kvscope.trace import CRASHED_MESSAGE, Trace


@pytest.fixture
def changed_trace(tmp_path: Path, tiny_trace: Path) -> Callable[[Callable[[h5py.File], None]], Path]:
    """Makes a copy of a finished trace, changed as told: what other versions, or damage, could have left."""

    def change(edit: Callable[[h5py.File], None]) -> Path:
        path = Path(shutil.copy(tiny_trace, tmp_path / "changed.h5"))
        with h5py.File(path, "r+") as file:
            edit(file)
        return path

    return change


def test_the_header_says_what_the_run_was(tiny_trace: Path, fake_run: ModuleType) -> None:
    with Trace.open(tiny_trace) as trace:
        header = trace.header

    assert header.format_version == VERSION
    assert header.job == fake_run.fake_job()
    assert header.scales == fake_run.SCALES
    assert (header.num_layers, header.num_heads, header.head_dim, header.rows) == (3, 2, 4, 2)
    assert (header.dtype, header.dtype_bytes, header.bits_per_token) == ("float32", 4, 4)
    assert header.bytes_per_token == fake_run.TOKEN_BYTES
    assert header.pid == os.getpid()
    assert header.perturbed
    assert abs(header.wall_ns(time.monotonic_ns()) - time.time_ns()) < 5e9  # clocks may drift a little
    assert {"kvscope", "python", "numpy", "h5py"} <= header.versions.keys()


def test_a_finished_trace_is_done_and_never_changes(tiny_trace: Path) -> None:
    with Trace.open(tiny_trace) as trace:
        assert (trace.status, trace.message, trace.scales_done) == ("done", "", 5)
        assert not trace.refresh()


def test_arrays_are_read_only(tiny_trace: Path) -> None:
    with Trace.open(tiny_trace) as trace, pytest.raises(ValueError, match="read-only"):
        trace.kept_tokens[0] = 1


def test_a_scale_that_is_not_recorded_is_an_error_that_tells_what_is(live_trace: Path) -> None:
    with Trace.open(live_trace) as trace:
        for read in (trace.bits, trace.preview):
            with pytest.raises(TraceError, match="scale 3 is not recorded; 3 scales are"):
                read(3)


def test_a_head_that_there_is_none_of_is_an_error_that_tells_how_many_there_are(maps_trace: Path) -> None:
    with Trace.open(maps_trace) as trace:
        with pytest.raises(TraceError, match="no head 2 in layer 0; there are 3 layers of 2 heads"):
            trace.attention_map(0, 0, 2)
        with pytest.raises(TraceError, match="scale 5 is not recorded"):
            trace.attention_map(5, 0, 0)


def test_a_map_is_read_without_the_rest_of_its_table(tmp_path: Path, maps_trace: Path) -> None:
    with h5py.File(maps_trace) as file:
        table = file["attention_map"].id
        places = {info.chunk_offset[:2]: info for info in map(table.get_chunk_info, range(table.get_num_chunks()))}
    content = bytearray(maps_trace.read_bytes())
    for place, info in places.items():
        if place != (4, 1):
            content[info.byte_offset : info.byte_offset + info.size] = bytes(info.size)
    (tmp_path / "a.h5").write_bytes(content)

    with Trace.open(maps_trace) as whole, Trace.open(tmp_path / "a.h5") as rest:
        np.testing.assert_array_equal(rest.attention_map(4, 1, 0), whole.attention_map(4, 1, 0))
        with pytest.raises(TraceFormatError, match="damaged"):
            rest.attention_map(4, 2, 0)
        assert len(places) == 5 * 3


def test_a_live_trace_gives_the_maps_that_it_has(tmp_path: Path, fake_run: ModuleType) -> None:
    path = tmp_path / "a.h5"
    with Recorder(path, fake_run.fake_job(attention_map="uint8")) as recorder:
        fake_run.run(recorder, scales=2)
        fake_run.wait_for_scales(path, 2)
        with Trace.open(path) as trace:
            assert np.nansum(trace.attention_map(1, 0, 0)) == pytest.approx(1, rel=MAP_ERROR)
            with pytest.raises(TraceError, match="scale 2 is not recorded"):
                trace.attention_map(2, 0, 0)
            fake_run.run_scale(recorder, fake_run.fake_schedule(), 2)
            fake_run.wait_for_scales(path, 3)
            assert trace.refresh()
            assert np.nansum(trace.attention_map(2, 0, 0)) == pytest.approx(1, rel=MAP_ERROR)


# Live.


def test_a_live_trace_grows_with_refresh_and_only_with_it(tmp_path: Path, fake_run: ModuleType) -> None:
    path, plan = tmp_path / "a.h5", fake_run.fake_schedule()
    with Recorder(path, fake_run.fake_job()) as recorder:
        recorder.run_started(fake_run.fake_start(plan))
        with Trace.open(path) as trace:
            assert (trace.status, trace.scales_done, trace.kept_tokens.shape) == ("live", 0, (0, 3, 2, 5))
            for scale in range(5):
                fake_run.run_scale(recorder, plan, scale)
                fake_run.wait_for_scales(path, scale + 1)
                assert trace.scales_done == scale
                assert len(trace.steps) == scale * 3

                assert trace.refresh()

                assert trace.scales_done == scale + 1
                np.testing.assert_array_equal(trace.kept_tokens, plan.kept_tokens()[: scale + 1])
                np.testing.assert_array_equal(trace.bits(scale), fake_run.fake_bits(scale))
                assert len(trace.steps) == (scale + 1) * 3
            recorder.finish()
            assert trace.status == "live"
            assert trace.refresh()
            assert trace.status == "done"


def test_another_process_follows_a_live_trace(live_trace: Path) -> None:
    code = (
        "import sys; from kvscope.trace import Trace; trace = Trace.open(sys.argv[1]);"
        "print(trace.status, trace.scales_done, trace.kept_tokens.sum(), len(trace.steps))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(live_trace)], capture_output=True, text=True, timeout=60, check=True
    )

    with Trace.open(live_trace) as trace:
        assert done.stdout.split() == ["live", "3", str(trace.kept_tokens.sum()), "9"]


def test_a_quiet_run_stays_live(live_trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1 << 62)  # an age that would be stale

    with Trace.open(live_trace) as trace:
        assert trace.status == "live"


def test_a_copy_of_a_live_trace_is_crashed_and_holds_what_was_committed(
    crashed_trace: Path, fake_run: ModuleType
) -> None:
    with Trace.open(crashed_trace) as trace:
        assert (trace.status, trace.message, trace.scales_done) == ("crashed", CRASHED_MESSAGE, 3)
        np.testing.assert_array_equal(trace.kept_tokens, fake_run.fake_schedule().kept_tokens()[:3])
        assert trace.preview(2) is not None
        assert not trace.refresh()


@pytest.mark.parametrize(("age_s", "status"), [(1.0, "live"), (liveness.STALE_S + 1, "crashed")])
def test_without_locks_the_last_commits_age_decides(
    tmp_path: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch, age_s: float, status: str
) -> None:
    monkeypatch.setattr(liveness, "SUPPORTED", False)
    with Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        fake_run.run(recorder, scales=1)
        fake_run.wait_for_scales(tmp_path / "a.h5", 1)
        with Trace.open(tmp_path / "a.h5") as trace:
            committed_ns = trace.header.wall_ns(trace.committed_ns)
            monkeypatch.setattr(time, "time_ns", lambda: int(committed_ns + age_s * 1e9))
            trace._read_commit()  # what refresh does, without waiting for a newer commit
            assert trace.header.liveness == "heartbeat"
            assert trace.status == status


# Other tools.


def test_a_closed_trace_opens_in_plain_h5py_with_units_and_names(tiny_trace: Path) -> None:
    with h5py.File(tiny_trace) as file:
        for name, table in TABLES.items():
            dataset = file[name]
            assert dataset.attrs["units"]
            assert dataset.attrs["long_name"]
            assert [dataset.dims[index][0].name.lstrip("/") for index in range(dataset.ndim)] == list(table.axes)
        assert b"| `storage_bytes` |" in file.attrs["schema"]
        assert file.attrs["Conventions"].startswith(b"CF-")


def test_a_closed_trace_opens_in_xarray_with_named_axes(tiny_trace: Path, fake_run: ModuleType) -> None:
    with xarray.open_dataset(tiny_trace, engine="h5netcdf") as dataset:
        assert dataset.kept_tokens.dims == ("query_scale", "layer", "head", "source_scale")
        assert dataset.drop_step.dims == ("layer", "head", "source_scale")
        assert dataset.attention_mass.attrs["units"] == "1"
        assert dataset.query_scale.values.tolist() == [0, 1, 2, 3, 4]
        assert dataset.sizes["steps_row"] == 15
        assert dataset.steps.values["layer"].tolist() == [0, 1, 2] * 5
        last = dataset.kept_tokens.sel(query_scale=4).sum("source_scale")
        np.testing.assert_array_equal(last, fake_run.fake_schedule().kept_tokens()[4].sum(axis=-1))
        assert dataset.sizes.keys() == AXES.keys()


def test_a_cancelled_trace_opens_in_xarray_with_the_scales_it_has(tmp_path: Path, fake_run: ModuleType) -> None:
    recorder = Recorder(tmp_path / "a.h5", fake_run.fake_job())
    fake_run.run(recorder, scales=2)
    recorder.finish("cancelled")

    with xarray.open_dataset(tmp_path / "a.h5", engine="h5netcdf") as dataset:
        assert dataset.kept_tokens.shape == (2, 3, 2, 5)
        assert dataset.image.shape == (0, 0, 3)


def test_a_closed_trace_can_be_read_by_hdf5_1_10_and_later(tiny_trace: Path) -> None:
    # Superblock 3 is what HDF5 1.10 introduced, and the newest that 1.14 reads.
    assert tiny_trace.read_bytes()[8] == 3


# What is no trace.


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        Trace.open(tmp_path / "a.h5")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(1000)])
def test_a_file_that_is_not_hdf5_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.h5").write_bytes(content)

    with pytest.raises(TraceFormatError, match="not an HDF5 file") as caught:
        Trace.open(tmp_path / "a.h5")
    assert "\n" not in str(caught.value)


def test_a_pipe_is_one_line_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(TraceError, match="not a regular file"):
        Trace.open(tmp_path / "pipe")


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot be read \(File name too long\)"):
        Trace.open(tmp_path / ("n" * 300))


def test_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        Trace.open(tmp_path)


@pytest.mark.parametrize("version", ["earliest", "v110"])
def test_another_hdf5_file_is_one_line(tmp_path: Path, version: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver=version) as file:
        file["data"] = np.arange(10)

    with pytest.raises(TraceFormatError, match="not a trace") as caught:
        Trace.open(tmp_path / "a.h5")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_closed_trace_that_was_cut_short_is_one_line(tmp_path: Path, tiny_trace: Path, share: float) -> None:
    content = tiny_trace.read_bytes()
    (tmp_path / "a.h5").write_bytes(content[: max(9, int(len(content) * share))])

    with pytest.raises(TraceFormatError, match="cut short") as caught:
        Trace.open(tmp_path / "a.h5")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept_bytes", [1000, 20_000, 40_000, 55_000])
def test_what_is_left_of_a_crashed_trace_that_was_cut_short_is_one_line(
    tmp_path: Path, crashed_trace: Path, kept_bytes: int
) -> None:
    (tmp_path / "a.h5").write_bytes(crashed_trace.read_bytes()[:kept_bytes])

    with pytest.raises(TraceFormatError) as caught:
        read_everything(tmp_path / "a.h5")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(10))
def test_bytes_that_were_damaged_are_one_line_or_not_noticed(tmp_path: Path, tiny_trace: Path, seed: int) -> None:
    content = bytearray(tiny_trace.read_bytes())
    for place in np.random.default_rng(seed).integers(0, len(content), 200):
        content[place] ^= 0xFF
    (tmp_path / "a.h5").write_bytes(content)

    # Damage of pixels or of room that nothing uses goes unnoticed; anything but a TraceError fails this test.
    with contextlib.suppress(TraceError):
        read_everything(tmp_path / "a.h5")


def read_everything(path: Path) -> None:
    with Trace.open(path) as trace:
        assert trace.steps is not None
        assert trace.attention_mass is not None
        assert trace.kept_tokens is not None
        assert trace.read_tokens is not None
        for scale in range(trace.scales_done):
            trace.bits(scale)
            trace.preview(scale)


def test_a_newer_major_version_is_refused_and_both_versions_are_told(
    changed_trace: Callable[[Callable[[h5py.File], None]], Path],
) -> None:
    path = changed_trace(lambda file: file.attrs.modify("format_version", np.bytes_(b"2.3")))

    with pytest.raises(TraceVersionError, match=r"changed\.h5: format version 2\.3, this kvscope reads 1\.x; upgrade"):
        Trace.open(path)


def test_a_newer_minor_version_opens_and_what_is_unknown_is_ignored(
    changed_trace: Callable[[Callable[[h5py.File], None]], Path],
) -> None:
    def renew(file: h5py.File) -> None:
        file.attrs.modify("format_version", np.bytes_(b"1.7"))
        file.attrs["novelty"] = 1
        file["attention_flow"] = np.zeros((2, 2))
        rows = file["steps"][...]
        wider = np.dtype([*rows.dtype.descr, ("energy_j", "f8")])
        del file["steps"]
        file.create_dataset("steps", data=np.zeros(len(rows), wider), chunks=(64,), maxshape=(None,))

    with Trace.open(changed_trace(renew)) as trace:
        assert trace.header.format_version == (1, 7)
        assert trace.steps["query_scale"].shape == (15,)
        assert trace.kept_tokens.shape == (5, 3, 2, 5)


@pytest.mark.parametrize("table", ["attention_mass", "attention_mass_uncond", "gpu", "cost"])
def test_a_table_that_an_older_file_lacks_is_empty(
    changed_trace: Callable[[Callable[[h5py.File], None]], Path], table: str
) -> None:
    def remove(file: h5py.File) -> None:
        del file[table]

    with Trace.open(changed_trace(remove)) as trace:
        assert getattr(trace, table).size == 0


def test_a_trace_that_is_older_than_maps_opens_and_has_none(
    changed_trace: Callable[[Callable[[h5py.File], None]], Path],
) -> None:
    def age(file: h5py.File) -> None:
        for table in ("attention_map", "attention_mass_uncond"):
            del file[table]
        for key in ("attention", "capacity_tokens", "tiers", "perturbed_by"):
            del file.attrs[key]

    with Trace.open(changed_trace(age)) as trace:
        assert np.isnan(trace.attention_map(0, 0, 0)).all()
        assert trace.header.attention is None
        assert trace.header.tiers == ("occupancy", "mass")


@pytest.mark.parametrize("content", [np.zeros((2, 2)), np.full((5, 3, 2, 5, 16, 16), b"a")])
def test_a_table_of_maps_that_is_none_is_one_line(
    changed_trace: Callable[[Callable[[h5py.File], None]], Path], content: np.ndarray
) -> None:
    def spoil(file: h5py.File) -> None:
        del file["attention_map"]
        file["attention_map"] = content

    with (
        Trace.open(changed_trace(spoil)) as trace,
        pytest.raises(TraceFormatError, match=r"changed\.h5: damaged .*attention_map is"),
    ):
        trace.attention_map(0, 0, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("job", b"{"),
        ("job", b"{}"),
        ("scales", b'{"sizes": []}'),
        ("schedule", b'{"format": "other"}'),
        ("format_version", b"1.x"),
    ],
)
def test_a_damaged_header_is_one_line(
    changed_trace: Callable[[Callable[[h5py.File], None]], Path], key: str, value: bytes
) -> None:
    path = changed_trace(lambda file: file.attrs.modify(key, np.bytes_(value)))

    with pytest.raises(TraceFormatError, match=r"changed\.h5: damaged") as caught:
        Trace.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["commit", "drop_step"])
def test_a_trace_without_what_makes_it_one_is_one_line(
    changed_trace: Callable[[Callable[[h5py.File], None]], Path], name: str
) -> None:
    def remove(file: h5py.File) -> None:
        del file[name]

    with pytest.raises(TraceFormatError, match="damaged"):
        Trace.open(changed_trace(remove))


@pytest.mark.parametrize(("column", "value"), [("status", 9), ("scales_done", 6)])
def test_a_last_commit_that_cannot_be_is_one_line(
    changed_trace: Callable[[Callable[[h5py.File], None]], Path], column: str, value: int
) -> None:
    def spoil(file: h5py.File) -> None:
        last = file["commit"][-1:]
        last[column] = value
        file["commit"][-1:] = last

    with pytest.raises(TraceFormatError, match=r"changed\.h5: damaged"):
        Trace.open(changed_trace(spoil))


def test_a_missing_header_key_is_named(changed_trace: Callable[[Callable[[h5py.File], None]], Path]) -> None:
    def remove(file: h5py.File) -> None:
        del file.attrs["num_heads"]

    with pytest.raises(TraceFormatError, match="num_heads"):
        Trace.open(changed_trace(remove))


def test_the_reader_needs_no_writer(tiny_trace: Path) -> None:
    code = "import sys; import kvscope.trace; print('kvscope.recorder' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.split() == ["False", "False"]
    assert trace_module.Trace is Trace
    assert tiny_trace.exists()
