"""Grouped attention equals dense attention of what each head sees; capturing exactly changes no bit of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from heatkv.kernels import grouped
from heatkv.kernels.grouped import grouped_attention
from tests.heatkv.conftest import LargestTensor
from tests.heatkv.visible_cases import NUM_SCALES, SIZES, Expected, Kept, expected, kept_sources, queries, visible_case

if TYPE_CHECKING:
    from heatkv.visible import Visible

OUT = {torch.float32: 1e-5, torch.bfloat16: 4e-3}
"""Largest error of the output in units of the largest value. bfloat16: the softmax and its product are rounded to 8
bits, each by at most 0.002."""
ADDED_UP = OUT | {torch.bfloat16: 6e-3}
"""The same where partial attentions, rounded too, were added up."""
MASS = {torch.float32: 5e-7, torch.bfloat16: 1e-5}

DTYPES = pytest.mark.parametrize("dtype", OUT)
heads_keep = st.lists(kept_sources, min_size=1, max_size=5)
EVERY: Kept = tuple(range(len(SIZES)))
SOME = ((), EVERY, (0, 2), EVERY, (1,), (0, 2))
"""Groups of one head and of two, neighbours and not."""


def _error(out: Tensor, right: Expected) -> float:
    return float((out.double() - right.out).abs().max() / right.largest_value)


@pytest.fixture
def merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way from the first query and the fourth stored token on: three tokens are joined."""
    monkeypatch.setattr(grouped, "_MERGE_QUERIES", 1)
    monkeypatch.setattr(grouped, "_MERGE_TOKENS", 3)


def _chunked(monkeypatch: pytest.MonkeyPatch, *, heads: int, visible: Visible) -> None:
    """Let one call hold no more than this many heads that keep everything."""
    tokens = sum(SIZES) + visible.keys.shape[2]
    num_bytes = heads * 2 * visible.keys.shape[0] * tokens * visible.keys.shape[3] * visible.keys.element_size()
    monkeypatch.setattr(grouped, "GATHER_BYTES", num_bytes)


class TestOutput:
    @DTYPES
    @given(kept=heads_keep, current=st.integers(1, 9), rows=st.integers(1, 3))
    @settings(max_examples=25)
    def test_is_dense_attention_of_what_each_head_sees(
        self, kept: list[Kept], current: int, rows: int, dtype: torch.dtype
    ) -> None:
        visible = visible_case(kept, current=current, rows=rows, dtype=dtype)
        q = queries(visible)

        out, mass, key_masses = grouped_attention(q, visible, num_scales=NUM_SCALES)

        assert (out.shape, out.dtype, mass, key_masses) == (q.shape, dtype, None, [])
        assert _error(out, expected(q, visible)) <= OUT[dtype]

    @DTYPES
    def test_of_many_keys_too(self, dtype: torch.dtype) -> None:
        sizes = 10, 200, 400
        visible = visible_case([(0, 1, 2), (0,), (1, 2)], current=300, head_dim=32, dtype=dtype, sizes=sizes)
        q = queries(visible)

        out, _, _ = grouped_attention(q, visible, num_scales=NUM_SCALES)

        assert _error(out, expected(q, visible)) <= OUT[dtype]

    @pytest.mark.parametrize("heads", [0, 1, 2])
    def test_does_not_depend_on_how_many_heads_go_together(self, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
        visible = visible_case([EVERY] * 5)
        q = queries(visible)
        _chunked(monkeypatch, heads=heads, visible=visible)

        out, _, _ = grouped_attention(q, visible, num_scales=NUM_SCALES)

        assert _error(out, expected(q, visible)) <= OUT[torch.float32]

    @pytest.mark.parametrize(("heads", "together"), [(0, 1), (1, 1), (3, 3)])
    def test_gathers_no_more_than_its_limit_at_once_but_one_head(
        self, heads: int, together: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        visible = visible_case([EVERY] * 8, current=2, head_dim=32)
        q = queries(visible)
        _chunked(monkeypatch, heads=together, visible=visible)
        one_call = grouped.GATHER_BYTES
        _chunked(monkeypatch, heads=heads, visible=visible)

        with LargestTensor() as made:
            grouped_attention(q, visible, num_scales=NUM_SCALES, capture_rows=1)

        assert made.num_bytes == max(one_call, q.nbytes)  # the whole output


class TestExactCapture:
    @DTYPES
    @given(kept=heads_keep, capture_rows=st.integers(1, 2), maps=st.booleans(), current=st.integers(1, 9))
    @settings(max_examples=25)
    def test_changes_no_bit_of_the_output(
        self, kept: list[Kept], capture_rows: int, maps: bool, current: int, dtype: torch.dtype
    ) -> None:
        visible = visible_case(kept, current=current, dtype=dtype)
        q = queries(visible)

        without, _, _ = grouped_attention(q, visible, num_scales=NUM_SCALES)
        out, _, _ = grouped_attention(q, visible, num_scales=NUM_SCALES, capture_rows=capture_rows, maps=maps)

        assert torch.equal(out, without)

    @DTYPES
    @pytest.mark.parametrize("maps", [False, True])
    def test_nor_where_heads_are_taken_in_parts_and_the_fast_way_would_pay(
        self, maps: bool, dtype: torch.dtype, merging: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        visible = visible_case([EVERY] * 5, current=120, head_dim=16, dtype=dtype)
        q = queries(visible)
        _chunked(monkeypatch, heads=2, visible=visible)

        without, _, _ = grouped_attention(q, visible, num_scales=NUM_SCALES)
        out, mass, key_masses = grouped_attention(q, visible, num_scales=NUM_SCALES, capture_rows=2, maps=maps)

        right = expected(q, visible)
        assert torch.equal(out, without)
        assert mass is not None
        torch.testing.assert_close(mass.double(), right.mass, rtol=0, atol=MASS[dtype])
        for of_keys, wanted in zip(key_masses, right.key_masses if maps else (), strict=True):
            torch.testing.assert_close(of_keys.double(), wanted, rtol=0, atol=MASS[dtype])

    @DTYPES
    @given(kept=heads_keep, capture_rows=st.integers(1, 2), maps=st.booleans(), current=st.integers(1, 9))
    @settings(max_examples=25)
    def test_mass_is_that_of_a_float64_softmax_also_of_few_queries(
        self, kept: list[Kept], capture_rows: int, maps: bool, current: int, dtype: torch.dtype
    ) -> None:
        visible = visible_case(kept, current=current, dtype=dtype)
        q = queries(visible)

        _, mass, _ = grouped_attention(q, visible, num_scales=NUM_SCALES, capture_rows=capture_rows, maps=maps)

        assert mass is not None
        assert (mass.dtype, mass.shape) == (torch.float32, (capture_rows, len(kept), NUM_SCALES))
        torch.testing.assert_close(mass.double(), expected(q, visible).mass[:capture_rows], rtol=0, atol=MASS[dtype])
        torch.testing.assert_close(mass.sum(-1), torch.ones(capture_rows, len(kept)), rtol=0, atol=5e-6)

    @DTYPES
    @pytest.mark.parametrize("current", [99, 100, 101, 600])
    def test_mass_is_exact_on_both_sides_of_the_number_of_queries_that_flash_averages(
        self, current: int, dtype: torch.dtype
    ) -> None:
        visible = visible_case(SOME, current=current, head_dim=32, dtype=dtype, sizes=(5, 60, 90))
        q = queries(visible)

        _, mass, _ = grouped_attention(q, visible, num_scales=NUM_SCALES, capture_rows=1)

        assert mass is not None
        torch.testing.assert_close(mass.double(), expected(q, visible).mass[:1], rtol=0, atol=MASS[dtype])

    @pytest.mark.parametrize("bit_exact", [True, False])
    @given(kept=heads_keep)
    @settings(max_examples=15)
    def test_maps_name_every_key_a_head_sees_and_sum_to_its_mass(self, kept: list[Kept], bit_exact: bool) -> None:
        visible = visible_case(kept)
        q = queries(visible)
        right = expected(q, visible)

        _, mass, key_masses = grouped_attention(
            q, visible, num_scales=NUM_SCALES, capture_rows=2, bit_exact=bit_exact, maps=True
        )

        assert mass is not None
        assert len(key_masses) == len(kept)
        for head, of_keys in enumerate(key_masses):
            torch.testing.assert_close(of_keys.double(), right.key_masses[head], rtol=0, atol=5e-7)
            torch.testing.assert_close(of_keys.sum(-1), torch.ones(2), rtol=0, atol=5e-6)
            begin = 0
            for source, tokens in (*visible.sources[head], (visible.query_scale, visible.keys.shape[2])):
                received = of_keys[:, begin : begin + tokens].sum(-1)
                torch.testing.assert_close(received, mass[:, head, source], rtol=0, atol=5e-6)
                begin += tokens


class TestFastCapture:
    @DTYPES
    @given(kept=heads_keep, capture_rows=st.integers(1, 2), current=st.integers(1, 9))
    # The fixture sets constants, the same for every example.
    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_adds_up_to_the_same(
        self, kept: list[Kept], capture_rows: int, current: int, dtype: torch.dtype, merging: None
    ) -> None:
        visible = visible_case(kept, current=current, dtype=dtype)
        q = queries(visible)
        right = expected(q, visible)

        out, mass, _ = grouped_attention(q, visible, num_scales=NUM_SCALES, capture_rows=capture_rows, bit_exact=False)

        assert mass is not None
        assert (out.dtype, mass.dtype) == (dtype, torch.float32)
        assert _error(out, right) <= ADDED_UP[dtype]
        # So few queries do not average what flash attention's exponentials err by.
        torch.testing.assert_close(mass.double(), right.mass[:capture_rows], rtol=0, atol=10 * MASS[dtype])

    @DTYPES
    @pytest.mark.parametrize("sizes", [(1, 100, 200), (10, 150, 90), (130, 1, 1)], ids=str)
    def test_of_as_many_queries_as_it_is_used_for_is_exact(
        self, sizes: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        visible = visible_case(SOME, current=grouped._MERGE_QUERIES, head_dim=32, dtype=dtype, sizes=sizes)
        q = queries(visible)
        right = expected(q, visible)

        out, mass, _ = grouped_attention(q, visible, num_scales=NUM_SCALES, capture_rows=1, bit_exact=False)

        assert mass is not None
        assert _error(out, right) <= ADDED_UP[dtype]
        torch.testing.assert_close(mass.double(), right.mass[:1], rtol=0, atol=MASS[dtype])
        torch.testing.assert_close(mass.sum(-1), torch.ones(1, len(SOME)), rtol=0, atol=5e-6)

    @DTYPES
    def test_rows_that_are_not_measured_stay_bit_for_bit(self, dtype: torch.dtype, merging: None) -> None:
        visible = visible_case(SOME, rows=3, dtype=dtype)
        q = queries(visible)

        out, _, _ = grouped_attention(q, visible, num_scales=NUM_SCALES, capture_rows=1, bit_exact=False)
        without, _, _ = grouped_attention(q, visible, num_scales=NUM_SCALES)

        assert torch.equal(out[1:], without[1:])
