"""Numbers about attention and its keys that published policies rank heads, layers and scales by. Plain PyTorch.

Each is one row's. Letters: H heads, L queries, T keys, D head_dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from heatkv.kernels.mass import exact_products
from heatkv.scales import Grid

_BLOCK_BYTES = 16 << 20
"""Of float32 scores alive at once."""
_SAMPLED_QUERIES = 32
_TOP_FRACTION = 0.1


def column_variance(q: Tensor, keys: Tensor) -> Tensor:
    """[H] float64: variance over queries of the attention that a key receives, summed over keys. q [H, L, D].

    HACK (arXiv 2504.09261): low where all queries look at the same keys. The divisor is the number of queries.
    """
    heads, num_queries, _ = q.shape
    num_keys = keys.shape[1]
    sums = torch.zeros(2, heads, num_keys, dtype=torch.float64, device=q.device)
    for block in q.split(max(1, _BLOCK_BYTES // (4 * heads * num_keys)), dim=1):
        probabilities = _probabilities(block, keys).double()
        sums[0] += probabilities.sum(1)
        sums[1] += probabilities.square().sum(1)
    mean, mean_square = sums / num_queries
    variance: Tensor = mean_square - mean.square()
    return variance.sum(-1)


def selectivity(q: Tensor, keys: Tensor, *, num_current: int) -> Tensor:
    """[]: mean attention on the current map × mean attention on the most attended history. q [H, L, D], keys [H, T, D].

    ScaleKV's Attention Selectivity Index (arXiv 2505.19602). Means are over heads and 32 evenly spaced queries. How
    many history tokens count as the most attended is not published: a tenth of them here, rounded up, by head and
    query. The current map's `num_current` keys are the last; there must be others.
    """
    every = torch.linspace(0, q.shape[1] - 1, min(_SAMPLED_QUERIES, q.shape[1]), device=q.device).round().long()
    history, current = _probabilities(q[:, every], keys).split([keys.shape[1] - num_current, num_current], dim=-1)
    most = history.topk(math.ceil(_TOP_FRACTION * history.shape[-1]), dim=-1).values
    product: Tensor = current.sum(-1).mean() * most.sum(-1).mean()
    return product


def similarity(current: Tensor, before: Tensor, *, grid: Grid, grid_before: Grid) -> Tensor:
    """[]: mean cosine of each token with the one at its place in the scale before. [H, L, D], [H, L before, D].

    The place is the cell that holds the token's centre.
    """
    (height, width), (height_before, width_before) = grid, grid_before
    rows = (2 * torch.arange(height, device=current.device) + 1) * height_before // (2 * height)
    columns = (2 * torch.arange(width, device=current.device) + 1) * width_before // (2 * width)
    places = (rows[:, None] * width_before + columns).flatten()
    cosine: Tensor = F.cosine_similarity(current.float(), before[:, places].float(), dim=-1)
    return cosine.mean()


def _probabilities(q: Tensor, keys: Tensor) -> Tensor:
    """[H, L, T] float32: softmax over all keys."""
    with exact_products(q):
        return (q.float() @ keys.float().transpose(1, 2)).softmax(-1)
