"""Summaries as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from kvscope.analysis import Summary, summarize
from kvscope.job import Job
from kvscope.plan import plan_job, summarize_plan
from kvscope.recorder import Recorder
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
    as_long = summary_text(replace(summary, **{name: "p" * len(SPELLED)}))
    assert len(text.splitlines()) == len(as_long.splitlines())


@pytest.mark.parametrize("name", ["model", "policy"])
def test_foreign_text_in_a_plan_is_spelled_out(name: str) -> None:
    plan = summarize_plan(plan_job(Job("a prompt", "infinity-2b", "full", resolution="0.06M")))

    assert SPELLED in plan_text(replace(plan, **{name: HOSTILE}))


def test_counts_over_heads_are_head_tokens_with_thousands_marked(summary: Summary) -> None:
    plan = summarize_plan(plan_job(Job("a prompt", "infinity-2b", "full", resolution="0.06M")))

    assert f"{summary.denominator_tokens:,} head-tokens" in " ".join(summary_text(summary).split())
    assert f"{plan.history_tokens:,} head-tokens" in " ".join(plan_text(plan).split())


def test_the_bytes_of_a_scale_are_called_its_peaks(summary: Summary) -> None:
    (titles,) = (line for line in summary_text(summary).splitlines() if "grid" in line)

    assert " ".join(titles.split()) == "scale grid tokens in layers accounted peak stored peak"


def test_a_run_stopped_before_its_first_scale_has_no_number_that_was_not_measured(
    tmp_path: Path, fake_run: ModuleType
) -> None:
    recorder = Recorder(tmp_path / "cancelled.h5", fake_run.fake_job())
    fake_run.run(recorder, scales=0)
    recorder.finish("cancelled", "stopped by the user")

    with Trace.open(recorder.path) as trace:
        text = summary_text(summarize(trace))

    assert "cancelled, 0 of 5 scales (stopped by the user)" in text
    assert "no scale was finished" in text
    assert "full history" in text
    for word in ("measured", "peak", "in layers", "none"):
        assert word not in text.replace("process memory, peak", "")
