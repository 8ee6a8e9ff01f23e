"""The benchmarks' own arithmetic, and that every one of them runs: a figure nobody can trust is worse than none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from heatkv.attention import attend, choose_path
from heatkv.config import model_config
from heatkv.probe import Capture
from tests.benchmarks import __main__ as command
from tests.benchmarks import (
    bench_attention,
    bench_bytes,
    bench_capture,
    bench_codecs,
    bench_estimates,
    bench_generation,
    bench_planner,
    bench_policies,
    bench_recorder,
    bench_run,
    bench_stack,
    bench_trace,
    bench_tuning,
)
from tests.benchmarks.bench_capture import reference_style
from tests.benchmarks.harness import Goal, Result, Row, Times, take_turns
from tests.benchmarks.layers import filled_cache, random_queries, visible_at
from tests.benchmarks.memory import held_bytes, in_fresh_process, most_tensor_bytes, peak_bytes
from tests.benchmarks.traces import Shape
from tests.benchmarks.workload import DTYPE, ROWS, Subject, plan, stack_flops

TINY = "infinity-tiny"


class TestRows:
    def test_a_goal_is_about_the_ratio_unless_it_says_otherwise(self) -> None:
        about_ratio = Row("a", 5.0, "s", 4.0, 1.25, goal=Goal("at most", 1.3))
        about_value = Row("a", 5.0, "s", 4.0, 1.25, goal=Goal("at most", 1.3, of_value=True))

        assert about_ratio.reached is True
        assert about_value.reached is False

    def test_what_was_not_measured_reaches_no_goal(self) -> None:
        row = Row("a", math.nan, "bytes", goal=Goal("at most", 1, of_value=True))

        assert row.reached is False
        assert json.loads(json.dumps(row.to_json(), allow_nan=False))["value"] is None

    def test_the_table_has_the_goal_beside_the_ratio_and_says_if_it_is_reached(self) -> None:
        rows = (
            Row("good", 1.0, "s", 2.0, 0.5, (0.4, 0.6), Goal("at most", 0.5)),
            Row("bad", 2**20, "bytes", goal=Goal("at least", 2**21, of_value=True)),
        )

        head, good, bad = Result("title", "other side", 3, 0, rows).table().splitlines()

        assert head == "title (cpu; median of 3; other: other side)"
        assert " ".join(good.split()) == "good 1.00 s 2.00 s 0.500 (0.400 to 0.600) ≤ 0.5 reached"
        assert " ".join(bad.split()) == "bad 1.00 MiB ≥ 2.00 MiB MISSED"

    def test_ratios_are_of_the_same_round(self) -> None:
        times = Times({"ours": [1.0, 10.0, 3.0], "other": [2.0, 20.0, 3.0]})

        row = times.row("label", "ours", "other")

        assert (row.value, row.other, row.ratio, row.spread) == (3.0, 3.0, 0.5, (0.5, 1.0))


class TestTakingTurns:
    def test_each_round_runs_every_variant_and_starts_with_another(self) -> None:
        order: list[str] = []
        variants = {name: lambda name=name: order.append(name) for name in "abc"}

        take_turns(variants, repeats=3, warm_up=False, only_first=("c",))

        assert "".join(order) == "abc" + "ba" + "ab"

    def test_short_calls_are_repeated_within_a_turn(self) -> None:
        calls: list[int] = []

        times = take_turns({"a": lambda: calls.append(1)}, repeats=1, least_s=1e-4)

        assert len(calls) > 3
        assert times.median("a") < 1e-4


class TestMemory:
    def test_peak_of_a_process_sees_what_was_freed_again(self) -> None:
        def take_and_free() -> None:
            bytearray(64 << 20)

        before = held_bytes("cpu")
        if math.isnan(before):
            pytest.skip("this system does not tell what a process holds")

        assert peak_bytes(take_and_free, "cpu") - before > 60 << 20

    def test_tensor_bytes_count_what_lives_at_once_and_nothing_that_was_there_before(self) -> None:
        weight = torch.ones(1000)

        def work() -> None:
            half = weight.view(2, 500)[0] + 1  # 2000 bytes
            twice = half * 2  # 2000 more
            del half
            twice.sum()  # 4, when only twice is left

        assert most_tensor_bytes(work) == 4000

    def test_a_fresh_process_gives_the_functions_result(self) -> None:
        assert in_fresh_process(math.hypot, 3, 4) == 5


class TestWorkload:
    @pytest.mark.parametrize("distribution", bench_attention.DISTRIBUTIONS)
    @pytest.mark.parametrize("budget", [0.05, 0.1, 0.5, 1.0])
    def test_head_sets_hold_the_sinks_and_fill_the_budget(self, distribution: str, budget: float) -> None:
        tokens = np.array([1, 4, 16, 36, 64, 144, 256, 400, 576, 1024, 1600, 2304])

        kept = bench_attention.kept_scales(distribution, tokens=tokens.tolist(), sinks=3, num_heads=16, budget=budget)

        share = (kept * tokens).sum() / (16 * tokens.sum())
        assert kept[:, :3].all()
        assert budget * 0.97 < share <= budget

    def test_bimodal_heads_keep_nearly_all_or_hardly_more_than_sinks(self) -> None:
        tokens = np.array([1, 4, 16, 36, 64, 144, 256, 400, 576, 1024, 1600, 2304])

        kept = bench_attention.kept_scales("bimodal", tokens=tokens.tolist(), sinks=3, num_heads=16, budget=0.1)

        share = (kept * tokens).sum(axis=1) / tokens.sum()
        assert share[0] == 1
        assert (share[2:] < 0.05).all()

    def test_operations_are_those_that_pytorch_counts(self) -> None:
        subject = Subject.load(TINY, None, "cpu")
        scale = subject.scales.num_scales - 1
        side = subject.scales.sizes[scale][0]
        call = bench_stack._stack(subject, side)

        counted = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _flash_operations}
        with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=counted) as counter:
            call()

        expected = stack_flops(
            subject.config,
            tokens=subject.scales.tokens[scale],
            keys=subject.scales.total_tokens,
            text_tokens=len(subject.texts[0]),
        )
        assert counter.get_total_flops() == expected

    def test_allocated_bytes_are_those_of_a_cache_with_memory(self) -> None:
        config = model_config(TINY)
        schedule = plan(config, config.schedule_for(), 0.3)
        last = schedule.scales.num_scales - 1

        cache = filled_cache(schedule, last, head_dim=config.head_dim, device="cpu")

        planned = bench_bytes.allocated_bytes(schedule, config.head_dim)
        assert cache.pool.nbytes <= planned
        assert planned <= 1.03 * schedule.peak_tokens * config.kv_bytes_per_token(rows=ROWS)

    @pytest.mark.parametrize("query_scale", [0, 6])
    def test_reference_style_measures_the_same(self, query_scale: int) -> None:
        config = model_config(TINY)
        schedule = plan(config, config.schedule_for(), None)
        cache = filled_cache(schedule, query_scale, head_dim=config.head_dim, device="cpu")
        visible = visible_at(cache, query_scale, head_dim=config.head_dim, device="cpu")
        q = random_queries((config.num_heads, schedule.scales.tokens[query_scale], config.head_dim), device="cpu")
        path = choose_path("cpu", dtype=DTYPE, head_dim=config.head_dim)

        found = reference_style(q, visible, schedule.scales, path=path, conditional_rows=1)

        ours = attend(q, visible, schedule.scales, path=path, capture=Capture(mass=True), conditional_rows=1)
        assert ours.mass is not None
        assert torch.equal(found.out, ours.out)
        torch.testing.assert_close(found.mass, ours.mass[:, : query_scale + 1], rtol=0, atol=1e-5)


class TestBootstraps:
    def test_pairs_that_all_differ_alike_leave_no_doubt(self) -> None:
        theirs = np.linspace(1, 2, 50)

        difference, ratio = bench_tuning.bootstrapped(theirs - 0.5, theirs)

        assert difference == pytest.approx((-0.5, -0.5))
        assert ratio[0] < 1 - 0.5 / 1.5 < ratio[1] < 1

    def test_pairs_that_differ_by_chance_leave_the_sign_open(self) -> None:
        noise = np.random.default_rng(0).standard_normal((2, 200)) + 10

        (low, high), _ = bench_tuning.bootstrapped(*noise)

        assert low < 0 < high


class TestEveryBenchmark:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "run",
        [
            lambda: bench_planner.run(quick=True, cases=(("infinity-125m", 0.1),)),
            lambda: bench_attention.run(
                quick=True, model=TINY, resolution=None, sides=(6,), sweep_sides=(8,), budgets=(0.5,)
            ),
            lambda: bench_stack.run(quick=True, model=TINY, resolution=None, sides=(6,), matrix=64),
            lambda: bench_bytes.run(
                quick=True, model=TINY, resolution=None, measured_resolution="native", budgets=(0.1,)
            ),
            lambda: bench_run.run(quick=True, model=TINY, resolution=None),
            lambda: bench_generation.run(quick=True, model=TINY, resolution="native"),
            lambda: bench_codecs.run(quick=True, cases=((TINY, None, 1),)),
            lambda: bench_policies.run(quick=True, policies=("snapkv", "sinks-only")),
            lambda: bench_capture.run(
                quick=True, model=TINY, resolutions=("native",), sides=(4,), mass_sides=(1, 4), scratch_side=6
            ),
            lambda: bench_recorder.run(quick=True, model=TINY, resolution=None, side=8),
            lambda: bench_trace.run(quick=True, large=Shape(4, 4, 9, "float32"), small=Shape(3, 3, 5, "uint8")),
            lambda: bench_tuning.run(quick=True, cases=(bench_tuning.Case(0.1),)),
            lambda: bench_estimates.run(quick=True),
        ],
        ids=[
            "planner",
            "attention",
            "stack",
            "bytes",
            "run",
            "generation",
            "codecs",
            "policies",
            "capture",
            "recorder",
            "trace",
            "tuning",
            "estimates",
        ],
    )
    def test_gives_a_table_and_strict_json(self, run: Callable[[], Result]) -> None:
        result = run()

        assert len(result.table().splitlines()) == 1 + len(result.rows)
        assert json.loads(json.dumps(result.to_json(), allow_nan=False))["title"] == result.title

    def test_has_a_file_and_a_row_in_the_table(self) -> None:
        folder = Path(command.__file__).parent

        assert {f"bench_{name}.py" for name in command.BENCHMARKS} == {path.name for path in folder.glob("bench_*.py")}

    def test_the_command_writes_machine_commit_and_results(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command.main(["planner", "--quick", "--device", "cpu", "--out", str(tmp_path / "bench.json")])

        report = json.loads((tmp_path / "bench.json").read_text())
        assert {"machine", "commit", "date", "quick", "results"} <= report.keys()
        assert report["machine"]["cpu"]
        assert [row["reached"] for row in report["results"][0]["rows"]]
        assert "| infinity-2b at 0.1 |" in (tmp_path / "bench.md").read_text()
        assert "goals reached" in capsys.readouterr().out

    def test_an_unknown_name_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            command.main(["attention", "nothing"])

        assert "nothing" in capsys.readouterr().err


def _flash_operations(q: list[int], keys: list[int], values: list[int], *_: object, **__: object) -> int:
    """Of the one attention that PyTorch's counter does not know; arguments are shapes."""
    return int(sdpa_flop_count(q, keys, values))
