"""A target is met from below, as nearly as the policy can; what it cannot is said."""

from __future__ import annotations

import math

import pytest

from heatkv.errors import BudgetError
from kvscope.league.entrants import Entrant, entrants, nearest_budget
from kvscope.league.settings import Settings, target_bytes


def test_a_policy_as_fine_as_tokens_is_tried_once() -> None:
    tried: list[float] = []

    def peak_of(budget: float) -> int:
        tried.append(budget)
        return math.floor(budget * 1000 + 1e-6)

    assert nearest_budget(peak_of, 250, start=0.25) == 0.25
    assert set(tried) == {0.25}


def test_the_nominal_budget_may_be_above_the_target_where_the_policy_rounds_down() -> None:
    def peak_of(budget: float) -> int:
        return math.floor(budget * 800 / 7) * 7

    budget = nearest_budget(peak_of, 250, start=0.25)

    assert peak_of(budget) == 245
    assert budget > 0.25


def test_a_peak_that_does_not_grow_everywhere_is_found_nearby() -> None:
    def peak_of(budget: float) -> int:
        tokens = math.floor(budget * 1000)
        return 250 if 255 <= tokens <= 256 else min(tokens, 400) - 10

    assert peak_of(nearest_budget(peak_of, 250, start=0.25)) == 250


def test_a_policy_that_cannot_go_so_low_says_its_minimum() -> None:
    def peak_of(budget: float) -> int:
        if budget < 0.36:
            raise BudgetError("too little", minimum=0.36)
        return math.floor(budget * 1000)

    with pytest.raises(BudgetError) as caught:
        nearest_budget(peak_of, 250, start=0.25)
    assert caught.value.minimum == 0.36


def test_a_minimum_that_rounding_alone_put_above_the_target_is_taken() -> None:
    def peak_of(budget: float) -> int:
        if budget < 0.2501:
            raise BudgetError("too little", minimum=0.2501)
        return math.floor(budget * 1000)

    assert peak_of(nearest_budget(peak_of, 250, start=0.25)) == 250


def test_heatkv_stands_at_its_targets_and_the_rest_is_told(settings: Settings) -> None:
    full, half, tenth, too_little = entrants(settings)

    assert full == Entrant("full", None, None, settings.history_bytes)
    assert tenth.peak_bytes == tenth.target_bytes
    assert not half.is_equal  # whole head-scales: no HeatKV schedule is nearer
    assert half.remark == "1.1 % below"
    assert half.peak_bytes <= (half.target_bytes or 0)
    assert not too_little.is_reachable
    assert too_little.remark == "cannot: minimum"
    assert too_little.peak_bytes == 5 * 36 * 256  # five sink tokens in each of 36 heads


@pytest.mark.parametrize(
    ("text", "expected"),
    [("20%", 200_000), ("0.2", 200_000), ("1", 1_000_000), ("40kB", 40_000), ("1KiB", 1024), ("512", 512)],
)
def test_a_budget_is_bytes_or_a_share_of_the_history(text: str, expected: int) -> None:
    assert target_bytes(text, 1_000_000) == expected


@pytest.mark.parametrize("text", ["0", "-3%", "120%", "much", "nan", "0%"])
def test_a_budget_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"budget|bytes|history"):
        target_bytes(text, 1_000_000)


def test_a_share_is_of_the_bfloat16_history_whatever_the_league_runs_in(settings: Settings) -> None:
    assert Settings(**(settings.to_json() | {"dtype": "float32"})).history_bytes == settings.history_bytes
