"""The device code of `ragged`: the only module that imports triton, and so only imported to launch it.

Names in lower case that are `constexpr` are fixed when the kernel is compiled. Pointers and strides are in elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def _fold(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    is_key: tl.tensor,
    maximum: tl.tensor,
    total: tl.tensor,
    weighted: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """Add a block of keys to the running softmax. At least one of them must be real.

    q: [queries, D]; keys: [D, n]; values: [n, D]; maximum, total: [queries]; weighted: [queries, D].
    Returns the last three brought up to date, then of this block: weights [queries, n], their sums over keys, and the
    factor that older sums shrink by.
    """
    # Matters to float32 inputs only: one product in TF32 keeps 10 bits, three keep nearly all 24.
    scores = tl.dot(q, keys, input_precision="tf32x3")
    scores = tl.where(is_key[None, :], scores, float("-inf"))
    new_maximum = tl.maximum(maximum, tl.max(scores, 1))
    # exp2 is the GPU's own, and this product and difference are one instruction.
    weights = tl.exp2(scores * _LOG2_E - (new_maximum * _LOG2_E)[:, None])
    shrink = tl.exp2((maximum - new_maximum) * _LOG2_E)
    block_total = tl.sum(weights, 1)
    weighted = tl.dot(weights.to(values.dtype), values, weighted * shrink[:, None], input_precision="tf32x3")
    return new_maximum, total * shrink + block_total, weighted, weights, block_total, shrink


@triton.jit  # type: ignore[untyped-decorator]
def _with_section(
    mass: tl.tensor,
    mass_maximum: tl.tensor,
    maximum: tl.tensor,
    columns: tl.tensor,
    source: tl.tensor,
    section: tl.tensor,
) -> tl.tensor:
    """`mass` [queries, columns], relative to the new maximum [queries], with a section [queries] in its column."""
    mass *= tl.exp2((mass_maximum - maximum) * _LOG2_E)[:, None]
    return mass + tl.where(columns[None, :] == source, section[:, None], 0.0)


# Compiled once for all lengths: these arguments change with every step, and the index arrays are slices of one copy.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_queries", "num_current", "query_scale", "num_scales", "capture_rows"],
    do_not_specialize_on_alignment=["slots_pointer", "offsets_pointer", "sources_pointer", "order_pointer"],
)
def ragged_attention_kernel(
    q_pointer: tl.tensor,
    keys_pointer: tl.tensor,
    values_pointer: tl.tensor,
    pool_keys_pointer: tl.tensor,
    pool_values_pointer: tl.tensor,
    slots_pointer: tl.tensor,
    offsets_pointer: tl.tensor,
    sources_pointer: tl.tensor,
    order_pointer: tl.tensor,
    out_pointer: tl.tensor,
    lse_pointer: tl.tensor,
    mass_pointer: tl.tensor,
    q_row_stride: tl.tensor,
    q_head_stride: tl.tensor,
    q_token_stride: tl.tensor,
    keys_row_stride: tl.tensor,
    keys_head_stride: tl.tensor,
    keys_token_stride: tl.tensor,
    values_row_stride: tl.tensor,
    values_head_stride: tl.tensor,
    values_token_stride: tl.tensor,
    pool_keys_row_stride: tl.tensor,
    pool_keys_slot_stride: tl.tensor,
    pool_values_row_stride: tl.tensor,
    pool_values_slot_stride: tl.tensor,
    out_row_stride: tl.tensor,
    out_head_stride: tl.tensor,
    out_token_stride: tl.tensor,
    num_queries: tl.tensor,
    num_current: tl.tensor,
    query_scale: tl.tensor,
    num_scales: tl.tensor,
    capture_rows: tl.tensor,
    head_dim: tl.constexpr,
    block_queries: tl.constexpr,
    block_keys: tl.constexpr,
    mass_columns: tl.constexpr,
    capture: tl.constexpr,
    current_done: tl.constexpr,
) -> None:
    """One block of queries of one row and head. Grid: (query blocks, rows, heads in order).

    current_done: out_pointer and lse_pointer hold attention over the current scale alone, which is gone on from.
    mass_pointer: [query blocks, capture_rows, H, num_scales] float32: each block's part of the mean over queries;
    untouched, and none of its code compiled, without `capture`. mass_columns: a power of two, at least num_scales and
    16.
    """
    row = tl.program_id(1).to(tl.int64)
    head = tl.load(order_pointer + tl.program_id(2)).to(tl.int64)
    num_heads = tl.num_programs(2)
    queries = tl.program_id(0) * block_queries + tl.arange(0, block_queries)
    is_query = queries < num_queries
    dims = tl.arange(0, head_dim)
    columns = tl.arange(0, mass_columns)

    q_tokens = queries.to(tl.int64)[:, None] * q_token_stride
    q_start = q_pointer + row * q_row_stride + head * q_head_stride
    q = tl.load(q_start + q_tokens + dims[None, :], mask=is_query[:, None], other=0.0)

    out_tokens = queries.to(tl.int64)[:, None] * out_token_stride
    out_at = out_pointer + row * out_row_stride + head * out_head_stride + out_tokens + dims[None, :]
    lse_at = lse_pointer + (row * num_heads + head) * num_queries + queries
    if current_done:  # a softmax whose sum is 1 relative to its own logsumexp
        maximum = tl.load(lse_at, mask=is_query, other=0.0)
        total = tl.full([block_queries], 1.0, tl.float32)
        weighted = tl.load(out_at, mask=is_query[:, None], other=0.0).to(tl.float32)
    else:
        maximum = tl.full([block_queries], float("-inf"), tl.float32)
        total = tl.zeros([block_queries], tl.float32)
        weighted = tl.zeros([block_queries, head_dim], tl.float32)
        keys_start = keys_pointer + row * keys_row_stride + head * keys_head_stride
        values_start = values_pointer + row * values_row_stride + head * values_head_stride
        for first in range(0, num_current, block_keys):
            tokens = (first + tl.arange(0, block_keys)).to(tl.int64)
            is_key = tokens < num_current
            keys_at = keys_start + tokens[None, :] * keys_token_stride + dims[:, None]
            values_at = values_start + tokens[:, None] * values_token_stride + dims[None, :]
            keys = tl.load(keys_at, mask=is_key[None, :], other=0.0)
            values = tl.load(values_at, mask=is_key[:, None], other=0.0)
            maximum, total, weighted, _, _, _ = _fold(q, keys, values, is_key, maximum, total, weighted)

    # Keys come ordered by source scale, so the scale at hand needs one sum. Those before it lie in `mass`, relative to
    # the maximum at the time that they were put there.
    section = total
    section_source = query_scale
    mass = tl.zeros([block_queries, mass_columns], tl.float32)
    mass_maximum = maximum

    begin = tl.load(offsets_pointer + head)
    end = tl.load(offsets_pointer + head + 1)
    pool_keys_start = pool_keys_pointer + row * pool_keys_row_stride
    pool_values_start = pool_values_pointer + row * pool_values_row_stride
    for first in range(begin, end, block_keys):
        kept = first + tl.arange(0, block_keys)
        is_key = kept < end
        slots = tl.load(slots_pointer + kept, mask=is_key, other=0).to(tl.int64)
        keys_at = pool_keys_start + slots[None, :] * pool_keys_slot_stride + dims[:, None]
        values_at = pool_values_start + slots[:, None] * pool_values_slot_stride + dims[None, :]
        keys = tl.load(keys_at, mask=is_key[None, :], other=0.0)
        values = tl.load(values_at, mask=is_key[:, None], other=0.0)
        maximum, total, weighted, weights, block_total, shrink = _fold(
            q, keys, values, is_key, maximum, total, weighted
        )
        if capture:
            section *= shrink
            high = tl.load(sources_pointer + tl.minimum(first + block_keys, end) - 1)
            if high == section_source:
                section += block_total
            else:
                mass = _with_section(mass, mass_maximum, maximum, columns, section_source, section)
                mass_maximum = maximum
                sources = tl.load(sources_pointer + kept, mask=is_key, other=-1)
                for source in range(tl.load(sources_pointer + first), high):
                    received = tl.sum(tl.where(sources[None, :] == source, weights, 0.0), 1)
                    mass += tl.where(columns[None, :] == source, received[:, None], 0.0)
                section = tl.sum(tl.where(sources[None, :] == high, weights, 0.0), 1)
                section_source = high

    out = (weighted / total[:, None]).to(out_pointer.dtype.element_ty)
    tl.store(out_at, out, mask=is_query[:, None])
    tl.store(lse_at, maximum + tl.log2(total) * _LN_2, mask=is_query)
    if capture:  # noqa: SIM102 (decided at compilation, the other at run time)
        if row < capture_rows:
            mass = _with_section(mass, mass_maximum, maximum, columns, section_source, section)
            shares = tl.where(is_query[:, None], mass / (total * num_queries)[:, None], 0.0)
            block_start = tl.program_id(0).to(tl.int64) * capture_rows
            mass_start = mass_pointer + ((block_start + row) * num_heads + head) * num_scales
            tl.store(mass_start + columns, tl.sum(shares, 0), mask=columns < num_scales)
