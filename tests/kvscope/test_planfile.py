from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kvscope.commands.plan import plan_text
from kvscope.draft import Draft, edited, ground_of
from kvscope.edits import parse_edit
from kvscope.errors import UsageError
from kvscope.estimate import estimate
from kvscope.fidelity import Fidelity
from kvscope.planfile import PlanFile, plan_file
from kvscope.trace import Trace

TRACES = Path(__file__).parents[2] / "traces"


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return Path(shutil.copy(TRACES / "infinity-tiny-full.h5", tmp_path / "parent.h5"))


def plan(parent: Path, *lines: str, orders: Path | None = None, fidelity: Fidelity | None = None) -> PlanFile:
    with Trace.open(parent) as trace:
        draft = Draft.of(trace.schedule, ground_of(trace.header, trace.attention_mass))
        for line in lines:
            edit = parse_edit(line)
            assert edit is not None
            draft = edited(draft, edit)
        job = replace(trace.header.job, parent=str(parent), schedule="after.json")
        before, after = estimate(trace, draft.start), estimate(trace, draft.schedule)
        return plan_file(trace, draft, lines, after=after, before=before, job=job, orders=orders, fidelity=fidelity)


def test_a_plan_says_what_changes_and_what_it_comes_to(parent: Path) -> None:
    made = plan(parent, "policy heatkv", "budget 20%", "drop l0 h0 s4")

    assert made.before.peak_tokens > made.after.peak_tokens
    assert made.before.lost == 0
    assert made.after.lost is not None
    assert 0 < made.after.lost < 1
    assert made.changed_head_scales > 0
    assert made.unknown_cells == 0
    assert made.edits == ("policy heatkv", "budget 20%", "drop l0 h0 s4")


def test_a_file_comes_back_as_it_was(parent: Path, tmp_path: Path) -> None:
    made = plan(parent, "policy heatkv", "budget 20%")

    assert PlanFile.load(made.save(tmp_path / "plan.json")) == made


def test_of_a_loss_that_is_mostly_codecs_noise_no_error_is_predicted(parent: Path) -> None:
    fidelity = Fidelity.load(TRACES / "infinity-tiny-fidelity.json")

    dropping = plan(parent, "policy heatkv", "budget 20%", fidelity=fidelity).after
    coarse = plan(parent, "codec k4v2 l*", fidelity=fidelity)

    assert dropping.kl is not None
    assert not dropping.is_coarse
    assert coarse.after.is_coarse
    assert coarse.after.kl is None
    assert "no error is predicted: 100 % of the loss is what coarser codecs lose" in plan_text(coarse)


def test_a_head_scale_counts_as_changed_by_its_codec_but_not_the_last_scale(parent: Path) -> None:
    made = plan(parent, "policy knapsack:codecs=int8+int4", "budget 10%", "sinks 0")

    assert made.changed_head_scales == int((made.schedule.stored_in()[..., :-1] != "model").sum())


def test_a_plan_file_from_before_codecs_were_told_apart_is_read(parent: Path, tmp_path: Path) -> None:
    made = plan(parent, "policy heatkv", "budget 20%")
    record = made.to_json()
    for totals in ("before", "after"):
        del record[totals]["coarse_share"]
    del record["content_sha256"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(record))

    assert PlanFile.load(path) == made


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("after", "coarse_share", "much"),
        ("after", "lost", [True]),
        ("before", "policy", 3),
        (None, "shape", ["6"]),
        ("after", "peak_bytes", float("inf")),
    ],
)
def test_a_field_of_another_kind_is_damage_and_is_named(
    parent: Path, tmp_path: Path, where: str | None, name: str, value: object
) -> None:
    record = plan(parent, "policy heatkv", "budget 20%").to_json()
    (record if where is None else record[where])[name] = value
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(record))

    with pytest.raises(UsageError, match=f"plan.json: damaged \\({name} is "):
        PlanFile.load(path)


@pytest.mark.parametrize(("where", "name", "value"), [("after", "peak_bytes", 5), ("job", "seed", 99)])
def test_what_was_changed_since_the_review_is_refused(
    parent: Path, tmp_path: Path, where: str, name: str, value: object
) -> None:
    record = plan(parent, "policy heatkv", "budget 20%").to_json()
    record[where][name] = value
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(record))

    with pytest.raises(UsageError, match="not what was reviewed: something in it was changed since"):
        PlanFile.load(path)


def test_schedules_of_two_plans_under_one_name_lie_side_by_side(parent: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    made = [plan(parent, "policy heatkv", f"budget {budget}%").schedule_beside(path) for budget in (20, 10, 20)]

    assert made[0] == made[2] != made[1]


def test_a_fresh_plan_is_not_stale(parent: Path) -> None:
    plan(parent, "drop l0 h0 s4").check()


def test_a_plan_whose_parent_has_changed_is_refused_and_says_so(parent: Path) -> None:
    made = plan(parent, "drop l0 h0 s4")
    with parent.open("ab") as file:
        file.write(b"more")

    with pytest.raises(UsageError, match=r"the plan is stale: the parent trace .*parent.h5 has another content"):
        made.check()


def test_a_plan_whose_parent_or_orders_are_gone_names_both(parent: Path, tmp_path: Path) -> None:
    orders = Path(shutil.copy(TRACES / "prompts.txt", tmp_path / "orders.json"))
    made = plan(parent, "drop l0 h0 s4", orders=orders)
    parent.unlink()
    orders.write_text("other")

    assert ["parent" in line or "orders" in line for line in made.stale()] == [True, True]


def test_a_plan_whose_schedule_was_changed_after_review_is_refused(parent: Path, tmp_path: Path) -> None:
    path = plan(parent, "drop l0 h0 s4").save(tmp_path / "plan.json")
    record = json.loads(path.read_text())
    record["schedule"]["drop_step"][0][0][3] = 41 if record["schedule"]["drop_step"][0][0][3] != 41 else 20
    path.write_text(json.dumps(record))

    with pytest.raises(UsageError, match="not the one that was reviewed"):
        PlanFile.load(path)


def test_errors_are_predicted_only_from_a_run_that_kept_everything(parent: Path, tmp_path: Path) -> None:
    pruned = Path(shutil.copy(TRACES / "infinity-tiny-heatkv-10.h5", tmp_path / "pruned.h5"))
    lines = ("policy heatkv", "budget 20%")
    learnt = Fidelity.load(TRACES / "infinity-tiny-fidelity.json")

    known, unknown = plan(parent, *lines, fidelity=learnt), plan(pruned, *lines, fidelity=learnt)

    assert known.after.kl is not None
    assert unknown.unknown_cells > 0
    assert (unknown.before.kl, unknown.after.kl, unknown.after.flips) == (None, None, None)


def test_a_draft_with_a_problem_makes_no_plan(parent: Path) -> None:
    with pytest.raises(UsageError, match="the last edit cannot be met"):
        plan(parent, "policy heatkv", "budget 10%", "pin s5")


@pytest.mark.parametrize("content", ["[]", "{}", "x", '{"format": "kvscope.plan", "version": 1}'])
def test_what_is_no_plan_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)

    with pytest.raises(UsageError, match=r"a plan file made by `kvscope plan --save-plan`$"):
        PlanFile.load(path)
