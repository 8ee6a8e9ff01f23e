"""The error of a blind head, against attention computed anew without the scale, in float64, and projected whole."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from heatkv.kernels import blind
from heatkv.kernels.blind import blind_error
from tests.heatkv.conftest import LargestTensor

TOKENS = (1, 4, 9, 16)
ROWS, HEADS, HEAD_DIM, WIDTH = 2, 3, 8, 20
BOUNDS = list(pairwise([0, 1, 5, 14, 30]))


def inputs(*, sharpness: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, ...]:
    """Queries, keys, values and a projection; the sharper, the more one key gets all."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q, keys = draw(ROWS, HEADS, TOKENS[-1], HEAD_DIM), draw(ROWS, HEADS, sum(TOKENS), HEAD_DIM)
    values, projection = draw(ROWS, HEADS, sum(TOKENS), HEAD_DIM), draw(WIDTH, HEADS * HEAD_DIM)
    return tuple(each.to(dtype) for each in (q * sharpness, keys, values, projection))


def naive(q: Tensor, keys: Tensor, values: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    q, keys, values, projection = (each.double() for each in (q, keys, values, projection))
    probabilities = (q @ keys.transpose(-1, -2)).softmax(-1)
    mass = torch.stack([probabilities[..., begin:end].sum(-1).mean(-1) for begin, end in BOUNDS], -1)
    out = probabilities @ values
    whole = projected(out, projection).square().sum(-1).mean(-1)  # [R]
    error = torch.zeros(ROWS, HEADS, len(TOKENS) - 1, dtype=torch.float64)
    for source, (begin, end) in enumerate(BOUNDS[:-1]):
        seen = torch.tensor([not begin <= key < end for key in range(sum(TOKENS))])
        without = (q @ keys[:, :, seen].transpose(-1, -2)).softmax(-1) @ values[:, :, seen]
        for head in range(HEADS):
            change = torch.zeros_like(out)
            change[:, head] = out[:, head] - without[:, head]
            error[:, head, source] = projected(change, projection).square().sum(-1).mean(-1) / whole
    return error, mass


def projected(out: Tensor, projection: Tensor) -> Tensor:
    """[R, L, C]."""
    return out.transpose(1, 2).flatten(2) @ projection.T


@pytest.mark.parametrize("sharpness", [0.1, 1, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_the_change_of_the_projected_output(sharpness: float, dtype: torch.dtype) -> None:
    given = inputs(sharpness=sharpness, dtype=dtype)

    error, mass = blind_error(*given[:3], TOKENS, given[3])

    expected_error, expected_mass = naive(*given)
    # Sharp scores reach 200, so that float32 rounds their exponentials by 1e-5.
    torch.testing.assert_close(error.double(), expected_error, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(mass.double(), expected_mass, rtol=1e-3, atol=5e-6)


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    *attention, projection = inputs(sharpness=1)
    together = blind_error(*attention, TOKENS, projection)
    monkeypatch.setattr(blind, "_TILE_BYTES", {"cpu": 4 * HEADS * max(TOKENS) * 5})

    apart = blind_error(*attention, TOKENS, projection)

    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-8)


def test_a_head_that_sees_nothing_but_one_scale_is_lost_without_it() -> None:
    q, keys, values, projection = inputs(sharpness=1, dtype=torch.float64)
    keys[:, 0, 1:5] += 1e4 * torch.nn.functional.normalize(q[:, 0].mean(1, keepdim=True), dim=-1)
    q[:, 0] = q[:, 0].mean(1, keepdim=True)

    error, mass = blind_error(q, keys, values, TOKENS, projection)

    assert mass[:, 0, 1].min() > 0.999
    assert error.isfinite().all()
    torch.testing.assert_close(error, naive(q, keys, values, projection)[0], rtol=1e-9, atol=1e-12)


def test_the_first_scale_has_no_error_and_all_the_mass() -> None:
    q, keys, values, projection = inputs(sharpness=1)

    error, mass = blind_error(q[:, :, :1], keys[:, :, :1], values[:, :, :1], TOKENS[:1], projection)

    assert error.shape == (ROWS, HEADS, 0)
    torch.testing.assert_close(mass, torch.ones(ROWS, HEADS, 1))


def test_no_matrix_of_all_queries_and_keys_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    num_queries, num_keys, head_dim, budget = 300, 700, 64, 100_000
    monkeypatch.setattr(blind, "_TILE_BYTES", {"cpu": budget})
    q, keys = torch.randn(1, 2, num_queries, head_dim), torch.randn(1, 2, num_keys, head_dim)

    with LargestTensor() as largest:
        blind_error(q, keys, keys, (400, 300), torch.randn(4, 2 * head_dim))

    assert largest.num_bytes <= budget < 4 * num_queries * num_keys
