"""The HeatKV planner beside a straightforward construction of the same schedules from sets, and the knapsack beside it.

Orders are random, as the cost does not depend on them; every pair of schedules is compared before it is timed. What
the knapsack weighs is random too, log-normal round the tokens of a scale.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from heatkv.config import ModelConfig, model_config
from heatkv.measurements import Measurements
from heatkv.orders import HeadOrders
from heatkv.policies import make_policy
from heatkv.policies.heatkv import HeatKVPolicy
from tests.benchmarks.harness import Goal, Result, Row, take_turns
from tests.benchmarks.workload import SEED, random_orders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from heatkv.scales import ScaleSchedule

_CASES = (("infinity-2b", 0.02), ("infinity-2b", 0.1), ("infinity-2b", 0.5), ("infinity-8b", 0.1))
_GOAL = Goal("at most", 0.010, of_value=True)
_KNAPSACKS = ("knapsack", "knapsack:codecs=k4v2", "knapsack:codecs=int4+k4v2", "knapsack:codecs=int8+int4")
_KNAPSACK_GOAL = Goal("at most", 1.0, of_value=True)

Atom = tuple[int, int, int]
"""(source_scale, head, layer)."""


def run(*, quick: bool = False, cases: Sequence[tuple[str, float]] = _CASES) -> Result:
    """Plans at 1M; `cases`: models and budgets."""
    repeats = 3 if quick else 7
    rows = [_measure(model_config(name), budget, repeats) for name, budget in cases]
    knapsacks = _KNAPSACKS[:1] if quick else _KNAPSACKS
    rows += [_measure_knapsack(name, budget, repeats) for name in knapsacks for budget in (0.1, 0.05)]
    return Result("planning a schedule at 1M", "construction from sets; knapsack: HeatKV", repeats, SEED, tuple(rows))


def plan_from_sets(
    config: ModelConfig, scales: ScaleSchedule, orders: HeadOrders, *, budget: float, sink_scales: int
) -> NDArray[np.int16]:
    """drop_step of the HeatKV schedule, built as the method is described: sets of atoms, one checkpoint at a time."""
    num_layers, num_slots = config.num_layers, config.num_layers * config.num_heads
    tokens, history = scales.tokens, scales.history_tokens
    threshold = budget * config.num_layers * config.num_heads * history + 1e-12 * num_slots * history
    ranked = {source: _atoms(orders, source) for source in range(sink_scales, scales.num_scales - 1)}
    rank = {atom: position for atoms in ranked.values() for position, atom in enumerate(atoms)}
    dropped_at: dict[Atom, int] = {}
    for scale in range(scales.num_scales - 1):
        count = _removed_count(budget, scales, sink_scales, num_slots, done=scale)
        target = {atom for source in range(sink_scales, scale + 1) for atom in ranked[source][:count]}
        for layer in range(num_layers):
            step = scale * num_layers + layer
            for atom in target - dropped_at.keys():
                if atom[2] <= layer:
                    dropped_at[atom] = step
            written = num_slots * sum(tokens[:scale]) + config.num_heads * (layer + 1) * tokens[scale]
            held = written - sum(tokens[source] for source, _, _ in dropped_at)
            if held <= threshold:
                continue
            later = [atom for atom in target - dropped_at.keys() if atom[0] < scale]
            for atom in sorted(later, key=lambda one: (-one[2], -one[0], rank[one])):
                if held <= threshold:
                    break
                dropped_at[atom] = step
                held -= tokens[atom[0]]
    return _as_drop_step(dropped_at, config, scales)


def _atoms(orders: HeadOrders, source_scale: int) -> list[Atom]:
    slots = orders.for_source(source_scale).tolist()
    return [(source_scale, slot % orders.num_heads, slot // orders.num_heads) for slot in slots]


def _removed_count(budget: float, scales: ScaleSchedule, sink_scales: int, num_slots: int, *, done: int) -> int:
    cached, sink_tokens = sum(scales.tokens[: done + 1]), sum(scales.tokens[:sink_scales])
    allowed = max(budget * scales.history_tokens, sink_tokens)
    if cached <= allowed:
        return 0
    return min(num_slots, math.ceil(num_slots * (cached - allowed) / (cached - sink_tokens)))


def _as_drop_step(dropped_at: dict[Atom, int], config: ModelConfig, scales: ScaleSchedule) -> NDArray[np.int16]:
    last_scale_step = (scales.num_scales - 1) * config.num_layers
    shape = (config.num_layers, config.num_heads, scales.num_scales)
    drop_step = np.full(shape, scales.num_scales * config.num_layers - 1, dtype=np.int16)
    drop_step[:, :, -1] = last_scale_step + np.arange(config.num_layers)[:, None]
    for (source, head, layer), step in dropped_at.items():
        drop_step[layer, head, source] = step
    return drop_step


def _measure(config: ModelConfig, budget: float, repeats: int) -> Row:
    scales, sinks = config.schedule_for("1M"), config.sink_scales
    orders = random_orders(config, scales, sinks, SEED)
    policy = HeatKVPolicy(orders)

    def ours() -> NDArray[np.int16]:
        return policy.plan(config, scales, budget=budget).drop_step

    def from_sets() -> NDArray[np.int16]:
        return plan_from_sets(config, scales, orders, budget=budget, sink_scales=sinks)

    if not np.array_equal(ours(), from_sets()):
        raise AssertionError(f"{config.name} at {budget}: the two constructions disagree")
    times = take_turns({"ours": ours, "sets": from_sets}, repeats=repeats, least_s=0.02)
    return times.row(f"{config.name} at {budget}", "ours", "sets", goal=_GOAL, note="same schedule")


def _measure_knapsack(name: str, budget: float, repeats: int) -> Row:
    config = model_config("infinity-2b")
    scales, sinks = config.schedule_for("1M"), config.sink_scales
    shape = (scales.num_scales, config.num_layers, config.num_heads, scales.num_scales)
    lost = np.random.default_rng(SEED).lognormal(0, 2, shape) * scales.tokens
    knapsack = make_policy(name, {"measurements": Measurements(output_error=lost, output_error_uncond=lost)})
    heatkv = HeatKVPolicy(random_orders(config, scales, sinks, SEED))
    times = take_turns(
        {
            "knapsack": lambda: knapsack.plan(config, scales, budget=budget, sink_scales=sinks),
            "heatkv": lambda: heatkv.plan(config, scales, budget=budget),
        },
        repeats=repeats,
        least_s=0.02,
    )
    return times.row(f"{name} at {budget}", "knapsack", "heatkv", goal=_KNAPSACK_GOAL, note="infinity-2b; ÷ HeatKV")
