"""What may be told of a trace."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kvscope.analysis import summarize
from kvscope.format import RECORDING_STOPPED, Reason
from kvscope.header import Header
from kvscope.job import Job
from kvscope.redact import _KEPT_HEADER, _KEPT_JOB, REDACTED, _gpu_words, _keeping, _message, facts_of
from kvscope.trace import CRASHED_MESSAGE, Trace


def test_what_identifies_is_replaced_and_what_compares_stays(tiny_trace: Path) -> None:
    with Trace.open(tiny_trace) as trace:
        facts = facts_of(trace, summarize(trace), redact=True)

        assert facts.header["pid"] == REDACTED
        assert facts.header["job"]["prompt"] == REDACTED
        assert facts.header["job"]["negative_prompt"] is None  # there was none
        assert facts.header["run_id"] == trace.header.run_id
        assert facts.header["job"]["budget"] == trace.header.job.budget
        assert facts.schedule["provenance"] == {"by": REDACTED}
        assert facts.summary.trace == REDACTED
        assert facts.summary.storage_peak_bytes == summarize(trace).storage_peak_bytes
    assert facts.removed == ("prompt", "pid", "where the schedule came from", "file name", "1 log line")


def test_unredacted_facts_are_the_traces_own(tiny_trace: Path) -> None:
    with Trace.open(tiny_trace) as trace:
        facts = facts_of(trace, summarize(trace), redact=False)

        assert facts.header["job"] == trace.header.job.to_json()
        assert facts.summary == summarize(trace)
        assert [line.text for line in facts.log] == ["a fake run"]
    assert facts.removed == ()


def test_every_name_that_is_kept_exists() -> None:
    assert {field.name for field in dataclasses.fields(Header)} >= _KEPT_HEADER
    assert {field.name for field in dataclasses.fields(Job)} >= _KEPT_JOB


def test_what_a_later_version_records_is_taken_out_until_it_is_known() -> None:
    removed: list[str] = []

    assert _keeping({"model": "m", "new_secret": "x"}, _KEPT_JOB, removed) == {"model": "m", "new_secret": REDACTED}
    assert removed == ["new secret"]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("", ""),
        ("stopped by the user", "stopped by the user"),
        (CRASHED_MESSAGE, CRASHED_MESSAGE),
        ("OutOfMemoryError: on /home/me", f"OutOfMemoryError: {REDACTED}"),
        (f"{RECORDING_STOPPED}/home/me is full", RECORDING_STOPPED + REDACTED),
        ("anything: else", REDACTED),
        ("a prompt", REDACTED),
    ],
)
def test_of_a_message_only_our_own_words_stay(message: str, told: str) -> None:
    assert _message(message) == told


def test_of_a_missing_gpu_only_the_reason_stays() -> None:
    removed: list[str] = []

    text = f"{Reason.WRONG_MODULE.text} (/home/me/pynvml.py)"

    assert _gpu_words(text, removed) == Reason.WRONG_MODULE.text
    assert removed == ["details of why there are no GPU samples"]
    assert _gpu_words("this run had no GPU sampler", []) == "this run had no GPU sampler"
    assert _gpu_words("/home/me", []) == REDACTED
    assert _gpu_words(None, []) is None
