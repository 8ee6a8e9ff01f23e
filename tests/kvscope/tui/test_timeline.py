from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvscope.analysis import StepPlace
from kvscope.recorder import Recorder
from kvscope.trace import Trace
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.palette import DARK, ink
from kvscope.tui.screens.time import TimeScreen
from kvscope.tui.timeline import (
    By,
    across,
    byte_axis,
    clock_ticks,
    columns_of,
    machine_samples,
    sampled_in_steps,
    series_of,
    stretch,
)
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Painter
from kvscope.tui.widgets.readout import readout, readout_height
from kvscope.tui.widgets.timeline import bytes_chart, machine_chart, timeline_hit, work_chart
from kvscope.tui.write import records_text

CHARTS: dict[str, Painter] = {"bytes": bytes_chart, "machine": machine_chart, "work": work_chart, "readout": readout}
BOTH: tuple[By, ...] = ("steps", "time")
SIZES = ((80, 24), (120, 40), (160, 48), (220, 50))


def snapshot_of(path: Path) -> Snapshot:
    with Trace.open(path) as trace:
        return take_snapshot(path, trace, None)


@pytest.fixture(scope="module")
def wide(wide_trace: Path) -> Snapshot:
    """32 layers of 7 scales: more steps than an 80 column terminal has half-columns."""
    return snapshot_of(wide_trace)


@pytest.fixture(scope="module")
def gpu(gpu_trace: Path) -> Snapshot:
    return snapshot_of(gpu_trace)


@pytest.fixture
def empty(empty_trace: Path) -> Snapshot:
    return snapshot_of(empty_trace)


@pytest.fixture
def still_empty(tmp_path: Path, fake_run: ModuleType) -> Iterator[Snapshot]:
    """A live run before its first scale."""
    with Recorder(tmp_path / "new.h5", fake_run.fake_job()) as recorder:
        recorder.run_started(fake_run.fake_start())
        yield snapshot_of(recorder.path)


def view_of(snapshot: Snapshot | None, by: By = "steps", **changes: object) -> View:
    view = View(ink(DARK), snapshot=snapshot, **changes)  # type: ignore[arg-type]
    return view if by == "steps" else view.chosen("axis", 1)


def text_of(paint: Painter, view: View, width: int = 80, height: int = 10) -> str:
    return "\n".join(strip.text for strip in paint(view, width, height))


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("columns", [1, 4, 15, 68, 107, 208])
def test_no_width_and_no_axis_loses_the_peak(wide: Snapshot, columns: int, by: By) -> None:
    drawn = columns_of(wide, columns, None, by)

    assert np.nanmax(drawn.accounted) == wide.summary.accounted_peak_bytes
    assert np.nanmax(drawn.freed) == wide.steps["evicted_tokens"].max()
    assert np.nanmax(drawn.step_ns) == (wide.steps["end_ns"] - wide.steps["begin_ns"]).max()


@pytest.mark.parametrize("by", BOTH)
@given(columns=st.integers(1, 220), data=st.data())
def test_every_step_of_a_window_is_in_some_half_column(
    wide: Snapshot, by: By, columns: int, data: st.DataObject
) -> None:
    begin = data.draw(st.integers(0, 223))
    end = data.draw(st.integers(begin + 1, 224))

    x = across(wide, columns, (begin, end), by)

    assert x.shown == range(begin, end)
    assert all(x.halves_of(step) for step in x.shown)


def test_what_has_run_is_measured_and_the_rest_is_planned(live_snapshot: Snapshot) -> None:
    drawn = columns_of(live_snapshot, 15, None, "steps")

    assert np.isfinite(drawn.accounted).sum() == 2 * 9
    np.testing.assert_array_equal(drawn.planned[:18], drawn.accounted[:18])
    assert (drawn.planned[18:] > 0).all()


def test_by_time_the_cache_is_held_where_no_step_ran(wide: Snapshot) -> None:
    window = (0, 32)
    x, drawn = across(wide, 600, window, "time"), columns_of(wide, 600, window, "time")

    assert x.between.any()
    np.testing.assert_array_equal(np.isfinite(drawn.held), x.between)
    assert np.isnan(drawn.step_ns[x.between]).all()
    np.testing.assert_array_equal(drawn.held[x.between], wide.steps["accounted_bytes"][x.held[x.between]])


def test_by_time_a_step_takes_its_share_of_the_columns(wide: Snapshot) -> None:
    x = across(wide, 600, (0, 10), "time")

    # A step lasts 0.9 ms of the 1 ms between two begins; one half-column more or less is rounding.
    assert {len(x.halves_of(step)) for step in range(10)} <= {109, 110, 111}
    assert x.end_ns == 9_900_000


def test_by_time_there_is_nothing_of_a_window_that_has_not_run(live_snapshot: Snapshot) -> None:
    view = view_of(live_snapshot, "time", window=(9, 15))

    assert not across(live_snapshot, 68, (9, 15), "time").shown
    assert "none of these steps has run yet" in text_of(bytes_chart, view)
    assert "none of these steps has run yet" in text_of(work_chart, view)
    assert timeline_hit(view, 80, 10, 40, 3) is None


@given(most=st.floats(1, 2**50), rows=st.integers(1, 60))
def test_the_axis_of_bytes_holds_all_with_ticks_at_powers_of_two(most: float, rows: int) -> None:
    axis = byte_axis(most, rows)
    found = [tick for y in range(rows) if (tick := axis.tick(y)) is not None]

    assert axis.top >= most * (1 - 1e-12)
    assert axis.top <= 2 * most or rows < 3
    assert found
    assert np.log2(min(found)) == pytest.approx(round(np.log2(min(found))))


def test_ticks_of_time_are_round_and_few(wide: Snapshot) -> None:
    x = across(wide, 68, None, "time")

    assert clock_ticks(x, most=5) == [0, 50e6, 100e6, 150e6, 200e6]


def test_a_range_has_its_own_peak_and_sums(wide: Snapshot) -> None:
    part = stretch(wide, Cursor(3, 31), Cursor(3, 0))
    steps = wide.steps[96:128]

    assert (part.first, part.last) == (96, 127)
    assert part.peak_bytes == steps["accounted_bytes"].max()
    assert part.peak_place == StepPlace(3, int(steps["accounted_bytes"].argmax()))
    assert part.freed_tokens == steps["evicted_tokens"].sum()
    assert part.seconds == pytest.approx(31.9e-3)
    assert part.layer_seconds == pytest.approx(32 * 0.9e-3)


def test_a_range_that_has_not_run_has_no_numbers(live_snapshot: Snapshot) -> None:
    assert stretch(live_snapshot, Cursor(3, 0), Cursor(4, 2)).peak_bytes is None
    view = view_of(live_snapshot, cursor=Cursor(4, 2), span=Cursor(3, 0))
    assert "none of them has run yet" in text_of(readout, view)


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("columns", [3, 68, 208])
def test_no_sample_of_the_machine_while_it_ran_is_lost(gpu: Snapshot, columns: int, by: By) -> None:
    lines = {line.name: line for line in machine_samples(gpu, columns, None, by)}

    assert lines["GPU used"].bounds[1] == gpu.summary.gpu_used_peak_bytes
    assert lines["process RSS"].bounds[1] == gpu.summary.process_rss_peak_bytes
    for line in lines.values():
        assert not (np.isfinite(line.sampled) & np.isfinite(line.held)).any()


def test_memory_of_the_machine_ends_where_the_run_is(live_snapshot: Snapshot) -> None:
    (line,) = machine_samples(live_snapshot, 15, None, "steps")

    drawn = np.isfinite(line.sampled) | np.isfinite(line.held)
    assert drawn.tolist() == [True] * 18 + [False] * 12


def test_samples_belong_to_the_step_after_whose_begin_they_were_taken(tiny_snapshot: Snapshot) -> None:
    begins = tiny_snapshot.steps["begin_ns"]
    t_ns = np.array([begins[0] - 1, begins[0], begins[1] - 1, begins[4], begins[-1] + 10**9])

    found = sampled_in_steps(tiny_snapshot, t_ns, np.array([1.0, 2.0, 3.0, np.nan, 5.0]))

    assert found[0] == 3.0
    assert found[-1] == 5.0
    assert np.isnan(found[1:-1]).all()


def test_times_are_the_devices_where_all_of_them_were_measured(tiny_snapshot: Snapshot) -> None:
    steps = tiny_snapshot.steps.copy()
    steps["device_ns"] = 123.0
    timed = series_of(replace(tiny_snapshot, steps=steps))
    steps = steps.copy()
    steps["device_ns"][3] = np.nan
    partly = series_of(replace(tiny_snapshot, steps=steps))

    assert timed.on_device
    assert set(timed.step_ns) == {123.0}
    assert not partly.on_device
    np.testing.assert_array_equal(partly.step_ns, steps["end_ns"] - steps["begin_ns"])


def test_steps_that_no_plan_has_are_left_out(tiny_snapshot: Snapshot) -> None:
    steps = tiny_snapshot.steps.copy()
    steps["query_scale"][-1], steps["query_scale"][-2] = 30_000, -4

    series = series_of(replace(tiny_snapshot, steps=steps))

    assert series.recorded.sum() == len(steps) - 2


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("size", SIZES)
def test_no_line_is_longer_than_its_room(wide: Snapshot, chart: str, by: By, size: tuple[int, int]) -> None:
    for changes in ({}, {"span": Cursor(1, 0)}, {"window": (40, 90)}):
        view = view_of(wide, by, cursor=Cursor(2, 20), **changes)
        for height in (1, 2, 3, 4, 5, 8, 11, size[1]):
            strips = CHARTS[chart](view, size[0], height)
            assert max(strip.cell_length for strip in strips) <= size[0]
            assert len(strips) <= max(height, 3)


@pytest.mark.parametrize("chart", CHARTS)
def test_every_state_of_a_trace_is_drawn(
    chart: str, empty: Snapshot, still_empty: Snapshot, live_snapshot: Snapshot, gpu: Snapshot
) -> None:
    for snapshot in (None, empty, still_empty, live_snapshot, gpu):
        for by in BOTH:
            assert text_of(CHARTS[chart], view_of(snapshot, by))


@pytest.mark.parametrize("chart", CHARTS)
def test_without_unicode_every_sign_has_one_in_ascii(wide: Snapshot, chart: str) -> None:
    view = replace(view_of(wide, cursor=Cursor(2, 5), span=Cursor(1, 5)), ink=ink(DARK, plain=True))

    assert not any(0x2800 <= ord(sign) < 0x2900 or sign in "▲│" for sign in text_of(CHARTS[chart], view))


def test_a_plan_is_another_shape_than_what_ran(live_snapshot: Snapshot) -> None:
    measured, planned = "⣿", "⡪"
    text = text_of(bytes_chart, view_of(live_snapshot), height=14)

    assert measured in text
    assert planned in text
    assert "measured · planned dotted" in text
    assert planned not in text_of(bytes_chart, view_of(live_snapshot, window=(0, 9)), height=14)


def test_the_chart_says_where_the_peak_is_and_where_the_run_is(live_snapshot: Snapshot) -> None:
    text = text_of(bytes_chart, view_of(live_snapshot))

    peak = live_snapshot.summary.accounted_peak_step
    assert peak is not None
    assert f"scale {peak.query_scale} L{peak.layer}" in text
    assert "▲" in text
    assert "● now" in text


def test_a_peak_outside_the_zoom_is_pointed_at(wide: Snapshot) -> None:
    assert "→" in text_of(bytes_chart, view_of(wide, window=(0, 32)))


def test_the_lines_across_are_named(wide: Snapshot) -> None:
    text = text_of(bytes_chart, view_of(wide), height=16)

    assert "budget" in text
    assert "stored" in text


def test_the_full_history_is_drawn_only_where_it_fits(tiny_snapshot: Snapshot) -> None:
    summary = tiny_snapshot.summary
    tight = replace(tiny_snapshot, summary=replace(summary, full_history_bytes=10 * summary.full_history_bytes))

    assert "full history" in text_of(bytes_chart, view_of(tiny_snapshot), height=16)
    assert "full history" not in text_of(bytes_chart, view_of(tight), height=16)


def test_a_run_that_did_not_obey_shows_its_plan_beside(tiny_snapshot: Snapshot) -> None:
    steps = tiny_snapshot.steps.copy()
    steps["accounted_bytes"] //= 2
    other = replace(tiny_snapshot, steps=steps)

    obeyed = text_of(bytes_chart, view_of(tiny_snapshot), height=16)
    drawn = columns_of(other, 68, None, "steps")

    assert (drawn.planned > drawn.accounted).all()
    assert text_of(bytes_chart, view_of(other), height=16) != obeyed


def test_bytes_over_the_budget_stand_out(tiny_snapshot: Snapshot) -> None:
    budget = tiny_snapshot.summary.budget_bytes
    assert budget is not None
    over = replace(tiny_snapshot, summary=replace(tiny_snapshot.summary, budget_bytes=budget // 2))

    def bad_cells(snapshot: Snapshot) -> int:
        view = view_of(snapshot)
        return sum(segment.style is view.ink.bad for strip in bytes_chart(view, 80, 16) for segment in strip)

    assert bad_cells(tiny_snapshot) == 0
    assert bad_cells(over) > 0


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("width", [80, 220])
def test_a_click_leads_to_the_step_whose_column_it_hit(wide: Snapshot, by: By, width: int) -> None:
    view = view_of(wide, by, cursor=Cursor(1, 2, 3, 4))
    x = across(wide, width - 12, None, by)
    hits = 0
    for column in range(width):
        target = timeline_hit(view, width, 10, column, 4)
        if target is not None:
            hits += 1
            assert (target.head, target.source_scale) == (3, 4)
            assert target.query_scale * 32 + target.layer in x.steps_in(column - 11)

    assert hits == width - 12
    assert timeline_hit(view, width, 10, 5, 4) is None


def test_a_click_on_the_peaks_column_leads_to_the_peak(wide: Snapshot) -> None:
    place = wide.summary.accounted_peak_step
    assert place is not None
    column = across(wide, 68, None, "steps").column_of(place.query_scale * 32 + place.layer)
    assert column is not None

    target = timeline_hit(view_of(wide), 80, 10, column + 11, 4)

    assert target == Cursor(place.query_scale, place.layer)


def test_a_click_on_what_is_only_planned_leads_nowhere(live_snapshot: Snapshot) -> None:
    assert timeline_hit(view_of(live_snapshot), 80, 10, 78, 4) is None
    assert timeline_hit(view_of(live_snapshot), 80, 10, 12, 4) == Cursor(0, 0)


def test_the_readout_says_all_of_a_step(wide: Snapshot) -> None:
    view = view_of(wide, cursor=Cursor(4, 7))
    text = text_of(readout, view, height=4)
    row = wide.steps[4 * 32 + 7]

    assert "step 135 of 0–223 · query scale 4 (8×8) · layer 7" in text
    for word in ("accounted", "stored", "planned", "freed", "time", "a token", "900 µs", "of budget", "measured"):
        assert word in text
    assert f"{row['evicted_tokens']:,} head-token" in text


def test_the_readout_of_a_step_to_come_is_its_plan(still_empty: Snapshot) -> None:
    text = text_of(readout, view_of(still_empty))

    assert "planned" in text
    assert "not run yet" in text
    assert "accounted" not in text


@pytest.mark.parametrize("width", [80, 120, 160, 220])
def test_the_readout_needs_the_lines_that_it_asks_for(wide: Snapshot, width: int) -> None:
    view = view_of(wide, cursor=Cursor(6, 31), span=Cursor(2, 0))

    assert len(readout(view, width, 100)) <= readout_height(view, width)


def test_the_machines_memory_says_why_there_is_none_of_the_gpu(tiny_snapshot: Snapshot) -> None:
    reason = "no NVIDIA driver on this machine: library not found"
    view = view_of(replace(tiny_snapshot, gpu_unavailable=reason))

    assert reason in text_of(machine_chart, view, width=160)
    assert "no GPU samples" in text_of(machine_chart, view, width=80)
    assert "process RSS" in text_of(machine_chart, view, width=80)


def test_records_are_the_steps_in_raw_numbers(tiny_snapshot: Snapshot) -> None:
    records = TimeScreen().records(view_of(tiny_snapshot))

    assert [record["step"] for record in records] == list(range(15))
    for name, column in (
        ("accounted_bytes", "accounted_bytes"),
        ("storage_bytes", "storage_bytes"),
        ("freed_head_tokens", "evicted_tokens"),
    ):
        assert [record[name] for record in records] == tiny_snapshot.steps[column].tolist()
    assert records[0]["begin_ns"] == 0
    assert records[0]["device_ns"] is None
    sampled = [record["process_rss_bytes"] for record in records if record["process_rss_bytes"] is not None]
    assert max(sampled) == tiny_snapshot.summary.process_rss_peak_bytes
    assert json.loads(records_text(records, "json")) == records
    assert len(list(csv.DictReader(io.StringIO(records_text(records, "csv"))))) == 15


def test_records_are_of_what_is_shown(live_snapshot: Snapshot) -> None:
    screen = TimeScreen()

    planned = screen.records(view_of(live_snapshot))[-1]
    assert planned["accounted_bytes"] is None
    assert planned["planned_bytes"] is not None
    assert len(screen.records(view_of(live_snapshot, "time"))) == 9
    assert [record["step"] for record in screen.records(view_of(live_snapshot, window=(3, 6)))] == [3, 4, 5]
    assert screen.records(view_of(None)) == []
