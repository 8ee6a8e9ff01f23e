"""The Chrome Trace Event file: its shape is what ui.perfetto.dev reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvscope.trace import Trace

Events = list[dict[str, Any]]


@pytest.fixture
def events(tiny_trace: Path, export: Callable[..., Path]) -> Events:
    return json.loads(export(tiny_trace, "perfetto").read_text())["traceEvents"]


def named(events: Events, phase: str, category: str | None = None) -> Events:
    return [event for event in events if event["ph"] == phase and event.get("cat") == category]


def test_every_scale_and_step_is_a_span_and_steps_lie_in_their_scale(events: Events) -> None:
    scales, steps = named(events, "X", "scale"), named(events, "X", "step")

    assert [span["name"] for span in scales] == [f"scale {n} ({n1}x{n1})" for n, n1 in enumerate((1, 2, 3, 4, 6))]
    assert len(steps) == 15
    for step in steps:
        scale = scales[step["args"]["query_scale"]]
        assert scale["ts"] <= step["ts"]
        assert step["ts"] + step["dur"] <= scale["ts"] + scale["dur"] + 0.001  # one nanosecond of rounding


def test_spans_of_one_track_never_overlap_by_half(events: Events) -> None:
    for category in ("scale", "step"):
        for before, after in pairwise(named(events, "X", category)):
            assert before["ts"] + before["dur"] <= after["ts"] + 0.001


def test_times_are_microseconds_from_the_earliest_of_the_trace(tiny_trace: Path, events: Events) -> None:
    with Trace.open(tiny_trace) as trace:
        begin_ns, end_ns = trace.header.created_monotonic_ns, int(trace.steps["end_ns"][-1])

    timed = [event["ts"] for event in events if "ts" in event]
    assert min(timed) >= 0
    last = named(events, "X", "step")[-1]
    assert last["ts"] + last["dur"] == pytest.approx((end_ns - begin_ns) / 1000, abs=0.001)


def test_counters_are_the_bytes_of_every_step_and_memory_that_was_measured(tiny_trace: Path, events: Events) -> None:
    counters: dict[str, list[float]] = {}
    for event in named(events, "C"):
        counters.setdefault(event["name"], []).append(event["args"]["value"])

    with Trace.open(tiny_trace) as trace:
        assert counters["accounted bytes (what the budget counts)"] == trace.steps["accounted_bytes"].tolist()
        assert counters["stored bytes (the cache's pool)"] == trace.steps["storage_bytes"].tolist()
    assert any("RSS" in name for name in counters)
    assert not any("GPU" in name for name in counters)  # there was none: no track, and no zeros


def test_gpu_samples_are_counters(gpu_trace: Path, export: Callable[..., Path]) -> None:
    events = json.loads(export(gpu_trace, "perfetto").read_text())["traceEvents"]

    used = [event["args"]["value"] for event in named(events, "C") if event["name"].startswith("GPU memory in use")]
    with Trace.open(gpu_trace) as trace:
        assert used == trace.gpu["used_bytes"].tolist()


def test_the_real_process_number_is_not_told(events: Events) -> None:
    assert {(event["pid"], event["tid"]) for event in events} == {(1, 1)}
