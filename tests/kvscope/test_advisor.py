from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from heatkv.errors import OptionError, UnknownNameError
from heatkv.policies.full import FullPolicy
from kvscope.advisor import DROPPED, Evidence, candidates, error_of, for_bytes, for_loss, mean_mass
from kvscope.draft import ground_of, measured_by
from kvscope.errors import UsageError
from kvscope.trace import Trace

TRACES = Path(__file__).parents[2] / "traces"
TRACE, CALIBRATION = TRACES / "infinity-tiny-full.h5", TRACES / "infinity-tiny-scas.h5"


@pytest.fixture(scope="module")
def evidence() -> Iterator[Evidence]:
    with Trace.open(TRACE) as trace:
        yield Evidence(ground_of(trace.header), mean_mass([trace.attention_mass]), (trace,))


@pytest.fixture(scope="module")
def calibrated(evidence: Evidence) -> Evidence:
    """With what a calibration has measured of attention's output."""
    ground = evidence.ground
    return replace(
        evidence, ground=replace(ground, measurements=measured_by(CALIBRATION, ground.config, ground.scales, None))
    )


def test_every_candidate_keeps_to_the_bytes_and_the_least_loss_comes_first(evidence: Evidence) -> None:
    found = for_bytes(evidence, 120_000)

    assert all(one.peak_bytes <= 120_000 for one in found)
    assert [one.lost for one in found] == sorted(one.lost for one in found if one.lost is not None)
    assert "heatkv" in [one.name for one in found]


def test_candidates_of_every_weighting_differ_and_say_how_they_were_made(evidence: Evidence) -> None:
    found = [one for one in for_bytes(evidence, 120_000) if one.name.startswith("knapsack")]

    early = [one for one in found if "early scales first" in one.name]
    assert 0 < len(early) < len(found)
    late = [
        one.schedule.provenance["parameters"]["late"]
        for one in (early[0], next(one for one in found if one not in early))
    ]
    assert late == [-0.5, 1.0]


def test_for_no_bytes_at_all_nothing_is_kept(evidence: Evidence) -> None:
    assert [one.peak_bytes for one in for_bytes(evidence, 0)] == [0]


def test_for_a_loss_every_candidate_keeps_to_it_with_few_bytes(evidence: Evidence) -> None:
    strict, loose = for_loss(evidence, 0.02), for_loss(evidence, 0.2)

    assert all(one.lost is not None and one.lost <= 0.02 for one in strict)
    assert loose[0].peak_bytes < strict[0].peak_bytes
    assert [one.peak_bytes for one in strict] == sorted(one.peak_bytes for one in strict)


def test_a_loss_that_is_no_share_is_refused(evidence: Evidence) -> None:
    with pytest.raises(UsageError, match="a share of attention from 0 to below 1"):
        for_loss(evidence, 2)


def test_the_same_schedule_by_two_ways_is_one_candidate(evidence: Evidence) -> None:
    hashes = [one.schedule.content_hash for one in candidates(evidence, 1.0)]

    assert len(hashes) == len(set(hashes))


def test_mean_mass_takes_what_was_never_measured_as_none(evidence: Evidence) -> None:
    (run,) = evidence.runs
    mean = mean_mass([run.attention_mass, run.attention_mass * 3])

    assert mean[6, 0, 0, 0] == pytest.approx(2 * run.attention_mass[6, 0, 0, 0])
    assert mean[0, 0, 0, 5] == 0
    with pytest.raises(UsageError, match="no attention mass"):
        mean_mass([])


def test_nothing_lost_is_what_keeping_everything_loses(evidence: Evidence) -> None:
    ground = evidence.ground
    full = replace(FullPolicy().plan(ground.config, ground.scales))

    assert evidence.candidate("full", full).lost == 0


def test_plans_in_codecs_keep_to_the_bytes_held_and_allocated(calibrated: Evidence) -> None:
    ground = calibrated.ground
    found = for_bytes(calibrated, 120_000, ["k4v2", "int8+int4"])

    coded = {one.name.rpartition(", in ")[2]: one for one in found if one.schedule.codecs}
    assert coded.keys() == {"k4v2", "int8+int4"}
    for one in coded.values():
        assert one.schedule.capacity_bytes(ground.config.head_dim, rows=2, dtype_bytes=2) <= 120_000
        assert one.peak_bytes == ground.peak_bytes(one.schedule)


def test_with_a_calibration_the_least_estimated_output_error_comes_first(calibrated: Evidence) -> None:
    found = for_bytes(calibrated, 120_000, ["int4"])

    errors = [one.output_error for one in found if one.output_error is not None]
    assert len(errors) == len(found)
    assert errors == sorted(errors)
    assert found[0].schedule.codecs == ("model", "int4")
    assert error_of(found[0]) == errors[0]


def test_an_estimated_loss_that_is_mostly_noise_is_unknown(evidence: Evidence) -> None:
    by_codec = {one.schedule.codecs: one for one in for_bytes(evidence, 240_000, ["int8", "k4v2"])}

    assert by_codec["model", "int8"].lost is not None
    assert by_codec["model", "k4v2"].lost is None
    assert error_of(by_codec["model", "k4v2"]) == float("inf")


def test_by_attention_alone_the_best_in_each_codec_comes_first(evidence: Evidence) -> None:
    found = for_bytes(evidence, 240_000, ["int8", "k4v2"])

    assert {one.schedule.codecs for one in found[:3]} == {(), ("model", "int8"), ("model", "k4v2")}


def test_for_a_loss_what_is_unknown_comes_last(evidence: Evidence) -> None:
    found = for_loss(evidence, 0.01, ["int8", "k4v2"])

    known = [one.lost is not None for one in found]
    assert known == sorted(known, reverse=True)
    assert found[0].schedule.codecs == ("model", "int8")
    assert not known[-1]


def test_the_parts_of_a_plan_are_all_that_it_holds_at_its_peak(calibrated: Evidence) -> None:
    (one, *_) = for_bytes(calibrated, 120_000, ["int8+k4v2"])

    held = {part.name: part for part in one.parts if part.name != DROPPED}
    assert sum(part.num_bytes for part in held.values()) == one.peak_bytes
    assert held["int8"].head_scales > 0
    assert held["k4v2"].num_bytes > 0
    assert one.to_json()["at_peak"][DROPPED]["head_scales"] > 0


@pytest.mark.parametrize(("text", "error"), [("int5", UnknownNameError), ("int4+int8", OptionError)])
def test_what_is_no_choice_of_codecs_is_refused(evidence: Evidence, text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        for_bytes(evidence, 120_000, [text])
