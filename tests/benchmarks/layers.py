"""One layer's attention without a model: caches filled up to a scale through the real interface, random queries.

Keys have unit length, as the model's; queries have one length, which says how sharp attention is. Letters: H heads,
L tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from heatkv.cache import KVCache
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from heatkv.visible import Visible
from tests.benchmarks.workload import DTYPE, ROWS, SEED

QUERY_NORM = 4.0
"""exp of the attention scale that random weights have."""


def filled_cache(
    schedule: PruningSchedule, query_scale: int, *, head_dim: int, device: str, dtype: torch.dtype = DTYPE
) -> KVCache:
    """A cache as it is when a scale begins: all earlier ones went through it, with random keys and values."""
    cache = KVCache(schedule, rows=ROWS, head_dim=head_dim, dtype=dtype, device=device)
    for scale in range(query_scale):
        shape = (schedule.num_heads, schedule.scales.tokens[scale], head_dim)
        keys, values = random_keys_values(shape, device=device, dtype=dtype)
        for layer in range(schedule.num_layers):
            cache.store(layer, query_scale=scale, keys=keys, values=values)
    return cache


def random_keys_values(
    shape: Sequence[int], *, device: str, dtype: torch.dtype = DTYPE, seed: int = SEED
) -> tuple[Tensor, Tensor]:
    """Keys of unit length and values, [R, H, L, D] each, for a shape [H, L, D]."""
    return _random(shape, device, seed, unit=True).to(dtype), _random(shape, device, seed + 1, unit=False).to(dtype)


def random_queries(
    shape: Sequence[int], *, device: str, dtype: torch.dtype = DTYPE, norm: float = QUERY_NORM, seed: int = SEED
) -> Tensor:
    """Queries of one length, [R, H, L, D], for a shape [H, L, D]: the longer, the sharper attention."""
    return (_random(shape, device, seed + 2, unit=True) * norm).to(dtype)


def one_layer(kept: NDArray[np.bool_], scales: ScaleSchedule, sinks: int) -> PruningSchedule:
    """A schedule of a single layer that keeps, of each head, the source scales in `kept` [head, source_scale]."""
    last_step = scales.num_scales - 1
    drop_step = np.where(kept, last_step, np.arange(scales.num_scales))
    drop_step[:, :sinks] = drop_step[:, -1] = last_step
    return PruningSchedule(drop_step[None], "one layer", scales, sinks, "as given")


def visible_at(cache: KVCache, query_scale: int, *, head_dim: int, device: str, dtype: torch.dtype = DTYPE) -> Visible:
    """What the first layer sees at a scale of which the cache has everything before."""
    shape = (cache.schedule.num_heads, cache.schedule.scales.tokens[query_scale], head_dim)
    keys, values = random_keys_values(shape, device=device, dtype=dtype, seed=SEED + 3)
    return cache.visible(0, query_scale=query_scale, keys=keys, values=values)


def _random(shape: Sequence[int], device: str, seed: int, *, unit: bool) -> Tensor:
    if device == "meta":
        return torch.empty(ROWS, *shape, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    numbers = torch.randn(ROWS, *shape, generator=generator, device=device)
    return F.normalize(numbers, dim=-1) if unit else numbers
