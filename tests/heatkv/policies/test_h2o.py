from __future__ import annotations

import dataclasses

import torch

from heatkv.config import MODELS
from heatkv.policies.h2o import H2OPolicy
from heatkv.selection import best
from tests.heatkv.policies.seeing import seen

SCALES = MODELS["infinity-tiny"].schedule_for()


def test_sums_travel_with_their_tokens_and_count_the_queries_that_could_see_them() -> None:
    policy = H2OPolicy(recent=0.0)
    looked_at = seen(SCALES, 2, capacity=4, carried=torch.ones(1, 2, 14))  # 1 + 4 + 9 tokens

    carried = policy.carry(looked_at)
    scores = policy.scores(dataclasses.replace(looked_at, carried=carried))

    torch.testing.assert_close(carried, 1 + 9 * looked_at.mass())
    could_see = torch.tensor([14.0] * 1 + [13.0] * 4 + [9.0] * 9)
    torch.testing.assert_close(scores, carried / could_see)


def test_half_of_the_capacity_is_for_the_most_recent() -> None:
    policy = H2OPolicy()
    looked_at = seen(SCALES, 2, capacity=[6, 2])
    looked_at = dataclasses.replace(looked_at, carried=policy.carry(looked_at))

    first = best(policy.scores(looked_at), 6)[0, 0].tolist()
    second = best(policy.scores(looked_at), 2)[0, 1].tolist()

    assert first[-3:] == [11, 12, 13]
    assert second[-1] == 13
    heavy = looked_at.carried
    assert heavy is not None
    assert set(first[:-3]) == set(best(heavy[0, 0, :11] / torch.tensor([14.0] + [13.0] * 4 + [9.0] * 6), 3).tolist())
