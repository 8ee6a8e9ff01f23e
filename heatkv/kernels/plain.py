"""The plain twin: ragged attention in torch alone, a head at a time. Slow, right, and on any device."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

_BLOCK_QUERIES = 256


def ragged_attention_plain(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    pool_keys: Tensor,
    pool_values: Tensor,
    slots: Tensor,
    offsets: Tensor,
    sources: Tensor,
    order: Tensor,  # noqa: ARG001 (the order of work, which changes no result)
    *,
    query_scale: int,
    num_scales: int,
    capture_rows: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Attention of q over each head's kept tokens and the current scale: output, log of the softmax sums, mass.

    q: [R, H, Lq, D] rows, heads, queries, head_dim; keys, values: [R, H, Lc, D] of the current scale.
    pool_keys, pool_values: [R, num_slots, D]; head h reads slots[offsets[h]:offsets[h + 1]], ordered by source scale.
    slots, sources: [N] int32; offsets: [H + 1] int32; order: [H] int32, every head once. Softmax scale is 1.
    Returns out [R, H, Lq, D] in q's dtype; lse [R, H, Lq], natural log; mass [capture_rows, H, num_scales] of the
    first rows, or None for no rows: mean over queries of the softmax mass of each source scale, the current one in
    column query_scale, 0 where a head sees nothing. Arithmetic is float32, or float64 for float64 inputs.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=wide, device=q.device)
    mass = torch.empty((capture_rows, q.shape[1], num_scales), dtype=wide, device=q.device)
    bounds = offsets.tolist()
    for head, (begin, end) in enumerate(pairwise(bounds)):
        head_keys = torch.cat([pool_keys[:, slots[begin:end].long()], keys[:, head]], dim=1).to(wide)  # [R, n, D]
        head_values = torch.cat([pool_values[:, slots[begin:end].long()], values[:, head]], dim=1).to(wide)
        received = torch.zeros((capture_rows, head_keys.shape[1]), dtype=wide, device=q.device)
        for first in range(0, q.shape[2], _BLOCK_QUERIES):
            block = slice(first, first + _BLOCK_QUERIES)
            scores = q[:, head, block].to(wide) @ head_keys.transpose(1, 2)
            maximum = scores.amax(dim=-1, keepdim=True)
            weights = torch.exp(scores - maximum)
            total = weights.sum(dim=-1, keepdim=True)
            weights /= total
            out[:, head, block] = (weights @ head_values).to(q.dtype)
            lse[:, head, block] = (maximum + total.log())[..., 0]
            received += weights[:capture_rows].sum(dim=1)
        scales = torch.cat([sources[begin:end], sources.new_full((keys.shape[2],), query_scale)])
        mass[:, head] = sum_by_source(received, scales, num_scales) / q.shape[2]
    return out, lse, mass if capture_rows else None


def sum_by_source(received: Tensor, sources: Tensor, num_scales: int) -> Tensor:
    """[R, num_scales]: what the keys of each source scale received together. received: [R, n], sources: [n].

    A product with zeros and ones rather than `index_add`, whose order of summation is not fixed on CUDA; in float64,
    which TF32 settings do not touch.
    """
    is_source = sources[:, None] == torch.arange(num_scales, device=sources.device)
    return (received.double() @ is_source.double()).to(received.dtype)
