"""Inputs of ragged attention, and what it must give: dense attention in float64 with everything unseen masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SIZES = (1, 4, 9, 16, 36, 64, 100)
"""Tokens of each source scale."""
_SPARE_SLOTS = 5


@dataclass(frozen=True, slots=True)
class RaggedCase:
    """Arguments of ragged attention."""

    tensors: dict[str, Tensor]
    options: dict[str, int]

    @property
    def arguments(self) -> dict[str, Tensor | int]:
        return {**self.tensors, **self.options}

    def to(self, dtype: torch.dtype, device: str = "cpu") -> RaggedCase:
        """The same with keys, values and queries rounded to `dtype`."""
        moved = {
            name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=moved)

    def capturing(self, capture_rows: int) -> RaggedCase:
        return replace(self, options={**self.options, "capture_rows": capture_rows})


def ragged_case(
    kept: Sequence[Sequence[int]],
    *,
    rows: int = 2,
    queries: int = 20,
    current: int = 20,
    head_dim: int = 16,
    num_scales: int = 13,
    capture_rows: int = 1,
    seed: int = 0,
    sizes: Sequence[int] = SIZES,
) -> RaggedCase:
    """Float64 inputs; kept[h]: the source scales that head h keeps. Free slots of the pool hold NaN."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    counts = [sum(sizes[source] for source in head) for head in kept]
    num_slots = sum(counts) + _SPARE_SLOTS
    shuffled = torch.randperm(num_slots, generator=generator)
    slots, free = shuffled[: sum(counts)], shuffled[sum(counts) :]
    pool_keys, pool_values = normal(rows, num_slots, head_dim), normal(rows, num_slots, head_dim)
    pool_keys[:, free] = pool_values[:, free] = torch.nan
    heads = len(kept)
    sources = [source for head in kept for source in sorted(head) for _ in range(sizes[source])]
    return RaggedCase(
        {
            # Laid out as a model's projections are: tokens before heads.
            "q": normal(rows, queries, heads, head_dim).transpose(1, 2),
            "keys": normal(rows, current, heads, head_dim).transpose(1, 2),
            "values": normal(rows, heads, current, head_dim),
            "pool_keys": pool_keys,
            "pool_values": pool_values,
            "slots": slots.int(),
            "offsets": torch.tensor([0, *counts]).cumsum(0).int(),
            "sources": torch.tensor(sources, dtype=torch.int32),
            "order": torch.tensor(counts).argsort(descending=True).int(),
        },
        {"query_scale": max((max(head, default=-1) for head in kept), default=-1) + 1}
        | {"num_scales": num_scales, "capture_rows": capture_rows},
    )


def masked_dense(case: RaggedCase) -> tuple[Tensor, Tensor, Tensor]:
    """Output, lse and mass in float64: every head scores the whole pool, and a mask hides what is not its own."""
    given = case.to(torch.float64).tensors
    rows, heads, _, _ = given["q"].shape
    num_slots, current = given["pool_keys"].shape[1], given["keys"].shape[2]
    seen = torch.zeros(heads, num_slots + current, dtype=torch.bool)
    seen[:, num_slots:] = True
    source_of = torch.full((num_slots + current,), case.options["query_scale"])
    source_of[given["slots"].long()] = given["sources"].long()
    head_of_slot = torch.repeat_interleave(torch.arange(heads), given["offsets"].diff())
    seen[head_of_slot, given["slots"].long()] = True

    def whole(pool: str, dense: str) -> Tensor:
        stored = given[pool].nan_to_num()[:, None].expand(rows, heads, -1, -1)
        return torch.cat([stored, given[dense]], dim=2)

    scores = given["q"] @ whole("pool_keys", "keys").transpose(-1, -2)
    scores = scores.masked_fill(~seen[:, None], -torch.inf)
    weights = scores.softmax(dim=-1)
    is_source = torch.nn.functional.one_hot(source_of, case.options["num_scales"]).double()
    mass = (weights.mean(dim=2) @ is_source)[: case.options["capture_rows"]]
    return weights @ whole("pool_values", "values"), scores.logsumexp(dim=-1), mass
