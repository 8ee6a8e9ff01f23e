from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from heatkv.probe import Capture, NullProbe
from kvscope.control.gate import Gate
from kvscope.control.protocol import Stop
from kvscope.errors import OutputError, RunStopped, UsageError
from kvscope.format import decode_text
from kvscope.job import Job
from kvscope.recorder import Recorder
from kvscope.runner import KeptWeights, _Listeners, run_job
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
    class Breaks(NullProbe):
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
    assert lines[3].startswith(("GPU: ", "no GPU samples: "))
    assert [line.split()[1] for line in lines[4:]] == list("0123456")


def test_measuring_attention_changes_no_bit_and_its_tiers_agree(tmp_path: Path, parent: Path) -> None:
    every_tier = job(attention_mass=True, attention_mass_uncond=True, attention_map="float32")
    measured = run_job(every_tier, tmp_path / "measured.h5")

    with Trace.open(parent) as first, Trace.open(measured.trace) as second:
        assert np.isnan(first.attention_mass).all()
        for scale in range(7):
            np.testing.assert_array_equal(first.bits(scale), second.bits(scale))
        np.testing.assert_array_equal(first.image, measured.image)
        # The sums that the format promises; in bfloat16, mass and maps are measured in float32.
        for mass in (second.attention_mass, second.attention_mass_uncond):
            np.testing.assert_allclose(np.nansum(mass, axis=-1), 1, atol=1e-4)
        cells = np.stack([second.attention_map(6, 2, head) for head in range(6)])
        np.testing.assert_allclose(np.nansum(cells, axis=(2, 3)), second.attention_mass[6, 2], atol=1e-4)


def test_a_probe_that_wants_nothing_measured_turns_nothing_off(tmp_path: Path) -> None:
    class Exact(NullProbe):
        capture = Capture(maps=True)

    fast = job(attention_mass=True, bit_exact=False)
    probes = _Listeners([Recorder(tmp_path / "a.h5", fast), NullProbe()])

    assert probes.capture == fast.capture
    assert _Listeners([probes, Exact()]).capture == Capture(mass=True, maps=True, bit_exact=True)


def test_the_gate_is_told_last_and_a_viewer_can_end_the_run(tmp_path: Path) -> None:
    class Stops(NullProbe):
        def scale_done(self, scale: object) -> None:
            if scale.query_scale == 2:  # type: ignore[attr-defined]
                assert gate.ask(Stop()).kind == "accepted"

    gate = Gate()

    with pytest.raises(RunStopped, match="stopped by a viewer"):
        run_job(job(), tmp_path / "run.h5", gate=gate, progress=Stops(), control_socket="/nowhere/run.sock")

    with Trace.open(tmp_path / "run.h5") as trace:
        assert (trace.status, trace.message) == ("cancelled", "stopped by a viewer")
        assert trace.scales_done == 3
        assert trace.image is None
        assert trace.header.control_socket == "/nowhere/run.sock"
        assert trace.header.run_id == gate.progress.run_id


def test_kept_weights_serve_the_next_job_of_the_same_model_and_no_other(tmp_path: Path) -> None:
    weights, said = KeptWeights(), []

    for number, changes in enumerate(({}, {"seed": 9}, {"dtype": "float32"})):
        run_job(job(**changes), tmp_path / f"{number}.h5", narrate=said.append, load=weights.load)

    loads = [line for line in said if "loaded already" in line or "loading anew" in line]
    assert len(loads) == 2
    assert "loaded already (bfloat16 on cpu)" in loads[0]
    assert "loading anew" in loads[1]
