"""A cache fed with random queries, keys and values, step by step, beside a dense twin that only masks.

No model: what a policy sees is random, so whatever it promises must hold for any numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heatkv.attention import Path, attend
from heatkv.cache import KVCache
from heatkv.schedule import PruningSchedule
from heatkv.selection import Selector
from heatkv.token_cache import TokenCache

if TYPE_CHECKING:
    from heatkv.config import ModelConfig
    from heatkv.online import OnlinePlan

GROUPED = Path("grouped", "tests")


@dataclass(frozen=True, slots=True)
class Step:
    """After one step."""

    query_scale: int
    layer: int
    accounted_bytes: int
    storage_bytes: int
    alive: Tensor
    """[R, H, total_tokens] bool: what this layer now has, by row and head."""
    out: Tensor
    """[R, H, L, D]: attention over what the pool holds."""
    twin_out: Tensor
    """The same over all tokens, masked."""


def driven(
    plan: PruningSchedule | OnlinePlan, config: ModelConfig, *, row_seeds: Sequence[int] = (0, 1), dim: int = 4
) -> Iterator[Step]:
    """Every step of a run of these rows, each of which has numbers of its own."""
    kwargs = {"rows": len(row_seeds), "head_dim": dim, "dtype": torch.float32}
    planned = isinstance(plan, PruningSchedule)
    cache = KVCache(plan, **kwargs) if isinstance(plan, PruningSchedule) else TokenCache(plan, **kwargs)
    raw: dict[int, Tensor] = {}
    selector = (
        None if isinstance(plan, PruningSchedule) else Selector(plan, lambda layer, index: raw[layer][:, :, index])
    )
    shape = (config.num_layers, len(row_seeds), config.num_heads, plan.scales.total_tokens)
    alive, dense = torch.zeros(shape, dtype=torch.bool), torch.zeros(2, *shape, dim)
    for query_scale in range(plan.scales.num_scales):
        begin, end = plan.scales.offsets[query_scale : query_scale + 2]
        for layer in range(config.num_layers):
            q, keys, values, raw[layer] = _numbers(row_seeds, query_scale, layer, config, end - begin, dim)
            dense[0, layer, :, :, begin:end], dense[1, layer, :, :, begin:end] = keys, values
            visible = cache.visible(layer, query_scale=query_scale, keys=keys, values=values)
            if planned:
                alive[layer] = _by_schedule(plan, query_scale, layer)
            alive[layer, :, :, begin:end] = True
            out = attend(q, visible, plan.scales, path=GROUPED).out
            twin = ((q @ dense[0, layer].mT).masked_fill(~alive[layer, :, :, None], -torch.inf)).softmax(-1)
            twin_out = twin @ dense[1, layer]
            if isinstance(cache, KVCache):
                cache.store(layer, query_scale=query_scale, keys=keys, values=values)
            elif query_scale < plan.scales.num_scales - 1:
                candidates = cache.candidates(layer, query_scale=query_scale, keys=keys, values=values)
                chosen = selector.choose(layer, query_scale, q, candidates)
                cache.store(layer, chosen)
                alive[layer] = False
                for group, keep in chosen:
                    own = torch.zeros_like(alive[layer, :, : len(group.heads)])
                    alive[layer, :, list(group.heads)] = own.scatter_(2, group.tokens.gather(2, keep), True)
            yield Step(
                query_scale, layer, cache.accounted_bytes, cache.storage_bytes, alive[layer].clone(), out, twin_out
            )


def _by_schedule(schedule: PruningSchedule, query_scale: int, layer: int) -> Tensor:
    """[H, total_tokens]: what a schedule shows a layer."""
    seen = torch.from_numpy(schedule.visible(query_scale)[layer])
    return seen.repeat_interleave(torch.tensor(schedule.scales.tokens), dim=1)


def _numbers(
    row_seeds: Sequence[int], query_scale: int, layer: int, config: ModelConfig, count: int, dim: int
) -> list[Tensor]:
    """Queries, keys, values and raw queries [R, H, L, D]; a row's depend on its seed alone."""
    rows = []
    for seed in row_seeds:
        generator = torch.Generator().manual_seed(seed * 10_000 + query_scale * 100 + layer)
        rows.append(torch.randn(4, config.num_heads, count, dim, generator=generator))
    return list(torch.stack(rows, dim=1))
