"""The loop on the command line, with the bundled model: plan, save, apply, replay, tune, learn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heatkv.schedule import PruningSchedule
from kvscope import cli
from kvscope.fidelity import Fidelity
from kvscope.planfile import PlanFile
from kvscope.trace import Trace

TRACES = Path(__file__).parents[2] / "traces"
FIDELITY = TRACES / "infinity-tiny-fidelity.json"

Told = Callable[..., Any]


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return Path(shutil.copy(TRACES / "infinity-tiny-full.h5", tmp_path / "parent.h5"))


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Runs a command that succeeds and gives its JSON object."""

    def run(*arguments: object) -> Any:
        code = cli.main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that is refused as one that makes no sense, and gives its one line."""

    def run(*arguments: object, code: int = 2) -> str:
        assert cli.main(list(map(str, arguments))) == code
        out, err = capsys.readouterr()
        assert out == ""
        lines = [line for line in err.splitlines() if line.startswith("kvscope: error: ")]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "edits.kvs"
    path.write_text("# a tenth\npolicy heatkv\nbudget 10%\n\npin l0 h0 s3\nundo\ndrop l5 h* s2  # late\n")
    return path


@pytest.fixture
def plan(parent: Path, script: Path, tmp_path: Path, told: Told) -> Path:
    path = tmp_path / "plan.json"
    told("plan", "--from", parent, "--script", script, "--save-plan", path)
    return path


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestPlan:
    def test_script_and_edits_lead_to_one_schedule_before_and_after(
        self, parent: Path, script: Path, tmp_path: Path, told: Told
    ) -> None:
        out = tmp_path / "s.json"
        found = told("plan", "--from", parent, "--script", script, "--edit", "clear l5 h0 s2", "-o", out)

        assert found["edits"] == ["policy heatkv", "budget 10%", "drop l5 s2", "clear l5 h0 s2"]
        assert found["problem"] is None
        assert found["tag"] == "estimated"
        assert found["before"]["lost"] == 0
        assert found["after"]["lost"] > 0
        assert found["peak_tokens"] <= 468
        assert PruningSchedule.load(out).content_hash == found["schedule_sha256"] == found["after"]["schedule_sha256"]

    def test_a_fidelity_turns_the_loss_into_a_band(self, parent: Path, told: Told) -> None:
        edits = ("--edit", "policy heatkv", "--edit", "budget 20%")

        without = told("plan", "--from", parent, *edits)["after"]
        with_it = told("plan", "--from", parent, *edits, "--fidelity", FIDELITY)["after"]

        assert without["kl"] is None
        low, middle, high = with_it["kl"]
        assert 0 < low < middle < high
        assert with_it["flips"][0] < with_it["flips"][2]

    def test_a_schedule_file_is_edited_without_a_trace(self, tmp_path: Path, told: Told) -> None:
        start, out = tmp_path / "start.json", tmp_path / "s.json"
        told("plan", "--budget", "0.2", "-o", start)

        found = told("plan", "--from", start, "--edit", "drop l3 h2 s2", "-o", out)

        assert found["pins"] == 1
        assert "after" not in found
        assert PruningSchedule.load(out).content_hash != PruningSchedule.load(start).content_hash

    def test_the_same_script_gives_the_same_hash(self, parent: Path, script: Path, told: Told) -> None:
        first, second = (told("plan", "--from", parent, "--script", script)["schedule_sha256"] for _ in range(2))

        assert first == second

    def test_a_text_for_people_marks_what_is_estimated(
        self, parent: Path, script: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["plan", "--from", str(parent), "--script", str(script)]) == 0

        out = capsys.readouterr().out
        assert "after (est.)" in out
        assert "KL, nats per bit  unknown" in " ".join(out.split("\n"))

    def test_a_problem_is_told_with_the_minimum_and_nothing_is_written(
        self, parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = leftovers(tmp_path)
        edits = ["--edit", "policy heatkv", "--edit", "pin s5", "--edit", "budget 5%"]
        outputs = ["-o", str(tmp_path / "s.json")]

        code = cli.main(["plan", "--from", str(parent), *edits, *outputs, "--json"])

        out, err = capsys.readouterr()
        assert code == 2
        assert json.loads(out)["problem"]["minimum_budget"] > 0.05
        assert "the edits leave a problem" in err
        assert leftovers(tmp_path) == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--edit", "drop l0 h0 s4"], "say which one: --from TRACE"),
            (["--from", "PARENT"], "give --script FILE or --edit LINE"),
            (["--from", "PARENT", "--edit", "drop l99"], "--edit, line 1: there is no layer 99"),
            (["--from", "PARENT", "--edit", "eat l1"], "'eat l1' is no edit; expected one like"),
            (["--from", "PARENT", "--edit", "undo"], "nothing to undo"),
            (["--from", "PARENT", "--script", "none.kvs"], "none.kvs: cannot be read (No such file or directory)"),
            (["--from", "PARENT", "--edit", "sinks 1", "--save-plan", "PARENT"], "is also what is read"),
        ],
    )
    def test_what_makes_no_sense_is_refused_in_one_line(
        self, parent: Path, refused: Callable[..., str], arguments: list[str], message: str
    ) -> None:
        given = [str(parent) if argument == "PARENT" else argument for argument in arguments]

        assert message in refused("plan", *given, code=6 if "also" in message else 2)

    def test_no_plan_is_saved_without_a_recorded_run(
        self, tmp_path: Path, told: Told, refused: Callable[..., str]
    ) -> None:
        start = tmp_path / "start.json"
        told("plan", "--budget", "0.2", "-o", start)

        line = refused("plan", "--from", start, "--edit", "sinks 1", "--save-plan", tmp_path / "plan.json")

        assert "a plan changes a recorded run; give --from TRACE" in line
        assert leftovers(tmp_path) == {"start.json"}


class TestApply:
    def test_runs_exactly_the_reviewed_schedule_and_reads_it_back(self, plan: Path, tmp_path: Path, told: Told) -> None:
        out = tmp_path / "after.h5"

        found = told("apply", plan, "-o", out, "--threads", 1)

        reviewed = PlanFile.load(plan)
        assert found["as_planned"]
        assert found["schedule_sha256"] == reviewed.after.schedule_sha256
        assert found["steps_as_estimated"] == found["steps_compared"] == 42
        assert found["accounted_peak_bytes"] == found["estimated_peak_bytes"] == reviewed.after.peak_bytes
        assert (found["mode"], found["kl"]) == ("free", None)
        with Trace.open(out) as trace:
            assert trace.status == "done"
            assert trace.schedule.content_hash == reviewed.schedule.content_hash

    def test_check_alone_runs_nothing(self, plan: Path, tmp_path: Path, told: Told) -> None:
        before = leftovers(tmp_path)

        assert told("apply", plan, "--check") == {"stale": False, "changed": []}
        assert leftovers(tmp_path) == before

    def test_a_stale_plan_is_refused_with_what_changed_and_nothing_runs(
        self, plan: Path, parent: Path, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        with parent.open("ab") as file:
            file.write(b"more")
        before = leftovers(tmp_path)

        line = refused("apply", plan, "-o", tmp_path / "after.h5")

        assert "the plan is stale: the parent trace" in line
        assert "has another content" in line
        assert leftovers(tmp_path) == before

    def test_an_output_that_exists_is_refused(self, plan: Path, parent: Path, refused: Callable[..., str]) -> None:
        content = parent.read_bytes()

        assert "exists" in refused("apply", plan, "-o", parent, code=6)
        assert parent.read_bytes() == content

    def test_what_is_no_plan_is_refused(self, parent: Path, refused: Callable[..., str]) -> None:
        assert "kvscope plan --save-plan" in refused("apply", parent)


class TestReplay:
    @pytest.fixture
    def schedule(self, tmp_path: Path, told: Told) -> Path:
        path = tmp_path / "s.json"
        told("plan", "--budget", "0.1", "-o", path)
        return path

    def test_forced_measures_what_the_cache_alone_does(
        self, parent: Path, schedule: Path, tmp_path: Path, told: Told
    ) -> None:
        out = tmp_path / "forced.h5"

        found = told("replay", parent, "--schedule", schedule, "-o", out)

        assert found["mode"] == "forced"
        assert found["kl"] > 0
        assert 0 < found["flips"] < 1
        assert found["kl_by_scale"][0] == 0
        assert len(found["attention_error_by_layer"]) == 6
        assert found["steps_as_estimated"] == found["steps_compared"]
        with Trace.open(parent) as before, Trace.open(out) as after:
            assert all((before.bits(scale) == after.bits(scale)).all() for scale in range(7))
            assert after.header.parent_run_id == before.header.run_id

    def test_the_parents_own_schedule_changes_nothing(self, parent: Path, tmp_path: Path, told: Told) -> None:
        with Trace.open(parent) as trace:
            same = trace.schedule.save(tmp_path / "same.json")

        found = told("replay", parent, "--schedule", same, "-o", tmp_path / "forced.h5")

        assert (found["kl"], found["flips"], found["lost"]) == (0, 0, 0)
        assert not any(found["attention_error_by_layer"])

    def test_free_makes_another_image_from_the_same_seed(
        self, parent: Path, schedule: Path, tmp_path: Path, told: Told
    ) -> None:
        out = tmp_path / "free.h5"

        found = told("replay", parent, "--schedule", schedule, "--mode", "free", "-o", out)

        assert (found["kl"], found["mode"]) == (None, "free")
        with Trace.open(parent) as before, Trace.open(out) as after:
            assert (before.bits(0) == after.bits(0)).all()
            assert any((before.bits(scale) != after.bits(scale)).any() for scale in range(1, 7))

    def test_errors_are_one_line_and_leave_nothing(
        self, parent: Path, schedule: Path, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        before = leftovers(tmp_path)
        other = tmp_path / "other.h5"

        assert "expected one of free, forced" in refused("replay", parent, "--schedule", schedule, "--mode", "x")
        assert "none.json" in refused("replay", parent, "--schedule", tmp_path / "none.json", "-o", other)
        assert "none.h5" in refused("replay", tmp_path / "none.h5", "--schedule", schedule, "-o", other, code=5)
        assert leftovers(tmp_path) == before

    def test_a_schedule_for_another_model_is_refused(
        self, parent: Path, tmp_path: Path, told: Told, refused: Callable[..., str]
    ) -> None:
        other = tmp_path / "other.json"
        told("plan", "--model", "infinity-2b", "--resolution", "0.06M", "--policy", "full", "-o", other)

        line = refused("replay", parent, "--schedule", other, "-o", tmp_path / "out.h5")

        assert "infinity-2b" in line
        assert not (tmp_path / "out.h5").exists()


class TestTune:
    def test_the_best_within_the_bytes_is_verified_and_written(self, parent: Path, tmp_path: Path, told: Told) -> None:
        out = tmp_path / "tuned.json"

        found = told("tune", parent, "--target-bytes", "117KiB", "--verify", "2", "--threads", "1", "-o", out)

        chosen = found["chosen"]
        assert chosen["peak_bytes"] <= 117 * 1024
        assert chosen["kl"] is not None
        verified = [one for one in found["tried"] if one["kl"] is not None]
        assert "heatkv" in [one["name"] for one in verified]
        assert chosen["kl"] == min(one["kl"] for one in verified)
        assert PruningSchedule.load(out).content_hash == chosen["schedule_sha256"]

    def test_what_is_stored_coarser_runs_and_takes_the_bytes_that_were_planned(
        self, parent: Path, tmp_path: Path, told: Told
    ) -> None:
        schedule, plan, ran = tmp_path / "tuned.json", tmp_path / "plan.json", tmp_path / "ran.h5"
        options = ("--calibration", TRACES / "infinity-tiny-scas.h5", "--codecs", "k4v2", "--verify", "2")

        found = told(
            "tune", parent, "--target-bytes", "60KiB", *options, "--threads", "1", "-o", schedule, "--save-plan", plan
        )
        applied = told("apply", plan, "-o", tmp_path / "applied.h5", "--threads", "1")
        told("run", "--schedule", schedule, "-o", ran, "--threads", "1")

        chosen = found["chosen"]
        assert chosen["codecs"] == ["model", "k4v2"]
        assert (
            sum(part["bytes"] for name, part in chosen["at_peak"].items() if name != "dropped") == chosen["peak_bytes"]
        )
        assert applied["schedule_sha256"] == chosen["schedule_sha256"]
        assert applied["as_planned"]
        assert applied["steps_as_estimated"] == applied["steps_compared"]
        assert applied["accounted_peak_bytes"] == chosen["peak_bytes"] <= 60 * 1024
        with Trace.open(ran) as trace:
            assert trace.steps["accounted_bytes"].max() == chosen["peak_bytes"]

    def test_without_codecs_everything_is_in_the_models_dtype(self, parent: Path, told: Told) -> None:
        found = told("tune", parent, "--target-bytes", "117KiB", "--codecs", "none", "--verify", "0")

        assert {tuple(one["codecs"]) for one in found["tried"]} == {()}
        assert any(one["codecs"] for one in told("tune", parent, "--max-loss", "0.1", "--verify", "0")["tried"])

    def test_for_a_loss_the_fewest_bytes_are_chosen_without_a_model(self, parent: Path, told: Told) -> None:
        found = told("tune", parent, "--max-loss", "0.02", "--verify", "0")

        assert found["chosen"]["kl"] is None
        assert found["chosen"]["lost"] <= 0.02
        known = [one for one in found["tried"] if one["lost"] is not None]
        assert found["chosen"]["peak_bytes"] == min(one["peak_bytes"] for one in known)

    def test_the_table_says_what_was_not_verified(self, parent: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["tune", str(parent), "--max-loss", "0.1", "--verify", "0"]) == 0

        out = capsys.readouterr().out
        assert "not verified" in out
        assert "lost (est.)" in out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["PARENT", "--target-bytes", "lots"], "--target-bytes 'lots' is no amount of bytes"),
            (["PARENT", "--max-loss", "2"], "a share of attention from 0 to below 1"),
            (["PARENT", "--max-loss", "0.1", "--codecs", "int5"], "unknown KV codec 'int5'; known, nearest first"),
            (["PRUNED", "--target-bytes", "1MiB"], "learning needs runs of policy full"),
        ],
    )
    def test_what_makes_no_sense_is_refused_in_one_line(
        self, parent: Path, tmp_path: Path, refused: Callable[..., str], arguments: list[str], message: str
    ) -> None:
        pruned = TRACES / "infinity-tiny-heatkv-10.h5"
        names = {"PARENT": str(parent), "PRUNED": str(pruned)}
        out = tmp_path / "tuned.json"

        line = refused("tune", *(names.get(argument, argument) for argument in arguments), "-o", out)

        assert message in line
        assert not out.exists()


class TestFidelity:
    def test_is_learnt_from_two_runs_and_written(self, parent: Path, tmp_path: Path, told: Told) -> None:
        second, out = tmp_path / "second.h5", tmp_path / "fidelity.json"
        told("run", "--prompt", "a green circle at the left on a black background", "-o", second)

        picture = tmp_path / "fidelity.svg"
        options = ("--schedules", "9", "--threads", "1", "-o", out, "--picture", picture)
        found = told("fidelity", parent, second, *options)

        learnt = Fidelity.load(out)
        assert len(found["trials"]) == len(learnt.trials) == 18
        assert {trial.schedule for trial in learnt.trials} == {"heatkv", "knapsack", "random"}
        assert learnt.lines["kl"].rank_correlation > 0.7
        assert picture.read_text().startswith("<svg")

    def test_the_one_that_comes_with_the_traces_ranks_and_covers(self) -> None:
        learnt = Fidelity.load(FIDELITY)

        assert len(learnt.trials) >= 200
        for measure in ("kl", "flips"):
            assert learnt.lines[measure].rank_correlation >= 0.9
            assert 0.75 <= learnt.coverage(measure) <= 0.95

    @pytest.mark.parametrize(
        ("arguments", "message", "code"),
        [
            (["PARENT"], "give two or more", 2),
            (["PARENT", "PARENT", "--schedules", "1"], "expected 4 to 10000", 2),
            (["PARENT", "PRUNED", "--schedules", "4"], "learning needs runs of policy full", 2),
            (["PARENT", "none.h5", "--schedules", "4"], "none.h5", 5),
        ],
    )
    def test_what_makes_no_sense_is_refused_and_nothing_is_written(
        self,
        parent: Path,
        tmp_path: Path,
        refused: Callable[..., str],
        arguments: list[str],
        message: str,
        code: int,
    ) -> None:
        names = {"PARENT": str(parent), "PRUNED": str(TRACES / "infinity-tiny-heatkv-10.h5")}
        out = tmp_path / "fidelity.json"

        line = refused("fidelity", *(names.get(one, one) for one in arguments), "-o", out, code=code)

        assert message in line
        assert not out.exists()
