"""The netCDF file, opened by what people have: xarray with h5netcdf, and netCDF4 in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xarray

from kvscope.format import TABLES
from kvscope.recorder import Recorder
from kvscope.trace import Trace


@pytest.fixture
def dataset(tiny_trace: Path, export: Callable[..., Path]) -> xarray.Dataset:
    with xarray.open_dataset(export(tiny_trace, "netcdf"), engine="h5netcdf") as opened:
        return opened.load()


def test_arrays_have_the_axes_and_values_of_the_trace(tiny_trace: Path, dataset: xarray.Dataset) -> None:
    with Trace.open(tiny_trace) as trace:
        for name in ("kept_tokens", "read_tokens", "attention_mass"):
            np.testing.assert_array_equal(dataset[name].values, getattr(trace, name))
            assert dataset[name].dims == TABLES[name].axes
        np.testing.assert_array_equal(dataset.drop_step.values, trace.schedule.drop_step)
        np.testing.assert_array_equal(dataset.image.values, trace.image)
        np.testing.assert_array_equal(dataset.preview.values[2], trace.preview(2))
        np.testing.assert_array_equal(dataset.bits.values[:, 1:5], trace.bits(1))
    assert dataset.kept_tokens.sel(query_scale=4, source_scale=0).shape == (3, 2)


def test_each_column_of_rows_is_a_variable_with_its_unit(tiny_trace: Path, dataset: xarray.Dataset) -> None:
    with Trace.open(tiny_trace) as trace:
        for column in TABLES["steps"].columns:
            variable = dataset[f"steps_{column.name}"]
            np.testing.assert_array_equal(variable.values, trace.steps[column.name])
            assert variable.attrs["units"] == column.unit
            assert variable.attrs["long_name"] == column.meaning
    assert dataset.log_text.values.tolist() == ["[redacted]"]


def test_no_variable_is_compound(dataset: xarray.Dataset) -> None:
    assert [name for name, variable in dataset.variables.items() if variable.dtype.kind == "V"] == []


def test_texts_are_read_as_they_were_written(tiny_trace: Path, export: Callable[..., Path]) -> None:
    with xarray.open_dataset(export(tiny_trace, "netcdf", redact=False), engine="h5netcdf") as opened:
        assert opened.log_text.values.tolist() == ["a fake run"]
        assert "ünïcode" in opened.attrs["job"].encode().decode("unicode_escape")


@pytest.mark.parametrize("images", [True, False])
def test_pictures_and_bits_can_be_left_out(tiny_trace: Path, export: Callable[..., Path], images: bool) -> None:
    with xarray.open_dataset(export(tiny_trace, "netcdf", images=images), engine="h5netcdf") as opened:
        assert {"image", "preview", "bits"} & set(opened) == ({"image", "preview", "bits"} if images else set())


def test_attention_maps_are_decoded(maps_trace: Path, export: Callable[..., Path]) -> None:
    with (
        xarray.open_dataset(export(maps_trace, "netcdf"), engine="h5netcdf") as opened,
        Trace.open(maps_trace) as trace,
    ):
        assert opened.attention_map.dims == TABLES["attention_map"].axes
        np.testing.assert_array_equal(opened.attention_map.values[3, 1, 0], trace.attention_map(3, 1, 0))


@pytest.fixture
def empty_trace(tmp_path: Path, fake_run: ModuleType) -> Path:
    """A run that ended before its first scale."""
    path = tmp_path / "empty.h5"
    with Recorder(path, fake_run.fake_job(attention_map="uint8")) as recorder:
        fake_run.run(recorder, scales=0)
    return path


def test_a_trace_without_a_scale_keeps_its_axes(empty_trace: Path, export: Callable[..., Path]) -> None:
    with xarray.open_dataset(export(empty_trace, "netcdf"), engine="h5netcdf") as opened:
        assert opened.kept_tokens.shape == (0, 3, 2, 5)
        assert opened.attention_map.shape == (0, 3, 2, 5, 16, 16)
        assert opened.steps_begin_ns.size == 0
        assert np.isnan(opened.summary_seconds)


@pytest.mark.skipif(find_spec("netCDF4") is None, reason="netCDF4 is not installed")
@pytest.mark.parametrize("state", ["tiny_trace", "empty_trace", "live_trace"])
def test_netcdf4_reads_it(state: str, request: pytest.FixtureRequest, export: Callable[..., Path]) -> None:
    # In a process of its own: two HDF5 libraries in one are fragile.
    code = (
        "import sys, netCDF4\n"
        "file = netCDF4.Dataset(sys.argv[1])\n"
        "assert file['kept_tokens'].dimensions == ('query_scale', 'layer', 'head', 'source_scale')\n"
        "assert all(variable[...].size >= 0 for variable in file.variables.values())\n"
        "print(int(file['kept_tokens'][:].sum()))\n"
    )
    trace_path = request.getfixturevalue(state)
    path = export(trace_path, "netcdf")

    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, check=True)

    with Trace.open(trace_path) as trace:
        assert int(done.stdout) == trace.kept_tokens.sum()
