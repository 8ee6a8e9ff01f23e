"""A codec from the command line to the trace: the same bytes buy more, and what is predicted is what is measured."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heatkv.budget import budget_bytes
from heatkv.bundled import bundled_calibration
from heatkv.codecs import CODECS
from heatkv.config import MODELS, model_config
from heatkv.errors import BudgetError, UnknownNameError
from heatkv.schedule import PruningSchedule
from kvscope import cli
from kvscope.draft import Draft, edited, ground_of
from kvscope.edits import Budget, Policy
from kvscope.errors import UsageError
from kvscope.job import Job
from kvscope.ledger import measure
from kvscope.plan import plan_job, summarize_plan
from kvscope.trace import Trace
from kvscope.validate import validate

TINY = MODELS["infinity-tiny"]
SCALES = TINY.schedule_for()
TRACES = Path(__file__).parents[2] / "traces"
CODED = pytest.mark.parametrize("name", [name for name in CODECS if name != "model"])
Told = Callable[..., Any]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Runs a command that succeeds and gives its JSON object."""

    def run(*arguments: object) -> Any:
        code = cli.main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of infinity-tiny at a tenth of the bytes, in int4."""
    path = tmp_path_factory.mktemp("coded") / "int4.h5"
    assert cli.main(["run", "--budget", "10%", "--kv-codec", "int4", "--attention-map", "-o", str(path)]) == 0
    return path


def job(**changes: Any) -> Job:  # Any: fields of a job
    return Job(prompt="a red circle", model="infinity-tiny", policy="heatkv", **changes)


class TestPlan:
    @CODED
    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    @pytest.mark.parametrize("budget", [0.05, 0.1, 0.4])
    def test_a_budget_buys_more_tokens_within_the_same_bytes(self, name: str, dtype: str, budget: float) -> None:
        plain = plan_job(job(budget=budget, dtype=dtype)).schedule

        schedule = plan_job(job(budget=budget, dtype=dtype, kv_codec=name)).schedule

        sizes = {"rows": 2, "dtype_bytes": {"bfloat16": 2, "float32": 4}[dtype]}
        assert schedule.peak_tokens > plain.peak_tokens
        assert schedule.peak_bytes(TINY.head_dim, **sizes) <= budget_bytes(budget, TINY, SCALES, **sizes)
        assert schedule.capacity_bytes(TINY.head_dim, **sizes) == schedule.peak_bytes(TINY.head_dim, **sizes)
        assert (schedule.budget, schedule.policy) == (budget, "heatkv")

    def test_the_model_s_codec_plans_what_was_planned_before(self) -> None:
        assert plan_job(job(budget=0.1, kv_codec="model")).schedule == plan_job(job(budget=0.1)).schedule

    def test_less_than_the_sinks_is_refused_with_the_least(self) -> None:
        with pytest.raises(BudgetError, match="is below the minimum") as raised:
            plan_job(job(budget=0.001, kv_codec="int4"))

        plan_job(job(budget=raised.value.minimum, kv_codec="int4"))

    def test_a_saved_schedule_keeps_its_codecs_and_can_be_given_another(self, tmp_path: Path) -> None:
        path = plan_job(job(budget=0.1, kv_codec="int4")).schedule.save(tmp_path / "int4.json")

        assert plan_job(job(schedule=str(path))).schedule == PruningSchedule.load(path)
        assert plan_job(job(schedule=str(path), kv_codec="int2")).schedule.codecs == ("model", "int2")

    def test_a_policy_that_chooses_during_the_run_keeps_more_in_the_same_bytes(self) -> None:
        plain, plan = (
            plan_job(dataclasses.replace(job(budget=0.1, kv_codec=name), policy="window")) for name in ("model", "int4")
        )

        summary = summarize_plan(plan)
        assert plan.peak_tokens > 3 * plain.peak_tokens
        assert summary.planned_peak_bytes == plan.capacity_bytes(rows=2, dtype_bytes=2)
        assert 0.99 * (summary.budget_bytes or 0) < summary.planned_peak_bytes <= (summary.budget_bytes or 0)
        assert summary.codec_bytes == {"int4": 80}

    def test_an_unknown_codec_lists_the_known(self) -> None:
        with pytest.raises(UnknownNameError, match="unknown KV codec 'int3'"):
            job(kv_codec="int3")

    def test_the_plan_says_what_100_percent_is(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["plan", "--budget", "10%", "--kv-codec", "int4"]) == 0

        out = " ".join(capsys.readouterr().out.split())
        assert "bytes per token: model 256 B, int4 80 B" in out
        assert "100 % is the history's bytes in bfloat16, whatever is stored" in out


class TestTrace:
    def test_is_valid_and_says_what_its_tokens_take(self, coded: Path) -> None:
        assert validate(coded) == []

        with Trace.open(coded) as trace:
            assert trace.header.job.kv_codec == "int4"
            assert [(pool.codec, pool.bytes_per_token) for pool in trace.header.pools] == [("model", 256), ("int4", 80)]
            assert trace.header.capacity_tokens == sum(pool.capacity_tokens for pool in trace.header.pools)
            assert trace.header.attention is not None
            assert trace.header.attention.endswith("; int4 is decoded first, of one layer at a time)")
            assert np.isfinite(trace.attention_mass[-1]).any()

    def test_predicted_bytes_are_the_measured_ones(self, coded: Path) -> None:
        with Trace.open(coded) as trace:
            ledger, held = measure(trace), trace.header.bytes_held(trace.schedule)

            assert trace.steps["accounted_bytes"].tolist() == held.tolist()
            for sheet in (ledger.run, *ledger.scales):
                for key in ("kept", "capacity", "stored"):
                    assert sheet.line(key).difference == 0

    def test_keeps_its_budget_in_bytes(self, coded: Path, told: Told) -> None:
        summary = told("stats", coded)

        assert 0.97 * summary["budget_bytes"] < summary["accounted_peak_bytes"] <= summary["budget_bytes"]

    def test_a_replay_in_another_codec_takes_the_estimated_bytes(self, tmp_path: Path, told: Told) -> None:
        parent = Path(shutil.copy(TRACES / "infinity-tiny-full.h5", tmp_path / "parent.h5"))
        with Trace.open(parent) as trace:
            schedule = trace.schedule.save(tmp_path / "full.json")

        found = told("replay", parent, "--schedule", schedule, "--kv-codec", "int8", "-o", tmp_path / "int8.h5")

        assert found["as_planned"]
        assert found["steps_as_estimated"] == found["steps_compared"]
        assert found["accounted_peak_bytes"] == found["estimated_peak_bytes"]
        assert 0 < found["kl"] < 1e-3


class TestDraft:
    def test_editing_keeps_codecs_and_counts_bytes(self, coded: Path) -> None:
        with Trace.open(coded) as trace:
            ground, start = ground_of(trace.header), trace.schedule
        draft = Draft.of(start, ground)

        for edit in (Policy("heatkv"), Budget(fraction=0.2)):
            draft = edited(draft, edit)

        allowed = budget_bytes(0.2, TINY, SCALES)
        assert draft.problem is None
        assert draft.schedule.codecs == ("model", "int4")
        assert 0.9 * allowed < ground.peak_bytes(draft.schedule) <= allowed

    def test_less_than_is_held_is_a_problem(self, coded: Path) -> None:
        with Trace.open(coded) as trace:
            draft = edited(Draft.of(trace.schedule, ground_of(trace.header)), Budget(fraction=0.05))

        assert draft.problem is not None
        assert "head-tokens over the budget" in draft.problem.text
        again = edited(dataclasses.replace(draft, problem=None), Budget(fraction=draft.problem.minimum))
        assert again.problem is None


def test_one_codec_for_all_is_refused_where_the_policy_chooses_codecs(tmp_path: Path) -> None:
    calibration = bundled_calibration(model_config("infinity-tiny"))
    job = Job("", "infinity-tiny", "knapsack:codecs=int8+int4", budget=0.1, orders=str(calibration))
    schedule = plan_job(job).schedule.save(tmp_path / "mixed.json")

    for given in (job, dataclasses.replace(job, schedule=str(schedule))):
        with pytest.raises(UsageError, match=r"says itself what is stored how \(.*\), and in int8 it would exceed"):
            plan_job(dataclasses.replace(given, kv_codec="int8"))
