"""The editor's model: every edit goes through Editor.write, and what it says is what the screens draw."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heatkv.config import model_config
from heatkv.policies.full import keep_everything
from kvscope.errors import UsageError
from kvscope.fidelity import Fidelity, Line
from kvscope.in_force import sole
from kvscope.journal import replayed
from kvscope.trace import Trace
from kvscope.tui.cursor import Cursor
from kvscope.tui.editing import EditOptions, Editor, nudged, target_at
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.lanes import Change, changes, fate_words
from kvscope.tui.palette import DARK, ink
from kvscope.tui.screens.apply import apply_lines
from kvscope.tui.screens.edit_line import edit_problem, edit_words
from kvscope.tui.screens.plan import PlanScreen
from kvscope.tui.screens.schedule import ScheduleScreen
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Painter
from kvscope.tui.widgets.lanes import cell_line, lanes, plan_head, totals
from kvscope.tui.widgets.plan_lines import plan_edits, plan_run, plan_sources, plan_totals

PARTS: dict[str, Painter] = {
    "plan": plan_head,
    "lanes": lanes,
    "cell": cell_line,
    "totals": totals,
    "plan totals": plan_totals,
    "plan sources": plan_sources,
    "plan edits": plan_edits,
    "plan run": plan_run,
}
INKS = (ink(DARK), ink(DARK, glyphs=True), ink(DARK, plain=True), ink(DARK, colours="none"))
Begin = Callable[..., Editor]


@pytest.fixture
def trace(wide_trace: Path, tmp_path: Path) -> Path:
    """A finished trace of 32 layers, 16 heads and 7 scales, in a folder of its own; budget 60 %."""
    return Path(shutil.copy(wide_trace, tmp_path / "run.h5"))


@pytest.fixture
def snapshot(trace: Path) -> Snapshot:
    with Trace.open(trace) as opened:
        return take_snapshot(trace, opened, None)


@pytest.fixture
def begin(snapshot: Snapshot, trace: Path) -> Begin:
    return lambda **options: Editor.begin(snapshot, EditOptions(trace, **options))


def view_of(snapshot: Snapshot, editor: Editor, **changes: object) -> View:
    return replace(View(ink(DARK), snapshot=snapshot, edit=editor.state), **changes)  # type: ignore[arg-type]


def text_of(paint: Painter, view: View, width: int = 120, height: int = 30) -> str:
    return "\n".join(strip.text for strip in paint(view, width, height))


def fidelity(model: str, sizes: tuple[tuple[int, int], ...]) -> Fidelity:
    line = Line(-1.0, 1.0, 0.2, 0.9)
    return Fidelity(model, sizes, {"kl": line, "flips": line}, 1e-9, 1.0, ())


@pytest.mark.parametrize("budget", ["0", "1B"])
def test_a_budget_of_nothing_is_a_problem_that_every_part_can_show(
    begin: Begin, snapshot: Snapshot, budget: str
) -> None:
    editor = begin()
    editor.write(f"budget {budget}")

    shown = {name: text_of(paint, view_of(snapshot, editor)) for name, paint in PARTS.items()}
    editor.close()

    assert editor.state.draft.problem is not None
    assert "0 %" in shown["plan"]


def test_a_journal_lies_beside_the_trace_and_is_gone_on_with(begin: Begin, trace: Path) -> None:
    editor = begin()
    editor.write("pin l1 h2 s4")
    editor.write("drop l0 h* s5")
    first = editor.state.schedule.content_hash
    editor.close()

    again = begin()

    assert trace.with_suffix(".kvs").read_text(encoding="utf-8").splitlines()[1:] == ["pin l1 h2 s4", "drop l0 h* s5"]
    assert again.state.schedule.content_hash == first
    assert again.state.words == "2 edits resumed from run.kvs"
    assert again.state.edits == ("pin l1 h2 s4", "drop l0 s5")
    again.close()


def test_a_journal_of_another_schedule_is_refused(begin: Begin, tmp_path: Path) -> None:
    other = tmp_path / "other.kvs"
    other.write_text("# kvscope edits of schedule 1234\npin l0\n", encoding="utf-8")

    with pytest.raises(UsageError, match="another schedule"):
        begin(journal=other)


def test_a_script_is_staged_without_a_journal(begin: Begin, trace: Path) -> None:
    editor = begin(script=("pin l0 h0 s4", "", "# remark"))

    assert editor.state.edits == ("pin l0 h0 s4",)
    assert editor.state.journal == ""
    assert not trace.with_suffix(".kvs").exists()


@pytest.mark.parametrize("line", ["drop l99 h0 s5", "pin s0", "nonsense", "policy lottery", "undo"])
def test_a_line_that_makes_no_sense_changes_nothing_but_the_words(begin: Begin, line: str) -> None:
    editor = begin(script=())
    before = editor.state

    after = editor.write(line)

    assert after.is_refused
    assert after.words
    assert after.draft is before.draft
    assert after.edits == before.edits


def test_a_journal_that_cannot_be_written_takes_no_edit(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = begin()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kvscope.journal.os.fsync", full)
    state = editor.write("pin l0 h0 s4")

    assert state.is_refused
    assert "No space left" in state.words
    assert state.edits == ()
    editor.close()


def test_a_hundred_undos_lead_back_to_the_same_hash(begin: Begin) -> None:
    editor = begin(script=())
    start = editor.state.schedule.content_hash
    for index in range(100):
        editor.write(f"drop l{index % 32} h{index % 16} s{3 + index % 3} after q{3 + index % 4}")
    end = editor.state.schedule.content_hash

    for _ in range(100):
        editor.write("undo")
    assert (editor.state.schedule.content_hash, editor.state.edits, editor.state.num_undone) == (start, (), 100)
    for _ in range(100):
        editor.write("redo")
    assert editor.state.schedule.content_hash == end


def test_discarding_undoes_all_and_redo_brings_it_back(begin: Begin) -> None:
    editor = begin(script=("pin l0 h0 s4", "drop l1 s5"))
    staged = editor.state.schedule.content_hash

    state = editor.discard()

    assert (state.edits, state.num_undone, state.num_changed) == ((), 2, 0)
    editor.write("redo")
    assert editor.write("redo").schedule.content_hash == staged


def test_keys_mean_the_cell_or_the_whole_selection(begin: Begin) -> None:
    editor, cursor = begin(script=()), Cursor(5, 3, 1, 4)

    assert editor.line_of("drop", cursor, None) == "drop l3 h1 s4 after q5"
    assert editor.line_of("never", cursor, Cursor(0, 1, 2, 4)) == "drop l1-3 h1-2 s4"
    assert editor.line_of("pin", cursor, Cursor(0, 4, 0, 3)) == "pin l3-4 h0-1 s3-4"
    assert editor.line_of("clear", cursor, None) == "clear l3 h1 s4"
    assert editor.line_of("undo", cursor, None) == "undo"
    assert target_at(cursor, None).text == "l3 h1 s4"


def test_the_budget_moves_by_a_token_a_head(begin: Begin) -> None:
    editor = begin(script=("budget 100t",))

    assert nudged(editor.state.draft, 1) == "budget 101t"
    assert editor.nudged(-1) == "budget 99t"
    editor.write("budget 1t")
    assert editor.nudged(-1) == "budget 1t"


def test_filling_without_head_orders_says_what_is_missing(begin: Begin) -> None:
    editor = begin(script=())

    assert editor.line_of("fill", Cursor(), None) == "policy heatkv"
    assert "needs head orders" in editor.write("policy heatkv").words


def test_changes_tell_pins_from_what_follows(begin: Begin) -> None:
    editor = begin(script=("drop l0 h0 s4", "pin l1 h1 s5"))
    found = changes(editor.state.draft)

    assert found[0, 0, 4] == Change.PINNED_GONE
    assert found[1, 1, 5] == Change.PINNED_KEPT
    assert np.count_nonzero(found) == 2
    assert fate_words(editor.state.schedule, 0, 0, 4) == "never kept"


def test_the_state_counts_what_changed_and_what_is_not_known(begin: Begin, snapshot: Snapshot) -> None:
    editor = begin(script=("budget none", "pin s3-5"))
    state, start = editor.state, snapshot.schedule.drop_step

    assert state.num_changed == int((start[:, :, 3:6] != state.schedule.drop_step[:, :, 3:6]).sum())
    assert state.changed_by_source.sum() == state.num_changed
    assert state.estimate.unknown_cells > 0
    assert "the parent never attended to" in text_of(plan_head, view_of(snapshot, editor))


def test_an_infeasible_budget_is_said_with_the_least_that_would_do(begin: Begin, snapshot: Snapshot) -> None:
    editor = begin(script=("pin s3-5", "budget 1%"))
    view = view_of(snapshot, editor)

    assert editor.state.draft.problem is not None
    text = text_of(plan_head, view)
    assert "✗" in text
    assert "least: 100 %" in text
    assert "✗" in text_of(totals, view)
    assert "There is no plan to run" in text_of(apply_lines, view)


def test_estimates_follow_a_growing_run(begin: Begin, snapshot: Snapshot) -> None:
    editor = begin(script=("drop l0-31 s4",))
    part = replace(snapshot, read_tokens=snapshot.read_tokens[:5], attention_mass=snapshot.attention_mass[:5])

    state = editor.follow(part)

    assert len(state.estimate.lost_by_scale) == 5
    assert state.edits == ("drop l0-31 s4",)


def test_the_same_lines_make_the_same_schedule_on_the_command_line(begin: Begin) -> None:
    lines = ("drop l0-31 h0-3 s5", "pin l3 h1 s5", "budget 50%")
    editor = begin(script=lines)

    assert replayed(editor._history.drafts[0], lines, source="t").draft.schedule == editor.state.schedule


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("size", [(80, 10), (120, 26), (160, 34), (220, 36)])
def test_no_line_of_an_edited_plan_is_longer_than_its_room(
    begin: Begin, snapshot: Snapshot, part: str, size: tuple[int, int]
) -> None:
    for script in ((), ("pin l0 s3-5", "drop l9-31 h3-9 s4-5 after q5"), ("pin s3-5", "budget 1%")):
        editor = begin(script=script)
        for one in INKS:
            view = view_of(snapshot, editor, ink=one, span=Cursor(0, 3, 4, 5))
            strips = PARTS[part](view, *size)
            assert max((strip.cell_length for strip in strips), default=0) <= size[0]


def test_estimates_are_dim_and_tagged_and_measurements_are_not(begin: Begin, snapshot: Snapshot) -> None:
    editor = begin(script=("drop l0-31 h0-3 s5",))
    view = view_of(snapshot, editor)

    for paint in (plan_head, totals, plan_totals):
        assert "est." in text_of(paint, view)
    for strip in (*plan_head(view, 120, 9), *plan_totals(view, 120, 12)):
        for segment in strip:
            if "est. " in segment.text:
                # What is over the budget is not dim, but no measurement looks like that.
                assert segment.style in (view.ink.muted, view.ink.bad), segment.text
    measured = next(strip for strip in totals(view, 120, 8) if strip.text.startswith(" measured"))
    assert any(segment.style in (view.ink.text, view.ink.strong) for segment in measured)


def test_without_attention_the_loss_is_unknown_and_said_to_be(begin: Begin, snapshot: Snapshot) -> None:
    editor = begin(script=("drop l0-31 h0-3 s5",))
    blind = replace(snapshot, attention_mass=np.full_like(snapshot.attention_mass, np.nan))
    editor.follow(blind)

    assert editor.state.after.lost is None
    assert "unknown: the run measured no attention" in text_of(plan_head, view_of(blind, editor))


def full(snapshot: Snapshot) -> Snapshot:
    """The same run, as if it had kept everything."""
    config = model_config(snapshot.header.model)
    drop_step = keep_everything(config, snapshot.schedule.scales)
    schedule = replace(snapshot.schedule, drop_step=drop_step, budget=None)
    return replace(snapshot, plans=sole(schedule), read_tokens=schedule.read_tokens())


def test_predictions_have_a_band_where_a_fidelity_fits(snapshot: Snapshot, tmp_path: Path, trace: Path) -> None:
    fidelity(snapshot.header.model, snapshot.schedule.scales.sizes).save(tmp_path / "infinity-2b-fidelity.json")
    whole, script = full(snapshot), ("drop l0-31 h0-3 s5",)

    editor = Editor.begin(whole, EditOptions(trace, script=script))

    assert editor.state.is_predicted
    text = text_of(plan_head, view_of(whole, editor))
    assert "est. KL" in text
    assert "bits that flip est." in text


def test_what_codecs_lose_is_no_prediction_and_says_so(snapshot: Snapshot, tmp_path: Path, trace: Path) -> None:
    fidelity(snapshot.header.model, snapshot.schedule.scales.sizes).save(tmp_path / "infinity-2b-fidelity.json")
    whole = full(snapshot)

    editor = Editor.begin(whole, EditOptions(trace, script=("codec int2 l*",)))

    text = text_of(plan_head, view_of(whole, editor))
    assert "no prediction: what coarser codecs lose was not tried" in text
    assert "est. KL" not in text


def test_a_run_that_was_pruned_has_no_predictions(snapshot: Snapshot, tmp_path: Path, trace: Path) -> None:
    fidelity(snapshot.header.model, snapshot.schedule.scales.sizes).save(tmp_path / "infinity-2b-fidelity.json")

    assert not Editor.begin(snapshot, EditOptions(trace, script=())).state.is_predicted


def test_a_fidelity_of_another_model_is_refused_if_named_and_passed_by_if_not(
    snapshot: Snapshot, tmp_path: Path, trace: Path
) -> None:
    for name in ("infinity-2b-fidelity.json", "other.json"):
        fidelity("another", ((1, 1),)).save(tmp_path / name)

    assert not Editor.begin(full(snapshot), EditOptions(trace, script=())).state.is_predicted
    with pytest.raises(UsageError, match="learnt on another"):
        Editor.begin(snapshot, EditOptions(trace, fidelity=tmp_path / "other.json"))


def test_selected_cells_and_pins_have_shapes_of_their_own(begin: Begin, snapshot: Snapshot) -> None:
    editor = begin(script=("drop l0 h1 s4", "pin l0 h2 s5"))

    text = text_of(lanes, view_of(snapshot, editor))
    assert "✗" in text.splitlines()[6]
    assert "◆" in text.splitlines()[7]
    selected = view_of(snapshot, editor, cursor=Cursor(0, 0, 4, 3), span=Cursor(0, 0, 5, 4))
    assert "2×1×2" not in text_of(cell_line, selected)
    assert "1×2×2 = 4 selected" in text_of(cell_line, selected)
    assert text_of(lanes, selected).count("▐") == 4


def test_a_typed_line_is_judged_while_it_is_typed(begin: Begin, snapshot: Snapshot) -> None:
    view = view_of(snapshot, begin(script=()))

    assert edit_problem("", view) is None
    assert edit_problem("budget 10%", view) is None
    assert "no edit" in (edit_problem("budget lots", view) or "")
    assert "there is no layer 99" in (edit_problem("pin l99", view) or "")
    assert "there is no query scale 40" in (edit_problem("drop s4 after q40", view) or "")
    assert "512 head-scales" in edit_words("pin s4", view)
    assert "read-only" in (edit_problem("pin s4", replace(view, edit=None)) or "")


def test_records_are_those_of_the_staged_plan(begin: Begin, snapshot: Snapshot) -> None:
    editor = begin(script=("drop l0 h1 s4",))
    view = view_of(snapshot, editor)

    one = next(
        record
        for record in ScheduleScreen().records(view)
        if (record["layer"], record["head"], record["source_scale"]) == (0, 1, 4)
    )
    before, after = PlanScreen().records(view)

    assert (one["drop_step"], one["pinned"]) == (4 * 32, 1)
    assert one["recorded_drop_step"] == snapshot.schedule.drop_step[0, 1, 4]
    assert after["schedule_sha256"] == editor.state.schedule.content_hash
    assert after["peak_bytes_est"] == editor.state.estimate.peak_bytes
    assert before["schedule_sha256"] == snapshot.schedule.content_hash
    assert PlanScreen().records(replace(view, edit=None)) == []
