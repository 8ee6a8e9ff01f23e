"""The HeatKV planner equals the reference drop by drop, and holds its promises for any model and scales."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.budget import budget_tokens, minimum_budget
from heatkv.config import MODELS, ModelConfig, VAEConfig
from heatkv.errors import BudgetError, OrdersError, ScheduleError
from heatkv.orders import HeadOrders
from heatkv.policies.full import FullPolicy
from heatkv.policies.heatkv import HeatKVPolicy, removed_counts
from heatkv.scales import RESOLUTIONS, TEMPLATES, ScaleSchedule
from heatkv.schedule import PruningSchedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

TWO_B = MODELS["infinity-2b"]
ONE_M = ScaleSchedule.named("1M")
SOURCES = slice(3, 12)


def _model(num_layers: int, num_heads: int) -> ModelConfig:
    return ModelConfig("odd", num_layers, 16 * num_heads, num_heads, num_layers, VAEConfig(16, 16))


def _orders(config: ModelConfig, num_sources: int, *, first_source: int = 3, seed: int = 0) -> HeadOrders:
    random = np.random.default_rng(seed)
    num_slots = config.num_layers * config.num_heads
    slots = np.array([random.permutation(num_slots) for _ in range(num_sources)], dtype=np.int32)
    return HeadOrders(slots.reshape(-1, num_slots), first_source, config.num_layers, config.num_heads)


def _load(path: Path) -> dict[str, Any]:  # Any: arrays of several types
    with np.load(path) as arrays:
        return dict(arrays)


@cache
def _bench() -> Any:  # Any: a module loaded from its path
    path = Path(__file__).parents[1] / "benchmarks" / "bench_planner.py"
    spec = importlib.util.spec_from_file_location("bench_planner", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Reference:
    """The reference planner's numbers for the published 2B orders; masks are [budget, target, source, layer, head]."""

    budgets: list[float]
    hidden: NDArray[np.bool_]
    gone: NDArray[np.bool_]
    tokens_after_layer: NDArray[np.int64]
    prune_counts: NDArray[np.int64]
    early: NDArray[np.int64]
    policy: HeatKVPolicy

    def plan(self, index: int) -> PruningSchedule:
        return self.policy.plan(TWO_B, ONE_M, budget=self.budgets[index])


@pytest.fixture(scope="module")
def reference(golden: Path) -> Reference:
    arrays = _load(golden / "heatkv_2b_schedules.npz")
    shape = tuple(arrays["mask_shape"])

    def mask(name: str) -> NDArray[np.bool_]:
        bits = np.unpackbits(arrays[name], axis=1, count=int(np.prod(shape[1:])))
        return bits.reshape(shape).astype(bool)

    return Reference(
        budgets=arrays["budgets"].tolist(),
        hidden=mask("removed_packed"),
        gone=mask("final_packed"),
        tokens_after_layer=arrays["cache_tokens_after_layer"],
        prune_counts=arrays["prune_counts"],
        early=arrays["early"],
        policy=HeatKVPolicy(HeadOrders.load(golden / "heatkv_2b_orders.json", config=TWO_B)),
    )


@pytest.mark.parametrize("index", range(12))
class TestReference:
    def test_attention_cannot_see_the_same(self, reference: Reference, index: int) -> None:
        schedule = reference.plan(index)

        for target in range(13):
            seen = schedule.visible(target)[:, :, SOURCES].transpose(2, 0, 1)
            reached = np.arange(3, 12) <= target
            np.testing.assert_array_equal(~seen[reached], reference.hidden[index, target][reached])

    def test_the_cache_carries_on_the_same(self, reference: Reference, index: int) -> None:
        schedule = reference.plan(index)

        for target in range(13):
            scale_done = target * 32 + 31
            drop_step = schedule.drop_step[:, :, SOURCES].transpose(2, 0, 1)
            gone = (drop_step <= scale_done) & (drop_step < schedule.num_steps - 1)
            np.testing.assert_array_equal(gone, reference.gone[index, target])

    def test_tokens_are_the_same_after_every_layer(self, reference: Reference, index: int) -> None:
        held = reference.plan(index).tokens_held().reshape(13, 32)

        # The reference leaves out the current scale while only sinks exist, and everything at the last scale.
        np.testing.assert_array_equal(held[3:12], reference.tokens_after_layer[index, 3:12])
        sinks_before = np.cumsum([0, 1, 4])[:, None] * 512
        np.testing.assert_array_equal(reference.tokens_after_layer[index, :3], np.broadcast_to(sinks_before, (3, 32)))

    def test_early_drops_are_the_same(self, reference: Reference, index: int) -> None:
        schedule = reference.plan(index)
        layers, heads, sources = np.nonzero(schedule.drop_step < schedule.num_steps - 1)
        drop_scale, checkpoint = np.divmod(schedule.drop_step[layers, heads, sources], 32)
        rows = np.stack([drop_scale, checkpoint, sources, heads, layers], axis=1)

        early = rows[(checkpoint < layers) & (sources < 12)]

        expected = reference.early[reference.early[:, 0] == index, 1:]
        assert sorted(map(tuple, early.tolist())) == sorted(map(tuple, expected.tolist()))

    def test_removed_counts_are_the_same(self, reference: Reference, index: int) -> None:
        removed = removed_counts(reference.budgets[index], ONE_M, 3, num_slots=512)

        # The reference tells the count at the start of a scale, ours at the end of the one before.
        np.testing.assert_array_equal(removed[:-1], reference.prune_counts[index, 1:])


def test_infeasible_budgets_name_the_reference_minimum(golden: Path) -> None:
    arrays = _load(golden / "heatkv_2b_schedules.npz")
    policy = HeatKVPolicy(_orders(TWO_B, 9))

    for budget, message in zip(arrays["infeasible_budgets"], arrays["infeasible_messages"], strict=True):
        with pytest.raises(BudgetError) as caught:
            policy.plan(TWO_B, ONE_M, budget=float(budget))
        assert f"{caught.value.minimum:.12f}" == "0.003268482490"
        if "minimum" in str(message):
            assert str(message).endswith(f"{caught.value.minimum:.12f}")


def test_published_orders_plan_every_resolution_and_aspect(golden: Path) -> None:
    policy = HeatKVPolicy(HeadOrders.load(golden / "heatkv_2b_orders.json", config=TWO_B))

    for resolution in RESOLUTIONS:
        for aspect in TEMPLATES:
            scales = ScaleSchedule.named(resolution, aspect=aspect)
            assert policy.plan(TWO_B, scales, budget=0.2).peak_tokens <= budget_tokens(0.2, TWO_B, scales)


class TestCounts:
    @pytest.mark.parametrize(
        ("budget", "expected"),
        [
            (0.05, [205, 342, 408, 451, 475, 488]),
            (0.1, [0, 159, 297, 385, 435, 463]),
            (0.2, [0, 0, 74, 254, 355, 411]),
            (0.5, [0, 0, 0, 0, 114, 257]),
        ],
    )
    def test_2b_counts_at_1m(self, budget: float, expected: list[int]) -> None:
        removed = removed_counts(budget, ONE_M, 3, num_slots=512).tolist()

        # Count in force when scales 7 to 12 start; the last scale removes nothing more.
        assert removed == [0] * 6 + expected + expected[-1:]

    def test_2b_peak_at_a_tenth(self) -> None:
        schedule = HeatKVPolicy(_orders(TWO_B, 9)).plan(TWO_B, ONE_M, budget=0.1)

        assert 0.999 * 328960 < schedule.peak_tokens <= 328960
        assert (schedule.drop_step[:, :, SOURCES] < schedule.num_steps - 1).sum() == 9 * 463


@dataclass(frozen=True)
class Case:
    config: ModelConfig
    scales: ScaleSchedule
    sinks: int
    orders: HeadOrders
    budget: float

    def plan(self) -> PruningSchedule:
        return HeatKVPolicy(self.orders).plan(self.config, self.scales, budget=self.budget, sink_scales=self.sinks)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    config = _model(draw(st.integers(1, 6)), draw(st.integers(1, 5)))
    sizes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=8))
    scales = ScaleSchedule.custom(tuple(sizes))
    sinks = draw(st.integers(0, len(sizes) - 1))
    first_source = draw(st.integers(0, sinks))
    num_sources = max(0, len(sizes) - 1 - first_source)
    orders = _orders(config, num_sources, first_source=first_source, seed=draw(st.integers(0, 2**32 - 1)))
    minimum = minimum_budget(scales, sinks)
    fractions = st.floats(minimum, 1.0) | st.sampled_from([minimum, 1.0])
    whole = st.integers(sum(scales.tokens[:sinks]), scales.history_tokens).map(lambda n: n / scales.history_tokens)
    return Case(config, scales, sinks, orders, draw(fractions | whole))


class TestAnyGeometry:
    @given(case=cases())
    @settings(max_examples=200)
    def test_budget_is_never_exceeded_at_any_step(self, case: Case) -> None:
        held = case.plan().tokens_held()

        assert held.max() <= budget_tokens(case.budget, case.config, case.scales)

    @given(case=cases())
    @settings(max_examples=100)
    def test_equals_the_construction_from_sets(self, case: Case) -> None:
        expected = _bench().plan_from_sets(
            case.config, case.scales, case.orders, budget=case.budget, sink_scales=case.sinks
        )

        np.testing.assert_array_equal(case.plan().drop_step, expected)

    @given(case=cases())
    @settings(max_examples=60)
    def test_sinks_stay_and_nothing_comes_back(self, case: Case) -> None:
        read = case.plan().read_tokens()

        assert (read[:, :, :, : case.sinks].max(axis=0) == np.array(case.scales.tokens[: case.sinks])).all()
        for source_scale in range(case.scales.num_scales):
            assert (np.diff(read[source_scale:, :, :, source_scale], axis=0) <= 0).all()

    @given(case=cases())
    @settings(max_examples=60)
    def test_every_source_scale_loses_its_least_needed_heads(self, case: Case) -> None:
        schedule = case.plan()

        for source_scale in range(case.sinks, case.scales.num_scales - 1):
            slots = case.orders.for_source(source_scale)
            lost = schedule.drop_step[:, :, source_scale].ravel()[slots] < schedule.num_steps - 1
            assert (np.diff(lost.astype(int)) <= 0).all()

    @given(case=cases())
    @settings(max_examples=40)
    def test_a_budget_of_one_keeps_everything(self, case: Case) -> None:
        planned = HeatKVPolicy(case.orders).plan(case.config, case.scales, budget=1.0, sink_scales=case.sinks)
        full = FullPolicy().plan(case.config, case.scales, sink_scales=case.sinks)

        np.testing.assert_array_equal(planned.drop_step, full.drop_step)

    @given(case=cases())
    @settings(max_examples=60)
    def test_the_minimum_keeps_the_sinks_only(self, case: Case) -> None:
        minimum = minimum_budget(case.scales, case.sinks)
        policy = HeatKVPolicy(case.orders)

        schedule = policy.plan(case.config, case.scales, budget=minimum, sink_scales=case.sinks)

        assert (schedule.drop_step[:, :, case.sinks : -1] < schedule.num_steps - 1).all()
        if minimum > 1e-9:
            with pytest.raises(BudgetError):
                policy.plan(case.config, case.scales, budget=minimum - 1e-9, sink_scales=case.sinks)


class TestEarlyActivation:
    @pytest.mark.parametrize("budget", [0.02, 0.05, 0.1, 0.15, 0.3, 0.5])
    @pytest.mark.parametrize("aspect", [1.0, 1.75, 0.333])
    def test_many_early_drops_equal_the_construction_from_sets(self, budget: float, aspect: float) -> None:
        config, scales = _model(16, 8), ScaleSchedule.named("1M", aspect=aspect)
        orders = _orders(config, 9)

        schedule = HeatKVPolicy(orders).plan(config, scales, budget=budget)

        expected = _bench().plan_from_sets(config, scales, orders, budget=budget, sink_scales=3)
        np.testing.assert_array_equal(schedule.drop_step, expected)
        assert self._num_early(schedule) > 5

    @staticmethod
    def _num_early(schedule: PruningSchedule) -> int:
        drop_layer = schedule.drop_step % schedule.num_layers
        dropped = schedule.drop_step < schedule.num_steps - 1
        return int((dropped & (drop_layer < np.arange(schedule.num_layers)[:, None, None])).sum())


class TestRoundingTraps:
    @pytest.mark.parametrize("num_layers", range(1, 13))
    @pytest.mark.parametrize("num_heads", [1, 3, 7])
    def test_the_exact_minimum_is_feasible_for_every_shape(self, num_layers: int, num_heads: int) -> None:
        config = _model(num_layers, num_heads)

        schedule = HeatKVPolicy(_orders(config, 9)).plan(config, ONE_M, budget=21 / 6425)

        assert schedule.peak_tokens == 21 * num_layers * num_heads

    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    def test_one_rounding_error_below_the_minimum_is_the_minimum(self, resolution: str) -> None:
        scales = ScaleSchedule.named(resolution)
        minimum = minimum_budget(scales, 3)
        policy = HeatKVPolicy(_orders(TWO_B, 9))

        below = policy.plan(TWO_B, scales, budget=float(np.nextafter(minimum, 0)))

        np.testing.assert_array_equal(below.drop_step, policy.plan(TWO_B, scales, budget=minimum).drop_step)


class TestOrdersAndSinks:
    def test_fewer_scales_use_the_lists_that_apply(self) -> None:
        orders, scales = _orders(TWO_B, 9), ScaleSchedule.named("0.06M")
        first_three = HeadOrders(orders.slots[:3], 3, 32, 16)

        schedule = HeatKVPolicy(orders).plan(TWO_B, scales, budget=0.3)

        expected = HeatKVPolicy(first_three).plan(TWO_B, scales, budget=0.3)
        np.testing.assert_array_equal(schedule.drop_step, expected.drop_step)
        assert schedule.sink_scales == 3

    def test_more_sinks_than_the_orders_were_made_for_are_kept(self) -> None:
        schedule = HeatKVPolicy(_orders(TWO_B, 9)).plan(TWO_B, ONE_M, budget=0.1, sink_scales=5)

        assert schedule.sink_scales == 5
        assert (schedule.drop_step[:, :, :5] == schedule.num_steps - 1).all()

    def test_fewer_sinks_than_the_orders_rank_are_refused_with_the_way_out(self) -> None:
        with pytest.raises(
            OrdersError, match=r"the run needs 2 too; calibrate again with 2 sink scales, or use --sink"
        ):
            HeatKVPolicy(_orders(TWO_B, 9)).plan(TWO_B, ONE_M, budget=0.1, sink_scales=2)

    def test_sinks_default_to_those_of_the_orders(self) -> None:
        schedule = HeatKVPolicy(_orders(TWO_B, 8, first_source=4)).plan(TWO_B, ONE_M, budget=0.1)

        assert schedule.sink_scales == 4

    def test_orders_of_another_model_are_refused(self) -> None:
        with pytest.raises(OrdersError, match=r"for infinity-2b .* the run is infinity-8b"):
            HeatKVPolicy(_orders(TWO_B, 9)).plan(MODELS["infinity-8b"], ONE_M, budget=0.1)

    def test_too_many_sinks_are_refused(self) -> None:
        with pytest.raises(ScheduleError, match="13 sink scales; expected 0 to 12"):
            HeatKVPolicy(_orders(TWO_B, 9)).plan(TWO_B, ONE_M, budget=0.1, sink_scales=13)

    def test_provenance_names_the_orders(self) -> None:
        orders = _orders(TWO_B, 9)

        provenance = HeatKVPolicy(orders).plan(TWO_B, ONE_M, budget=0.1).provenance

        assert provenance["orders_sha256"] == orders.content_hash
        assert provenance["orders_first_source"] == 3


class TestFull:
    def test_no_budget_and_a_budget_of_one_keep_the_whole_history(self) -> None:
        for budget in (None, 1.0):
            schedule = FullPolicy().plan(TWO_B, ONE_M, budget=budget)
            assert schedule.budget == budget
            assert schedule.peak_tokens == schedule.history_tokens

    def test_any_other_budget_is_refused(self) -> None:
        with pytest.raises(BudgetError, match="cannot be met by policy full") as caught:
            FullPolicy().plan(TWO_B, ONE_M, budget=0.5)
        assert caught.value.minimum == 1.0
