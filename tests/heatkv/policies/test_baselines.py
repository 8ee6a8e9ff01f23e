"""Policies that differ from others in one thing: what they keep by place, by layer, by head, or by lot."""

from __future__ import annotations

import numpy as np
import torch

from heatkv.config import MODELS
from heatkv.measurements import Measurements
from heatkv.policies.adakv import AdaKVPolicy
from heatkv.policies.amskv import AMSKVPolicy
from heatkv.policies.pyramidkv import PyramidKVPolicy
from heatkv.policies.random import RandomPolicy
from heatkv.policies.sinks import SinksOnlyPolicy
from heatkv.policies.snapkv import SnapKVPolicy
from heatkv.policies.streaming import StreamingPolicy
from heatkv.policies.tokens import spread_order
from heatkv.selection import best, with_sinks
from tests.heatkv.policies.driven import driven
from tests.heatkv.policies.seeing import seen

CONFIG = MODELS["infinity-tiny"]
SCALES = CONFIG.schedule_for()


def test_streaming_keeps_the_first_scales_and_the_last_tokens() -> None:
    looked_at = seen(SCALES, 3, capacity=10)

    scores = with_sinks(StreamingPolicy().scores(looked_at), looked_at.tokens, 5)

    assert best(scores, 8)[0, 0].tolist() == [0, 1, 2, 3, 4, 27, 28, 29]


def test_snapkv_keeps_what_the_grid_attends_to() -> None:
    looked_at = seen(SCALES, 4, capacity=10)

    scores = SnapKVPolicy(kernel=1).scores(looked_at)

    torch.testing.assert_close(scores, looked_at.chances(looked_at.grid_queries(16)).mean(2))


def test_pyramidkv_falls_linearly_with_depth_to_one_twentieth() -> None:
    capacity = PyramidKVPolicy().capacities(40, CONFIG, SCALES, 0)[6, :, 0]

    np.testing.assert_allclose(capacity, np.linspace(78, 2, 6))
    np.testing.assert_allclose(PyramidKVPolicy(beta=1).capacities(40, CONFIG, SCALES, 0)[6], 40)


def test_adakv_gives_every_head_a_fifth_of_an_equal_part() -> None:
    plan = AdaKVPolicy().plan(CONFIG, SCALES, budget=0.2, sink_scales=0)

    counts = torch.stack([step.alive.sum(-1) for step in driven(plan, CONFIG)][5 * 6 : 6 * 6])

    mean = plan.capacity[5].mean()
    assert counts.min() >= int(0.2 * mean)
    assert counts.max() > mean
    assert torch.equal(counts[:, 0], counts[:, 1])


def test_amskv_gives_layers_that_change_from_scale_to_scale_twice_as_much() -> None:
    similarity = np.repeat(np.array([[0.1], [0.9], [0.2], [0.8], [0.7], [0.3]]), 7, axis=1)
    similarity[:, 0] = np.nan

    capacity = AMSKVPolicy(Measurements(kv_similarity=similarity)).capacities(30, CONFIG, SCALES, 2)

    np.testing.assert_allclose(capacity[6, :, 0], [40, 20, 40, 20, 20, 40])


def test_amskv_keeps_the_newest_scales_and_of_the_oldest_of_them_tokens_far_apart() -> None:
    looked_at = seen(SCALES, 3, capacity=19)
    policy = AMSKVPolicy(Measurements(kv_similarity=np.ones((6, 7))))

    kept = best(policy.scores(looked_at), 19)[0, 0].tolist()

    assert kept[3:] == list(range(14, 30))
    assert kept[:3] == [5, 5 + 2, 5 + 5]


def test_the_lowest_ranks_lie_far_apart() -> None:
    for count in (4, 9, 16, 64):
        order = spread_order(count)
        assert sorted(order.tolist()) == list(range(count))
        gaps = np.diff(np.sort(np.flatnonzero(order < count // 2)))
        assert gaps.max() <= 3


def test_random_draws_by_seed_layer_head_and_token_alone() -> None:
    looked_at = seen(SCALES, 3, capacity=8, rows=2)
    fewer = seen(SCALES, 3, capacity=8, rows=2, stored=torch.tensor([2, 7]))

    scores = RandomPolicy().scores(looked_at)

    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0, 0], scores[0, 1])
    assert torch.equal(RandomPolicy().scores(fewer), scores[:, :, [2, 7, *range(14, 30)]])
    assert not torch.equal(RandomPolicy(seed=1).scores(looked_at), scores)
    assert not torch.equal(RandomPolicy().scores(seen(SCALES, 3, capacity=8, rows=2, layer=1)), scores)


def test_sinks_only_holds_what_the_sinks_take() -> None:
    schedule = SinksOnlyPolicy().plan(CONFIG, SCALES, budget=0.5, sink_scales=3)

    assert schedule.tokens_held()[-1] == 14 * 36
    assert schedule.visible(5)[:, :, 3:5].sum() == 0
    assert schedule.visible(5)[:, :, :3].all()
