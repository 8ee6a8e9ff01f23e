"""A slot belongs to one taker at a time, whatever comes back in between, and no byte is held that is not counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.pool import Slots, TokenPool

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS, DIM = 2, 8


def _pool(num_slots: int, *, dtype: torch.dtype = torch.float32) -> TokenPool:
    return TokenPool(num_slots, rows=ROWS, head_dim=DIM, dtype=dtype)


def _memory_of(slots: Sequence[Slots]) -> int:
    """Bytes of the arrays behind these, each counted once."""
    owners = {id(owner): owner for one in slots for owner in (one if one.base is None else one.base,)}
    return sum(owner.nbytes for owner in owners.values())


operations = st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=40)
"""(take, how many tokens) or (give back, which one)."""


class TestSlots:
    @given(operations=operations)
    @settings(max_examples=60)
    def test_a_slot_is_never_handed_out_twice_and_none_is_lost(self, operations: list[tuple[bool, int]]) -> None:
        pool, taken = _pool(60), list[Slots]()

        for is_take, number in operations:
            if is_take and number <= pool.num_free:
                taken.append(pool.take(number))
                assert len(taken[-1]) == number
            elif not is_take and taken:
                pool.give(taken.pop(number % len(taken)))

            in_use = np.concatenate([np.empty(0, np.int32), *taken])
            assert len(np.unique(in_use)) == len(in_use)
            assert ((in_use >= 0) & (in_use < 60)).all()
            assert pool.num_free == 60 - len(in_use)

    @given(operations=operations)
    @settings(max_examples=20)
    def test_whatever_is_free_can_be_taken_at_once(self, operations: list[tuple[bool, int]]) -> None:
        pool, taken = _pool(60), list[Slots]()
        for is_take, number in operations:
            if is_take and number <= pool.num_free:
                taken.append(pool.take(number))
            elif not is_take and taken:
                pool.give(taken.pop(number % len(taken)))

        rest = pool.take(pool.num_free)

        assert sorted(np.concatenate([rest, *taken])) == list(range(60))
        assert pool.num_free == 0

    def test_what_was_given_back_goes_out_before_what_is_new(self) -> None:
        pool = _pool(10)
        first, second = pool.take(3), pool.take(2)

        pool.give(first)

        assert set(pool.take(2)) < set(first)
        assert {*pool.take(1), *second} < {*range(5)}

    def test_nothing_can_be_taken_of_any_pool(self) -> None:
        pool, none = _pool(3), _pool(0)
        pool.give(pool.take(2))

        for one in (pool, none):
            slots = one.take(0)
            one.give(slots)
            assert (len(slots), one.num_free) == (0, one.num_slots)
            assert slots.dtype == np.int32
        assert sorted(pool.take(3)) == [0, 1, 2]

    def test_more_than_is_free_is_a_mistake_of_whoever_sized_the_pool(self) -> None:
        pool = _pool(4)
        pool.take(2)
        pool.give(pool.take(1))

        with pytest.raises(AssertionError, match="1 slots too few"):
            pool.take(3)


class TestContent:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_slots_hold_what_was_written_there_and_others_are_left_alone(self, dtype: torch.dtype) -> None:
        pool = _pool(9, dtype=dtype)
        pool.take(4)
        pool.give(np.array([2, 0], np.int32))
        first, second = pool.take(2), pool.take(3)
        data = torch.randn(4, ROWS, 3, DIM).to(dtype)

        pool.write(first, data[0, :, :2], data[1, :, :2])
        pool.write(second, data[2], data[3])

        assert torch.equal(pool.keys[:, first], data[0, :, :2])
        assert torch.equal(pool.values[:, first], data[1, :, :2])
        assert torch.equal(pool.keys[:, second], data[2])
        assert torch.equal(pool.values[:, second], data[3])

    def test_slots_become_an_index_of_the_pool_s_device(self) -> None:
        index = _pool(5).index(np.array([3, 1], np.int32))

        assert (index.tolist(), index.dtype, index.device.type) == ([3, 1], torch.int32, "cpu")


class TestBytes:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_slot_is_a_key_and_a_value_in_every_row(self, dtype: torch.dtype) -> None:
        pool = _pool(7, dtype=dtype)

        assert pool.bytes_per_slot == 2 * ROWS * DIM * dtype.itemsize
        assert pool.nbytes == 7 * pool.bytes_per_slot
        assert pool.keys.dtype == pool.values.dtype == dtype
        assert pool.keys.untyped_storage().data_ptr() != pool.values.untyped_storage().data_ptr()

    @given(operations=operations)
    @settings(max_examples=40)
    def test_every_byte_is_counted_and_slots_never_take_more_than_four_each(
        self, operations: list[tuple[bool, int]]
    ) -> None:
        pool, taken = _pool(60), list[Slots]()
        tensors = 60 * pool.bytes_per_slot

        for is_take, number in operations:
            if is_take and number <= pool.num_free:
                taken.append(pool.take(number))
            elif not is_take and taken:
                pool.give(taken.pop(number % len(taken)))

            # Arrays that share memory would be counted once here, and a part of a larger array as the whole of it.
            assert pool.nbytes - tensors == _memory_of(pool._returned)
            assert _memory_of([*pool._returned, *taken]) <= 4 * 60

    def test_a_released_pool_has_neither_bytes_nor_slots(self) -> None:
        pool = _pool(7)
        pool.take(2)
        pool.give(pool.take(3))

        pool.release()

        assert (pool.nbytes, pool.num_slots, pool.num_free) == (0, 0, 0)
        assert pool.keys.shape == pool.values.shape == (ROWS, 0, DIM)
