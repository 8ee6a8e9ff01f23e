from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heatkv.scas import ScasAccumulator
from kvscope import units
from kvscope.trace import Trace
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.metrics import (
    LOG_DECADES,
    METRICS,
    Cell,
    cell_text,
    in_log,
    log_floor,
    ranks_of,
    recorded,
    scas_of,
    volume_of,
    why,
)


@pytest.mark.parametrize("name", METRICS)
def test_a_cell_is_a_value_exactly_where_the_trace_has_one(tiny_snapshot: Snapshot, name: str) -> None:
    volume = volume_of(tiny_snapshot, name)

    assert volume.values.shape == volume.cells.shape == tiny_snapshot.kept_tokens.shape
    assert not np.isnan(volume.values[volume.cells == Cell.VALUE]).any()


def test_kept_tokens_are_those_of_the_trace(tiny_snapshot: Snapshot) -> None:
    volume = volume_of(tiny_snapshot, "kept")

    np.testing.assert_array_equal(volume.values, tiny_snapshot.kept_tokens)
    np.testing.assert_array_equal(volume.cells == Cell.VALUE, tiny_snapshot.kept_tokens > 0)


def test_source_scales_after_the_query_scale_are_unwritten_not_dropped(tiny_snapshot: Snapshot) -> None:
    for name in METRICS:
        for query_scale, cells in enumerate(volume_of(tiny_snapshot, name).cells):
            assert (cells[:, :, query_scale + 1 :] == Cell.UNWRITTEN).all()
            assert (cells[:, :, : query_scale + 1] != Cell.UNWRITTEN).all()


def test_mass_that_was_not_measured_is_unknown_and_what_cannot_be_seen_is_dropped(tiny_snapshot: Snapshot) -> None:
    nothing = replace(tiny_snapshot, attention_mass=np.full_like(tiny_snapshot.attention_mass, np.nan))

    cells = volume_of(nothing, "mass").cells

    seen = tiny_snapshot.read_tokens > 0
    assert (cells[seen] == Cell.UNKNOWN).all()
    assert not (cells[~seen] == Cell.UNKNOWN).any()
    assert cell_text(nothing, "mass", Cursor(0, 0, 0, 0)) == units.NOT_MEASURED


def test_mass_per_token_is_mass_over_tokens_read(tiny_snapshot: Snapshot) -> None:
    volume = volume_of(tiny_snapshot, "mass_per_token")
    seen = volume.cells == Cell.VALUE

    expected = tiny_snapshot.attention_mass[seen] / tiny_snapshot.read_tokens[seen]
    np.testing.assert_allclose(volume.values[seen], expected, rtol=1e-6)  # float32 mass, divided in float64


def test_the_text_of_a_cell_is_made_by_units(tiny_snapshot: Snapshot) -> None:
    token_bytes = tiny_snapshot.header.bytes_per_token

    assert cell_text(tiny_snapshot, "kept", Cursor(4, 0, 0, 3)) == f"16 tokens = {units.bytes_text(16 * token_bytes)}"
    mass = float(tiny_snapshot.attention_mass[4, 0, 0, 3])
    assert cell_text(tiny_snapshot, "mass", Cursor(4, 0, 0, 3)) == units.fraction_text(mass)


def test_a_query_scale_that_was_never_run_has_no_value(live_snapshot: Snapshot) -> None:
    assert cell_text(live_snapshot, "kept", Cursor(3, 0, 0, 0)) == "not reached"


# The fake schedule: 3 layers, source scale 0 is the sink; see fake_run.fake_schedule.
@pytest.mark.parametrize(
    ("cursor", "sentence"),
    [
        (Cursor(4, 0, 0, 0), "sink scale: the first 1 are never evicted"),
        (Cursor(4, 0, 0, 1), "kept to the end of the run"),
        (Cursor(4, 0, 1, 1), "dropped after scale 2, layer 0: freed 4 tokens = 256 B"),
        (Cursor(1, 0, 1, 1), "will be dropped after scale 2, layer 0: frees 4 tokens = 256 B"),
        (Cursor(4, 1, 0, 2), "read at its own step only, never kept: saves 9 tokens = 576 B"),
        (Cursor(4, 0, 0, 4), "the last scale is never cached: only its own step reads it"),
        (Cursor(1, 0, 0, 2), "planned to be kept to the end of the run"),
    ],
)
def test_why_tells_the_rule_and_what_it_freed(tiny_snapshot: Snapshot, cursor: Cursor, sentence: str) -> None:
    assert tiny_snapshot.header.bytes_per_token == 64
    assert why(tiny_snapshot, cursor) == sentence


def dense(snapshot: Snapshot, mass: np.ndarray) -> Snapshot:
    """The snapshot with this attention, in a run that drops nothing."""
    tokens = np.array(snapshot.schedule.scales.tokens)
    queries, sources = np.indices((len(mass), len(tokens)))
    read = np.broadcast_to(np.where(sources <= queries, tokens, 0)[:, None, None, :], mass.shape)
    return replace(snapshot, attention_mass=mass.astype(np.float32), kept_tokens=read, read_tokens=read)


def test_scas_of_a_run_that_drops_nothing_is_that_of_the_calibration(tiny_snapshot: Snapshot) -> None:
    mass = np.random.default_rng(3).random(tiny_snapshot.attention_mass.shape)
    scales, layers, heads, _ = mass.shape
    calibration = ScasAccumulator(layers, heads, scales, tiny_snapshot.schedule.sink_scales)
    for query_scale in range(scales):
        for layer in range(layers):
            calibration.add(query_scale, layer, mass[query_scale, layer].astype(np.float32))
    calibration.prompts = 1

    scores = scas_of(dense(tiny_snapshot, mass))

    expected = calibration.scores().scores
    eligible = np.isfinite(expected)
    np.testing.assert_allclose(scores[eligible], expected[eligible], rtol=1e-12)  # the same float64 sums, reordered
    assert np.isnan(scores[:, :, -1]).all()


def test_scas_is_the_mean_over_the_query_scales_that_still_read_the_head_scale(tiny_snapshot: Snapshot) -> None:
    mass = tiny_snapshot.attention_mass

    scores = scas_of(tiny_snapshot)

    assert scores[0, 1, 1] == pytest.approx(float(mass[2, 0, 1, 1]))  # dropped after scale 2, which read it
    assert scores[0, 0, 1] == pytest.approx(np.mean(mass[2:, 0, 0, 1], dtype=np.float64))
    assert np.isnan(scores[2, 0, 1])  # dropped before its layer reached scale 2
    assert np.isnan(scores[1, 0, 2])  # never kept


def test_rank_one_has_most_and_ties_go_to_the_lower_layer_then_the_lower_head(tiny_snapshot: Snapshot) -> None:
    mass = np.zeros(tiny_snapshot.attention_mass.shape)
    mass[:, 1, 1, 0] = 0.9
    mass[:, [0, 2], :, 0] = 0.4

    ranks = ranks_of(dense(tiny_snapshot, mass))[:, :, 0]

    np.testing.assert_array_equal(ranks, [[2, 3], [6, 1], [4, 5]])


def test_every_head_that_something_read_later_has_a_rank_of_its_own(tiny_snapshot: Snapshot) -> None:
    scores, ranks = scas_of(tiny_snapshot), ranks_of(tiny_snapshot)

    for source in range(scores.shape[2]):
        known = np.isfinite(scores[:, :, source])
        assert sorted(ranks[:, :, source][known]) == list(range(1, known.sum() + 1))
        assert np.isnan(ranks[:, :, source][~known]).all()


def test_mass_per_mib_is_mass_over_the_bytes_that_were_read(tiny_snapshot: Snapshot) -> None:
    mib, mass = volume_of(tiny_snapshot, "mass_per_mib"), volume_of(tiny_snapshot, "mass")
    seen = mass.cells == Cell.VALUE

    read_bytes = tiny_snapshot.read_tokens[seen].astype(float) * tiny_snapshot.header.bytes_per_token
    np.testing.assert_allclose(mib.values[seen] * read_bytes / 2**20, mass.values[seen], rtol=1e-12)
    np.testing.assert_array_equal(mib.cells, mass.cells)


def test_entropy_is_nothing_for_one_scale_and_all_bits_for_an_even_spread(tiny_snapshot: Snapshot) -> None:
    shape = tiny_snapshot.attention_mass.shape
    queries, sources = np.indices((shape[0], shape[3]))
    even = np.broadcast_to(np.where(sources <= queries, 1 / (queries + 1), np.nan)[:, None, None, :], shape)
    single = np.broadcast_to(np.where(sources == queries, 1.0, 0.0)[:, None, None, :], shape)

    spread, focused = (volume_of(dense(tiny_snapshot, mass), "entropy") for mass in (even, single))

    for query in range(shape[0]):
        np.testing.assert_allclose(spread.values[query, :, :, 0], np.log2(query + 1), atol=1e-6)  # float32 mass
        low, high = METRICS["entropy"].bounds(tiny_snapshot, spread, Cursor(query, 0, 0, 0))
        assert (low, high) == (0.0, pytest.approx(np.log2(query + 1)))
    assert (focused.values == 0).all()


def test_unconditional_rows_are_a_metric_of_their_own_and_unknown_where_not_recorded(
    tiny_snapshot: Snapshot, maps_trace: Path
) -> None:
    with Trace.open(maps_trace) as trace:
        both = take_snapshot(maps_trace, trace, None)

    assert (volume_of(tiny_snapshot, "mass_uncond").cells != Cell.VALUE).all()
    assert not recorded(tiny_snapshot, "mass_uncond")
    volume = volume_of(both, "mass_uncond")
    seen = volume.cells == Cell.VALUE
    np.testing.assert_array_equal(volume.values[seen], both.attention_mass_uncond[seen])
    assert recorded(both, "mass_uncond")


def test_in_log_equal_factors_are_equal_steps_and_the_lowest_decades_are_one_colour() -> None:
    values, low, high = in_log(np.array([0.0, 1e-9, 0.001, 0.01, 0.1, 1.0, np.nan]), 0.0, 1.0)

    assert (low, high) == (-LOG_DECADES, 0.0)
    np.testing.assert_allclose(values[:-1], [-3, -3, -3, -2, -1, 0])
    assert np.isnan(values[-1])
    assert log_floor(0.0, 1.0) == 0.001


def test_with_nothing_above_zero_log_changes_nothing() -> None:
    values, low, high = in_log(np.zeros(3), 0.0, 0.0)

    assert (values.tolist(), low, high) == ([0, 0, 0], 0.0, 0.0)
