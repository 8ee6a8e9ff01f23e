"""Where the softmax of attention goes, key by key, without a query x key matrix. Plain PyTorch, on any device.

Exact: scores are float32 products of the very keys and queries that attention used, and the softmax is normalised by
the logsumexp that attention itself returned. Letters: R rows, H heads, L queries, T keys, D head_dim.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_BLOCK_QUERIES = 256
_TILE_BYTES = {"cpu": 2 << 20}
"""Of float32 scores alive at once: what a core's cache holds; elsewhere 64 MiB."""


def key_mass(q: Tensor, keys: Tensor, lse: Tensor) -> Tensor:
    """Softmax mass that each key receives, mean over queries: [R, H, T] float32.

    `q` [R, H, L, D], `keys` [R, H, T, D], `lse` [R, H, L]: logsumexp of each query's scores over all keys it sees, of
    which `keys` may be a part.
    """
    rows, heads, num_queries, _ = q.shape
    num_keys = keys.shape[2]
    mass = torch.zeros(rows, heads, num_keys, device=q.device)
    block = min(num_queries, _BLOCK_QUERIES)
    tile = _TILE_BYTES.get(q.device.type, 64 << 20)
    together = min(heads, max(1, tile // (4 * block * max(1, num_keys))))
    with exact_products(q):
        for row in range(rows):
            for begin in range(0, heads, together):
                these = slice(begin, begin + together)
                columns = keys[row, these].float().transpose(-1, -2)
                for first in range(0, num_queries, block):
                    part = slice(first, first + block)
                    scores = q[row, these, part].float() @ columns
                    mass[row, these] += scores.sub_(lse[row, these, part, None]).exp_().sum(1)
    return mass / num_queries


def whole_key_mass(q: Tensor, keys: Tensor) -> Tensor:
    """The same for keys that are all that the queries see, and few enough to look at all at once."""
    with exact_products(q):
        return (q.float() @ keys.float().transpose(-1, -2)).softmax(-1).mean(2)


def scale_mass(masses: Tensor, tokens: Sequence[int]) -> Tensor:
    """Mass of each run of keys: [R, H, len(tokens)], from the mass of each key [R, H, sum(tokens)]."""
    if not tokens:
        return masses[:, :, :0]
    return torch.stack([run.sum(-1) for run in masses.split(list(tokens), dim=-1)], dim=-1)


@contextlib.contextmanager
def exact_products(q: Tensor) -> Iterator[None]:
    """Let float32 matrix products on the CPU use bfloat16 units where `q`, and what it meets, are bfloat16 numbers.

    Such products are exact, and summed in float32 either way, but come twice as fast. The setting is PyTorch's and
    global, so it is put back at once.
    """
    settings: Any = getattr(torch.backends.mkldnn, "matmul", None)  # Any: newer than torch 2.8
    if q.dtype != torch.bfloat16 or q.device.type != "cpu" or not hasattr(settings, "fp32_precision"):
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
