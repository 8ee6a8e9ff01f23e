"""What a layer would give if a head did not see one source scale. Plain PyTorch, on any device, in float32.

The attention over each source scale alone, and its logsumexp, are enough: the rest of the softmax is their sum without
that scale, normalised anew. Letters: R rows, H heads, L queries, S scales that are seen, D head_dim, C width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heatkv.kernels.mass import exact_products

_TILE_BYTES = {"cpu": 8 << 20}
"""Of float32 scores alive at once; elsewhere 256 MiB."""


def blind_error(
    q: Tensor, keys: Tensor, values: Tensor, tokens: Sequence[int], projection: Tensor
) -> tuple[Tensor, Tensor]:
    """([R, H, S - 1], [R, H, S]) float32: error of being blind to each scale but the current, and mass of each scale.

    `q` [R, H, L, D]; `keys`, `values` [R, H, T, D], of scales with `tokens` [S] each, the current one last;
    `projection` [C, H * D]: the layer's output matrix W. The error of head h is the mean over queries of
    ||W_h (out - out without the scale)||² over that of ||W out||² with all heads. Mass: mean over queries.
    """
    rows, heads, num_queries, head_dim = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    matrix = projection.to(wide)
    of_head = matrix.unflatten(1, (heads, head_dim)).transpose(0, 1)  # [H, C, D]
    gram = of_head.transpose(1, 2) @ of_head
    error = torch.zeros(rows, heads, len(tokens) - 1, dtype=wide, device=q.device)
    mass = torch.zeros(rows, heads, len(tokens), dtype=wide, device=q.device)
    block = max(1, _TILE_BYTES.get(q.device.type, 256 << 20) // (4 * heads * max(tokens)))
    for row in range(rows):
        whole = torch.zeros((), dtype=wide, device=q.device)
        row_keys, row_values = (each[row].to(wide).split(list(tokens), 1) for each in (keys, values))
        for queries in q[row].split(block, 1):
            parts, lse = _parts(queries, row_keys, row_values)
            shares = lse.softmax(-1)
            out = (shares[:, :, None] @ parts)[:, :, 0]  # [H, block, D]
            whole += (out.transpose(0, 1).flatten(1) @ matrix.T).square().sum()
            change = _change(parts, lse, shares)
            # Flat: a broadcast matrix would be copied for every query.
            squared = (change.flatten(1, 2) @ gram).mul_(change.flatten(1, 2)).sum(-1)
            error[row] += squared.unflatten(1, change.shape[1:3]).sum(1)
            mass[row] += shares.sum(1)
        error[row] /= whole.clamp_min(torch.finfo(wide).tiny)
    return error.clamp_min(0), mass / num_queries  # a sum of squares, but for rounding


def _parts(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over each scale alone, [H, L, S, D], and the logsumexp of its scores, [H, L, S]."""
    parts, sums = [], []
    for scale_keys, scale_values in zip(keys, values, strict=True):
        with exact_products(q):
            scores = q.to(scale_keys.dtype) @ scale_keys.transpose(1, 2)
        lse = scores.logsumexp(-1, keepdim=True)
        parts.append(scores.sub_(lse).exp_() @ scale_values)
        sums.append(lse)
    return torch.stack(parts, 2), torch.cat(sums, -1)


def _change(parts: Tensor, lse: Tensor, shares: Tensor) -> Tensor:
    """out - out without each scale but the last: [H, L, S - 1, D].

    As share × (the scale's own attention - that of the rest), which loses no digits where the share is near 0 or 1.
    """
    num_scales = lse.shape[-1]
    dropped = torch.eye(num_scales, dtype=torch.bool, device=lse.device)[:-1]
    rest = lse[:, :, None].masked_fill(dropped, -torch.inf).softmax(-1)  # [H, L, S - 1, S]
    return shares[..., :-1, None] * (parts[:, :, :-1] - rest @ parts)
