from __future__ import annotations

import numpy as np
import pytest

from kvscope.tui.feed import Snapshot
from kvscope.tui.figures import bytes_in_columns, freed_tokens, planned_bytes, planned_peaks


def test_a_run_that_obeys_its_plan_has_the_planned_bytes_at_every_step(tiny_snapshot: Snapshot) -> None:
    np.testing.assert_array_equal(planned_bytes(tiny_snapshot), tiny_snapshot.steps["accounted_bytes"])


def test_planned_peaks_are_those_of_the_scales(tiny_snapshot: Snapshot) -> None:
    measured = [scale.accounted_bytes for scale in tiny_snapshot.summary.scales]

    assert planned_peaks(tiny_snapshot).tolist() == measured


def test_freed_tokens_sum_to_all_that_the_steps_freed(tiny_snapshot: Snapshot) -> None:
    freed = freed_tokens(tiny_snapshot)

    assert len(freed) == tiny_snapshot.scales_done
    assert freed.sum() == tiny_snapshot.steps["evicted_tokens"].sum() > 0


@pytest.mark.parametrize("columns", [1, 4, 15, 40, 200])
def test_columns_keep_the_peak_whatever_their_number(tiny_snapshot: Snapshot, columns: int) -> None:
    measured, planned = bytes_in_columns(tiny_snapshot, columns)

    assert measured.max() == tiny_snapshot.summary.accounted_peak_bytes
    assert not planned.any()


def test_columns_are_measured_as_far_as_the_run_is_and_planned_beyond(live_snapshot: Snapshot) -> None:
    measured, planned = bytes_in_columns(live_snapshot, 15)

    assert (measured > 0).tolist() == [True] * 9 + [False] * 6
    assert (planned > 0).tolist() == [False] * 9 + [True] * 6
