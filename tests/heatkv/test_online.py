from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.budget import budget_tokens
from heatkv.config import MODELS
from heatkv.errors import BudgetError, ScheduleError
from heatkv.online import OnlinePlan, by_shares, fitted, mean_capacity, spread
from heatkv.policies.adakv import AdaKVPolicy
from heatkv.policies.window import WindowPolicy
from heatkv.scales import ScaleSchedule

CONFIG = MODELS["infinity-tiny"]
SCALES = CONFIG.schedule_for()
SHAPE = (SCALES.num_scales, CONFIG.num_layers, CONFIG.num_heads)


class TestPlan:
    def test_layers_not_yet_reached_hold_what_they_had(self) -> None:
        scales = ScaleSchedule.custom(((1, 1), (2, 2), (3, 3)))
        capacity = np.full((3, CONFIG.num_layers, CONFIG.num_heads), 3)
        plan = OnlinePlan(WindowPolicy(), CONFIG, scales, 0, capacity)

        held = plan.tokens_held()

        first = np.arange(1, 7) * 6
        assert held.tolist() == [*first, *(36 + 2 * first), *[108] * 6]

    def test_a_capacity_above_what_is_there_is_not_held(self) -> None:
        plan = OnlinePlan(WindowPolicy(), CONFIG, SCALES, 0, np.full(SHAPE, 10_000))

        assert plan.peak_tokens == SCALES.history_tokens * 36

    def test_heads_that_share_hold_the_sum_of_their_layer(self) -> None:
        capacity = np.zeros(SHAPE, np.int32)
        capacity[:, :, 0] = 60

        assert OnlinePlan(AdaKVPolicy(), CONFIG, SCALES, 0, capacity).peak_tokens == 60 * CONFIG.num_layers
        assert OnlinePlan(WindowPolicy(), CONFIG, SCALES, 0, capacity).peak_tokens == 60 * CONFIG.num_layers
        capacity[:, :, 0] = 200  # more than one head can have, but not more than a layer can
        assert OnlinePlan(AdaKVPolicy(), CONFIG, SCALES, 0, capacity).peak_tokens == 200 * CONFIG.num_layers

    def test_capacities_of_another_shape_are_refused(self) -> None:
        with pytest.raises(ScheduleError, match=r"shape \[2, 6, 6\]; expected \[7, 6, 6\]"):
            OnlinePlan(WindowPolicy(), CONFIG, SCALES, 0, np.ones((2, 6, 6)))

    def test_its_bound_says_that_it_is_online_and_what_it_peaks_at(self) -> None:
        plan = WindowPolicy().plan(CONFIG, SCALES, budget=0.2)

        bound = plan.bound()

        assert bound.online
        assert bound.peak_tokens == plan.peak_tokens
        assert (bound.budget, bound.policy) == (0.2, "window")


class TestFitted:
    @given(seed=st.integers(0, 500), budget=st.floats(0.03, 1.0), sinks=st.integers(0, 3))
    @settings(max_examples=40)
    def test_any_shape_is_fitted_below_the_budget_and_close_to_it(self, seed: int, budget: float, sinks: int) -> None:
        shares = np.random.default_rng(seed).random(SHAPE) + 0.1
        if sum(SCALES.tokens[:sinks]) > budget * SCALES.history_tokens:
            return

        plan = fitted(
            WindowPolicy(),
            lambda mean: by_shares(mean, shares, SCALES),
            CONFIG,
            SCALES,
            budget=budget,
            sink_scales=sinks,
        )

        limit = budget_tokens(budget, CONFIG, SCALES)
        assert limit - 36 <= plan.peak_tokens <= limit
        assert plan.capacity.min() >= sum(SCALES.tokens[:sinks])

    def test_what_a_policy_needs_at_least_is_told(self) -> None:
        with pytest.raises(BudgetError, match="the least that policy window can keep") as refused:
            fitted(
                WindowPolicy(),
                lambda mean: mean_capacity(50.0 + 0 * mean, CONFIG, SCALES),
                CONFIG,
                SCALES,
                budget=0.2,
                sink_scales=0,
            )

        assert refused.value.minimum == 50 / SCALES.history_tokens


class TestSpread:
    @given(
        shares=st.lists(st.floats(0, 10), min_size=1, max_size=8),
        total=st.floats(0, 200),
        most=st.floats(0.5, 30),
    )
    @settings(max_examples=100)
    def test_all_is_dealt_out_to_none_more_than_it_can_take(
        self, shares: list[float], total: float, most: float
    ) -> None:
        dealt = spread(total, np.array(shares), most)

        assert dealt.sum() == pytest.approx(min(total, most * len(shares)), abs=1e-6)
        assert (dealt >= 0).all()
        assert (dealt <= most + 1e-9).all()

    def test_what_one_cannot_take_the_others_get_in_proportion(self) -> None:
        np.testing.assert_allclose(spread(12, np.array([4.0, 1.0, 1.0]), 6), [6, 3, 3])

    def test_no_scale_deals_out_more_than_there_is(self) -> None:
        dealt = by_shares(20, np.ones(SHAPE), SCALES)

        np.testing.assert_allclose(dealt[:, 0, 0], [1, 5, 14, 20, 20, 20, 20])


def test_scales_with_room_left_keep_more_than_the_mean_that_fits_all() -> None:
    shares = np.ones(SHAPE)
    shares[3, 0] = 30  # the first layer grows before the others shrink, which no other scale should suffer for

    plan = fitted(
        WindowPolicy(), lambda mean: by_shares(mean, shares, SCALES), CONFIG, SCALES, budget=0.1, sink_scales=0
    )

    held = plan.tokens_held().reshape(SHAPE[:2])
    assert held[3, -1] < held[3, 0] == 468
    assert (held[4:, -1] == 468).all()
    assert plan.provenance["mean_tokens"][5] == plan.provenance["mean_tokens"][6] > plan.provenance["mean_tokens"][3]
