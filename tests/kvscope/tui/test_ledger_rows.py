"""Bars and shares of the ledger."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatkv.config import model_config
from heatkv.policies.full import keep_everything
from heatkv.schedule import PruningSchedule
from kvscope.ledger import Ledger, predict
from kvscope.ledger_lines import lines_of
from kvscope.ledger_sheet import Amount, sheet_of
from kvscope.tui.feed import Snapshot
from kvscope.tui.ledger_rows import (
    REST,
    SAVED,
    ceiling,
    cells_of,
    divided,
    ledger_rows,
    log_floor,
    num_rows,
    shares_of,
    spans_of,
    stacked,
)

SIZES = st.integers(-(1 << 40), 1 << 40)
LEVELS = [entry.key for entry in lines_of("cuda") if not entry.is_residual]


@pytest.fixture
def ledger(tiny_snapshot: Snapshot) -> Ledger:
    return tiny_snapshot.ledger


def test_rows_are_the_ledgers_lines_in_its_order_for_the_run_and_the_scale(ledger: Ledger) -> None:
    rows = ledger_rows(ledger, 2)

    assert [row.run for row in rows] == [*ledger.defined, *ledger.run.lines, *ledger.run.beside]
    assert [row.scale for row in rows if row.scale] == [*ledger.scales[2].lines, *ledger.scales[2].beside]
    assert num_rows(ledger) == len(rows)


@given(st.dictionaries(st.sampled_from(LEVELS), SIZES))
def test_parts_lead_from_level_to_level_whatever_is_known(known: dict[str, int]) -> None:
    amounts = {key: Amount(size, "measured") for key, size in known.items()}
    lines = sheet_of(None, "cuda:0", {}, amounts).lines

    spans = spans_of(lines, "measured")

    stands = None
    for line, span in zip(lines, spans, strict=True):
        if span is None:
            continue
        assert span[1] - span[0] == line.measured.num_bytes
        if line.entry.is_level:
            assert span[0] == 0
            assert stands in (None, span[1])
        stands = span[1] if stands is not None or line.entry.is_level else None


def test_a_planned_ledger_has_bars_of_what_is_predicted() -> None:
    config = model_config("infinity-2b")
    scales = config.schedule_for("1M")
    schedule = PruningSchedule(keep_everything(config, scales), config.name, scales, 3, "full", None)

    rows = ledger_rows(predict(schedule, config, 2, 2, device="cuda"), 12)

    assert {row.run.key: row.span for row in rows}["stored"] == (0, rows[6].run.predicted.num_bytes)
    assert ceiling(rows) == next(row.run.predicted.num_bytes for row in rows if row.run.key == "allocated")


@given(SIZES, SIZES, st.integers(0, 1 << 40), st.integers(1, 300), st.sampled_from([0, 1, 1 << 20]))
def test_a_bar_stays_in_its_room_and_is_always_seen(begin: int, end: int, top: int, width: int, floor: int) -> None:
    first, last = cells_of((begin, end), top, width, floor=floor)

    assert 0 <= first <= last <= width
    assert last > first or not top


def test_bars_end_at_what_the_process_holds_not_at_the_whole_gpu(ledger: Ledger) -> None:
    known = {key: Amount(size << 20, "measured") for key, size in
             (("kept", 10), ("stored", 11), ("process", 900), ("used", 2000), ("total", 80_000))}  # fmt: skip
    run = sheet_of(None, "cuda:0", {}, known)
    rows = ledger_rows(replace(ledger, run=run, scales=(run,)), 0)

    assert ceiling(rows) == 900 << 20
    assert 0 < log_floor(rows, ceiling(rows)) <= 10 << 20


@pytest.mark.parametrize("negative", [0, -4096])
def test_shares_are_of_all_that_a_full_history_needs(ledger: Ledger, negative: int) -> None:
    assert ledger.answer is not None
    parts = (*ledger.answer.parts, ("a part", negative))
    answer = replace(ledger.answer, parts=parts, total_bytes=sum(size for _, size in parts))

    shares = shares_of(answer, "kept tokens (logical KV)")

    # A measured part may be less than nothing by a few pages: it has no place in a bar, and the others are more by it.
    below = sum(size for _, size in answer.parts if size < 0)
    whole = answer.total_bytes + max(0, answer.saved_bytes)
    assert sum(share for *_, share in shares) == pytest.approx(1 - below / whole)
    assert shares[-1][0] == SAVED
    assert shares[-1][2] == pytest.approx(answer.saved_bytes / whole)
    assert "kept tokens (logical KV)" in [name for name, *_ in shares]
    assert all(share >= 0.001 for name, _, share in shares if name not in (SAVED, REST, "kept tokens (logical KV)"))


@given(st.lists(st.floats(1e-6, 1), max_size=9), st.integers(0, 200))
def test_a_bar_is_divided_without_a_gap_and_every_part_is_seen(fractions: list[float], width: int) -> None:
    columns = divided(fractions, width)

    assert len(columns) == len(fractions)
    assert sum(columns) == (width if fractions and width >= len(fractions) else min(width, len(fractions)))
    assert min(columns, default=1) >= (1 if width >= len(fractions) else 0)


@given(st.lists(st.integers(0, 1 << 40), max_size=9), st.integers(0, 200))
def test_a_stacked_bar_ends_where_its_sum_is(sizes: list[int], width: int) -> None:
    columns = stacked(sizes, sum(sizes), width)

    assert sum(columns) == (width if sum(sizes) else 0)
    assert min(columns, default=0) >= 0
