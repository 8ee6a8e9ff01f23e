"""Bytes: what a cache allocates over what its budget allows, and what a whole process takes.

The plans at 1M go through the real cache step by step, on PyTorch's meta device: same tensors, same slots, nothing
written. The reference implementation's slabs, for the same published orders and budgets, are recorded numbers of its
own planner; it stores keys in float32. The measured generation has a process of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

from heatkv.budget import budget_bytes
from heatkv.cache import KVCache
from heatkv.config import ModelConfig, model_config
from heatkv.schedule import PruningSchedule
from tests.benchmarks.harness import Goal, Result, Row
from tests.benchmarks.layers import random_keys_values
from tests.benchmarks.workload import DTYPE, MODEL, ROWS, SEED, Footprint, footprint, golden_file, orders_of, plan

_BUDGETS = (0.05, 0.1, 0.2, 0.5)
_MEASURED_BUDGET = 0.1
_TIGHT_BUDGET = 0.05
"""Up to here the index weighs more, and the goal is wider."""
_FLOAT32_KEYS = 1.5
"""Bytes of float32 keys and bfloat16 values over bfloat16 keys and values."""


def run(
    *,
    quick: bool = False,
    device: str = "cpu",
    model: str = MODEL,
    resolution: str | None = "1M",
    measured_resolution: str | None = None,
    budgets: Sequence[float] = _BUDGETS,
) -> Result:
    """Planned rows are the same on every device, and given for the CPU; measured ones come from a generation."""
    measured = measured_resolution or ("0.06M" if quick else "0.25M")
    config = model_config(model)
    planned = [row for budget in budgets for row in _planned(config, resolution, budget)] if device == "cpu" else []
    found = footprint(model, measured, _MEASURED_BUDGET, device)
    rows = (*planned, *_measured(found, f"{measured} at {_MEASURED_BUDGET}", device))
    return Result(f"bytes, {model} in bfloat16", "the budget's bytes, or the prediction", 1, SEED, rows, device)


def allocated_bytes(schedule: PruningSchedule, head_dim: int) -> int:
    """The most that a cache holds in a run of this schedule, read from the cache after each step."""
    cache = KVCache(schedule, rows=ROWS, head_dim=head_dim, dtype=DTYPE, device="meta")
    most = cache.storage_bytes
    for query_scale, tokens in enumerate(schedule.scales.tokens):
        keys, values = random_keys_values((schedule.num_heads, tokens, head_dim), device="meta")
        for layer in range(schedule.num_layers):
            cache.store(layer, query_scale=query_scale, keys=keys, values=values)
            most = max(most, cache.storage_bytes)
    return most


def _planned(config: ModelConfig, resolution: str | None, budget: float) -> Iterator[Row]:
    scales = config.schedule_for(resolution)
    schedule = plan(config, scales, budget)
    allowed = budget_bytes(budget, config, scales, rows=ROWS)
    allocated = allocated_bytes(schedule, config.head_dim)
    name = f"plan {scales.resolution} at {budget}"
    yield Row(
        f"{name}: pool and index",
        allocated,
        "bytes",
        allowed,
        allocated / allowed,
        None,
        _goal(budget),
        orders_of(schedule),
    )
    if orders_of(schedule) != "published orders" or scales != config.schedule_for("1M"):
        return
    for slab in ("static", "tight"):
        found = _slab_bytes(slab, budget, config)
        if found is not None:
            yield _compared(f"{name}: reference, {slab} slabs, bfloat16", found, allowed)
            yield _compared(f"{name}: reference, {slab} slabs, float32 keys", found * _FLOAT32_KEYS, allowed)


def _measured(found: Footprint, name: str, device: str) -> Iterator[Row]:
    goal = _goal(_MEASURED_BUDGET)
    yield _compared(f"run {name}: pool and index", found.storage_bytes, found.budget_bytes, goal, found.orders)
    yield _compared(f"run {name}: tokens held", found.accounted_bytes, found.budget_bytes)
    predicted = found.storage_bytes + found.transient_bytes
    if device == "cuda":
        whole = predicted + found.weight_bytes
        within = Goal("at most", 1.05)
        yield _compared(
            f"run {name}: allocator peak", found.peak_bytes, whole, within, "other: weights, pool, tensors of one scale"
        )
        return
    taken, first_use = found.peak_bytes - found.loaded_bytes, found.warm_bytes - found.loaded_bytes
    yield _compared(
        f"run {name}: peak RSS - weights", taken, predicted, note="other: pool, index, tensors of one scale"
    )
    yield Row("predicted of it: pool and index", found.storage_bytes, "bytes")
    yield Row("predicted of it: tensors of one scale", found.transient_bytes, "bytes")
    yield Row(
        "residual of it: first use", first_use, "bytes", note="code, thread buffers, allocator, after a tiny generation"
    )
    yield Row(
        "residual of it: everything else", taken - predicted - first_use, "bytes", note="scratch of oneDNN, malloc"
    )
    yield Row("weights", found.weight_bytes, "bytes", note="in no row above")


def _compared(name: str, found: float, other: float, goal: Goal | None = None, note: str = "") -> Row:
    return Row(name, found, "bytes", other, found / other, None, goal, note)


def _goal(budget: float) -> Goal:
    return Goal("at most", 1.05 if budget <= _TIGHT_BUDGET else 1.03)


def _slab_bytes(kind: str, budget: float, config: ModelConfig) -> float | None:
    """Bytes of the reference's slabs with bfloat16 keys and values; None where they are not known."""
    path = golden_file("heatkv_2b_slab.json")
    known = json.loads(path.read_text(encoding="utf-8"))["budgets"].get(f"{budget:g}") if path else None
    if known is None:
        return None
    return math.fsum(known[f"{kind}_slab_slots_per_layer"]) * config.kv_bytes_per_token(rows=ROWS)
