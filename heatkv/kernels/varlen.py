"""Ragged attention by torch's variable-length attention: CUDA without Triton.

Every (row, head) is a sequence of its own, with one head. Its kept keys are copied out of the pool in front of its
current ones, a copy of one layer at a time: what the Triton kernel does without.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from heatkv.kernels.mass import key_mass
from heatkv.kernels.plain import sum_by_source

_DTYPES = (torch.bfloat16, torch.float16)
_LARGEST_HEAD_DIM = 256


@dataclass(frozen=True, slots=True)
class Sequences:
    """One layer's attention as a batch of R * H sequences of different lengths, row after row, head after head."""

    queries: Tensor
    """[R * H * Lq, 1, D]."""
    keys: Tensor
    """[R * (N + H * Lc), 1, D]: of each sequence the kept ones, then the current ones."""
    values: Tensor
    query_starts: Tensor
    """[R * H + 1] int32."""
    key_starts: Tensor
    """[R * H + 1] int32."""
    most_queries: int
    most_keys: int
    """No less than the longest sequence has; the true number is on the device, and asking would wait for it."""


VarlenAttention: TypeAlias = Callable[[Sequences], tuple[Tensor, Tensor]]
"""Output [R * H * Lq, 1, D] and the natural log of the softmax sums, R * H * Lq numbers in the queries' order."""


def unavailable(device: torch.device, *, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why this form cannot be used there, as half a sentence; None if it can."""
    if device.type != "cuda":
        return f"needs CUDA, not {device.type}"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} has no varlen attention"
    if dtype not in _DTYPES:
        return f"computes in bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if head_dim % 8 or head_dim > _LARGEST_HEAD_DIM:
        return f"needs a head_dim that is a multiple of 8 up to {_LARGEST_HEAD_DIM}, not {head_dim}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"needs compute capability 8.0, not {capability[0]}.{capability[1]}"
    return None


def ragged_attention_varlen(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    pool_keys: Tensor,
    pool_values: Tensor,
    slots: Tensor,
    offsets: Tensor,
    sources: Tensor,
    order: Tensor,  # noqa: ARG001 (the library orders its own work)
    *,
    query_scale: int,
    num_scales: int,
    capture_rows: int = 0,
    attention: VarlenAttention | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `ragged_attention_plain` returns, its shapes included; lse and mass are float32.

    Mass is measured from lse after the fact, so the output is bit for bit the same with and without it; measuring
    waits for the device once, to know where each head's keys begin. `attention` None: torch's.
    """
    sequences = pack(q, keys, values, pool_keys, pool_values, slots, offsets)
    packed_out, packed_lse = (attention or torch_varlen_attention)(sequences)
    lse = packed_lse.reshape(q.shape[:3])
    mass = None
    if capture_rows:
        packed_keys = sequences.keys.view(q.shape[0], -1, q.shape[3])[:capture_rows]
        scales = _packed_sources(offsets, sources, num_current=keys.shape[2], query_scale=query_scale)
        starts = sequences.key_starts[: q.shape[1] + 1].tolist()
        mass = _mass(q[:capture_rows], packed_keys, lse[:capture_rows], starts, scales, num_scales)
    return packed_out.view_as(q), lse, mass


def pack(
    q: Tensor, keys: Tensor, values: Tensor, pool_keys: Tensor, pool_values: Tensor, slots: Tensor, offsets: Tensor
) -> Sequences:
    """The arguments of `ragged_attention_plain` as sequences; waits for nothing, on any device."""
    num_rows, num_heads, num_queries, head_dim = q.shape
    num_current = keys.shape[2]
    kept_at, current_at = _places(offsets, num_kept=len(slots), num_current=num_current)
    keys_per_row = len(slots) + num_heads * num_current

    def gathered(pool: Tensor, current: Tensor) -> Tensor:
        whole = pool.new_empty((num_rows, keys_per_row, head_dim))
        whole[:, kept_at] = pool[:, slots.long()]
        whole[:, current_at] = current
        return whole.view(-1, 1, head_dim)

    rows = torch.arange(num_rows, device=q.device)[:, None] * keys_per_row
    starts = offsets[:-1] + torch.arange(num_heads, device=q.device) * num_current  # [H], in a row
    end = torch.full((1,), num_rows * keys_per_row, device=q.device)
    return Sequences(
        q.reshape(-1, 1, head_dim),
        gathered(pool_keys, keys),
        gathered(pool_values, values),
        torch.arange(0, num_rows * num_heads * num_queries + 1, num_queries, dtype=torch.int32, device=q.device),
        torch.cat([(rows + starts).flatten(), end]).to(torch.int32),
        num_queries,
        len(slots) + num_current,
    )


def torch_varlen_attention(sequences: Sequences) -> tuple[Tensor, Tensor]:
    """torch's own kernel, which CUDA alone has."""
    # Deferred: a torch older than 2.10 lacks it, and is served by the other forms.
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    result = varlen_attn(
        sequences.queries,
        sequences.keys,
        sequences.values,
        sequences.query_starts,
        sequences.key_starts,
        sequences.most_queries,
        sequences.most_keys,
        return_aux=AuxRequest(lse=True),
        scale=1.0,
    )
    return result[0], result[1]


def _places(offsets: Tensor, *, num_kept: int, num_current: int) -> tuple[Tensor, Tensor]:
    """Where a row's kept keys [N] and current keys [H, Lc] go among its packed keys."""
    kept = torch.arange(num_kept, device=offsets.device)
    heads = torch.arange(len(offsets) - 1, device=offsets.device)
    head_of_kept = torch.searchsorted(offsets[1:], kept, right=True)
    current = torch.arange(num_current, device=offsets.device)
    return kept + head_of_kept * num_current, (offsets[1:] + heads * num_current)[:, None] + current


def _packed_sources(offsets: Tensor, sources: Tensor, *, num_current: int, query_scale: int) -> Tensor:
    """Source scale of each of a row's packed keys."""
    num_keys = len(sources) + (len(offsets) - 1) * num_current
    scales = sources.new_full((num_keys,), query_scale)
    kept_at, _ = _places(offsets, num_kept=len(sources), num_current=num_current)
    scales[kept_at] = sources
    return scales


def _mass(q: Tensor, keys: Tensor, lse: Tensor, starts: list[int], scales: Tensor, num_scales: int) -> Tensor:
    """[R, H, num_scales], from a row's packed keys [R, n, D] of which head h's begin at starts[h]."""
    mass = torch.empty((*q.shape[:2], num_scales), device=q.device)
    for head, (begin, end) in enumerate(pairwise(starts)):
        received = key_mass(q[:, head, None], keys[:, None, begin:end], lse[:, head, None])
        mass[:, head] = sum_by_source(received[:, 0], scales[begin:end], num_scales)
    return mass
