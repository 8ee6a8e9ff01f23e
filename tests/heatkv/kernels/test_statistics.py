"""Column variance, selectivity and similarity against their definitions, in float64 and with loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from heatkv.kernels import statistics
from heatkv.kernels.statistics import column_variance, selectivity, similarity
from tests.heatkv.conftest import LargestTensor

HEADS, QUERIES, HISTORY, HEAD_DIM = 3, 50, 21, 8


def queries_and_keys(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(HEADS, QUERIES, HEAD_DIM, generator=generator)
    return q.to(dtype), torch.randn(HEADS, HISTORY + QUERIES, HEAD_DIM, generator=generator).to(dtype)


def probabilities(q: Tensor, keys: Tensor) -> Tensor:
    return (q.double() @ keys.double().transpose(-1, -2)).softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries_at_once", [50, 7])
def test_column_variance_is_that_of_each_keys_attention(
    dtype: torch.dtype, queries_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, keys = queries_and_keys(dtype)
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", 4 * HEADS * keys.shape[1] * queries_at_once)

    with LargestTensor() as largest:
        variance = column_variance(q, keys)

    assert largest.num_bytes <= 8 * HEADS * keys.shape[1] * queries_at_once
    expected = probabilities(q, keys).var(1, correction=0).sum(-1)
    torch.testing.assert_close(variance, expected, rtol=1e-5, atol=0)


def test_queries_that_all_look_alike_have_no_column_variance() -> None:
    q, keys = queries_and_keys()

    variance = column_variance(q[:, :1].expand(-1, QUERIES, -1), keys)

    torch.testing.assert_close(variance, torch.zeros(HEADS, dtype=torch.float64), rtol=0, atol=1e-12)


def test_selectivity_is_current_mass_times_that_of_the_top_tenth_of_history() -> None:
    q, keys = queries_and_keys()

    found = float(selectivity(q, keys, num_current=QUERIES))

    sampled = np.round(np.linspace(0, QUERIES - 1, 32)).astype(int)
    shares = probabilities(q, keys)[:, sampled].numpy()
    most = -np.sort(-shares[..., :HISTORY], axis=-1)[..., : math.ceil(HISTORY / 10)]
    expected = shares[..., HISTORY:].sum(-1).mean() * most.sum(-1).mean()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("grid_before", "grid"), [((2, 2), (3, 3)), ((3, 2), (7, 4)), ((1, 1), (2, 2))])
def test_similarity_compares_tokens_at_the_same_place(grid_before: tuple[int, int], grid: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    before, current = (
        torch.randn(HEADS, height * width, HEAD_DIM, generator=generator) for height, width in (grid_before, grid)
    )

    found = float(similarity(current, before, grid=grid, grid_before=grid_before))

    cosines = []
    for head, row, column in np.ndindex(HEADS, *grid):
        place = [math.floor((index + 0.5) * grid_before[side] / grid[side]) for side, index in enumerate((row, column))]
        one, other = current[head, row * grid[1] + column], before[head, place[0] * grid_before[1] + place[1]]
        cosines.append(float(one.double() @ other.double() / (one.double().norm() * other.double().norm())))
    assert found == pytest.approx(np.mean(cosines), abs=1e-6)


def test_a_map_drawn_larger_is_entirely_similar() -> None:
    before = torch.randn(HEADS, 9, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    larger = before.unflatten(1, (3, 3)).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)

    assert float(similarity(larger, before, grid=(6, 6), grid_before=(3, 3))) == pytest.approx(1)
