"""Attention over the current scale alone, by cuDNN: dense, and of a large map most of all keys.

The Triton kernel goes on from its output and logsumexp, with the stored tokens. Seen on an H100: over 4096 keys cuDNN
takes 0.45 ms and the kernel 0.64. For smaller maps its first call, 50 ms for every new shape, is not worth it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

_LEAST_QUERIES = 3000
_DTYPES = (torch.bfloat16, torch.float16)
_LEAST_CAPABILITY = (9, 0)
"""From here on cuDNN computes attention in another way than others do."""

CurrentAttention: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""q, keys, values [R, H, L, D] → output [R, H, L, D] in their dtype, and natural logsumexp [R, H, L] float32, both to
be written over. Softmax scale is 1."""


def attention_for(q: Tensor) -> CurrentAttention | None:
    """cuDNN where it is faster than the kernel; None: the kernel."""
    if q.device.type != "cuda" or q.shape[2] < _LEAST_QUERIES:
        return None
    return cudnn_attention if _cudnn_can(q.device, q.dtype, q.shape[3]) else None


def note(device: torch.device, *, dtype: torch.dtype, head_dim: int) -> str:
    """When cuDNN is used on a device, as the end of a sentence; empty where it never is."""
    if not torch.cuda.is_available() or not _cudnn_can(device, dtype, head_dim):
        return ""
    return f"; of maps of {_LEAST_QUERIES} and more tokens cuDNN attends to their own keys first"


def cudnn_attention(q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """A CurrentAttention."""
    cudnn = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse, *_ = cudnn(q, keys, values, None, True, 0.0, False, False, scale=1.0)
    return out, lse.view(q.shape[:3])


@functools.cache
def _cudnn_can(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    if dtype not in _DTYPES or torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return False
    few = torch.zeros(1, 1, 64, head_dim, dtype=dtype, device=device)
    try:
        cudnn_attention(few, few, few)
    except RuntimeError:  # what torch raises for a head_dim without a form, or where there is no cuDNN
        return False
    return True
