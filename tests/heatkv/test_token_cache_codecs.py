"""An online policy's tokens in a codec: encoded once, moved as they lie there, within the same bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from heatkv.attention import Path, attend
from heatkv.budget import budget_bytes
from heatkv.codecs import CODECS
from heatkv.config import MODELS, ModelConfig, VAEConfig
from heatkv.errors import BudgetError
from heatkv.online import OnlinePlan, plan_in_codec
from heatkv.policies import OnlinePolicy, make_policy
from heatkv.scales import ScaleSchedule
from heatkv.selection import Selector
from heatkv.token_cache import TokenCache

CONFIG = ModelConfig("small", 2, 64, 2, 2, VAEConfig(16, 16))
SCALES = ScaleSchedule.custom(((1, 1), (2, 2), (3, 3), (4, 4), (5, 5)))
ROWS = 2
GROUPED = Path("grouped", "tests")
CODED = [name for name in CODECS if name != "model"]
POLICIES = ["window", "adakv", "h2o"]
"""With a capacity for every head, for every layer; one that has every token carry something."""


def plan_of(policy: OnlinePolicy, codec: str, budget: float, config: ModelConfig = CONFIG) -> OnlinePlan:
    scales = SCALES if config is CONFIG else config.schedule_for()
    return plan_in_codec(policy, codec, config, scales, budget=budget, sink_scales=1, dtype_bytes=4)


def stepped(plan: OnlinePlan) -> Iterator[TokenCache]:
    """The cache after every step of a run with random numbers."""
    cache = TokenCache(plan, rows=ROWS, head_dim=CONFIG.head_dim, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for query_scale, count in enumerate(SCALES.tokens[:-1]):
        for layer in range(CONFIG.num_layers):
            q, keys, values, raw = torch.randn(4, ROWS, CONFIG.num_heads, count, CONFIG.head_dim, generator=generator)
            attend(q, cache.visible(layer, query_scale=query_scale, keys=keys, values=values), SCALES, path=GROUPED)
            candidates = cache.candidates(layer, query_scale=query_scale, keys=keys, values=values)
            selector = Selector(plan, lambda _, index, raw=raw: raw[:, :, index])
            cache.store(layer, selector.choose(layer, query_scale, q, candidates))
            yield cache


def stored(cache: TokenCache) -> dict[tuple[int, int, int, int], bytes]:
    """Bytes of key and value of every (layer, head, row, token) as they lie in the pool."""
    found = {}
    for layer in range(CONFIG.num_layers):
        empty = torch.empty(ROWS, CONFIG.num_heads, 0, CONFIG.head_dim)
        visible = cache.visible(layer, query_scale=0, keys=empty, values=empty)
        for head, (slots, tokens) in enumerate(zip(visible.slots, visible.tokens or (), strict=True)):
            keys, values = (held.view(torch.uint8).numpy() for held in cache.pool.raw(slots))
            for row, own in enumerate(tokens.tolist()):
                for index, token in enumerate(own):
                    found[layer, head, row, token] = keys[row, index].tobytes() + values[row, index].tobytes()
    return found


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("codec", CODECS)
def test_a_stored_token_s_bytes_never_change_while_it_stays(name: str, codec: str) -> None:
    before: dict[tuple[int, int, int, int], bytes] = {}
    stayed = moved_on = 0

    for cache in stepped(plan_of(make_policy(name, {}), codec, 0.08)):
        now = stored(cache)
        same = before.keys() & now.keys()
        assert all(before[place] == now[place] for place in same)
        stayed, moved_on = stayed + len(same), moved_on + len(before.keys() - now.keys())
        before = now

    assert stayed
    assert moved_on


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("codec", CODED)
@pytest.mark.parametrize("budget", [0.12, 0.3])
def test_bytes_are_those_planned_and_within_the_budget_at_every_step(name: str, codec: str, budget: float) -> None:
    plan = plan_of(make_policy(name, {}), codec, budget)
    planned = plan.tokens_held() * plan.bytes_per_token(rows=ROWS, dtype_bytes=4)

    for step, cache in enumerate(stepped(plan)):
        assert cache.accounted_bytes == planned[step]
        assert cache.accounted_bytes <= budget_bytes(budget, CONFIG, SCALES, dtype_bytes=4)
        assert cache.pool_starts[0].bytes_per_token * cache.capacity_tokens == planned.max()


@pytest.mark.parametrize("codec", CODED)
def test_the_same_bytes_keep_more_tokens(codec: str) -> None:
    tiny = MODELS["infinity-tiny"]
    plain = plan_of(make_policy("window", {}), "model", 0.1, tiny)

    plan = plan_of(make_policy("window", {}), codec, 0.1, tiny)

    assert plan.peak_tokens > 1.5 * plain.peak_tokens
    assert (plan.budget, plan.codec, plan.bound().codecs) == (0.1, codec, (codec,))


def test_a_policy_sees_decoded_numbers_of_what_is_stored_and_the_model_s_own_of_the_current_scale() -> None:
    plan = plan_of(make_policy("window", {}), "int2", 0.3)
    cache = next(stepped(plan))
    keys, values = torch.randn(2, ROWS, CONFIG.num_heads, 4, CONFIG.head_dim)

    (group,) = cache.candidates(0, query_scale=1, keys=keys, values=values)

    assert torch.equal(group.keys[:, :, 1:], keys)
    assert torch.equal(group.values[:, :, 1:], values)
    assert group.coded is not None
    decoded = cache.pool.decoded(group.coded)
    assert torch.equal(group.keys[:, :, :1], decoded[0][:, :, :1])
    assert not torch.equal(decoded[0][:, :, 1:], keys)


@pytest.mark.parametrize("codec", CODED)
def test_less_than_the_sinks_in_their_codec_is_refused_with_the_least(codec: str) -> None:
    policy = make_policy("window", {})
    with pytest.raises(BudgetError, match=f"can keep in {codec}") as raised:
        plan_of(policy, codec, 0.001)

    plan_of(policy, codec, raised.value.minimum)
