"""Replays of a recorded run with the bundled model, and what is estimated beside what is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from heatkv.config import model_config
from heatkv.pipeline import Pipeline
from heatkv.policies.knapsack import KnapsackPolicy
from heatkv.probe import Capture, NullProbe, StepInfo
from heatkv.schedule import PruningSchedule
from kvscope.advisor import mean_mass
from kvscope.draft import Draft, edited, ground_of
from kvscope.edits import Budget, Clear, Drop, Edit, Pin, Policy, Sinks, Target
from kvscope.errors import UsageError
from kvscope.estimate import estimate
from kvscope.plan import plan_job
from kvscope.replay import check_full, designed, kind_of, learnt, measure_of, reference_of, tried
from kvscope.trace import Trace

TRACES = Path(__file__).parents[2] / "traces"
FULL, PRUNED = TRACES / "infinity-tiny-full.h5", TRACES / "infinity-tiny-heatkv-10.h5"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.set_num_threads(1)
    return Pipeline.load(model_config("infinity-tiny"), None)


@pytest.fixture(scope="module")
def full() -> Iterator[Trace]:
    with Trace.open(FULL) as trace:
        yield trace


class Bytes(NullProbe):
    """Notes what is accounted for after every step."""

    capture = Capture()

    def __init__(self) -> None:
        self.accounted: list[int] = []

    def step_done(self, step: StepInfo) -> None:
        self.accounted.append(step.accounted_bytes)


def measured_bytes(pipeline: Pipeline, schedule: PruningSchedule) -> NDArray[np.int64]:
    probe = Bytes()
    pipeline.generate(["a red circle at the left on a white background"], schedule=schedule, seed=0, probe=probe)
    return np.array(probe.accounted)


def random_edit(generator: np.random.Generator) -> Edit:
    def span(length: int) -> tuple[int, int] | None:
        first, last = sorted(int(value) for value in generator.integers(0, length, 2))
        return None if generator.random() < 0.2 else (first, last)

    target = Target(span(6), span(6), span(7))
    choices: list[Edit] = [
        Budget(fraction=float(generator.uniform(0.05, 0.6))),
        Budget(tokens=int(generator.integers(8, 100))),
        Sinks(int(generator.integers(0, 4))),
        Policy("heatkv"),
        Policy(None),
        Drop(target, int(generator.integers(0, 7))),
        Drop(target),
        Pin(target),
        Clear(target),
    ]
    return choices[int(generator.integers(len(choices)))]


def random_draft(trace: Trace, *, seed: int) -> Draft:
    generator = np.random.default_rng(seed)
    draft = Draft.of(trace.schedule, ground_of(trace.header))
    for _ in range(8):
        try:
            draft = edited(draft, random_edit(generator))
        except UsageError:  # only sinks, or the last scale, were meant
            continue
    return draft


@pytest.mark.parametrize("seed", range(16))
def test_estimated_bytes_are_the_measured_ones_at_every_step_of_a_random_draft(
    full: Trace, pipeline: Pipeline, seed: int
) -> None:
    schedule = random_draft(full, seed=seed).schedule

    guess = estimate(full, schedule)

    np.testing.assert_array_equal(guess.held_bytes, measured_bytes(pipeline, schedule))


@pytest.mark.parametrize("budget", [0.02, 0.1, 0.5])
def test_estimated_bytes_are_the_measured_ones_of_the_advisors_plans_too(
    full: Trace, pipeline: Pipeline, budget: float
) -> None:
    ground = ground_of(full.header)
    policy = KnapsackPolicy.of_mass(mean_mass([full.attention_mass]))
    schedule = policy.plan(ground.config, ground.scales, budget=budget, sink_scales=0)

    np.testing.assert_array_equal(estimate(full, schedule).held_bytes, measured_bytes(pipeline, schedule))


def test_a_recorded_run_is_repeated_at_its_own_bits(full: Trace, pipeline: Pipeline) -> None:
    reference = reference_of(full, pipeline)

    assert all((full.bits(scale) == bits.numpy()).all() for scale, bits in enumerate(reference.bits))
    assert reference.plan == full.schedule


def test_what_keeps_everything_loses_nothing_and_is_off_by_nothing(full: Trace, pipeline: Pipeline) -> None:
    (one,) = tried(full, pipeline, [full.schedule])

    assert (one.lost, one.kl, one.flips) == (0, 0, 0)


def test_a_negative_prompt_and_no_guidance_are_repeated_as_they_were(pipeline: Pipeline, tmp_path: Path) -> None:
    from kvscope.job import Job
    from kvscope.runner import run_job

    base = Job("a red circle at the left on a white background", "infinity-tiny", "full", seed=4, attention_mass=True)
    jobs = {
        "negative": replace(base, negative_prompt="a blue square at the top on a gray background"),
        "unguided": replace(base, cfg=1.0),
    }
    for name, job in jobs.items():
        made = run_job(job, tmp_path / f"{name}.h5", load=lambda *_, **__: pipeline)
        with Trace.open(made.trace) as trace:
            ground = ground_of(trace.header)
            same, pruned = tried(trace, pipeline, [trace.schedule, random_draft(trace, seed=1).schedule])
            assert (same.kl, same.flips) == (0, 0), name
            assert pruned.kl > 0, name
            assert pruned.peak_bytes <= ground.bytes_per_token * trace.schedule.peak_tokens


def test_only_a_forced_job_measures_beside_the_rest(full: Trace, pipeline: Pipeline) -> None:
    assert measure_of(full.header.job, pipeline, plan_job(full.header.job)) is None


def test_designed_schedules_are_as_many_as_asked_of_three_kinds_and_repeatable(full: Trace) -> None:
    ground, mass = ground_of(full.header), mean_mass([full.attention_mass])

    first, again = (designed(ground, mass, count=21, seed=5) for _ in range(2))
    other = designed(ground, mass, count=21, seed=6)

    assert [one.policy for one in first] == ["heatkv"] * 7 + ["knapsack"] * 7 + ["random"] * 7
    assert [one.content_hash for one in first] == [one.content_hash for one in again]
    assert first[-1].content_hash != other[-1].content_hash


def test_without_orders_the_rest_is_random(full: Trace) -> None:
    ground = replace(ground_of(full.header), orders=None)

    found = designed(ground, mean_mass([full.attention_mass]), count=9, seed=0)

    assert [one.policy for one in found] == ["knapsack"] * 3 + ["random"] * 6


def test_learning_tries_every_schedule_on_every_run(pipeline: Pipeline) -> None:
    found = learnt([FULL, FULL], pipeline, count=8, seed=0)

    assert [trial.prompt for trial in found.trials] == [0] * 8 + [1] * 8
    assert all(trial.kl > 0 for trial in found.trials if trial.lost > 0)
    assert all(float(f"{trial.lost:.6g}") == trial.lost for trial in found.trials)


def test_a_pruned_run_teaches_nothing(full: Trace) -> None:
    check_full(full)
    with Trace.open(PRUNED) as pruned, pytest.raises(UsageError, match="learning needs runs of policy full"):
        check_full(pruned)
    with pytest.raises(UsageError, match="no trace to learn from"):
        kind_of([])


def test_an_unfinished_run_cannot_be_forced(pipeline: Pipeline, live_trace: Path) -> None:
    with Trace.open(live_trace) as trace, pytest.raises(UsageError, match=r"holds 3 scales; forcing bits needs a fini"):
        reference_of(trace, pipeline)
