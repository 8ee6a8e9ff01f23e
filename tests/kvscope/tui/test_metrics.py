from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvscope import units
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot
from kvscope.tui.metrics import METRICS, Cell, cell_text, volume_of, why


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
