"""Pools of several codecs under one numbering behave as one; attention over them is that over what they decode to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.attention import Path, attend
from heatkv.codecs import CODECS
from heatkv.kernels import grouped
from heatkv.mixed_pool import MixedPool
from heatkv.pool import Slots, TokenPool
from heatkv.probe import Capture
from heatkv.visible import Visible
from tests.heatkv.conftest import LargestTensor
from tests.heatkv.visible_cases import kept_sources, queries, scales_of, visible_case

PATHS_ON_CPU = pytest.mark.parametrize(
    "path", [Path("grouped", "test"), Path("plain", "test")], ids=lambda one: one.name
)
EVERYTHING = Capture(mass=True, unconditional=True, maps=True)
ROWS, DIM = 2, 16


def _mixed(*sizes: int, codecs: tuple[str, ...] = ("model", "int8", "int4")) -> MixedPool:
    return MixedPool(
        [
            TokenPool(size, rows=ROWS, head_dim=DIM, dtype=torch.float32, codec=CODECS[name])
            for size, name in zip(sizes, codecs, strict=True)
        ]
    )


def _in_codecs(plain: Visible, names: tuple[str, ...], seed: int) -> tuple[Visible, Visible]:
    """The same tokens, a codec drawn for every head; and over a plain pool that holds what is read of them."""
    pool = plain.pool
    assert isinstance(pool, TokenPool)
    counts = [len(slots) for slots in plain.slots]
    codec_of = np.random.default_rng(seed).integers(0, len(names), len(counts))
    room = [sum(count for count, own in zip(counts, codec_of, strict=True) if own == one) for one in range(len(names))]
    sizes = {"rows": len(pool.keys), "head_dim": pool.head_dim, "dtype": pool.dtype}
    mixed = MixedPool([TokenPool(size, **sizes, codec=CODECS[name]) for size, name in zip(room, names, strict=True)])
    slots = []
    for own, codec in zip(plain.slots, codec_of.tolist(), strict=True):
        slots.append(mixed.take(len(own), codec))
        mixed.write(slots[-1], *pool.read(own))
    decoded = TokenPool(pool.num_slots, **sizes)
    for own, coded in zip(plain.slots, slots, strict=True):
        decoded.write(own, *mixed.read(coded))
    parts = plain.sources, plain.query_scale, plain.keys, plain.values
    return Visible(mixed, tuple(slots), *parts), Visible(decoded, plain.slots, *parts)


class TestNumbering:
    @given(operations=st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 8)), max_size=30))
    @settings(max_examples=40)
    def test_a_slot_is_never_handed_out_twice_and_none_is_lost(self, operations: list[tuple[bool, int, int]]) -> None:
        pool, taken = _mixed(20, 0, 30), list[tuple[int, Slots]]()

        for is_take, codec, number in operations:
            if is_take and number <= pool.pools[codec].num_free:
                taken.append((codec, pool.take(number, codec)))
            elif not is_take and taken:
                pool.give(taken.pop(number % len(taken))[1])

            in_use = np.concatenate([np.empty(0, np.int32), *(slots for _, slots in taken)])
            assert len(np.unique(in_use)) == len(in_use)
            for codec, (begin, end) in enumerate(((0, 20), (20, 20), (20, 50))):
                own = [slots for one, slots in taken if one == codec]
                assert all(((slots >= begin) & (slots < end)).all() for slots in own)
                assert pool.pools[codec].num_free == end - begin - sum(map(len, own))

    def test_reads_what_was_written_across_pools_in_the_order_asked_for(self) -> None:
        pool = _mixed(3, 4, 5)
        slots = np.concatenate([pool.take(size, codec) for codec, size in enumerate((3, 4, 5))])
        order = np.random.default_rng(0).permutation(slots)
        keys, values = torch.randn(2, ROWS, 12, DIM)

        pool.write(order, keys, values)

        for read, written in zip(pool.read(order), (keys, values), strict=True):
            in_model = torch.from_numpy(order < 3)
            assert torch.equal(read[:, in_model], written[:, in_model])
            torch.testing.assert_close(read, written, rtol=0, atol=0.3)  # 4 bits of a range of about 4
        assert pool.read(order[:0])[0].shape == (ROWS, 0, DIM)

    def test_every_byte_is_counted_and_goes_when_it_is_released(self) -> None:
        pool = _mixed(3, 4, 5)
        held = [CODECS[name].bytes_per_token(DIM, rows=ROWS, dtype_bytes=4) for name in ("model", "int8", "int4")]

        assert pool.nbytes == 3 * held[0] + 4 * held[1] + 5 * held[2]
        assert pool.num_slots == 12

        pool.release()

        assert (pool.nbytes, pool.num_slots) == (0, 0)


@PATHS_ON_CPU
class TestAttention:
    @pytest.mark.parametrize("names", [(name,) for name in CODECS] + [("model", "int8", "int2")], ids="+".join)
    @given(kept=st.lists(kept_sources, min_size=1, max_size=4), seed=st.integers(0, 99))
    @settings(max_examples=8)
    def test_is_that_over_the_decoded_tokens(
        self, kept: list[tuple[int, ...]], seed: int, names: tuple[str, ...], path: Path
    ) -> None:
        coded, decoded = _in_codecs(visible_case(kept, head_dim=DIM, seed=seed), names, seed)
        q, scales = queries(coded), scales_of(coded)

        have, want = (
            attend(q, one, scales, path=path, capture=EVERYTHING, conditional_rows=1) for one in (coded, decoded)
        )

        # The same numbers in the same order, but that heads may be gathered in other pieces.
        torch.testing.assert_close(have.out, want.out, rtol=0, atol=1e-5)
        for name in ("mass", "mass_uncond", "map"):
            mine, theirs = getattr(have, name), getattr(want, name)
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6, equal_nan=True)

    def test_capturing_exactly_changes_no_bit(self, path: Path) -> None:
        coded, _ = _in_codecs(visible_case([(), (0, 2), (0, 1, 2), (1,)], head_dim=DIM), ("int4", "int8"), 0)
        q, scales = queries(coded), scales_of(coded)

        without = attend(q, coded, scales, path=path).out

        for capture in (Capture(mass=True), Capture(maps=True), EVERYTHING):
            assert torch.equal(attend(q, coded, scales, path=path, capture=capture).out, without)


def test_no_more_is_decoded_at_once_than_one_head_or_what_may_be_gathered() -> None:
    sizes = (400, 400, 400)
    coded, _ = _in_codecs(visible_case([(0, 1, 2)] * 12, current=4, head_dim=DIM, sizes=sizes), ("int4",), 0)
    q, scales = queries(coded), scales_of(coded, sizes=sizes)
    head_bytes = ROWS * (sum(sizes) + 4) * DIM * 4
    pool_bytes = 12 * ROWS * sum(sizes) * DIM * 4

    with LargestTensor() as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped, "GATHER_BYTES", 4 * head_bytes)
        attend(q, coded, scales, path=Path("grouped", "test"))

    assert made.num_bytes <= 4 * head_bytes < pool_bytes
