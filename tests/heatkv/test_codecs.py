"""A codec takes exactly the bytes it says, errs by no more than half a step, and a token means the same anywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heatkv.codecs import CODECS, MODEL, Codec, Packing, codec_named
from heatkv.errors import UnknownNameError
from heatkv.packing import decode, encode
from heatkv.pool import TokenPool

ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
DTYPES = (torch.bfloat16, torch.float32)

codecs = st.sampled_from(list(CODECS.values()))
head_dims = st.sampled_from([4, 8, 16, 24, 32, 64, 104, 112, 120, 128])
rows = st.integers(1, 4)
dtypes = st.sampled_from(DTYPES)


def _numbers(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 3.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + 0.5).to(dtype)


def _pool(codec: Codec, num_slots: int, num_rows: int, head_dim: int, dtype: torch.dtype) -> TokenPool:
    pool = TokenPool(num_slots, rows=num_rows, head_dim=head_dim, dtype=dtype, codec=codec)
    keys, values = (_numbers(num_rows, num_slots, head_dim, dtype=dtype, seed=seed) for seed in (1, 2))
    pool.write(pool.take(num_slots), torch.nn.functional.normalize(keys, dim=-1), values)
    return pool


class TestTable:
    def test_an_unknown_codec_lists_the_known(self) -> None:
        with pytest.raises(UnknownNameError, match=r"unknown KV codec 'int5'.*int8"):
            codec_named("int5")

    @ALL
    def test_a_codec_has_the_name_of_its_row(self, codec: Codec) -> None:
        assert CODECS[codec.name] is codec
        assert codec.is_model == (codec.name == MODEL)

    @pytest.mark.parametrize(
        ("name", "num_bytes"), [("model", 512), ("fp8", 256), ("int8", 272), ("int4", 152), ("int2", 88)]
    )
    def test_bytes_of_a_token_of_infinity_2b_are_codes_scales_and_lowest_values(
        self, name: str, num_bytes: int
    ) -> None:
        assert CODECS[name].bytes_per_token(128, rows=1, dtype_bytes=2) == num_bytes


class TestBytes:
    @given(codec=codecs, head_dim=head_dims, num_rows=rows, dtype=dtypes, num_slots=st.integers(0, 5))
    @settings(max_examples=60)
    def test_said_bytes_are_those_of_the_tensors(
        self, codec: Codec, head_dim: int, num_rows: int, dtype: torch.dtype, num_slots: int
    ) -> None:
        pool = TokenPool(num_slots, rows=num_rows, head_dim=head_dim, dtype=dtype, codec=codec)

        said = codec.bytes_per_token(head_dim, rows=num_rows, dtype_bytes=dtype.itemsize)

        assert pool.keys.untyped_storage().nbytes() + pool.values.untyped_storage().nbytes() == said * num_slots
        assert (pool.bytes_per_slot, pool.nbytes) == (said, said * num_slots)


class TestRoundTrip:
    @given(codec=codecs, head_dim=head_dims, num_rows=rows, dtype=dtypes, seed=st.integers(0, 99))
    @settings(max_examples=60)
    def test_what_is_read_has_the_shape_and_dtype_of_what_was_written(
        self, codec: Codec, head_dim: int, num_rows: int, dtype: torch.dtype, seed: int
    ) -> None:
        numbers = _numbers(num_rows, 3, head_dim, dtype=dtype, seed=seed)

        for packing in (codec.keys, codec.values):
            read = decode(packing, encode(packing, numbers), head_dim, dtype)
            assert (read.shape, read.dtype) == (numbers.shape, dtype)
            assert read.isfinite().all()

    @given(codec=codecs.filter(lambda one: one.keys.number == "code"), head_dim=head_dims, seed=st.integers(0, 99))
    @settings(max_examples=60)
    def test_errs_by_half_a_step_within_reach(self, codec: Codec, head_dim: int, seed: int) -> None:
        numbers = _numbers(2, 5, head_dim, dtype=torch.float32, seed=seed)

        for packing in (codec.keys, codec.values):
            errors = (decode(packing, encode(packing, numbers), head_dim, torch.float32) - numbers).abs()
            span = float(numbers.amax() - numbers.amin())
            beyond = (1 - packing.reach) / 2
            # 16-bit scales and lowest values add up to 2^-11 of what they are.
            half_step = 0.5 / (2**packing.bits - 1)
            assert float(errors.max()) <= span * (max(half_step, beyond) + 2**-9) + 2**-9

    def test_the_model_s_own_numbers_are_not_touched(self) -> None:
        numbers = _numbers(2, 3, 8, dtype=torch.bfloat16)

        assert encode(CODECS[MODEL].keys, numbers) is numbers
        assert decode(CODECS[MODEL].keys, numbers, 8, torch.bfloat16) is numbers

    @ALL
    @pytest.mark.parametrize("number", [0.0, 0.25, -3.0])
    def test_equal_numbers_are_kept(self, codec: Codec, number: float) -> None:
        numbers = torch.full((1, 2, 24), number)

        for packing in (codec.keys, codec.values):
            assert torch.equal(decode(packing, encode(packing, numbers), 24, torch.float32), numbers)

    @ALL
    def test_numbers_beyond_all_scales_stay_finite(self, codec: Codec) -> None:
        numbers = torch.tensor([[-1e30, 1e30, 0.0, 1.0, -1.0, 7e4, -7e4, 5.0]], dtype=torch.bfloat16)

        for packing in (codec.keys, codec.values):
            assert decode(packing, encode(packing, numbers), 8, torch.float32).isfinite().all()

    def test_more_bits_err_less(self) -> None:
        numbers = _numbers(1, 64, 128, dtype=torch.float32)

        errors = []
        for bits in (2, 4, 8):
            packing = Packing("code", bits, 32)
            errors.append(float((decode(packing, encode(packing, numbers), 128, torch.float32) - numbers).norm()))

        assert errors[0] > 3 * errors[1] > 9 * errors[2]


class TestPool:
    @given(codec=codecs, head_dim=head_dims, num_rows=rows, dtype=dtypes, seed=st.integers(0, 99))
    @settings(max_examples=40)
    def test_a_moved_token_is_bit_for_bit_the_same(
        self, codec: Codec, head_dim: int, num_rows: int, dtype: torch.dtype, seed: int
    ) -> None:
        source = _pool(codec, 9, num_rows, head_dim, dtype)
        target = TokenPool(12, rows=num_rows, head_dim=head_dim, dtype=dtype, codec=codec)
        moved = torch.randperm(9, generator=torch.Generator().manual_seed(seed))[:5].int().numpy()
        slots = target.take(5)

        target.put(slots, source.raw(moved))

        for have, want in zip(target.read(slots), source.read(moved), strict=True):
            assert torch.equal(have, want)

    @ALL
    def test_rows_may_move_different_tokens(self, codec: Codec) -> None:
        pool = _pool(codec, 6, 2, 16, torch.float32)
        keys, values = pool.read(torch.arange(6).int().numpy())
        chosen = torch.tensor([[5, 3], [0, 3]]).int().numpy()

        pool.put(torch.tensor([1, 2]).int().numpy(), pool.raw(chosen))
        pool.put(torch.tensor([[0, 1], [2, 4]]).int().numpy(), pool.raw(torch.tensor([[1, 0], [2, 2]]).int().numpy()))

        new_keys, new_values = pool.read(torch.arange(6).int().numpy())
        for new, old in ((new_keys, keys), (new_values, values)):
            assert torch.equal(new[0, 0], old[0, 5])
            assert torch.equal(new[0, 1], old[0, 0])
            assert torch.equal(new[1, 1], old[1, 0])
            assert torch.equal(new[1, 2], old[1, 3])
            assert torch.equal(new[1, 4], old[1, 3])

    def test_long_reads_are_decoded_in_parts(self) -> None:
        pool = _pool(CODECS["int4"], 9000, 1, 128, torch.bfloat16)
        slots = torch.randperm(9000, generator=torch.Generator().manual_seed(0)).int().numpy()

        keys, values = pool.read(slots)

        index = torch.from_numpy(slots).long()
        assert torch.equal(keys, decode(pool.codec.keys, pool.keys[:, index], 128, torch.bfloat16))
        assert torch.equal(values, decode(pool.codec.values, pool.values[:, index], 128, torch.bfloat16))
