from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from heatkv.policies.full import FullPolicy
from kvscope.advisor import Candidate, Evidence, advice, candidates, for_bytes, for_loss, mean_mass, pareto, verified
from kvscope.draft import ground_of
from kvscope.errors import UsageError
from kvscope.trace import Trace

TRACE = Path(__file__).parents[2] / "traces" / "infinity-tiny-full.h5"


@pytest.fixture(scope="module")
def evidence() -> Iterator[Evidence]:
    with Trace.open(TRACE) as trace:
        yield Evidence(ground_of(trace.header), mean_mass([trace.attention_mass]), (trace,))


def candidate(name: str, peak_bytes: int, lost: float, kl: float | None = None) -> Candidate:
    with Trace.open(TRACE) as trace:
        schedule = trace.schedule
    return Candidate(name, schedule, peak_bytes, lost, kl, kl)


def test_every_candidate_keeps_to_the_bytes_and_the_least_loss_comes_first(evidence: Evidence) -> None:
    found = for_bytes(evidence, 120_000)

    assert all(one.peak_bytes <= 120_000 for one in found)
    assert [one.lost for one in found] == sorted(one.lost for one in found)
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

    assert all(one.lost <= 0.02 for one in strict)
    assert loose[0].peak_bytes < strict[0].peak_bytes
    assert [one.peak_bytes for one in strict] == sorted(one.peak_bytes for one in strict)


def test_a_loss_that_is_no_share_is_refused(evidence: Evidence) -> None:
    with pytest.raises(UsageError, match="a share of attention from 0 to 1"):
        for_loss(evidence, 2)


def test_the_same_schedule_by_two_ways_is_one_candidate(evidence: Evidence) -> None:
    hashes = [one.schedule.content_hash for one in candidates(evidence, 1.0)]

    assert len(hashes) == len(set(hashes))


def test_the_front_has_what_none_beats_in_bytes_and_error() -> None:
    small, large = candidate("small", 10, 0.5), candidate("large", 30, 0.1)
    worse = candidate("worse", 20, 0.6)

    assert [one.name for one in pareto([large, worse, small])] == ["small", "large"]


def test_what_was_verified_is_preferred_and_compared_by_what_was_measured() -> None:
    guess = candidate("guess", 10, 0.01)
    first, second = candidate("first", 10, 0.1, kl=0.5), candidate("second", 12, 0.2, kl=0.3)

    assert advice([guess, first, second], by_bytes=True).chosen.name == "second"
    assert advice([guess, first, second], by_bytes=False).chosen.name == "first"
    assert advice([guess], by_bytes=True).chosen.name == "guess"


def test_the_words_say_what_it_takes_and_how_it_differs_from_heatkv(evidence: Evidence) -> None:
    found = for_bytes(evidence, 120_000)
    tried = [verified(one, [0.1 if "knapsack" in one.name else 0.2], [0.01]) for one in found]
    words = advice(tried, by_bytes=True).words

    assert "attention lost (est.), forced KL 0.1" in words[0]
    assert "against heatkv: KL -50.0% at" in words[1]
    assert "head-scales to the end, heatkv" in words[2]


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
