"""Job: plain data, JSON in and out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from heatkv.probe import Capture
from kvscope.errors import UsageError
from kvscope.job import Job

JOB = Job("ein Kätzchen", "infinity-2b", "heatkv", seed=7, budget=0.1, orders="orders.json", sink_scales=3)


def test_a_job_survives_json() -> None:
    assert Job.from_json(json.loads(json.dumps(JOB.to_json()))) == JOB


def test_keys_of_later_versions_are_ignored() -> None:
    assert Job.from_json(JOB.to_json() | {"sampler": "new"}) == JOB


@pytest.mark.parametrize("record", [{}, {"prompt": "x"}, []])
def test_a_record_that_is_no_job_says_what_a_job_needs(record: object) -> None:
    with pytest.raises(UsageError, match="prompt, model and policy"):
        Job.from_json(record)  # type: ignore[arg-type]


def test_nothing_is_measured_of_attention_unless_wanted() -> None:
    assert not JOB.capture.any
    assert JOB.tiers == ("occupancy",)


def test_a_job_says_what_its_run_measures_and_its_trace_holds() -> None:
    job = replace(JOB, attention_mass=True, attention_mass_uncond=True, attention_map="float32", bit_exact=False)

    assert job.capture == Capture(mass=True, unconditional=True, maps=True, bit_exact=False)
    assert job.tiers == ("occupancy", "mass", "mass_uncond", "maps")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "fast"}, "free, forced"),
        ({"mode": "forced"}, "parent"),
        ({"budget": 1.5}, "expected 0 to 1"),
        ({"budget": float("nan")}, "expected 0 to 1"),
        ({"aspect": 0.0}, "above 0"),
        ({"attention_map": "float16"}, "uint8, float32"),
        ({"attention_map": True}, "uint8, float32"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Job.from_json(JOB.to_json() | changes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompt", 5),
        ("model", None),
        ("seed", 1.5),
        ("seed", True),
        ("budget", "0.2"),
        ("cfg", 1 << 70),
        ("schedule", 1.5),
        ("orders", ["a.json"]),
        ("attention_mass", 1),
        ("attention_map", [[]]),
    ],
)
def test_a_value_of_another_type_is_refused_in_one_line(key: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        Job.from_json(JOB.to_json() | {key: value})
    assert "\n" not in str(caught.value)


def test_a_whole_number_is_a_number() -> None:
    assert Job.from_json(JOB.to_json() | {"cfg": 4, "budget": 1}) == replace(JOB, cfg=4.0, budget=1.0)
