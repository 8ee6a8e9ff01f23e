"""Steps: a run is one step a layer of a scale, in order; when head-scales are written, and what is held after each.

numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.scales import ScaleSchedule


def own_steps(num_layers: int, num_scales: int) -> NDArray[np.int64]:
    """The step at which each layer writes each scale: [layer, source_scale]."""
    return np.arange(num_layers)[:, None] + np.arange(num_scales) * num_layers


def tokens_held(drop_step: NDArray[np.int16], scales: ScaleSchedule) -> NDArray[np.int64]:
    """Tokens in the cache after each step, over all layers and heads: [num_steps]; drop_step as in PruningSchedule."""
    return amount_held(drop_step, np.array(scales.tokens))


def amount_held(drop_step: NDArray[np.int16], amounts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of the amounts of what is in the cache after each step: [num_steps].

    `amounts`: of each head-scale, such as its tokens or bytes, [layer, head, source_scale] or what broadcasts to it.
    """
    num_layers, _, num_scales = drop_step.shape
    num_steps = num_layers * num_scales
    cached = drop_step[:, :, :-1]
    written_at = np.broadcast_to(own_steps(num_layers, num_scales)[:, None, :-1], cached.shape)
    each = np.broadcast_to(amounts, drop_step.shape)[:, :, :-1].astype(np.float64)
    freed = cached < num_steps - 1
    change = np.bincount(written_at.ravel(), each.ravel(), num_steps)
    change -= np.bincount(cached[freed], each[freed], num_steps)
    return np.cumsum(np.rint(change).astype(np.int64))


def after_steps(layer_tokens: NDArray[np.integer]) -> NDArray[np.int64]:
    """Tokens of all layers after each step, [num_steps], from each layer's own after its step [query_scale, layer]:
    layers not yet reached hold what they had."""
    before = np.vstack([np.zeros_like(layer_tokens[:1]), layer_tokens[:-1]])
    reached = np.cumsum(layer_tokens, axis=1, dtype=np.int64)
    still = before.sum(axis=1, keepdims=True) - np.cumsum(before, axis=1)
    held: NDArray[np.int64] = (reached + still).ravel()
    return held
