from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from heatkv.probe import Capture
from kvscope.errors import OutputError, UsageError
from kvscope.format import decode_text
from kvscope.job import Job
from kvscope.runner import run_job
from kvscope.trace import Trace


def job(**changes: object) -> Job:
    fixed = {"prompt": "a red circle", "model": "infinity-tiny", "policy": "full", "random_weights": True, "seed": 2}
    return Job(**(fixed | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_job(job(), tmp_path_factory.mktemp("parent") / "parent.h5").trace


def test_the_same_job_makes_the_same_picture_bit_for_bit(tmp_path: Path, parent: Path) -> None:
    again = run_job(job(), tmp_path / "again.h5")

    with Trace.open(parent) as first, Trace.open(again.trace) as second:
        assert first.header.run_id != second.header.run_id
        for scale in range(first.scales_done):
            np.testing.assert_array_equal(first.bits(scale), second.bits(scale))
        np.testing.assert_array_equal(first.image, again.image)


def test_a_forced_job_feeds_its_parents_bits_and_is_tagged_so(tmp_path: Path, parent: Path) -> None:
    forced = run_job(job(seed=99, parent=str(parent), mode="forced"), tmp_path / "forced.h5")

    with Trace.open(parent) as first, Trace.open(forced.trace) as second:
        assert second.header.parent_run_id == first.header.run_id
        assert second.header.job.mode == "forced"
        for scale in range(first.scales_done):
            np.testing.assert_array_equal(first.bits(scale), second.bits(scale))
        np.testing.assert_array_equal(first.image, forced.image)


def test_a_free_child_knows_its_parent(tmp_path: Path, parent: Path) -> None:
    child = run_job(job(seed=3, parent=str(parent)), tmp_path / "child.h5")

    with Trace.open(parent) as first, Trace.open(child.trace) as second:
        assert second.header.parent_run_id == first.header.run_id
        assert not np.array_equal(first.bits(6), second.bits(6))


def test_an_existing_output_is_refused_before_weights_are_loaded(parent: Path) -> None:
    said: list[str] = []

    with pytest.raises(OutputError, match="exists"):
        run_job(job(), parent, narrate=said.append)

    assert said == []


def test_weights_that_do_not_exist_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--random-weights"):
        run_job(job(model="infinity-2b", random_weights=False, resolution="0.06M"), tmp_path / "run.h5")

    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_run_closes_the_trace_as_failed(tmp_path: Path) -> None:
    class Breaks:
        capture = Capture()

        def run_started(self, start: object) -> None: ...

        def step_done(self, step: object) -> None: ...

        def scale_done(self, scale: object) -> None:
            raise ValueError("this probe breaks")

    with pytest.raises(ValueError, match="this probe breaks"):
        run_job(job(), tmp_path / "run.h5", progress=Breaks())

    with Trace.open(tmp_path / "run.h5") as trace:
        assert trace.status == "failed"
        assert "this probe breaks" in trace.message


def test_the_log_says_where_weights_came_from_and_when_scales_were_done(parent: Path) -> None:
    with Trace.open(parent) as trace:
        lines = [decode_text(row["text"]) for row in trace.log]

    assert lines[0] == "weights: random; bfloat16 on cpu, 2 rows"
    assert lines[1].startswith("attention: ")
    assert lines[2].startswith("cache: room for ")
    assert [line.split()[1] for line in lines[3:]] == list("0123456")


def test_without_attention_mass_there_is_none_and_the_bits_are_the_same(tmp_path: Path, parent: Path) -> None:
    with_mass = run_job(job(attention_mass=True), tmp_path / "mass.h5")

    with Trace.open(parent) as first, Trace.open(with_mass.trace) as second:
        assert np.isnan(first.attention_mass).all()
        assert np.nansum(second.attention_mass[6, 0, 0]) == pytest.approx(1, abs=1e-3)
        np.testing.assert_array_equal(first.bits(6), second.bits(6))
