"""The one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvscope.trace import Trace


def test_it_holds_rows_facts_and_plan_but_no_large_array(tiny_trace: Path, export: Callable[..., Path]) -> None:
    record = json.loads(export(tiny_trace, "json").read_text())

    assert (record["format"], record["version"]) == ("kvscope.export", 1)
    assert record["header"]["job"]["policy"] == "heatkv"
    assert record["units"]["steps"]["begin_ns"] == "ns"
    assert len(record["steps"]) == 15
    assert record["steps"][0]["device_ns"] is None
    assert record["log"][0] | {"t_ns": 0} == {"t_ns": 0, "level": "info", "text": "[redacted]"}
    assert "arrays" not in record
    with Trace.open(tiny_trace) as trace:
        assert record["schedule"]["drop_step"] == trace.schedule.drop_step.tolist()


def test_with_arrays_it_holds_what_the_trace_holds(tiny_trace: Path, export: Callable[..., Path]) -> None:
    record = json.loads(export(tiny_trace, "json", arrays=True).read_text())

    with Trace.open(tiny_trace) as trace:
        assert record["arrays"]["kept_tokens"]["values"] == trace.kept_tokens.tolist()
        mass = np.array(record["arrays"]["attention_mass"]["values"], np.float32)  # null becomes NaN
        np.testing.assert_array_equal(mass, trace.attention_mass)
    assert record["arrays"]["kept_tokens"]["axes"] == ["query_scale", "layer", "head", "source_scale"]


def test_with_arrays_it_holds_attention_maps_decoded(maps_trace: Path, export: Callable[..., Path]) -> None:
    record = json.loads(export(maps_trace, "json", arrays=True).read_text())

    values = np.array(record["arrays"]["attention_map"]["values"], np.float32)
    with Trace.open(maps_trace) as trace:
        np.testing.assert_array_equal(values[4, 2, 1], trace.attention_map(4, 2, 1))


@pytest.mark.parametrize("arrays", [False, True])
def test_a_live_trace_is_whole_json(live_trace: Path, export: Callable[..., Path], arrays: bool) -> None:
    record = json.loads(export(live_trace, "json", arrays=arrays).read_text())

    assert record["summary"]["status"] == "live"
    assert record["summary"]["scales_done"] == 3
