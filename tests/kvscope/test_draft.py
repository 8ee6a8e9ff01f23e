from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.bundled import bundled_orders
from heatkv.config import model_config
from heatkv.policies.heatkv import HeatKVPolicy
from kvscope.draft import Draft, Ground, edited
from kvscope.edits import parse_edit
from kvscope.errors import OutputError, UsageError
from kvscope.journal import History, Journal, replayed
from kvscope.plan import load_orders

CONFIG = model_config("infinity-tiny")
SCALES = CONFIG.schedule_for(None)
ORDERS = load_orders(bundled_orders(CONFIG), CONFIG)  # type: ignore[arg-type]  # the tiny model has them
GROUND = Ground(CONFIG, SCALES, CONFIG.kv_bytes_per_token(), ORDERS)
LAST = GROUND.last_step

LINES = (
    "policy heatkv",
    "policy none",
    "budget 30%",
    "budget 12%",
    "budget 60t",
    "budget 400KiB",
    "budget none",
    "sinks 3",
    "sinks 2",
    "drop l2 h1 s3-4 after q5",
    "drop s5",
    "drop l0-2 h* s4",
    "pin l5 s4",
    "pin l1 h2 s3",
    "clear l*",
    "clear s4",
)


def start(budget: float = 0.2) -> Draft:
    return Draft.of(HeatKVPolicy(ORDERS).plan(CONFIG, SCALES, budget=budget, sink_scales=2), GROUND)


def after(draft: Draft, *lines: str) -> Draft:
    for line in lines:
        edit = parse_edit(line)
        assert edit is not None
        draft = edited(draft, edit)
    return draft


def test_the_policy_at_the_same_budget_gives_the_schedule_it_began_with() -> None:
    assert not after(start(), "policy heatkv").is_changed


def test_a_dropped_head_scale_goes_after_its_layer_of_the_query_scale_named() -> None:
    draft = after(start(1.0), "drop l2 h1 s3 after q5")

    assert draft.schedule.drop_step[2, 1, 3] == 5 * CONFIG.num_layers + 2
    assert (draft.schedule.drop_step != draft.start.drop_step).sum() == 1


def test_a_head_scale_dropped_without_more_words_is_never_kept() -> None:
    draft = after(start(1.0), "drop l2 h1 s3")

    assert draft.schedule.drop_step[2, 1, 3] == 3 * CONFIG.num_layers + 2


def test_a_pin_is_kept_and_the_policy_finds_the_tokens_elsewhere() -> None:
    free = after(start(), "policy heatkv")
    layer, head, source = (int(index[0]) for index in np.nonzero(free.schedule.drop_step[..., :-1] < LAST))

    pinned = after(free, f"pin l{layer} h{head} s{source}")

    assert pinned.schedule.drop_step[layer, head, source] == LAST
    assert pinned.schedule.peak_tokens <= (pinned.limit_tokens or 0)


def test_sinks_are_passed_by_and_nothing_but_sinks_is_refused() -> None:
    assert (after(start(), "drop l0").schedule.drop_step[0, :, :2] == LAST).all()
    with pytest.raises(UsageError, match="only sink scales"):
        after(start(), "drop s0")


def test_what_pins_make_impossible_is_a_problem_with_its_minimum_and_the_schedule_stays() -> None:
    before = after(start(), "policy heatkv", "budget 20%")

    draft = after(before, "pin s5")

    assert draft.problem is not None
    assert draft.problem.minimum is not None
    assert draft.problem.minimum > 0.2
    assert "scale 5" in draft.problem.text
    assert draft.schedule is before.schedule
    assert after(draft, f"budget {draft.problem.minimum * 100:.17g}%").problem is None


def test_without_a_policy_more_than_the_budget_is_a_problem_that_says_how_much() -> None:
    draft = after(start(), "pin s5")

    assert draft.problem is not None
    assert "over the budget after scale 5" in draft.problem.text


def test_without_orders_heatkv_is_refused_with_the_way_out() -> None:
    draft = Draft.of(start().start, Ground(CONFIG, SCALES, GROUND.bytes_per_token))

    with pytest.raises(UsageError, match="give --orders FILE"):
        after(draft, "policy heatkv")


@given(st.lists(st.sampled_from(LINES), max_size=12))
@settings(max_examples=150)
def test_whatever_is_edited_the_budget_is_kept_or_there_is_a_problem(lines: list[str]) -> None:
    draft = after(start(), *lines)

    over = draft.limit_tokens is not None and draft.schedule.peak_tokens > draft.limit_tokens
    assert draft.problem is not None or not over
    assert (draft.schedule.drop_step[..., : draft.schedule.sink_scales] == LAST).all()


@given(st.lists(st.sampled_from(LINES), min_size=1, max_size=30))
@settings(max_examples=40)
def test_as_many_undos_as_edits_lead_back_to_the_identical_schedule_and_as_many_redos_on(lines: list[str]) -> None:
    history = replayed(start(), lines, source="test")
    end = history.draft.schedule.content_hash

    for _ in lines:
        history = history.undone()
    begin = history.draft
    for _ in lines:
        history = history.redone()

    assert begin.schedule.content_hash == begin.start.content_hash
    assert history.draft.schedule.content_hash == end


def test_nothing_to_undo_and_nothing_to_redo_are_said() -> None:
    with pytest.raises(UsageError, match="nothing to undo"):
        History.of(start()).undone()
    with pytest.raises(UsageError, match="nothing to redo"):
        History.of(start()).redone()


def test_a_journal_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "edits.kvs"
    first = Journal(path, start())
    for line in ("policy heatkv", "budget 12%", "undo", "drop l2 h1 s3"):
        first.write(line)
    expected = first.history.draft.schedule.content_hash
    first.close()

    again = Journal(path, start())
    again.close()

    assert again.history.draft.schedule.content_hash == expected
    assert again.history.can_undo


def test_a_line_that_a_crash_cut_short_was_never_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "edits.kvs"
    journal = Journal(path, start())
    journal.write("budget 12%")
    journal.close()
    with path.open("a") as file:
        file.write("drop l2 h")

    again = Journal(path, start())
    again.write("sinks 3")
    again.close()

    assert path.read_text().splitlines()[1:] == ["budget 12%", "sinks 3"]


def test_a_refused_line_is_not_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "edits.kvs", start())

    with pytest.raises(UsageError):
        journal.write("drop everything")
    journal.close()

    assert len((tmp_path / "edits.kvs").read_text().splitlines()) == 1


def test_the_journal_of_another_schedule_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "edits.kvs", start(0.2)).close()

    with pytest.raises(UsageError, match="the edits of another schedule"):
        Journal(tmp_path / "edits.kvs", start(0.3))


def test_a_second_editor_of_one_journal_is_refused(tmp_path: Path) -> None:
    first = Journal(tmp_path / "edits.kvs", start())

    with pytest.raises(UsageError, match="another editor has it open"):
        Journal(tmp_path / "edits.kvs", start())
    first.close()
    Journal(tmp_path / "edits.kvs", start()).close()


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="choose another place for the journal"):
        Journal(tmp_path / "nowhere" / "edits.kvs", start())


def test_an_editor_that_is_killed_has_lost_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from test_draft import LINES, start\n"
        "from kvscope.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), start())\n"
        "for line in LINES:\n"
        "    journal.write(line)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "edits.kvs"

    done = subprocess.run([sys.executable, "-c", script, str(path), str(Path(__file__).parent)], check=False)

    assert done.returncode == -9
    again = Journal(path, start())
    again.close()
    assert again.history.draft.schedule.content_hash == replayed(start(), LINES, source="").draft.schedule.content_hash
