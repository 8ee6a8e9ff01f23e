from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heatkv.budget import budget_tokens
from heatkv.config import model_config
from heatkv.errors import BudgetError, OrdersError
from heatkv.policies.knapsack import KnapsackPolicy
from heatkv.policies.pinned import FREE, no_pins

CONFIG = model_config("infinity-tiny")
SCALES = CONFIG.schedule_for(None)
L, H, S = CONFIG.num_layers, CONFIG.num_heads, SCALES.num_scales
LAST = L * S - 1


def mass(seed: int = 0) -> NDArray[np.float64]:
    """Random attention of every query scale to itself and all before it; NaN after it."""
    weights = np.random.default_rng(seed).random((S, L, H, S))
    for query_scale in range(S):
        weights[query_scale, ..., query_scale + 1 :] = np.nan
    return weights / np.nansum(weights, axis=-1, keepdims=True)


@given(st.integers(0, 1000), st.floats(0.02, 1.0), st.floats(0.0, 3.0), st.integers(0, 3))
@settings(max_examples=80)
def test_the_budget_is_never_exceeded_at_any_step_and_sinks_stay(
    seed: int, budget: float, exponent: float, sinks: int
) -> None:
    if sum(SCALES.tokens[:sinks]) > budget * SCALES.history_tokens:
        return
    schedule = KnapsackPolicy.of_mass(mass(seed), exponent=exponent).plan(
        CONFIG, SCALES, budget=budget, sink_scales=sinks
    )

    assert schedule.peak_tokens <= budget_tokens(budget, CONFIG, SCALES)
    assert (schedule.drop_step[..., :sinks] == LAST).all()


def test_what_gets_no_attention_later_goes_first() -> None:
    paid = mass()
    paid[:, 2, 3, 4] = 0

    schedule = KnapsackPolicy.of_mass(paid).plan(CONFIG, SCALES, budget=0.9)

    assert schedule.drop_step[2, 3, 4] < LAST


def test_only_attention_that_is_still_to_come_counts() -> None:
    paid = mass()
    paid[:, 2, :, 3] = 0.0
    paid[4, 2, :, 3] = 100.0

    schedule = KnapsackPolicy.of_mass(paid).plan(CONFIG, SCALES, budget=0.12)

    assert (schedule.drop_step[2, :, 3] >= 4 * L + 2).all()
    assert (schedule.drop_step[2, :, 3] < 6 * L).sum() >= H - 1  # one may stay where there is room for it


def test_as_much_of_the_budget_is_used_as_whole_head_scales_allow() -> None:
    schedule = KnapsackPolicy.of_mass(mass()).plan(CONFIG, SCALES, budget=0.3)

    assert schedule.peak_tokens > budget_tokens(0.3, CONFIG, SCALES) - min(SCALES.tokens[1:3])


def test_pins_are_obeyed() -> None:
    pins = no_pins(CONFIG, SCALES)
    pins[1, 1, 5], pins[0, 0, 3] = LAST, 3 * L

    schedule = KnapsackPolicy.of_mass(mass()).plan(CONFIG, SCALES, budget=0.2, pins=pins)

    np.testing.assert_array_equal(schedule.drop_step[pins != FREE], pins[pins != FREE])
    assert schedule.peak_tokens <= budget_tokens(0.2, CONFIG, SCALES)


def test_pins_that_need_more_than_the_budget_are_refused_with_the_place() -> None:
    pins = no_pins(CONFIG, SCALES)
    pins[..., 5] = LAST

    with pytest.raises(BudgetError, match=r"sinks and pins alone need about .* after scale 5") as refused:
        KnapsackPolicy.of_mass(mass()).plan(CONFIG, SCALES, budget=0.1, pins=pins)
    assert refused.value.minimum > 0.1


def test_mass_of_another_shape_is_refused() -> None:
    with pytest.raises(OrdersError, match="this run needs"):
        KnapsackPolicy.of_mass(mass()[:-1, ..., :-1]).plan(CONFIG, SCALES, budget=0.5)


def test_a_plan_is_the_same_every_time() -> None:
    plans = [KnapsackPolicy.of_mass(mass(3)).plan(CONFIG, SCALES, budget=0.15) for _ in range(2)]

    assert plans[0].content_hash == plans[1].content_hash
