"""The mass of each key is that of a float64 softmax, whatever the blocks, and global settings stay as they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heatkv.kernels import mass as mass_module
from heatkv.kernels.mass import exact_products, key_mass, scale_mass
from tests.heatkv.conftest import LargestTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

TOLERANCES = {torch.float32: 5e-7, torch.bfloat16: 1e-5}
PRODUCTS: Any = getattr(torch.backends.mkldnn, "matmul", None)  # Any: newer than torch 2.8


def _inputs(
    dtype: torch.dtype, *, num_queries: int, num_keys: int = 40, dim: int = 32, sharpness: float = 4.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and the logsumexp of their float64 scores, which float32 then rounds."""
    generator = torch.Generator().manual_seed(num_queries)
    q, keys = (
        torch.nn.functional.normalize(torch.randn(2, 3, length, dim, generator=generator), dim=-1)
        for length in (num_queries, num_keys)
    )
    q, keys = (q * sharpness).to(dtype), keys.to(dtype)
    return q, keys, _scores(q, keys).logsumexp(-1).float()


def _scores(q: Tensor, keys: Tensor) -> Tensor:
    return q.double() @ keys.double().transpose(-1, -2)


class TestKeyMass:
    @pytest.mark.parametrize("num_queries", [1, 4, 300])
    @pytest.mark.parametrize("dtype", TOLERANCES)
    def test_is_that_of_a_float64_softmax(self, dtype: torch.dtype, num_queries: int) -> None:
        q, keys, lse = _inputs(dtype, num_queries=num_queries)

        mass = key_mass(q, keys, lse)

        assert mass.dtype == torch.float32
        expected = _scores(q, keys).softmax(-1).mean(-2)
        torch.testing.assert_close(mass.double(), expected, rtol=0, atol=TOLERANCES[dtype])
        torch.testing.assert_close(mass.sum(-1), torch.ones(2, 3), rtol=0, atol=2e-6)

    @pytest.mark.parametrize("dtype", TOLERANCES)
    def test_of_the_sharpest_heads_is_as_exact_as_float32_scores_of_a_hundred(self, dtype: torch.dtype) -> None:
        q, keys, lse = _inputs(dtype, num_queries=4, sharpness=100.0)

        mass = key_mass(q, keys, lse)

        torch.testing.assert_close(mass.double(), _scores(q, keys).softmax(-1).mean(-2), rtol=0, atol=1e-5)

    @given(begin=st.integers(0, 40), end=st.integers(0, 40), num_queries=st.sampled_from([1, 7]))
    @settings(max_examples=20)
    def test_of_some_keys_is_their_part_of_the_whole(self, begin: int, end: int, num_queries: int) -> None:
        q, keys, lse = _inputs(torch.float32, num_queries=num_queries)

        part = key_mass(q, keys[:, :, begin:end], lse)

        torch.testing.assert_close(part, key_mass(q, keys, lse)[:, :, begin:end], rtol=0, atol=5e-6)

    @pytest.mark.parametrize("tile_bytes", [1, 4 * 16 * 40, 2 * 4 * 16 * 40])
    @pytest.mark.parametrize("dtype", TOLERANCES)
    def test_does_not_depend_on_the_blocks(
        self, dtype: torch.dtype, tile_bytes: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        q, keys, lse = _inputs(dtype, num_queries=50)
        monkeypatch.setattr(mass_module, "_BLOCK_QUERIES", 16)  # 50 is no multiple of it
        monkeypatch.setitem(mass_module._TILE_BYTES, "cpu", tile_bytes)

        mass = key_mass(q, keys, lse)

        expected = _scores(q, keys).softmax(-1).mean(-2)
        torch.testing.assert_close(mass.double(), expected, rtol=0, atol=TOLERANCES[dtype])

    def test_never_holds_more_scores_than_a_tile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        q, keys, lse = _inputs(torch.float32, num_queries=50)
        monkeypatch.setattr(mass_module, "_BLOCK_QUERIES", 16)
        monkeypatch.setitem(mass_module._TILE_BYTES, "cpu", 2 * 4 * 16 * 40)

        with LargestTensor() as made:
            key_mass(q, keys, lse)

        assert made.num_bytes == 2 * 4 * 16 * 40

    def test_strided_views_are_read_as_they_are(self) -> None:
        q, keys, lse = _inputs(torch.bfloat16, num_queries=9)

        mass = key_mass(_tokens_before_heads(q), _tokens_before_heads(keys), lse)

        assert torch.equal(mass, key_mass(q, keys, lse))


class TestScaleMass:
    def test_adds_up_each_run_of_keys(self) -> None:
        masses = torch.arange(12.0).view(1, 2, 6)

        assert scale_mass(masses, (1, 3, 2)).tolist() == [[[0, 6, 9], [6, 24, 21]]]

    def test_of_no_scale_is_empty(self) -> None:
        assert scale_mass(torch.zeros(2, 3, 0), ()).shape == (2, 3, 0)


@pytest.mark.skipif(PRODUCTS is None, reason="this torch has no such setting")
class TestExactProducts:
    @pytest.fixture(autouse=True)
    def _own_setting(self) -> Iterator[None]:
        before = PRODUCTS.fp32_precision
        PRODUCTS.fp32_precision = "ieee"
        yield
        PRODUCTS.fp32_precision = before

    def test_lets_products_of_bfloat16_numbers_be_fast_only_inside(self) -> None:
        with exact_products(torch.zeros(1, dtype=torch.bfloat16)):
            assert PRODUCTS.fp32_precision == "bf16"
        assert PRODUCTS.fp32_precision == "ieee"

    def test_puts_the_setting_back_after_an_error(self) -> None:
        with pytest.raises(KeyboardInterrupt), exact_products(torch.zeros(1, dtype=torch.bfloat16)):
            raise KeyboardInterrupt
        assert PRODUCTS.fp32_precision == "ieee"

    def test_leaves_it_alone_for_float32(self) -> None:
        with exact_products(torch.zeros(1)):
            assert PRODUCTS.fp32_precision == "ieee"

    def test_products_of_bfloat16_numbers_stay_exact(self) -> None:
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(64, 64, generator=generator).bfloat16() for _ in range(2))

        with exact_products(a):
            product = a.float() @ b.float()

        # Only the order of a float32 sum of 64 terms differs.
        torch.testing.assert_close(product.double(), a.double() @ b.double(), rtol=0, atol=1e-5)


def _tokens_before_heads(tensor: Tensor) -> Tensor:
    """The same numbers, in memory as [R, L, H, D]."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)
