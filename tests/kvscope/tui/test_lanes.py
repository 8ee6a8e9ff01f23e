from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatkv.config import model_config
from heatkv.policies.full import FullPolicy, keep_everything
from heatkv.schedule import PruningSchedule
from kvscope.in_force import sole
from kvscope.trace import Trace
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.lanes import lifetimes, plan_facts, source_fates
from kvscope.tui.palette import DARK, ink
from kvscope.tui.screens.schedule import ScheduleScreen
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Painter
from kvscope.tui.widgets.lanes import cell_line, lane_fold, lanes, lanes_hit, plan_head, totals, totals_hit
from kvscope.tui.write import records_text

PARTS: dict[str, Painter] = {"plan": plan_head, "lanes": lanes, "cell": cell_line, "totals": totals}
SIZES = ((80, 12), (120, 26), (160, 34), (220, 36))


def snapshot_of(path: Path) -> Snapshot:
    with Trace.open(path) as trace:
        return take_snapshot(path, trace, None)


@pytest.fixture(scope="module")
def wide(wide_trace: Path) -> Snapshot:
    return snapshot_of(wide_trace)


@pytest.fixture
def empty(empty_trace: Path) -> Snapshot:
    return snapshot_of(empty_trace)


@pytest.fixture(scope="module")
def large() -> PruningSchedule:
    """The shape of infinity-2b at 1M: 512 heads, 13 scales; head-scales are dropped here and there."""
    config = model_config("infinity-2b")
    scales = config.schedule_for("1M")
    kept = keep_everything(config, scales)
    own = np.arange(scales.num_scales) * config.num_layers + np.arange(config.num_layers)[:, None, None]
    later = np.minimum(kept.max(), own + np.random.default_rng(0).integers(0, 200, kept.shape))
    later[:, :, :3], later[:, :, -1] = kept[:, :, :3], kept[:, :, -1]
    return PruningSchedule(later, config.name, scales, 3, "heatkv")


@pytest.fixture(scope="module")
def at_1m(wide: Snapshot, large: PruningSchedule) -> Snapshot:
    """A run of that plan, before its first scale."""
    header = replace(wide.header, scales=large.scales)
    summary = replace(
        wide.summary,
        scales=(),
        scales_done=0,
        accounted_peak_bytes=None,
        budget_bytes=large.peak_tokens * wide.header.bytes_per_token,
    )
    steps = wide.steps[:0]
    return replace(
        wide, header=header, plans=sole(large), summary=summary, steps=steps, kept_tokens=wide.kept_tokens[:0]
    )


def view_of(snapshot: Snapshot | None, cursor: Cursor = Cursor(), *, plain: bool = False) -> View:  # noqa: B008 - frozen
    return View(ink(DARK, plain=plain), snapshot=snapshot, cursor=cursor)


def text_of(paint: Painter, view: View, width: int = 80, height: int = 12) -> str:
    return "\n".join(strip.text for strip in paint(view, width, height))


def test_a_lifetime_is_the_share_of_the_steps_left(tiny_snapshot: Snapshot) -> None:
    lived = lifetimes(tiny_snapshot.schedule)

    # 15 steps: written at step 3 and dropped after step 6 of 14; written at 7, dropped there; kept to the end.
    assert lived[0, 1, 1] == pytest.approx(3 / 11)
    assert lived[1, 0, 2] == 0.0
    assert lived[0, 0, 1] == 1.0


def test_lifetimes_lie_between_never_and_the_end(large: PruningSchedule) -> None:
    lived = lifetimes(large)

    assert lived.min() == 0.0
    assert lived.max() == 1.0
    np.testing.assert_array_equal(lived[..., :-1] == 1.0, large.drop_step[..., :-1] == large.num_steps - 1)
    assert (lived[..., :3] == 1.0).all()
    assert (lived[..., -1] == 0.0).all()


def test_what_is_dropped_and_what_is_kept_is_every_head(large: PruningSchedule) -> None:
    fates = source_fates(large)

    for fate in fates[:-1]:
        assert fate.dropped + fate.kept_fraction * 512 == 512
    assert [fate.dropped for fate in fates[:3]] == [0, 0, 0]


def test_facts_of_a_plan_that_was_obeyed_are_those_of_the_run(tiny_snapshot: Snapshot) -> None:
    facts, summary = plan_facts(tiny_snapshot), tiny_snapshot.summary

    assert facts.peak_bytes == summary.accounted_peak_bytes
    assert facts.peak_place == summary.accounted_peak_step
    assert facts.budget_bytes == summary.budget_bytes
    assert facts.headroom_bytes == 0
    assert facts.history_tokens == summary.denominator_tokens
    assert facts.dropped == sum(fate.dropped for fate in source_fates(tiny_snapshot.schedule))


@given(width=st.integers(78, 220), height=st.integers(5, 50), lane=st.integers(0, 511))
def test_a_fold_fits_its_room_and_shows_the_lane(large: PruningSchedule, width: int, height: int, lane: int) -> None:
    fold = lane_fold(large, width, height, lane=lane)

    assert fold.first <= lane < fold.first + fold.page
    assert fold.blocks * fold.block_width <= width
    assert 1 + fold.heads + fold.rows <= height


@pytest.mark.parametrize("size", SIZES)
def test_wide_terminals_have_more_blocks(large: PruningSchedule, size: tuple[int, int]) -> None:
    assert lane_fold(large, *size, lane=0).blocks == {80: 1, 120: 1, 160: 2, 220: 3}[size[0]]


def test_a_plan_with_few_heads_is_one_page(wide: Snapshot) -> None:
    few = replace(wide.schedule, drop_step=wide.schedule.drop_step[:, :1])

    assert lane_fold(few, 80, 40, lane=31).first == 0
    assert lane_fold(few, 220, 40, lane=31).blocks == 1


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("size", SIZES)
def test_no_line_is_longer_than_its_room(at_1m: Snapshot, wide: Snapshot, part: str, size: tuple[int, int]) -> None:
    for snapshot in (at_1m, wide):
        for cursor in (Cursor(), Cursor(0, 31, 15, snapshot.schedule.scales.num_scales - 1), Cursor(0, 3, 7, 5)):
            strips = PARTS[part](view_of(snapshot, cursor), *size)
            assert max(strip.cell_length for strip in strips) <= size[0]
            assert len(strips) <= size[1]


@pytest.mark.parametrize("part", ["plan", "lanes", "totals"])
def test_every_state_of_a_trace_is_drawn(
    part: str, empty: Snapshot, live_snapshot: Snapshot, tiny_snapshot: Snapshot
) -> None:
    for snapshot in (None, empty, live_snapshot, tiny_snapshot):
        assert text_of(PARTS[part], view_of(snapshot))


@pytest.mark.parametrize("size", SIZES)
def test_a_click_leads_to_the_bar_that_is_drawn_there(at_1m: Snapshot, size: tuple[int, int]) -> None:
    width, height = size
    fold = lane_fold(at_1m.schedule, width, height, lane=0)
    found: dict[Cursor, list[tuple[int, int]]] = {}
    for y in range(1 + fold.heads, height):
        for x in range(width):
            target = lanes_hit(view_of(at_1m), width, height, x, y)
            if target is not None:
                found.setdefault(target, []).append((x, y))

    assert len(found) == fold.page * 13
    for target in list(found)[:: len(found) // 40]:
        for x, y in found[target]:
            framed = lanes(view_of(at_1m, target), width, height)[y].text
            assert framed.index("▐") <= x < framed.index("▐") + fold.cell


def test_a_click_above_the_lanes_chooses_the_source_scale(at_1m: Snapshot) -> None:
    at = view_of(at_1m, Cursor(0, 3, 7, 5))

    assert lanes_hit(at, 80, 12, 9, 1) == Cursor(0, 3, 7, 0)
    assert lanes_hit(at, 80, 12, 5, 1) is None
    assert lanes_hit(at, 80, 12, 40, 0) is None


def test_a_click_on_the_totals_leads_to_a_query_scale_that_ran(live_snapshot: Snapshot) -> None:
    columns = [totals_hit(view_of(live_snapshot), 80, 4, x, 2) for x in range(80)]

    assert {cursor.query_scale for cursor in columns if cursor} == {0, 1, 2}
    assert totals_hit(view_of(live_snapshot), 80, 4, 20, 0) is None


def test_every_fate_has_its_own_shape(tiny_snapshot: Snapshot) -> None:
    text = text_of(lanes, view_of(tiny_snapshot), 80, 12)
    first = next(line for line in text.splitlines() if "L0 h1" in line)

    assert "━" in first
    assert "█" in first
    assert "·" in first
    assert re.search("[▏▎▍▌▋▊▉█]·", text)


def test_a_bar_is_full_only_to_the_end_and_empty_only_if_never_kept(large: PruningSchedule, at_1m: Snapshot) -> None:
    lived = lifetimes(large)
    for plain in (False, True):
        for lane in range(0, 512, 16):
            layer = lane // 16
            strips = lanes(view_of(at_1m, Cursor(0, layer, 0, 0), plain=plain), 120, 40)
            line = next(strip.text for strip in strips if strip.text.startswith(f"▸L{layer} h0 "))
            for source in range(3, 12):
                bar = line[10 + source * 8 : 10 + source * 8 + 7]
                assert (bar == "█" * 7) == (lived[layer, 0, source] == 1.0)
                assert (bar.strip() == "·") == (lived[layer, 0, source] == 0.0)


def test_without_colour_the_cursors_frame_is_no_bar(tiny_snapshot: Snapshot) -> None:
    view = replace(view_of(tiny_snapshot, Cursor(4, 0, 1, 1)), ink=ink(DARK, colour=False))

    line = next(strip.text for strip in lanes(view, 80, 12) if strip.text.startswith("▸"))
    assert re.search(r"\[[█▏▎▍▌▋▊▉·]+\]", line)


def test_the_head_names_budget_peak_headroom_and_hash(tiny_snapshot: Snapshot) -> None:
    text = text_of(plan_head, view_of(tiny_snapshot), 120, 4)

    for word in ("tokens a head", "of the history's", "headroom 0 B at scale", "heatkv, 1 sink", "measured", "planned"):
        assert word in text
    assert tiny_snapshot.schedule.content_hash[:12] in text


def test_a_plan_without_a_budget_says_so(tiny_snapshot: Snapshot) -> None:
    schedule = replace(tiny_snapshot.schedule, budget=None)
    summary = replace(tiny_snapshot.summary, budget=None, budget_bytes=None)
    snapshot = replace(tiny_snapshot, plans=sole(schedule), summary=summary)

    assert "none" in text_of(plan_head, view_of(snapshot))
    assert "everything is kept" not in text_of(plan_head, view_of(snapshot))
    assert "headroom" not in text_of(plan_head, view_of(snapshot))
    assert "% of full history" in text_of(totals, view_of(snapshot))


def test_a_plan_that_keeps_everything_says_so(tiny_snapshot: Snapshot) -> None:
    full = FullPolicy().plan(model_config("infinity-tiny"), tiny_snapshot.schedule.scales)
    summary = replace(tiny_snapshot.summary, budget=None, budget_bytes=None)

    snapshot = replace(tiny_snapshot, plans=sole(full), summary=summary)

    assert "none: everything is kept" in text_of(plan_head, view_of(snapshot))


def test_a_plan_above_its_budget_says_by_how_much(tiny_snapshot: Snapshot) -> None:
    budget = tiny_snapshot.summary.budget_bytes
    assert budget is not None
    snapshot = replace(tiny_snapshot, summary=replace(tiny_snapshot.summary, budget_bytes=budget - 1024))

    assert "over the budget by 1.00 KiB" in text_of(plan_head, view_of(snapshot))


def test_totals_are_planned_and_measured_as_far_as_the_run_is(live_snapshot: Snapshot, empty: Snapshot) -> None:
    lines = totals(view_of(live_snapshot), 80, 4)

    assert len(lines[2].text.split()) == 1 + 5
    assert len(lines[3].text.split()) == 1 + 3
    assert lines[2].text.split()[1:4] == lines[3].text.split()[1:4]
    assert "nothing has run yet" in text_of(totals, view_of(empty))


def test_no_share_is_said_to_be_nothing_or_all_that_is_not(at_1m: Snapshot) -> None:
    lines = totals(view_of(at_1m), 64, 4)

    assert "<1" in lines[2].text
    assert all(float(text.replace("<1", "0.5")) > 0 for text in lines[2].text.split()[1:])


def test_the_cells_sentence_is_that_of_the_map(tiny_snapshot: Snapshot) -> None:
    assert "dropped after scale 2, layer 0" in text_of(cell_line, view_of(tiny_snapshot, Cursor(4, 0, 1, 1)))
    assert "never kept" in text_of(cell_line, view_of(tiny_snapshot, Cursor(4, 1, 0, 2)))
    assert "sink scale" in text_of(cell_line, view_of(tiny_snapshot, Cursor(4, 0, 0, 0)))


def test_records_are_one_per_head_scale_and_rebuild_the_plan(tiny_snapshot: Snapshot) -> None:
    schedule = tiny_snapshot.schedule
    records = ScheduleScreen().records(view_of(tiny_snapshot))

    rebuilt = np.zeros_like(schedule.drop_step)
    for record in records:
        rebuilt[record["layer"], record["head"], record["source_scale"]] = record["drop_step"]
        after = record["dropped_after_scale"], record["dropped_after_layer"]
        if after != (None, None):
            assert after[0] * schedule.num_layers + after[1] == record["drop_step"]
        assert record["bytes"] == record["tokens"] * tiny_snapshot.header.bytes_per_token
    np.testing.assert_array_equal(rebuilt, schedule.drop_step)
    kept = sum(record["dropped_after_scale"] is None for record in records)
    assert kept == (lifetimes(schedule) == 1.0).sum()
    assert json.loads(records_text(records, "json")) == records
    assert ScheduleScreen().records(view_of(None)) == []
