"""What policies look at, made up: random heads at a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heatkv.seen import Seen

if TYPE_CHECKING:
    from heatkv.scales import ScaleSchedule


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
