"""The plain twin is dense attention with everything unseen masked, and says exactly where attention went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.kernels.plain import ragged_attention_plain

if TYPE_CHECKING:
    from types import ModuleType

    from torch.utils._python_dispatch import TorchDispatchMode

KEPT = st.lists(st.sets(st.integers(0, 6)).map(sorted), min_size=1, max_size=4)


@settings(max_examples=25)
@given(kept=KEPT, rows=st.integers(1, 4), tokens=st.integers(1, 40), seed=st.integers(0, 999), data=st.data())
def test_every_head_attends_to_its_own_kept_tokens_and_the_current_scale(
    cases: ModuleType, kept: list[list[int]], rows: int, tokens: int, seed: int, data: st.DataObject
) -> None:
    capture_rows = data.draw(st.integers(1, rows))
    exact = cases.ragged_case(
        kept, rows=rows, queries=tokens, current=tokens, head_dim=12, capture_rows=capture_rows, seed=seed
    )
    case = exact.to(torch.float32)

    out, lse, mass = ragged_attention_plain(**case.arguments)

    want_out, want_lse, want_mass = cases.masked_dense(case)
    # Float32 with sums of up to 250 keys; mass is a mean of probabilities, hence finer.
    torch.testing.assert_close(out.double(), want_out, rtol=0, atol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=1e-5)
    assert mass is not None
    torch.testing.assert_close(mass.double(), want_mass, rtol=0, atol=5e-7)
    torch.testing.assert_close(mass.sum(dim=-1), torch.ones(capture_rows, len(kept)), rtol=0, atol=5e-6)


def test_more_queries_than_a_block_change_nothing(cases: ModuleType) -> None:
    case = cases.ragged_case([[0, 1], [], [2, 6]], queries=600)

    out, lse, mass = ragged_attention_plain(**case.arguments)

    for have, want in zip((out, lse, mass), cases.masked_dense(case), strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-12)


def test_capture_does_not_change_a_bit_of_the_output(cases: ModuleType) -> None:
    case = cases.ragged_case([[0], [1, 3]]).to(torch.float32)

    out, lse, mass = ragged_attention_plain(**case.capturing(2).arguments)
    plain_out, plain_lse, nothing = ragged_attention_plain(**case.capturing(0).arguments)

    assert torch.equal(out, plain_out)
    assert torch.equal(lse, plain_lse)
    assert mass is not None
    assert nothing is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_only_at_the_end(cases: ModuleType, dtype: torch.dtype) -> None:
    case = cases.ragged_case([[0, 2], [], [3]]).to(dtype)

    out, _, mass = ragged_attention_plain(**case.arguments)

    want_out, _, want_mass = cases.masked_dense(case)
    assert out.dtype == dtype
    assert mass is not None
    assert torch.allclose(out.double(), want_out, rtol=torch.finfo(dtype).eps / 2, atol=1e-5)
    torch.testing.assert_close(mass.double(), want_mass, rtol=0, atol=5e-7)


def test_no_query_by_key_matrix_is_ever_whole(cases: ModuleType, largest_tensor: TorchDispatchMode) -> None:
    case = cases.ragged_case([[0, 6], [5, 6]], rows=1, queries=1600, current=1600)

    with largest_tensor:
        ragged_attention_plain(**case.arguments)

    assert largest_tensor.numbers < 1600 * 1600 / 4
