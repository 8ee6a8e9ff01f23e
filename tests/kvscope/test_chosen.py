"""A trace of an online policy keeps its rules, and each rule that is broken alone is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from kvscope.findings import Finding
from kvscope.job import Job
from kvscope.runner import run_job
from kvscope.trace import Trace
from kvscope.validate import validate

TRACE = Path(__file__).parents[2] / "traces" / "infinity-tiny-snapkv-10.h5"

Edit = Callable[[h5py.File], None]


@pytest.fixture(scope="module")
def every_tier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run with maps, and with the unconditional rows, which keep other tokens than the first."""
    path = tmp_path_factory.mktemp("traces") / "tiers.h5"
    tiers = {"attention_mass": True, "attention_mass_uncond": True, "attention_map": "uint8"}
    run_job(Job("a red circle", "infinity-tiny", "snapkv:window=4", budget=0.1, **tiers), path)  # type: ignore[arg-type]
    return path


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[Edit], list[Finding]]:
    """Validates a copy of the bundled trace, damaged as told."""

    def damage(edit: Edit) -> list[Finding]:
        path = Path(shutil.copy(TRACE, tmp_path / "damaged.h5"))
        with h5py.File(path, "r+") as file:
            edit(file)
        return validate(path)

    return damage


def added(table: str, place: tuple[int, ...], by: int) -> Edit:
    """Add to a value of an array."""

    def edit(file: h5py.File) -> None:
        file[table][place] = int(file[table][place]) + by

    return edit


def test_a_recorded_run_is_clean() -> None:
    assert validate(TRACE) == []


def test_every_tier_of_a_recorded_run_is_clean(every_tier: Path) -> None:
    assert validate(every_tier) == []


def test_unconditional_rows_are_measured_where_they_themselves_see(every_tier: Path) -> None:
    with Trace.open(every_tier) as trace:
        mass, first_row = trace.attention_mass_uncond, trace.read_tokens > 0

    np.testing.assert_allclose(np.nansum(mass, axis=-1), 1, atol=1e-3)  # computed in 16 bits
    assert (~np.isnan(mass) != first_row).any()


def test_a_map_has_a_cell_for_each_token_that_was_read(every_tier: Path) -> None:
    with Trace.open(every_tier) as trace:
        for query_scale, layer, head in np.ndindex(trace.read_tokens.shape[:3]):
            cells = ~np.isnan(trace.attention_map(query_scale, layer, head))

            assert cells.sum(axis=(1, 2)).tolist() == trace.read_tokens[query_scale, layer, head].tolist()


# At the places told: what is broken, and what validation says of it.
@pytest.mark.parametrize(
    ("edit", "where", "expected"),
    [
        (added("kept_tokens", (5, 1, 2, 0), -1), "kept_tokens of scale 5[1, 2, 0]", "1: sinks stay"),
        (added("kept_tokens", (4, 1, 2, 4), 1), "kept_tokens of all heads[4, 1]", "78: as many as the plan lets stay"),
        (added("read_tokens", (5, 0, 0, 5), -1), "read_tokens[5, 0, 0, 5]", "64: kept one scale before"),
        (added("kept_tokens", (6, 3, 3, 3), 90), "kept_tokens[6, 3, 3, 3]", "1 at most: what attention read"),
    ],
    ids=["a sink is gone", "one too many", "not all of the current scale", "out of nothing"],
)
def test_tokens_that_no_choice_explains_are_found(
    damaged: Callable[[Edit], list[Finding]], edit: Edit, where: str, expected: str
) -> None:
    found = {finding.where: finding.expected for finding in damaged(edit)}

    assert expected in found[where]


def test_bytes_that_are_not_the_kept_tokens_are_found(damaged: Callable[[Edit], list[Finding]]) -> None:
    def edit(file: h5py.File) -> None:
        rows = file["steps"][...]
        rows["accounted_bytes"][20] += 256
        rows["evicted_tokens"][30] -= 1
        file["steps"][...] = rows

    found = {finding.where for finding in damaged(edit)}

    assert {"steps.accounted_bytes[20]", "steps.evicted_tokens[30]", "steps.accounted_bytes"} <= found


def test_a_pool_smaller_than_the_peak_is_found(damaged: Callable[[Edit], list[Finding]]) -> None:
    found = damaged(lambda file: file.attrs.__setitem__("capacity_tokens", 467))

    assert Finding("header key capacity_tokens", "467", "468 or more: the plan's peak") in found


def test_attention_to_what_nobody_read_is_found(damaged: Callable[[Edit], list[Finding]]) -> None:
    with Trace.open(TRACE) as trace:
        place = tuple(int(index) for index in np.argwhere(trace.read_tokens[6] == 0)[0])

    found = damaged(lambda file: file["attention_mass"].__setitem__((6, *place), 0.5))

    assert any(finding.where.startswith("attention_mass is measured[6") for finding in found)


def test_a_schedule_that_says_impossible_numbers_of_tokens_is_damage(tmp_path: Path) -> None:
    path = Path(shutil.copy(TRACE, tmp_path / "damaged.h5"))
    with h5py.File(path, "r+") as file:
        record = json.loads(bytes(file.attrs["schedule"]))
        record["layer_tokens"][3][2] = 10_000
        file.attrs["schedule"] = np.bytes_(json.dumps(record).encode())

    with pytest.raises(Exception, match="layer_tokens of shape"):
        Trace.open(path)
