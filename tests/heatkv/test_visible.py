"""What attention is told to read is told completely, and the same in every form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.visible import Visible, gathered
from tests.heatkv.visible_cases import SIZES, Kept, kept_sources, visible_case

heads_keep = st.lists(kept_sources, min_size=1, max_size=5)


class TestGroups:
    @given(kept=heads_keep)
    @settings(max_examples=30)
    def test_every_head_is_in_one_group_of_those_that_keep_the_same(self, kept: list[Kept]) -> None:
        visible = visible_case(kept)

        groups = visible.groups()

        assert sorted(head for heads, _ in groups for head in heads) == list(range(len(kept)))
        assert len({sources for _, sources in groups}) == len(groups)
        for heads, sources in groups:
            assert heads == sorted(heads)
            assert all(visible.sources[head] == sources for head in heads)


class TestReadTokens:
    def test_counts_what_each_head_has_stored_and_the_current_scale(self) -> None:
        visible = visible_case([(), (0, 2), (1,)], current=9)

        assert visible.read_tokens(5).tolist() == [
            [0, 0, 0, 9, 0],
            [SIZES[0], 0, SIZES[2], 9, 0],
            [0, SIZES[1], 0, 9, 0],
        ]


class TestPacked:
    @given(kept=heads_keep)
    @settings(max_examples=30)
    def test_says_the_same_as_flat_arrays(self, kept: list[Kept]) -> None:
        visible = visible_case(kept)

        packed = visible.packed()

        offsets = packed.offsets.tolist()
        assert len(offsets) == len(kept) + 1
        for head, (begin, end) in enumerate(itertools.pairwise(offsets)):
            sources = [source for source, tokens in visible.sources[head] for _ in range(tokens)]
            assert packed.slots[begin:end].tolist() == visible.slots[head].tolist()
            assert packed.sources[begin:end].tolist() == sources
        assert {one.dtype for one in (packed.slots, packed.offsets, packed.sources, packed.order)} == {torch.int32}

    @given(kept=heads_keep)
    @settings(max_examples=30)
    def test_orders_heads_the_longest_first(self, kept: list[Kept]) -> None:
        visible = visible_case(kept)

        order = visible.packed().order.tolist()

        lengths = [len(visible.slots[head]) for head in order]
        assert sorted(order) == list(range(len(kept)))
        assert lengths == sorted(lengths, reverse=True)

    def test_heads_that_have_stored_nothing_are_packed_too(self) -> None:
        packed = visible_case([(), ()]).packed()

        assert packed.offsets.tolist() == [0, 0, 0]
        assert (packed.slots.numel(), packed.sources.numel()) == (0, 0)
        assert packed.order.tolist() == [0, 1]


class TestGathered:
    @pytest.mark.parametrize("large_piece", [1, 1 << 30], ids=["straight to its place", "all at once"])
    def test_puts_stored_tokens_before_the_current_ones(
        self, large_piece: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("heatkv.visible._LARGE_PIECE", large_piece)
        visible = visible_case([(0, 2), (0, 2)], current=3)
        slots = torch.from_numpy(np.stack(visible.slots))
        room = torch.full((*visible.keys.shape[:2], slots.shape[1] + 3, visible.keys.shape[3]), torch.nan)

        out = gathered(visible.pool.keys, visible.keys, slots, room)

        assert out is room
        assert torch.equal(out, _all_keys(visible))


def _all_keys(visible: Visible) -> torch.Tensor:
    stored = [visible.pool.keys[:, slots] for slots in visible.slots]
    return torch.cat((torch.stack(stored, dim=1), visible.keys), dim=2)
