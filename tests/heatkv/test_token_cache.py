from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from heatkv.config import ModelConfig, VAEConfig
from heatkv.online import OnlinePlan
from heatkv.policies.window import WindowPolicy
from heatkv.scales import ScaleSchedule
from heatkv.token_cache import Candidates, TokenCache

CONFIG = ModelConfig("small", 2, 32, 2, 2, VAEConfig(16, 16))
SCALES = ScaleSchedule.custom(((1, 1), (2, 2), (3, 3)))
ROWS, DIM = 2, 4


def _cache(capacity: int = 5) -> TokenCache:
    plan = OnlinePlan(WindowPolicy(), CONFIG, SCALES, 0, np.full((3, 2, 2), capacity, np.int32))
    return TokenCache(plan, rows=ROWS, head_dim=DIM, dtype=torch.float32)


def _current(scale: int) -> tuple[Tensor, Tensor]:
    """Keys and values [R, H, L, D] that tell row, head and token; keys: 1000 row + 100 head + token."""
    begin, end = SCALES.offsets[scale : scale + 2]
    told = (
        torch.arange(ROWS)[:, None, None] * 1000
        + torch.arange(2)[:, None] * 100
        + torch.arange(begin, end, dtype=torch.float32)
    )
    keys = told[..., None].expand(-1, -1, -1, DIM)
    return keys, keys + 0.5


def _step(cache: TokenCache, layer: int, scale: int, keep: list[list[list[int]]]) -> int:
    """Keep these sequence tokens [head][row][…]; heads one by one."""
    keys, values = _current(scale)
    chosen = []
    for group in cache.candidates(layer, query_scale=scale, keys=keys, values=values):
        for place, head in enumerate(group.heads):
            one = _one(group, place)
            at = [
                [one.tokens[row, 0].tolist().index(token) for token in tokens] for row, tokens in enumerate(keep[head])
            ]
            chosen.append((one, torch.tensor(at, dtype=torch.int64).reshape(ROWS, 1, -1)))
    return cache.store(layer, chosen)


def _one(group: Candidates, place: int) -> Candidates:
    carried = None if group.carried is None else group.carried[:, [place]]
    at = [place]
    return Candidates((group.heads[place],), group.keys[:, at], group.values[:, at], group.tokens[:, at], carried)


def test_each_row_reads_back_the_tokens_it_kept() -> None:
    cache = _cache()
    _step(cache, 0, 0, [[[0], [0]], [[0], [0]]])

    gone = _step(cache, 0, 1, [[[0, 2], [1, 4]], [[1, 3, 4], [0, 1, 2]]])

    keys, values = _current(2)
    found = {}
    for group in cache.candidates(0, query_scale=2, keys=keys, values=values):
        for place, head in enumerate(group.heads):
            found[head] = group.keys[:, place, :-9, 0], group.values[:, place, :-9, 0]
    assert gone == 5 + 5 - 2 - 3
    assert found[0][0].tolist() == [[0, 2], [1001, 1004]]
    assert found[1][0].tolist() == [[101, 103, 104], [1100, 1101, 1102]]
    assert torch.equal(found[1][1], found[1][0] + 0.5)


def test_a_head_that_kept_nothing_is_still_there_at_the_next_step() -> None:
    cache = _cache()

    _step(cache, 0, 0, [[[0], [0]], [[], []]])
    keys, values = _current(1)
    candidates = cache.candidates(0, query_scale=1, keys=keys, values=values)

    lengths = {head: group.tokens.shape[2] for group in candidates for head in group.heads}
    assert lengths == {0: 5, 1: 4}


def test_bytes_are_those_of_what_is_held_and_all_are_given_back() -> None:
    cache = _cache()
    token_bytes = 2 * ROWS * DIM * 4

    _step(cache, 0, 0, [[[0], [0]], [[0], [0]]])
    _step(cache, 1, 0, [[[0], [0]], [[], []]])

    assert cache.accounted_bytes == 3 * token_bytes
    assert cache.storage_bytes > cache.pool.nbytes >= cache.capacity_tokens * token_bytes
    cache.clear()
    assert (cache.accounted_bytes, cache.storage_bytes, cache.capacity_tokens) == (0, 0, 0)


def test_counts_are_told_by_source_scale_for_the_first_row() -> None:
    cache = _cache()
    _step(cache, 1, 0, [[[0], [0]], [[0], [0]]])
    _step(cache, 1, 1, [[[0, 3], [1, 2]], [[2, 3, 4], [0, 1, 2]]])

    assert cache.kept_tokens(1).tolist() == [[1, 1, 0], [0, 3, 0]]
    assert cache.kept_tokens(0).tolist() == [[0, 0, 0], [0, 0, 0]]
    visible = cache.visible(1, query_scale=2, keys=_current(2)[0], values=_current(2)[1])
    assert visible.sources == (((0, 1), (1, 1)), ((1, 3),))
    assert [each.tolist() for each in visible.tokens or ()] == [[[0, 3], [1, 2]], [[2, 3, 4], [0, 1, 2]]]


def test_what_a_policy_carries_follows_its_token() -> None:
    cache = _cache()
    keys, values = _current(1)
    (group,) = cache.candidates(0, query_scale=1, keys=keys, values=values)
    carried = group.tokens.float() * 2
    group = Candidates(group.heads, group.keys, group.values, group.tokens, carried)

    cache.store(0, [(group, torch.tensor([[[1, 3]] * 2, [[0, 2]] * 2]))])
    keys, values = _current(2)
    (after,) = cache.candidates(0, query_scale=2, keys=keys, values=values)

    assert after.carried is not None
    assert torch.equal(after.carried[:, :, :2], after.tokens[:, :, :2].float() * 2)
    assert (after.carried[:, :, 2:] == 0).all()


def test_a_pool_that_was_sized_wrongly_says_so() -> None:
    cache = _cache(capacity=1)

    with pytest.raises(AssertionError, match="slots too few"):
        _step(cache, 0, 1, [[[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [1, 2, 3]]])
