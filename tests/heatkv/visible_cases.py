"""Inputs of attention over a pool, and what it must give: float64 attention, head by head, of what is visible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from heatkv.pool import Slots, TokenPool
from heatkv.scales import ScaleSchedule
from heatkv.visible import Visible

SIZES = (1, 3, 6)
"""Tokens of the stored scales; the current one is the next."""
SPARE_SLOTS = 4
QUERY_SCALE = len(SIZES)
NUM_SCALES = len(SIZES) + 2

Kept = tuple[int, ...]
"""Source scales that a head has stored."""

kept_sources = st.sets(st.sampled_from(range(len(SIZES)))).map(lambda kept: tuple(sorted(kept)))


def visible_case(
    kept: Sequence[Kept],
    *,
    current: int = 8,
    rows: int = 2,
    head_dim: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    sizes: Sequence[int] = SIZES,
) -> Visible:
    """Random keys of unit length, as cosine attention has, in scattered slots; what is in a free slot is NaN."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, head_dim, generator=generator)

    counts = [sum(sizes[source] for source in sources) for sources in kept]
    pool = TokenPool(sum(counts) + SPARE_SLOTS, rows=rows, head_dim=head_dim, dtype=dtype)
    pool.keys.fill_(torch.nan)
    pool.values.fill_(torch.nan)
    scattered: Slots = np.random.default_rng(seed).permutation(pool.num_slots).astype(np.int32)
    slots = np.split(scattered, np.cumsum(counts))[:-1]
    for each in slots:
        keys = torch.nn.functional.normalize(normal(rows, len(each)), dim=-1)
        pool.write(each, keys.to(dtype), normal(rows, len(each)).to(dtype))
    return Visible(
        pool,
        tuple(slots),
        tuple(tuple((source, sizes[source]) for source in sources) for sources in kept),
        len(sizes),
        torch.nn.functional.normalize(normal(rows, len(kept), current), dim=-1).to(dtype),
        # Laid out as a model's projections are: tokens before heads.
        normal(rows, current, len(kept)).transpose(1, 2).to(dtype),
    )


def queries(visible: Visible, *, sharpness: float = 4.0, seed: int = 1) -> Tensor:
    """[R, H, L, D] in the keys' dtype, of length `sharpness`."""
    random = torch.randn(visible.keys.shape, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.normalize(random, dim=-1) * sharpness).to(visible.keys.dtype)


@dataclass(frozen=True, slots=True)
class Expected:
    """What attention gives, in float64."""

    out: Tensor
    """[R, H, L, D]."""
    mass: Tensor
    """[R, H, num_scales], mean over queries; 0 where a head sees nothing."""
    key_masses: list[Tensor]
    """Per head, [R, T]: of each key it sees."""
    largest_value: float
    """Of what is weighted: the unit of the output's errors."""


def expected(q: Tensor, visible: Visible, num_scales: int = NUM_SCALES) -> Expected:
    """Attention of q over what is visible, worked out in float64."""
    outs, key_masses, largest_value = [], [], 0.0
    mass = torch.zeros(*q.shape[:2], num_scales, dtype=torch.float64)
    for head, slots in enumerate(visible.slots):
        keys = torch.cat((visible.pool.keys[:, slots], visible.keys[:, head]), dim=1).double()
        values = torch.cat((visible.pool.values[:, slots], visible.values[:, head]), dim=1).double()
        largest_value = max(largest_value, float(values.abs().max()))
        weights = (q[:, head].double() @ keys.transpose(1, 2)).softmax(dim=-1)
        outs.append(weights @ values)
        key_masses.append(weights.mean(dim=1))
        runs = [*visible.sources[head], (visible.query_scale, visible.keys.shape[2])]
        received = key_masses[head].split([tokens for _, tokens in runs], dim=-1)
        for (source, _), part in zip(runs, received, strict=True):
            mass[:, head, source] = part.sum(dim=-1)
    return Expected(torch.stack(outs, dim=1), mass, key_masses, largest_value)


def scales_of(visible: Visible, *, sizes: Sequence[int] = SIZES) -> ScaleSchedule:
    """A schedule in which the stored and the current scales have these tokens; one more scale follows."""
    tokens = (*sizes, visible.keys.shape[2], 11)
    return ScaleSchedule.custom(tuple((1, count) for count in tokens))
