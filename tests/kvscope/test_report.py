"""Summaries as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvscope.analysis import Summary, summarize
from kvscope.job import Job
from kvscope.plan import plan_job, summarize_plan
from kvscope.report import plan_text, summary_text
from kvscope.trace import Trace

HOSTILE = "A\x1b]0;PWNED\x07\nB\r\u202eC"
SPELLED = r"A\x1b]0;PWNED\x07\nB\r\u202eC"


@pytest.fixture
def summary(tiny_trace: Path) -> Summary:
    with Trace.open(tiny_trace) as trace:
        return summarize(trace)


@pytest.mark.parametrize("name", ["trace", "message", "model", "policy", "resolution", "device", "gpu_unavailable"])
def test_foreign_text_in_a_summary_is_spelled_out(summary: Summary, name: str) -> None:
    text = summary_text(replace(summary, **{name: HOSTILE}))

    assert SPELLED in text
    assert len(text.splitlines()) == len(summary_text(replace(summary, **{name: "plain"})).splitlines())


@pytest.mark.parametrize("name", ["model", "policy"])
def test_foreign_text_in_a_plan_is_spelled_out(name: str) -> None:
    plan = summarize_plan(plan_job(Job("a prompt", "infinity-2b", "full", resolution="0.06M")))

    assert SPELLED in plan_text(replace(plan, **{name: HOSTILE}))
