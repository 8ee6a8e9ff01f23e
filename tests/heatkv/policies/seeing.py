"""What policies look at, made up: random heads at a step, and random measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from heatkv.measurements import Measurements
from heatkv.seen import Seen

if TYPE_CHECKING:
    from heatkv.config import ModelConfig
    from heatkv.scales import ScaleSchedule


def random_measurements(config: ModelConfig, scales: ScaleSchedule, *, seed: int = 0) -> Measurements:
    """Of every kind that a policy needs, NaN where calibration has NaN."""
    random = np.random.default_rng(seed)
    layers, heads, num_scales = config.num_layers, config.num_heads, scales.num_scales
    mass = random.random((num_scales, layers, heads, num_scales)) + 1e-3
    for query_scale in range(num_scales):
        mass[query_scale, ..., query_scale + 1 :] = np.nan
    selectivity, similarity = random.random((num_scales, layers)), random.random((layers, num_scales))
    selectivity[0], similarity[:, 0] = np.nan, np.nan
    return Measurements(
        attention_mass=mass / np.nansum(mass, axis=-1, keepdims=True),
        column_variance=random.random((layers, heads)),
        selectivity=selectivity,
        kv_similarity=similarity,
        provenance={"model": config.name, "scales": scales.to_json(), "source": "random numbers"},
    )


def seen(
    scales: ScaleSchedule,
    query_scale: int,
    *,
    capacity: int | list[int],
    rows: int = 1,
    heads: int = 2,
    dim: int = 8,
    seed: int = 0,
    layer: int = 0,
    stored: Tensor | None = None,
    carried: Tensor | None = None,
) -> Seen:
    """Random queries, keys and values; `stored` [P]: which earlier tokens are there, by default all."""
    generator = torch.Generator().manual_seed(seed)
    begin, end = scales.offsets[query_scale : query_scale + 2]
    tokens = torch.cat((torch.arange(begin) if stored is None else stored, torch.arange(begin, end)))
    q, raw = (torch.randn(rows, heads, end - begin, dim, generator=generator) for _ in range(2))
    keys, values = (torch.randn(rows, heads, len(tokens), dim, generator=generator) for _ in range(2))
    capacities = [capacity] * heads if isinstance(capacity, int) else capacity
    return Seen(
        layer,
        query_scale,
        tuple(range(heads)),
        scales,
        0,
        q,
        keys,
        values,
        tokens.expand(rows, heads, -1),
        torch.tensor(capacities),
        lambda index: raw[:, :, index],
        carried,
    )
