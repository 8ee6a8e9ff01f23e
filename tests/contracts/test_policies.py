"""What every policy in POLICIES promises; a new one is tested by being in the table."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from heatkv.config import MODELS
from heatkv.errors import BudgetError, UnknownNameError
from heatkv.orders import HeadOrders
from heatkv.policies import POLICIES, load_policy
from heatkv.schedule import PruningSchedule, budget_bytes, budget_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from heatkv.policies import PlannedPolicy

CONFIG = MODELS["infinity-tiny"]
SCALES = CONFIG.schedule_for()
BUDGETS = [1.0, 0.5, 0.2, 0.1]


def _policy(name: str) -> PlannedPolicy:
    """The policy with seeded random orders if it needs some, else with its defaults."""
    kind = load_policy(name)
    if not hasattr(kind, "plan"):
        pytest.skip(f"{name} selects during the run: it has no plan to check")
    return cast("PlannedPolicy", kind(orders=_random_orders()) if "orders" in kind.needs else kind())


def _random_orders() -> HeadOrders:
    random = np.random.default_rng(0)
    num_slots = CONFIG.num_layers * CONFIG.num_heads
    slots = [random.permutation(num_slots) for _ in range(CONFIG.sink_scales, SCALES.num_scales - 1)]
    return HeadOrders(np.array(slots, dtype=np.int32), CONFIG.sink_scales, CONFIG.num_layers, CONFIG.num_heads)


def _plan(name: str, budget: float) -> PruningSchedule:
    """The plan at this budget, or at the policy's minimum if that is above it."""
    policy = _policy(name)
    try:
        return policy.plan(CONFIG, SCALES, budget=budget)
    except BudgetError as error:
        return policy.plan(CONFIG, SCALES, budget=error.minimum)


@pytest.mark.parametrize("name", POLICIES)
class TestEveryPolicy:
    def test_is_a_frozen_dataclass_of_its_own_name(self, name: str) -> None:
        kind = load_policy(name)

        assert kind.name == name
        assert isinstance(kind.frees_memory, bool)
        assert ("orders" in kind.needs) == ("orders" in {field.name for field in dataclasses.fields(kind)})
        assert kind.__dataclass_params__.frozen
        assert kind.__doc__

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_respects_its_budget_after_every_step(self, name: str, budget: float) -> None:
        schedule = _plan(name, budget)

        allowed = 1.0 if schedule.budget is None else schedule.budget
        held = schedule.tokens_held()

        assert held.max() <= budget_tokens(allowed, CONFIG, SCALES)
        assert held.max() * CONFIG.kv_bytes_per_token() <= budget_bytes(allowed, CONFIG, SCALES)

    def test_an_infeasible_budget_carries_a_feasible_minimum(self, name: str) -> None:
        policy = _policy(name)

        with pytest.raises(BudgetError) as caught:
            policy.plan(CONFIG, SCALES, budget=0.0)

        assert 0 < caught.value.minimum <= 1
        policy.plan(CONFIG, SCALES, budget=caught.value.minimum)

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_keeps_the_sinks_at_every_step(self, name: str, budget: float) -> None:
        schedule = _plan(name, budget)

        assert schedule.sink_scales == CONFIG.sink_scales
        for source_scale in range(schedule.sink_scales):
            kept = schedule.kept_tokens()[source_scale:, :, :, source_scale]
            assert (kept == SCALES.tokens[source_scale]).all()

    def test_keeps_everything_at_a_budget_of_one(self, name: str) -> None:
        schedule = _plan(name, 1.0)

        assert schedule.tokens_held()[-1] == schedule.history_tokens

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_plans_the_same_twice(self, name: str, budget: float) -> None:
        assert _plan(name, budget) == _plan(name, budget)

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_its_plan_survives_a_file(self, name: str, budget: float, tmp_path: Path) -> None:
        schedule = _plan(name, budget)

        path = schedule.save(tmp_path / "plan.json")

        assert PruningSchedule.load(path) == schedule

    def test_its_plan_fits_the_model_and_names_the_policy(self, name: str) -> None:
        schedule = _plan(name, 0.2)

        schedule.validate(CONFIG, SCALES)
        assert schedule.policy == name

    @pytest.mark.parametrize("budget", [-0.1, 1.5, float("nan")])
    def test_refuses_a_budget_that_is_no_fraction(self, name: str, budget: float) -> None:
        with pytest.raises(BudgetError):
            _policy(name).plan(CONFIG, SCALES, budget=budget)


def test_unknown_policy_lists_the_known_nearest_first() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown policy 'heat-kv'; known, nearest first: heatkv, "):
        load_policy("heat-kv")
