from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from heatkv.config import MODELS
from heatkv.errors import OptionError
from heatkv.measurements import Measurements
from heatkv.policies.forcing import ForcingPolicy
from heatkv.selection import best
from tests.heatkv.policies.measured import random_measurements
from tests.heatkv.policies.seeing import seen

CONFIG = MODELS["infinity-tiny"]
SCALES = CONFIG.schedule_for()


def _near_and_far() -> Measurements:
    """Head 0 of every layer looks at this scale and the one before only, the others evenly at all."""
    mass = np.full((7, 6, 6, 7), np.nan)
    for scale in range(7):
        mass[scale, ..., : scale + 1] = 1 / (scale + 1)
        mass[scale, :, 0, : max(0, scale - 1)] = 0.0
    return Measurements(attention_mass=mass)


def test_static_heads_keep_sinks_and_the_last_scale_and_dynamic_heads_the_rest() -> None:
    capacity = ForcingPolicy(_near_and_far()).capacities(80, CONFIG, SCALES, 2)

    assert capacity[5, 0, 0] == 5 + 64
    np.testing.assert_allclose(capacity[5, 0, 1:], 80 + 11 / 5)
    np.testing.assert_allclose(capacity[4:].mean(axis=(1, 2)), [66, 80, 80])


def test_static_heads_keep_no_more_than_the_budget_has_for_each() -> None:
    capacity = ForcingPolicy(_near_and_far()).capacities(20, CONFIG, SCALES, 2)

    np.testing.assert_allclose(capacity[4:], 20)


def test_what_dynamic_heads_cannot_take_goes_back() -> None:
    capacity = ForcingPolicy(_near_and_far(), reach=0).capacities(120, CONFIG, SCALES, 2)

    np.testing.assert_allclose(capacity[5, 0], [5 + (120 * 6 - 5 * 130 - 5), *[130] * 5])


def test_without_a_threshold_the_budget_says_how_many_are_dynamic() -> None:
    policy = ForcingPolicy(random_measurements(CONFIG, SCALES), threshold=None)

    few, many = (policy._static(mean, SCALES, 2).sum() for mean in (88.0, 72.0))

    assert 0 <= few < many <= 36
    assert policy._static(20.0, SCALES, 2).all()


def test_the_last_scale_comes_first_then_cells_that_are_least_like_what_follows() -> None:
    policy = ForcingPolicy(_near_and_far(), grid=2)
    looked_at = seen(SCALES, 3, capacity=20)  # stored: 1 + 4 + 9; current: 16
    keys = looked_at.keys.clone()
    keys[..., 1:5, :] = torch.eye(8)[0]  # scale 1 has been compared before
    keys[..., 5:30, :] = torch.eye(8)[1]
    at = [5 + 3 * row + column for row in range(2) for column in range(2)]  # 3 x 3 in cells of a half: 0, 1 lie in 0
    keys[..., at, :] = -torch.eye(8)[1]
    looked_at = dataclasses.replace(looked_at, keys=keys, carried=torch.full((1, 2, 30), 0.5))

    carried = policy.carry(looked_at)
    kept = best(policy.scores(dataclasses.replace(looked_at, carried=carried)), 20)[0, 0].tolist()

    torch.testing.assert_close(carried[0, 0, at], torch.full((4,), -1.0))
    torch.testing.assert_close(carried[0, 0, :5], torch.full((5,), 0.5))
    assert kept == [*at, *range(14, 30)]


@pytest.mark.parametrize(
    ("parameter", "found"), [({"reach": 2}, "expected 0 to 1"), ({"grid": 0}, "grid=0; expected 1 to")]
)
def test_values_without_a_meaning_are_refused(parameter: dict[str, int], found: str) -> None:
    with pytest.raises(OptionError, match=found):
        ForcingPolicy(_near_and_far(), **parameter)
