"""Ledger: the answer, the sum, and what each line is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvscope import units
from kvscope.ledger import Ledger
from kvscope.ledger_sheet import Amount, sheet_of
from kvscope.trace import Trace
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.ledger_rows import ledger_rows
from kvscope.tui.palette import DARK, ink
from kvscope.tui.screens.ledger import LedgerScreen
from kvscope.tui.view import View
from kvscope.tui.widgets.ledger_table import answer, line_words, scale_hit, scale_sums, table, table_hit

PAINTERS = (answer, table, line_words, scale_sums)
ROOMS = ((80, 20), (80, 3), (100, 11), (120, 38), (160, 46), (220, 48))
MiB = 1 << 20


def view_of(snapshot: Snapshot | None, **changes: object) -> View:
    return replace(View(ink(DARK), snapshot=snapshot), **changes)


def text_of(view: View, width: int = 80, height: int = 40) -> str:
    return "\n".join(strip.text for paint in PAINTERS for strip in paint(view, width, height))


@pytest.fixture
def cuda_snapshot(tiny_snapshot: Snapshot) -> Snapshot:
    """As of a run on a GPU where nothing fits: a negative residual, and a GPU much larger than the process."""
    sizes = {"kept": 10, "capacity": 10, "stored": 11, "index_on_host": -1, "weights": 500, "allocated": 800,
             "reserved": 780, "process": 1300, "used": 9000, "total": 80_000}  # fmt: skip
    measured = {key: Amount(size * MiB, "measured", "at the end of scale 3") for key, size in sizes.items()}
    predicted = {key: Amount(size * MiB, "predicted") for key, size in sizes.items() if key in ("kept", "stored")}
    run = sheet_of(None, "cuda:0", predicted, measured)
    scales = tuple(replace(sheet_of(scale, "cuda:0", predicted, measured)) for scale in range(5))
    return replace(tiny_snapshot, ledger=replace(tiny_snapshot.ledger, device="cuda:0", run=run, scales=scales))


@pytest.fixture
def empty_snapshot(empty_trace: Path) -> Snapshot:
    with Trace.open(empty_trace) as trace:
        return take_snapshot(empty_trace, trace, None)


def snapshots(request: pytest.FixtureRequest, name: str) -> Snapshot | None:
    found: Snapshot | None = None if name == "none" else request.getfixturevalue(name)
    return found


@pytest.mark.parametrize("name", ["none", "tiny_snapshot", "live_snapshot", "empty_snapshot", "cuda_snapshot"])
@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("looks", [{}, {"plain": True}, {"glyphs": True}, {"colour": False}])
def test_every_state_fits_every_room(
    request: pytest.FixtureRequest, name: str, room: tuple[int, int], looks: dict[str, bool]
) -> None:
    snapshot = snapshots(request, name)
    count = len(ledger_rows(snapshot.ledger, 0)) if snapshot else 1

    for chosen in (0, count // 2, count - 1, 1 << 30):
        for view in (view_of(snapshot, row=chosen), view_of(snapshot, row=chosen).chosen("heat", 1)):
            drawn = replace(view, ink=ink(DARK, **looks))
            for paint in PAINTERS:
                lines = paint(drawn, *room)
                assert all(strip.cell_length <= room[0] for strip in lines)


def test_every_line_is_shown_with_both_amounts_and_their_difference(tiny_snapshot: Snapshot) -> None:
    lines = [strip.text for strip in table(view_of(tiny_snapshot), 80, 60)]

    for one, text in zip(ledger_rows(tiny_snapshot.ledger, 0), lines[2:], strict=True):
        assert one.run.entry.name in text
        if one.group == "sum" and one.run.difference is not None:
            for number in (one.run.predicted.num_bytes, one.run.measured.num_bytes, one.run.difference):
                assert units.bytes_text(number) in text


def test_the_answer_tells_budget_cache_and_process_as_shares(tiny_snapshot: Snapshot) -> None:
    found = tiny_snapshot.ledger.answer
    assert found is not None

    text = "\n".join(strip.text for strip in answer(view_of(tiny_snapshot), 120, 20))

    for share in (tiny_snapshot.ledger.budget, found.stored_bytes / found.full_bytes, 1 - found.saved_fraction):
        assert units.fraction_text(share) in text
    assert "measured" in text


def test_before_the_first_scale_all_is_planned_and_nothing_looks_measured(empty_snapshot: Snapshot) -> None:
    view = view_of(empty_snapshot)

    assert "planned" in answer(view, 80, 20)[0].text
    assert "?" not in "\n".join(strip.text for strip in table(view, 80, 60))
    assert "this has not run" in "\n".join(strip.text for strip in line_words(replace(view, row=2), 80, 20))


def test_scales_to_come_show_what_is_predicted_for_them(live_snapshot: Snapshot) -> None:
    sums = [strip.text for strip in scale_sums(view_of(live_snapshot), 160, 10)]
    words = "\n".join(strip.text for strip in line_words(view_of(live_snapshot, row=2), 100, 30))

    assert len(sums) == 1 + 5
    assert words.count("planned") == 2


def test_unknown_numbers_are_a_question_mark_with_their_reason(tiny_snapshot: Snapshot) -> None:
    rows = ledger_rows(tiny_snapshot.ledger, 0)
    index = next(index for index, one in enumerate(rows) if one.run.key == "weights")

    line = table(view_of(tiny_snapshot), 80, 60)[2 + index].text
    words = "\n".join(strip.text for strip in line_words(view_of(tiny_snapshot, row=index), 80, 20))

    assert "?" in line
    assert "the system does not tell what memory is used for" in words


def test_a_residual_below_zero_points_back_and_says_what_it_means(cuda_snapshot: Snapshot) -> None:
    rows = ledger_rows(cuda_snapshot.ledger, 0)
    index = next(index for index, one in enumerate(rows) if one.run.key == "allocator_cache")

    line = table(view_of(cuda_snapshot), 140, 60)[2 + index].text
    words = "\n".join(strip.text for strip in line_words(view_of(cuda_snapshot, row=index), 80, 20))

    assert "←" in line
    assert "-20.0 MiB" in line
    assert "less than nothing" in words


def test_what_is_larger_than_the_process_goes_on_beyond_its_bars(cuda_snapshot: Snapshot) -> None:
    lines = {strip.text.split("  ")[0].strip(" =~+"): strip.text for strip in table(view_of(cuda_snapshot), 140, 60)}

    assert lines["memory of the GPU"].rstrip().endswith("→")
    assert not lines["driver: this process"].rstrip().endswith("→")


def test_the_chosen_line_is_always_among_those_shown(tiny_snapshot: Snapshot) -> None:
    count = LedgerScreen().rows(view_of(tiny_snapshot))

    for index in range(count):
        view = view_of(tiny_snapshot, row=index)
        lines = [strip.text for strip in table(view, 80, 8)]
        (y,) = [y for y, line in enumerate(lines) if line.startswith("▸")]
        assert table_hit(view, 80, 8, 5, y) == index


def test_a_click_beside_the_lines_chooses_nothing(tiny_snapshot: Snapshot, live_snapshot: Snapshot) -> None:
    assert table_hit(view_of(tiny_snapshot), 80, 60, 5, 1) is None
    assert table_hit(view_of(tiny_snapshot), 80, 60, 5, 55) is None
    assert scale_hit(view_of(live_snapshot), 160, 10, 5, 2) == Cursor(query_scale=1)
    assert scale_hit(view_of(live_snapshot), 160, 10, 5, 5) is None


def test_records_are_the_ledgers_own_numbers(tiny_snapshot: Snapshot) -> None:
    ledger: Ledger = tiny_snapshot.ledger

    records = LedgerScreen().records(view_of(tiny_snapshot, cursor=Cursor(query_scale=3)))

    assert len(records) == LedgerScreen().rows(view_of(tiny_snapshot))
    stored = next(record for record in records if record["line"] == "stored")
    assert stored["run_measured_bytes"] == ledger.run.line("stored").measured.num_bytes
    assert stored["run_difference_bytes"] == ledger.run.line("stored").difference
    assert stored["scale_measured_bytes"] == ledger.scales[3].line("stored").measured.num_bytes
    assert stored["query_scale"] == 3


def test_enter_on_the_cache_goes_to_the_step_where_it_peaked(tiny_snapshot: Snapshot) -> None:
    rows = ledger_rows(tiny_snapshot.ledger, 0)
    index = next(index for index, one in enumerate(rows) if one.run.key == "kept")

    cursor = LedgerScreen().entered(view_of(tiny_snapshot, row=index))

    assert cursor is not None
    note = tiny_snapshot.ledger.run.line("kept").measured.note
    assert f"at scale {cursor.query_scale}, layer {cursor.layer}" in note


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (160, 48), (220, 50)])
def test_keys_choose_a_line_and_a_scale(drive, tiny_trace: Path, size: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    async def script(viewer) -> None:  # type: ignore[no-untyped-def]
        before = viewer.app.view.cursor.query_scale
        await viewer.press("j", "j", "j", "left_square_bracket")

        assert viewer.app.view.row == 3
        assert viewer.app.view.cursor.query_scale == before - 1
        assert f"scale {before - 1}" in viewer.lines("table")[1]
        assert "free slots" in viewer.lines("line")[0]
        assert "budget" in viewer.text()

    drive(tiny_trace, script, size=size, screen="ledger")


def test_a_live_run_grows_on_the_screen(drive, live_trace: Path) -> None:  # type: ignore[no-untyped-def]
    async def script(viewer) -> None:  # type: ignore[no-untyped-def]
        assert "measured" in viewer.lines("answer")[0]
        assert "scale 2" in viewer.lines("table")[1]

    drive(live_trace, script, screen="ledger")
