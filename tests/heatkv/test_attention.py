"""Attention sees exactly the segments it is given, and its mass is that of a float64 softmax over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import heatkv.attention
from heatkv.attention import Segment, attend, attention_mass, tokens_by_head

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS, HEADS, DIM = 2, 4, 8
SIZES = (1, 3, 5, 6)
EVERY = tuple(range(HEADS))


def _segments(kept: list[tuple[int, ...]], *, seed: int = 0) -> list[Segment]:
    """One segment per source scale that has heads; the last, of all heads, is the current scale."""
    generator = torch.Generator().manual_seed(seed)
    segments = []
    for scale, heads in enumerate([*kept, EVERY]):
        shape = ROWS, HEADS, SIZES[scale], DIM
        keys, values = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        if heads:
            segments.append(Segment(scale, heads, keys[:, list(heads)], values[:, list(heads)]))
    return segments


def _queries(segments: list[Segment], *, seed: int = 1) -> Tensor:
    tokens = segments[-1].num_tokens
    return torch.randn(ROWS, HEADS, tokens, DIM, generator=torch.Generator().manual_seed(seed))


def _reference(q: Tensor, segments: list[Segment]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Output [R, H, L, D] and mass [H, scales], head by head in float64."""
    out, mass = np.zeros(q.shape), np.full((HEADS, len(SIZES) + 1), np.nan)
    for head in range(HEADS):
        seen = [(one, one.heads.index(head)) for one in segments if head in one.heads]
        keys = torch.cat([one.keys[:, row] for one, row in seen], dim=1).double().numpy()
        values = torch.cat([one.values[:, row] for one, row in seen], dim=1).double().numpy()
        scores = np.exp(q[:, head].double().numpy() @ keys.transpose(0, 2, 1))
        probabilities = scores / scores.sum(axis=-1, keepdims=True)
        out[:, head] = probabilities @ values
        source = np.concatenate([np.full(one.num_tokens, one.source_scale) for one, _ in seen])
        for scale in np.unique(source):
            mass[head, scale] = probabilities[..., source == scale].sum(axis=-1).mean()
    return out, mass


kept_heads = st.lists(st.sets(st.sampled_from(EVERY)).map(lambda heads: tuple(sorted(heads))), min_size=3, max_size=3)


class TestAttend:
    @given(kept=kept_heads)
    @settings(deadline=None, max_examples=25)
    def test_each_head_attends_to_the_segments_it_is_in(self, kept: list[tuple[int, ...]]) -> None:
        segments = _segments(kept)
        q = _queries(segments)

        np.testing.assert_allclose(attend(q, segments), _reference(q, segments)[0], rtol=0, atol=2e-6)

    def test_heads_that_keep_the_same_are_computed_as_if_alone(self) -> None:
        segments = _segments([EVERY, (0, 2), EVERY])
        q = _queries(segments)
        without = [segments[0], *segments[2:]]

        both = attend(q, segments)

        # Another number of heads in one call may round otherwise.
        torch.testing.assert_close(both[:, [0, 2]], attend(q, _segments([EVERY] * 3))[:, [0, 2]], rtol=0, atol=1e-6)
        torch.testing.assert_close(both[:, [1, 3]], attend(q, without)[:, [1, 3]], rtol=0, atol=1e-6)


class TestSegment:
    def test_fewer_heads_have_memory_of_their_own(self) -> None:
        whole = _segments([EVERY])[0]

        part = whole.only((1, 3))

        assert part.heads == (1, 3)
        assert torch.equal(part.keys, whole.keys[:, [1, 3]])
        for tensor, source in ((part.keys, whole.keys), (part.values, whole.values)):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
            assert tensor.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()

    def test_the_same_heads_are_the_same_segment(self) -> None:
        whole = _segments([(1, 3)])[0]

        assert whole.only([1, 3]) is whole

    def test_tokens_are_counted_for_the_heads_of_each_segment(self) -> None:
        segments = _segments([EVERY, (), (1,)])

        assert tokens_by_head(segments, HEADS, 5).tolist() == [
            [1, 0, 0, 6, 0],
            [1, 0, 5, 6, 0],
            [1, 0, 0, 6, 0],
            [1, 0, 0, 6, 0],
        ]


class TestAttentionMass:
    @given(kept=kept_heads)
    @settings(deadline=None, max_examples=25)
    def test_equals_a_float64_softmax_and_is_nan_where_unseen(self, kept: list[tuple[int, ...]]) -> None:
        segments = _segments(kept)
        q = _queries(segments)

        mass = attention_mass(q, segments, num_scales=len(SIZES) + 1)

        np.testing.assert_allclose(mass, _reference(q, segments)[1], rtol=0, atol=1e-6)

    @given(kept=kept_heads)
    @settings(deadline=None, max_examples=10)
    def test_the_mass_of_a_head_sums_to_one(self, kept: list[tuple[int, ...]]) -> None:
        segments = _segments(kept)

        mass = attention_mass(_queries(segments), segments, num_scales=len(SIZES) + 1)

        np.testing.assert_allclose(mass.nansum(dim=-1), 1, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("block_bytes", [1, 4 * ROWS * HEADS * 15 * 2, 4 * ROWS * HEADS * 15 * 5])
    def test_does_not_depend_on_the_block_size(self, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        segments = _segments([EVERY, (0, 2), EVERY])
        q = _queries(segments)
        whole = attention_mass(q, segments, num_scales=4)

        monkeypatch.setattr(heatkv.attention, "_MASS_BLOCK_BYTES", block_bytes)
        blocked = attention_mass(q, segments, num_scales=4)

        # The order of a float32 sum over six queries is all that changes.
        torch.testing.assert_close(blocked, whole, rtol=0, atol=1e-6, equal_nan=True)

    def test_is_float32_and_adds_up_for_bfloat16_keys(self) -> None:
        rounded = [
            Segment(one.source_scale, one.heads, one.keys.bfloat16(), one.values.bfloat16())
            for one in _segments([EVERY, (0, 2), EVERY])
        ]
        q = _queries(rounded).bfloat16()

        mass = attention_mass(q, rounded, num_scales=4)

        assert mass.dtype == torch.float32
        np.testing.assert_allclose(mass.nansum(dim=-1), 1, rtol=0, atol=1e-6)
        np.testing.assert_allclose(mass, _reference(q, rounded)[1][:, :4], rtol=0, atol=1e-6)
