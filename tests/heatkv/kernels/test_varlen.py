"""Packing puts every head's keys into a sequence of its own; attention over the sequences equals the plain twin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.kernels.plain import ragged_attention_plain
from heatkv.kernels.varlen import pack, ragged_attention_varlen, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from torch.utils._python_dispatch import TorchDispatchMode

KEPT = st.lists(st.sets(st.integers(0, 5)).map(sorted), min_size=1, max_size=4)


@pytest.mark.parametrize("kept", [[[0, 1], [], [3]], [[]], [[2], [2]]])
def test_a_sequence_is_a_heads_kept_keys_and_then_its_current_ones(cases: ModuleType, kept: list[list[int]]) -> None:
    given_ = cases.ragged_case(kept, rows=2, queries=3, current=4).tensors
    names = ("q", "keys", "values", "pool_keys", "pool_values", "slots", "offsets")

    sequences = pack(**{name: given_[name] for name in names})

    bounds = given_["offsets"].tolist()
    for row in range(2):
        for head in range(len(kept)):
            index = row * len(kept) + head
            begin, end = sequences.key_starts[index : index + 2].tolist()
            slots = given_["slots"][bounds[head] : bounds[head + 1]].long()
            for packed, pool, current in (("keys", "pool_keys", "keys"), ("values", "pool_values", "values")):
                want = torch.cat([given_[pool][row, slots], given_[current][row, head]])
                assert torch.equal(getattr(sequences, packed)[begin:end, 0], want)
            assert sequences.most_keys >= end - begin
            first, last = sequences.query_starts[index : index + 2].tolist()
            assert torch.equal(sequences.queries[first:last, 0], given_["q"][row, head])
    assert end == len(sequences.keys)


@settings(max_examples=15)
@given(kept=KEPT, rows=st.integers(1, 3), queries=st.integers(1, 30), seed=st.integers(0, 999), data=st.data())
def test_results_are_those_of_the_plain_twin(
    cases: ModuleType,
    plain_sequences: Callable[..., object],
    kept: list[list[int]],
    rows: int,
    queries: int,
    seed: int,
    data: st.DataObject,
) -> None:
    capture_rows = data.draw(st.integers(0, rows))
    case = cases.ragged_case(kept, rows=rows, queries=queries, capture_rows=capture_rows, seed=seed).to(torch.float32)

    results = ragged_attention_varlen(**case.arguments, attention=plain_sequences)

    for have, want, tolerance in zip(
        results, ragged_attention_plain(**case.arguments), (1e-5, 1e-5, 5e-6), strict=True
    ):
        if want is None:
            assert have is None
        else:
            # Float32, with sums in two orders.
            torch.testing.assert_close(have, want, rtol=0, atol=tolerance)


def test_measuring_holds_no_query_by_key_matrix(
    cases: ModuleType, plain_sequences: Callable[..., object], largest_tensor: TorchDispatchMode
) -> None:
    case = cases.ragged_case([[0, 6], [5, 6]], rows=1, queries=2000, current=2000).to(torch.float32)
    out, lse, _ = ragged_attention_plain(**case.capturing(0).arguments)
    known = out.reshape(-1, 1, out.shape[-1]), lse.reshape(-1, 1)

    with largest_tensor:
        ragged_attention_varlen(**case.arguments, attention=lambda _: known)

    assert largest_tensor.numbers < 2000 * 2000 / 4


def test_unavailable_says_why() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")

    assert unavailable(cpu, dtype=torch.bfloat16, head_dim=128) == "needs CUDA, not cpu"
    assert "not float32" in str(unavailable(cuda, dtype=torch.float32, head_dim=128))
    assert "not 12" in str(unavailable(cuda, dtype=torch.bfloat16, head_dim=12))
