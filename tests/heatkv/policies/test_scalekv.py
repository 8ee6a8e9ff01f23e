"""ScaleKV's selection is that of its official code, and its capacities are those of its files, or of its rules."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from heatkv.config import MODELS
from heatkv.errors import BudgetError, MeasurementsError, OptionError
from heatkv.measurements import Measurements
from heatkv.policies.scalekv import ScaleKVPolicy
from heatkv.scales import ScaleSchedule
from heatkv.selection import best, with_sinks
from tests.heatkv.policies.measured import random_measurements
from tests.heatkv.policies.seeing import seen

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from heatkv.seen import Seen

ONE_M = ScaleSchedule.named("1M")
TWO_B = MODELS["infinity-2b"]
TINY = MODELS["infinity-tiny"]
TINY_SCALES = TINY.schedule_for()


class TestReference:
    def test_every_step_of_every_case(self, golden: Path) -> None:
        num_pruned = 0
        with np.load(golden / "scalekv_select_small.npz") as arrays:
            cases = json.loads(bytes(arrays["meta_json"]))
            for name, case in cases.items():
                for step in case["steps"]:
                    prefix = f"{name}/s{step['scale_index']}"
                    fields = {
                        key: arrays[f"{prefix}/{key}"]
                        for key in ("key", "query", "kept", "window", "pooled")
                        if f"{prefix}/{key}" in arrays.files
                    }
                    if step["pruned"]:
                        num_pruned += 1
                        _check_step(case, step, fields)
        assert num_pruned > 10

    @pytest.mark.parametrize("size", ["2b", "8b"])
    def test_budget_files_are_read(self, golden: Path, size: str) -> None:
        path = golden / f"scalekv_{size}_10pct_budget.json"
        config = MODELS[f"infinity-{size}"]

        plan = ScaleKVPolicy(budget_file=str(path)).plan(config, ONE_M)

        for one in json.loads(path.read_text())["scales"]:
            index = one["applied_after_scale_index"]
            np.testing.assert_array_equal(plan.capacity[index, :, 0], one["tokens_per_layer"])
            assert plan.layer_tokens[index].mean() <= 650 * config.num_heads
        assert (plan.capacity == plan.capacity[:, :, :1]).all()
        assert (plan.capacity[:7] == np.array(ONE_M.offsets[1:8])[:, None, None]).all()
        assert plan.budget == plan.peak_tokens / (6425 * config.num_layers * config.num_heads)

    def test_a_budget_below_the_files_peak_is_refused_with_that_peak(self, golden: Path) -> None:
        policy = ScaleKVPolicy(budget_file=str(golden / "scalekv_2b_10pct_budget.json"))

        with pytest.raises(BudgetError) as refused:
            policy.plan(TWO_B, ONE_M, budget=0.05)

        assert (
            policy.plan(TWO_B, ONE_M, budget=refused.value.minimum).peak_tokens == policy.plan(TWO_B, ONE_M).peak_tokens
        )


def _check_step(case: dict[str, Any], step: dict[str, Any], fields: dict[str, Any]) -> None:  # Any: JSON, arrays
    policy = ScaleKVPolicy(
        window=case["window_size"],
        kernel=case["kernel_size"],
        pooling="max" if case["pooling"] == "maxpool" else "average",
    )
    looked_at = _looked_at(fields, step)
    num_kept = fields["kept"].shape[2]
    looked_at = dataclasses.replace(looked_at, capacity=torch.full_like(looked_at.capacity, num_kept))
    window, pooled = policy.ranking(looked_at)
    positions = looked_at.num_stored + window
    pooled[:, :, positions] = -torch.inf
    chosen = best(with_sinks(policy.scores(looked_at), looked_at.tokens, 0), num_kept)

    np.testing.assert_array_equal(positions.expand(*pooled.shape[:2], -1), fields["window"])
    np.testing.assert_allclose(pooled, fields["pooled"], atol=1e-5)
    for at in step["boundary"]:
        kept = set(chosen[at["b"], at["h"]].tolist())
        ranked = torch.from_numpy(fields["pooled"][at["b"], at["h"]])
        if num_kept >= 2 * len(window):
            assert set(positions.tolist()) <= kept
            above = set(torch.nonzero(ranked > at["threshold"] + 1e-5)[:, 0].tolist())
            tied = set(torch.nonzero((ranked - at["threshold"]).abs() <= 1e-5)[:, 0].tolist())
            assert above <= kept
            assert kept <= above | tied | set(positions.tolist())
        assert len(kept) == num_kept


def _looked_at(fields: dict[str, Any], step: dict[str, Any]) -> Seen:  # Any: arrays, JSON
    keys, queries = (torch.from_numpy(fields[name]).float() for name in ("key", "query"))
    num_stored = keys.shape[2] - queries.shape[2]
    made = seen(ONE_M, step["scale_index"], capacity=1, heads=keys.shape[1], stored=torch.arange(num_stored))
    return dataclasses.replace(
        made,
        q=queries,
        keys=keys,
        values=keys,
        tokens=made.tokens.expand(len(keys), -1, -1),
        raw_queries=lambda index: queries[:, :, index],
    )


class TestSelection:
    def test_raw_products_of_the_window_are_pooled_along_the_cache(self) -> None:
        looked_at = seen(ScaleSchedule.custom(((1, 1), (4, 4), (8, 8))), 2, capacity=60, heads=1)
        policy = ScaleKVPolicy(window=4, kernel=3)
        window = [0 * 8 + 0 + 1 + 8, 4 + 1 + 8, 32 + 1 + 8, 36 + 1 + 8]  # cells of 4 x 4, offset 1

        found, ranking = policy.ranking(looked_at)

        assert found.tolist() == window
        raw = looked_at.raw_queries(found)[0, 0].double()
        scores = (raw @ looked_at.keys[0, 0].double().T).sum(0) / 8**0.5
        scores[17 + found] = -torch.inf
        padded = torch.nn.functional.pad(scores, (1, 1), value=-torch.inf)
        expected = padded.unfold(0, 3, 1).amax(-1)
        torch.testing.assert_close(ranking[0, 0].double(), expected, atol=1e-5, rtol=0)

    def test_the_window_stays_and_the_rest_goes_by_rank(self) -> None:
        looked_at = seen(TINY_SCALES, 4, capacity=40)
        policy = ScaleKVPolicy()

        kept = _kept(policy, looked_at, 40)

        window, ranking = policy.ranking(looked_at)
        ranking[:, :, looked_at.num_stored + window] = torch.inf
        assert kept == set(best(ranking, 40)[0, 0].tolist())
        assert {looked_at.num_stored + index for index in window.tolist()} <= kept

    def test_a_small_capacity_leaves_half_of_itself_to_others(self) -> None:
        looked_at = seen(TINY_SCALES, 5, capacity=12)
        window, _ = ScaleKVPolicy().ranking(looked_at)

        kept = _kept(ScaleKVPolicy(), looked_at, 12)

        of_window = kept & {looked_at.num_stored + index for index in window.tolist()}
        assert 6 <= len(of_window) <= 12
        assert len(kept) == 12

    def test_average_pooling_takes_a_windows_neighbours_with_it(self) -> None:
        looked_at = seen(TINY_SCALES, 5, capacity=60)

        window, ranking = ScaleKVPolicy(pooling="average").ranking(looked_at)

        middle = int(looked_at.num_stored + window[5])
        assert (ranking[:, :, middle - 2 : middle + 3] == -torch.inf).all()

    def test_a_map_smaller_than_the_grid_has_its_last_tokens_as_window(self) -> None:
        looked_at = seen(TINY_SCALES, 2, capacity=8)

        window, _ = ScaleKVPolicy().ranking(looked_at)

        assert window.tolist() == list(range(9))


def _kept(policy: ScaleKVPolicy, looked_at: Seen, count: int) -> set[int]:
    scores: Tensor = with_sinks(policy.scores(looked_at), looked_at.tokens, 0)
    return set(best(scores, count)[0, 0].tolist())


class TestCapacities:
    def test_low_selectivity_drafts_and_refiners_fall_as_in_the_paper_and_its_files(self) -> None:
        selectivity = np.random.default_rng(0).random((13, 32)) + 1
        selectivity[:, [0, 23]] = 0.0
        policy = ScaleKVPolicy(Measurements(selectivity=selectivity), drafters=2 / 32)

        capacity = policy.capacities(650, TWO_B, ONE_M, 0)[:, :, 0]

        # The line ends at 320; before, drafters pass on what they cannot take, and so do those of the shipped file.
        np.testing.assert_allclose(capacity[7:12, 1], [632, 594, 526, 420, 320], atol=1.5)
        assert (capacity[7:12, [0, 23]] > capacity[7:12, [1]]).all()
        np.testing.assert_allclose(capacity[7:12].mean(axis=1), 650)
        np.testing.assert_array_equal(capacity[:7], np.repeat([[1], [5], [21], [57], [121], [265], [521]], 32, axis=1))

    def test_nothing_is_evicted_until_the_start(self) -> None:
        policy = ScaleKVPolicy(random_measurements(TINY, TINY_SCALES), start=30)

        plan = policy.plan(TINY, TINY_SCALES, budget=0.3)

        assert (plan.capacity[:4].max(axis=(1, 2)) == TINY_SCALES.offsets[1:5]).all()
        assert plan.capacity[4].min() < TINY_SCALES.offsets[5]

    def test_a_start_above_the_budget_is_refused_with_what_it_needs(self) -> None:
        policy = ScaleKVPolicy(random_measurements(TINY, TINY_SCALES), start=60)

        with pytest.raises(BudgetError) as refused:
            policy.plan(TINY, TINY_SCALES, budget=0.1)

        assert policy.plan(TINY, TINY_SCALES, budget=refused.value.minimum).peak_tokens > 0


class TestRefused:
    def test_measurements_without_selectivity(self) -> None:
        with pytest.raises(MeasurementsError, match="selectivity not measured"):
            ScaleKVPolicy(Measurements()).plan(TINY, TINY_SCALES, budget=0.1)

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("{", "not JSON"),
            ("[]", "damaged"),
            ('{"format": "other/1"}', "format 'other/1'; this version reads scalekv-budget/1"),
            ('{"format": "scalekv-budget/1"}', "damaged"),
            (
                '{"format": "scalekv-budget/1", "num_layers": 2, "scale_token_counts": [1, 4], "scales": []}',
                "made for 2 layers and scales of 1, 4 tokens; infinity-tiny at native has others",
            ),
        ],
    )
    def test_another_file_than_a_budget_file(self, text: str, found: str, tmp_path: Path) -> None:
        path = tmp_path / "budget.json"
        path.write_text(text)

        with pytest.raises(OptionError, match=found):
            ScaleKVPolicy(budget_file=str(path)).plan(TINY, TINY_SCALES)
