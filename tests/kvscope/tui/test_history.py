from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kvscope.in_force import sole
from kvscope.recorder import Recorder
from kvscope.trace import Trace
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.history import (
    NOBODY_LOOKED,
    Fate,
    history_of,
    lost_words,
    observed_words,
    planned_words,
    rank_words,
    rule_words,
    size_words,
)
from kvscope.tui.metrics import ranks_of, scas_of
from kvscope.tui.selection import Selection, sum_of


# The fake schedule: 3 layers, 5 scales, source scale 0 is the sink; see fake_run.fake_schedule.
@pytest.mark.parametrize(
    ("place", "fate", "planned", "observed"),
    [
        ((0, 0, 0), Fate.SINK, "kept to the end", "held after scale 4: as planned"),
        ((0, 0, 1), Fate.KEPT, "kept to the end", "held after scale 4: as planned"),
        ((0, 1, 1), Fate.DROPPED, "dropped after scale 2, layer 0", "gone after scale 2, which read it: as planned"),
        (
            (2, 0, 1),
            Fate.DROPPED,
            "dropped after scale 2, layer 1 (early)",
            "held after scale 1, gone when scale 2 read: as planned",
        ),
        ((1, 0, 2), Fate.UNKEPT, "read at scale 2, never kept", "read at scale 2, held after no scale: as planned"),
        ((0, 0, 4), Fate.LAST, "never cached", "read at scale 4, held after no scale: as planned"),
    ],
)
def test_plan_and_observation_are_told_apart(
    tiny_snapshot: Snapshot, place: tuple[int, int, int], fate: Fate, planned: str, observed: str
) -> None:
    history = history_of(tiny_snapshot, *place)

    assert history.fate is fate
    assert planned_words(history) == planned
    assert observed_words(history) == observed


def test_tokens_that_are_not_as_planned_are_named(tiny_snapshot: Snapshot) -> None:
    kept = tiny_snapshot.kept_tokens.copy()
    kept[3, 0, 0, 1] = 0
    other = replace(tiny_snapshot, kept_tokens=kept)

    history = history_of(other, 0, 0, 1)

    assert history.unplanned == (3,)
    assert "not as planned at scale 3" in observed_words(history)


def test_every_moment_is_what_the_trace_says(tiny_snapshot: Snapshot) -> None:
    for layer, head, source in np.ndindex(tiny_snapshot.schedule.drop_step.shape):
        history = history_of(tiny_snapshot, layer, head, source)
        assert [one.query_scale for one in history.moments] == list(range(source, 5))
        assert not history.unplanned
        for one in history.moments:
            place = one.query_scale, layer, head, source
            assert one.kept_tokens == tiny_snapshot.kept_tokens[place]
            assert one.kept_bytes == one.kept_tokens * tiny_snapshot.header.bytes_per_token
            assert one.read_tokens == tiny_snapshot.read_tokens[place]
            np.testing.assert_equal(one.mass, float(tiny_snapshot.attention_mass[place]))


def test_the_share_of_the_cache_leaves_out_what_a_scale_pays_to_itself(tiny_snapshot: Snapshot) -> None:
    (own, later, *_) = history_of(tiny_snapshot, 0, 0, 1).moments

    mass = tiny_snapshot.attention_mass[2, 0, 0].astype(float)
    assert np.isnan(own.of_cache)
    assert later.of_cache == pytest.approx(mass[1] / (1 - mass[2]))


def test_rank_and_median_are_those_of_the_source_scale(tiny_snapshot: Snapshot) -> None:
    history = history_of(tiny_snapshot, 0, 1, 1)
    scores = scas_of(tiny_snapshot)[:, :, 1]

    assert history.rank == ranks_of(tiny_snapshot)[0, 1, 1]
    assert history.ranked == np.isfinite(scores).sum() == 5
    assert history.median == np.nanmedian(scores)
    assert history.scas_scales == 1
    assert "Mean over 1 later scale that read it" in rank_words(history)


def test_what_nothing_read_later_has_no_rank(tiny_snapshot: Snapshot) -> None:
    assert rank_words(history_of(tiny_snapshot, 2, 0, 1)) == "no later scale that was measured has read it"


def test_loss_is_the_last_measured_mass_and_nothing_is_claimed_of_later(tiny_snapshot: Snapshot) -> None:
    gone, kept = history_of(tiny_snapshot, 0, 1, 1), history_of(tiny_snapshot, 0, 0, 1)

    assert gone.last_read is not None
    assert gone.last_read.query_scale == 2
    assert lost_words(gone).startswith(f"{100 * gone.last_read.mass:.1f} % of this head's attention at scale 2")
    assert lost_words(gone).endswith(NOBODY_LOOKED)
    assert lost_words(kept) == "nothing so far: it is still there"
    assert lost_words(history_of(tiny_snapshot, 0, 0, 4)) == "nothing"


def test_without_mass_the_loss_is_unknown(gpu_trace: Path) -> None:
    with Trace.open(gpu_trace) as trace:
        snapshot = take_snapshot(gpu_trace, trace, None)

    assert lost_words(history_of(snapshot, 0, 1, 1)) == f"not measured; {NOBODY_LOOKED}"


def test_size_says_what_is_taken_freed_or_never_taken(tiny_snapshot: Snapshot) -> None:
    words = {place: size_words(history_of(tiny_snapshot, *place)) for place in np.ndindex(3, 2, 5)}

    assert words[0, 1, 1] == "4 tokens = 256 B, freed"
    assert words[0, 0, 1] == "4 tokens = 256 B"
    assert words[1, 0, 2] == "nothing; keeping it would take 9 tokens = 576 B"
    assert words[0, 0, 4] == "nothing: its 36 tokens are never cached"


def test_the_rule_names_policy_budget_and_where_the_orders_came_from(tiny_snapshot: Snapshot) -> None:
    def words(found: str | None, **job: str) -> str:
        schedule = replace(tiny_snapshot.schedule, provenance={} if found is None else {"orders": found})
        header = replace(tiny_snapshot.header, job=replace(tiny_snapshot.header.job, **job))
        snapshot = replace(tiny_snapshot, plans=sole(schedule), header=header)
        return rule_words(snapshot, history_of(snapshot, 0, 1, 1))

    assert "policy heatkv with a budget of" in words(None)
    assert "from no head orders" in words(None)
    assert "from the bundled head orders scas.json" in words("/some/where/scas.json")
    assert "from the head orders mine.h5" in words("C:\\orders\\mine.h5", orders="mine.h5")
    assert "as written in the schedule plan.json" in words(None, schedule="x/plan.json")
    assert "\x1b" not in words("evil\x1b[31m.h5")


def test_the_rules_of_sinks_the_last_scale_and_early_drops_are_their_own(tiny_snapshot: Snapshot) -> None:
    def words(*place: int) -> str:
        return rule_words(tiny_snapshot, history_of(tiny_snapshot, *place))

    assert "no policy evicts them" in words(0, 0, 0)
    assert "No later scale reads the last one" in words(0, 0, 4)
    assert "Dropped early, before its own layer read it at that scale, to stay within the budget." in words(2, 0, 1)
    assert words(0, 0, 1).endswith("which leaves this head-scale to the end.")


def test_a_live_run_is_told_as_far_as_it_has_come(live_snapshot: Snapshot) -> None:
    history = history_of(live_snapshot, 0, 0, 3)

    assert history.moments == ()
    assert observed_words(history) == "not written yet"
    assert lost_words(history) == "nothing"


def test_before_the_first_scale_nothing_is_known_but_the_plan(tmp_path: Path, fake_run: ModuleType) -> None:
    with Recorder(tmp_path / "new.h5", fake_run.fake_job()) as recorder:
        recorder.run_started(fake_run.fake_start())
        with Trace.open(recorder.path) as trace:
            history = history_of(take_snapshot(recorder.path, trace, None), 0, 1, 1)

    assert (history.moments, history.rank, history.ranked) == ((), None, 0)
    assert planned_words(history) == "dropped after scale 2, layer 0"


def test_a_selection_is_the_rectangle_between_two_cells_whichever_comes_first() -> None:
    selection = Selection.between(Cursor(4, 2, 0, 1), Cursor(4, 0, 1, 1))

    assert (selection.layers, selection.heads, selection.num_heads) == (range(3), range(2), 6)
    assert (1, 1) in selection
    assert (3, 1) not in selection


def test_the_sum_of_a_selection_is_that_of_its_cells(tiny_snapshot: Snapshot) -> None:
    cursor = Cursor(query_scale=4, layer=2, head=1, source_scale=1)

    found = sum_of(tiny_snapshot, "mass", Selection(range(3), range(2)), cursor)

    read, mass = tiny_snapshot.read_tokens[4, :, :, 1] > 0, tiny_snapshot.attention_mass[4, :, :, 1].astype(float)
    assert (found.num_heads, found.kept_heads, found.values) == (6, 4, 4)
    assert found.kept_tokens == 16
    assert found.kept_bytes == 16 * 64
    assert found.total == pytest.approx(mass[read].sum())
    assert found.mean == pytest.approx(mass[read].mean())
