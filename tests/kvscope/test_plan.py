from __future__ import annotations

import pytest

from heatkv.bundled import bundled_calibration, bundled_orders
from heatkv.config import model_config
from heatkv.errors import BudgetError, UnknownNameError
from heatkv.policies import POLICIES
from kvscope.errors import UsageError
from kvscope.job import Job
from kvscope.plan import load_orders, plan_job, summarize_plan


def job(**changes: object) -> Job:
    return Job(**({"prompt": "a red circle", "model": "infinity-2b", "policy": "full"} | changes))  # type: ignore[arg-type]


def test_the_full_policy_plans_the_whole_history_in_bytes() -> None:
    summary = summarize_plan(plan_job(job(resolution="1M")))

    assert summary.history_tokens == 6425 * 32 * 16
    assert summary.full_history_bytes == summary.planned_peak_bytes == 6425 * 32 * 16 * 2 * 128 * 2 * 2
    assert summary.head_scales_dropped == 0
    assert summary.budget_bytes is None


def test_bytes_follow_dtype_and_rows() -> None:
    plan = plan_job(job(resolution="0.06M"))

    assert summarize_plan(plan, dtype="float32").full_history_bytes == 2 * summarize_plan(plan).full_history_bytes
    assert 2 * summarize_plan(plan, rows=1).full_history_bytes == summarize_plan(plan).full_history_bytes


def test_a_policy_that_needs_orders_says_where_they_come_from() -> None:
    with pytest.raises(UsageError, match="--orders FILE"):
        plan_job(job(policy="heatkv", budget=0.1))


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_infinity_tiny_comes_with_what_every_policy_needs(policy: str) -> None:
    plan = plan_job(job(model="infinity-tiny", policy=policy, budget=None if policy == "full" else 0.2))

    assert plan.schedule.policy == policy


def test_the_bundled_orders_are_those_of_the_bundled_calibration() -> None:
    config = model_config("infinity-tiny")
    orders, calibration = bundled_orders(config), bundled_calibration(config)
    assert orders is not None
    assert calibration is not None

    assert load_orders(orders, config).to_lists() == load_orders(calibration, config).to_lists()


def test_the_full_policy_refuses_a_budget_it_would_not_keep() -> None:
    with pytest.raises(BudgetError, match="keeps everything"):
        plan_job(job(budget=0.5))


def test_unknown_names_list_the_known_ones_nearest_first() -> None:
    with pytest.raises(UnknownNameError, match=r"nearest first: infinity-8b"):
        plan_job(job(model="infinity-8"))
