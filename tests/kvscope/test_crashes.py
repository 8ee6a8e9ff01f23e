"""kill -9 of a recording, at every scale and at random moments: what was committed is there, valid and recoverable.

`python -m tests.fuzz.kills --moments 100 --real 20` does the same at length.
"""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest

from tests.fuzz import kills

MOMENTS = 8


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> list[kills.Killed]:
    """What recordings left that were killed: in every scale, and at random moments."""
    folder = tmp_path_factory.mktemp("killed")
    delays = random.Random(7)
    left = [kills.kill_at_scale(folder, scale) for scale in range(1, kills.SCALES)]
    return left + [
        kills.kill_at_moment(folder, f"moment-{index}", delays.uniform(0, kills.LONGEST_S)) for index in range(MOMENTS)
    ]


@pytest.fixture(scope="module")
def recovered(killed: list[kills.Killed], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[str]]:
    """(the traces recovered of those, promises that were broken on the way)"""
    folder = tmp_path_factory.mktemp("recovered")
    broken, made = [], []
    for index, one in enumerate(killed):
        path = folder / f"{index}.h5"
        broken += [f"{one.name}: {line}" for line in kills.problems(one, path)]
        made += [path] if path.exists() else []
    return made, broken


def test_all_that_was_committed_is_there_valid_and_recovered(recovered: tuple[list[Path], list[str]]) -> None:
    made, broken = recovered

    assert broken == []
    assert len(made) >= kills.SCALES - 1


def test_the_runs_were_killed_at_every_scale(killed: list[kills.Killed]) -> None:
    assert {one.committed.get("scales_done") for one in killed} >= set(range(1, kills.SCALES))


def test_what_was_recovered_opens_in_netcdf4(recovered: tuple[list[Path], list[str]]) -> None:
    # In a process of its own: it brings another HDF5 than h5py.
    if not kills.has_netcdf(sys.executable):
        pytest.skip("the package netCDF4 is not installed")
    assert kills.netcdf_problems(recovered[0], sys.executable) == []


def test_what_was_recovered_opens_in_h5dump(recovered: tuple[list[Path], list[str]]) -> None:
    program = shutil.which("h5dump")
    if program is None:
        pytest.skip("h5dump is not installed")
    assert kills.h5dump_problems(recovered[0], program) == []
