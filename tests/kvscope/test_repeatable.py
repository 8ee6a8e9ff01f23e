"""One job twice: the traces are equal but for clocks, ids, samples and what recording cost."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from kvscope.format import AXES, TABLES, VARYING_COLUMNS, VARYING_KEYS, VARYING_LENGTHS
from kvscope.job import Job
from kvscope.runner import run_job


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two traces of one job with every tier, of the tiny model."""
    folder = tmp_path_factory.mktemp("twice")
    job = Job(
        "a red circle",
        "infinity-tiny",
        "heatkv",
        random_weights=True,
        seed=7,
        budget=0.3,
        attention_mass=True,
        attention_mass_uncond=True,
        attention_map="float32",
    )
    one, other = (run_job(job, folder / name, threads=1).trace for name in ("one.h5", "other.h5"))
    return one, other


def test_header_keys_differ_only_where_the_format_says(twice: tuple[Path, Path]) -> None:
    with h5py.File(twice[0]) as one, h5py.File(twice[1]) as other:
        assert set(one.attrs) == set(other.attrs)
        differing = {key for key in one.attrs if one.attrs[key] != other.attrs[key]}

    assert {"run_id", "created_ns"} <= differing <= set(VARYING_KEYS)


@pytest.mark.parametrize("name", [*TABLES, *AXES])
def test_tables_differ_only_where_the_format_says(twice: tuple[Path, Path], name: str) -> None:
    with h5py.File(twice[0]) as one, h5py.File(twice[1]) as other:
        assert one[name].dtype == other[name].dtype
        if name in VARYING_LENGTHS:
            return
        assert one[name].shape == other[name].shape
        for column in one[name].dtype.names or [()]:
            if column not in VARYING_COLUMNS.get(name, ()):
                np.testing.assert_array_equal(one[name][...][column], other[name][...][column])  # NaN equals NaN


def test_the_last_commits_count_the_same(twice: tuple[Path, Path]) -> None:
    with h5py.File(twice[0]) as one, h5py.File(twice[1]) as other:
        for column in TABLES["commit"].row_dtype.names or ():
            if column not in VARYING_COLUMNS["commit"]:
                np.testing.assert_array_equal(one["commit"][-1][column], other["commit"][-1][column])


def test_what_may_differ_is_part_of_the_format() -> None:
    for table, columns in VARYING_COLUMNS.items():
        assert set(columns) <= set(TABLES[table].row_dtype.names or ())
    assert set(VARYING_LENGTHS) <= set(VARYING_COLUMNS)
