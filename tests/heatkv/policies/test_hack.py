from __future__ import annotations

import dataclasses

import numpy as np
import torch

from heatkv.config import MODELS
from heatkv.measurements import Measurements
from heatkv.policies.hack import HACKPolicy, contextual_heads
from heatkv.selection import best
from tests.heatkv.policies.measured import random_measurements
from tests.heatkv.policies.seeing import seen

CONFIG = MODELS["infinity-tiny"]
SCALES = CONFIG.schedule_for()
VARIANCE = np.arange(36.0).reshape(6, 6)[::-1]


def _policy(variance: np.ndarray) -> HACKPolicy:
    return HACKPolicy(Measurements(column_variance=variance))


def test_the_heads_whose_columns_vary_least_are_contextual() -> None:
    contextual = contextual_heads(Measurements(column_variance=VARIANCE), 0.25)

    assert contextual.sum() == 9
    assert contextual[5].all()
    assert contextual[4].tolist() == [True] * 3 + [False] * 3


def test_structural_heads_keep_five_times_as_much_and_the_mean_is_the_budget() -> None:
    capacity = _policy(VARIANCE).capacities(40, CONFIG, SCALES, 0)

    np.testing.assert_allclose(capacity[6, 0], 5 * capacity[6, 5])
    np.testing.assert_allclose(capacity[6].mean(), 40)


def test_a_structural_head_keeps_the_first_scales_and_the_newest_and_fills_up_by_score() -> None:
    policy = _policy(np.array([[1.0, 0.0]]))  # head 0 structural, head 1 contextual
    looked_at = seen(SCALES, 4, capacity=50)  # stored: 1 + 4 + 9 + 16, current: 36

    scores = policy.scores(looked_at)

    structural = set(best(scores, 50)[0, 0].tolist())
    assert {*range(5), *range(30, 66)} <= structural
    attention = looked_at.chances(looked_at.uniform_queries(32)).mean(2)
    middle = sorted(range(5, 30), key=lambda at: -attention[0, 0, at])[:9]
    assert structural - {*range(5), *range(30, 66)} == set(middle)
    assert best(scores, 50)[0, 1].tolist() == best(attention, 50)[0, 1].tolist()


def test_of_a_newest_scale_that_does_not_fit_the_best_stay() -> None:
    policy = _policy(np.array([[1.0, 0.0]]))
    looked_at = seen(SCALES, 4, capacity=15)

    kept = set(best(policy.scores(looked_at), 15)[0, 0].tolist())

    attention = looked_at.chances(looked_at.uniform_queries(32)).mean(2)[0, 0]
    newest = sorted(range(30, 66), key=lambda at: -attention[at])[:10]
    assert kept == {*range(5), *newest}


def test_heads_of_every_group_get_their_own_class() -> None:
    policy = HACKPolicy(random_measurements(CONFIG, SCALES))
    whole = seen(SCALES, 3, capacity=10, heads=6, layer=2)
    some = dataclasses.replace(
        whole, heads=(4, 1), **{name: getattr(whole, name)[:, [4, 1]] for name in ("q", "keys", "values", "tokens")}
    )

    assert torch.equal(policy.scores(some), policy.scores(whole)[:, [4, 1]])
