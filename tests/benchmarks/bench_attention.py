"""Ragged attention over a pruned cache beside dense attention over everything, one layer of Infinity-2B.

Keys and values are dense attention's own, contiguous: it pays for no copy, though a cache has to make one (the row
with `torch.cat`). Each head keeps whole source scales, as schedules do, in two distributions: bimodal, most heads
the sinks and a few nearly all, as the published schedule has it; and log-normal, all sorts of heads.
On CUDA dense attention is the fastest of PyTorch's backends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from heatkv.attention import attend, choose_path
from heatkv.config import ModelConfig, model_config
from heatkv.scales import ScaleSchedule
from tests.benchmarks.harness import Goal, Result, Row, Times, take_turns
from tests.benchmarks.layers import filled_cache, one_layer, random_keys_values, random_queries, visible_at
from tests.benchmarks.workload import DTYPE, MODEL, SEED

DISTRIBUTIONS = ("bimodal", "log-normal")

_SIDES = (24, 32, 64)
_BUDGET = 0.1
_SWEEP_SIDES = (16, 32)
_SWEEP = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
_LEAST_SHARE = {"cpu": 0.95, "cuda": 0.8}
"""Of the speed-up that the number of keys allows."""
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A shape of the benchmark: one layer at the scale with this side."""

    config: ModelConfig
    scales: ScaleSchedule
    query_scale: int
    device: str

    @property
    def tokens(self) -> int:
        return self.scales.tokens[self.query_scale]

    @property
    def past_tokens(self) -> int:
        return self.scales.offsets[self.query_scale]


def run(
    *,
    quick: bool = False,
    device: str = "cpu",
    model: str = MODEL,
    resolution: str | None = "1M",
    sides: Sequence[int] | None = None,
    sweep_sides: Sequence[int] | None = None,
    budgets: Sequence[float] = _SWEEP,
) -> Result:
    """Rows at a tenth of the history for `sides`, then all `budgets` for `sweep_sides`; sides of the query scale."""
    config = model_config(model)
    scales = config.schedule_for(resolution)
    repeats = 3 if quick else 7
    layers = {side: Layer(config, scales, scales.sizes.index((side, side)), device) for side, _ in scales.sizes}
    rows: list[Row] = []
    for side in sides or (_SIDES[:2] if quick else _SIDES):
        for distribution in DISTRIBUTIONS:
            rows += _at_one_budget(layers[side], distribution, 3 if side >= 64 else repeats)
    for side in sweep_sides or (_SWEEP_SIDES[:1] if quick else _SWEEP_SIDES):
        for distribution in DISTRIBUTIONS:
            rows += [_swept(layers[side], distribution, budget, repeats) for budget in budgets]
    path = choose_path(device, dtype=DTYPE, head_dim=config.head_dim)
    title = f"ragged attention, path {path.name}, {config.num_heads} heads x {config.head_dim}, bfloat16, 2 rows"
    return Result(title, "dense attention over all keys", repeats, SEED, tuple(rows), device)


def kept_scales(
    distribution: str, *, tokens: Sequence[int], sinks: int, num_heads: int, budget: float, seed: int = SEED
) -> NDArray[np.bool_]:
    """Which source scales each head keeps, [head, source_scale]: the sinks, then what fits into the budget.

    `tokens`: of the stored scales. bimodal: head after head takes all it can, the largest scales first. log-normal:
    heads differ in need, and draw scales accordingly.
    """
    random = np.random.default_rng(seed)
    if distribution == "bimodal":
        order = [(head, scale) for head in range(num_heads) for scale in reversed(range(sinks, len(tokens)))]
    else:
        need = random.normal(size=(num_heads, 1)) + random.gumbel(size=(num_heads, len(tokens)))
        ranked = np.argsort(-need, axis=None)
        order = [divmod(int(place), len(tokens)) for place in ranked]
    kept = np.zeros((num_heads, len(tokens)), np.bool_)
    kept[:, :sinks] = True
    left = budget * num_heads * sum(tokens) - num_heads * sum(tokens[:sinks])
    for head, scale in order:
        if not kept[head, scale] and tokens[scale] <= left:
            kept[head, scale] = True
            left -= tokens[scale]
    return kept


def _at_one_budget(layer: Layer, distribution: str, repeats: int) -> Iterator[Row]:
    times, ceiling, dense = _measure(layer, distribution, _BUDGET, repeats)
    side = layer.scales.sizes[layer.query_scale][0]
    name = f"{side}x{side} at {_BUDGET}, {distribution}"
    half = Goal("at most", 0.5) if side >= 64 and distribution == "bimodal" and layer.device == "cpu" else None
    yield times.row(f"{name}: ragged ÷ dense", "ragged", dense, goal=half, note=f"dense: {dense}")
    yield times.row(f"{name}: ragged ÷ dense that concatenates", "ragged", "concatenated")
    shares = [1 / ratio / ceiling for ratio in times.ratios("ragged", dense)]
    goal = Goal("at least", _LEAST_SHARE[layer.device]) if side >= (24 if layer.device == "cpu" else 64) else None
    spread, share = (min(shares), max(shares)), median(shares)
    yield Row(f"{name}: speed-up ÷ ceiling", share * ceiling, "", ceiling, share, spread, goal, "ceiling: keys ÷ keys")


def _swept(layer: Layer, distribution: str, budget: float, repeats: int) -> Row:
    times, ceiling, dense = _measure(layer, distribution, budget, repeats)
    side = layer.scales.sizes[layer.query_scale][0]
    goal = Goal("at most", 1.02) if layer.device == "cpu" else None
    over_free = median(times.ratios("ragged", dense))
    note = f"over dense that need not concatenate {over_free:.3f}; {1 / ceiling:.3f} of the keys"
    return times.row(f"{side}x{side} at {budget}, {distribution}", "ragged", "concatenated", goal=goal, note=note)


def _measure(layer: Layer, distribution: str, budget: float, repeats: int) -> tuple[Times, float, str]:
    """Times of `ragged`, of `concatenated` and of each dense backend; the token ceiling; the best backend."""
    config, scales, scale, device = layer.config, layer.scales, layer.query_scale, layer.device
    sinks = min(config.sink_scales, scale)
    stored = kept_scales(
        distribution, tokens=scales.tokens[:scale], sinks=sinks, num_heads=config.num_heads, budget=budget
    )
    kept = np.zeros((config.num_heads, scales.num_scales), np.bool_)
    kept[:, :scale] = stored
    cache = filled_cache(one_layer(kept, scales, sinks), scale, head_dim=config.head_dim, device=device)
    visible = visible_at(cache, scale, head_dim=config.head_dim, device=device)
    q = random_queries((config.num_heads, layer.tokens, config.head_dim), device=device)
    path = choose_path(device, dtype=DTYPE, head_dim=config.head_dim)
    past = random_keys_values((config.num_heads, layer.past_tokens, config.head_dim), device=device)
    whole = [torch.cat(parts, dim=2) for parts in zip(past, (visible.keys, visible.values), strict=True)]
    dense = _dense_ways(q, whole, device)

    def concatenated() -> Tensor:
        keys = torch.cat((past[0], visible.keys), dim=2)
        return _attention(q, keys, torch.cat((past[1], visible.values), dim=2))

    variants = {"ragged": lambda: attend(q, visible, scales, path=path).out, "concatenated": concatenated, **dense}
    times = take_turns(variants, repeats=repeats, least_s=0.1, device=device)
    read = int(visible.read_tokens(scales.num_scales).sum())
    ceiling = config.num_heads * (layer.past_tokens + layer.tokens) / read
    return times, ceiling, min(dense, key=times.median)


def _dense_ways(q: Tensor, keys_values: Sequence[Tensor], device: str) -> dict[str, Callable[[], Tensor]]:
    """Dense attention by each backend that can."""
    if device == "cpu":
        return {"SDPA": functools.partial(_attention, q, *keys_values)}
    ways = {name: functools.partial(_by_backend, kind, q, *keys_values) for name, kind in _BACKENDS.items()}
    return {name: way for name, way in ways.items() if _works(way)}


def _works(way: Callable[[], Tensor]) -> bool:
    try:
        way()
    except RuntimeError:  # what PyTorch raises for a backend that cannot
        return False
    return True


def _by_backend(kind: SDPBackend, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    with sdpa_kernel(kind):
        return _attention(q, keys, values)


def _attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, keys, values, scale=1.0)
