"""The HeatKV planner beside a straightforward construction of the same schedules from sets, in one sitting.

`python tests/benchmarks/bench_planner.py [--json]`, from the root of the repository. Orders are random, as the
cost does not depend on them; every pair of schedules is compared before it is timed.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.config import ModelConfig, model_config
from heatkv.orders import HeadOrders
from heatkv.policies.heatkv import HeatKVPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from heatkv.scales import ScaleSchedule

_CASES = (("infinity-2b", 0.02), ("infinity-2b", 0.1), ("infinity-2b", 0.5), ("infinity-8b", 0.1))
_SEED = 0
_REPEATS = 5
_GOAL_S = 0.010

Atom = tuple[int, int, int]
"""(source_scale, head, layer)."""


def run() -> dict[str, Any]:  # Any: JSON values
    """Rows of (name, ours_s, other_s, ratio, note): medians of both sides, interleaved; ratio = other / ours."""
    rows = [_measure(model_config(name), budget) for name, budget in _CASES]
    return {"name": "planner", "seed": _SEED, "repeats": _REPEATS, "other": "construction from sets", "rows": rows}


def main() -> None:
    result = run()
    if "--json" in sys.argv[1:]:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    for row in result["rows"]:
        times = f"{row['ours_s'] * 1e3:8.2f} ms  sets {row['other_s'] * 1e3:8.1f} ms  {row['ratio']:6.0f}×"
        sys.stdout.write(f"{row['name']:32} {times}  {row['note']}\n")


def random_orders(config: ModelConfig, scales: ScaleSchedule, sink_scales: int, seed: int) -> HeadOrders:
    """Orders for every source scale, each a seeded random permutation."""
    random = np.random.default_rng(seed)
    num_slots = config.num_layers * config.num_heads
    slots = [random.permutation(num_slots) for _ in range(sink_scales, scales.num_scales - 1)]
    ranked = np.array(slots, dtype=np.int32).reshape(-1, num_slots)
    return HeadOrders(ranked, sink_scales, config.num_layers, config.num_heads, f"random, seed {seed}")


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


def _measure(config: ModelConfig, budget: float) -> dict[str, Any]:  # Any: JSON values
    scales, sinks = config.schedule_for("1M"), config.sink_scales
    orders = random_orders(config, scales, sinks, _SEED)
    policy = HeatKVPolicy(orders)

    def ours() -> NDArray[np.int16]:
        return policy.plan(config, scales, budget=budget).drop_step

    def other() -> NDArray[np.int16]:
        return plan_from_sets(config, scales, orders, budget=budget, sink_scales=sinks)

    if not np.array_equal(ours(), other()):
        raise AssertionError(f"{config.name} at {budget}: the two constructions disagree")
    times = [(_seconds(ours), _seconds(other)) for _ in range(_REPEATS)]
    ours_s, other_s = (statistics.median(side) for side in zip(*times, strict=True))
    note = f"same schedule; goal {_GOAL_S * 1e3:.0f} ms {'met' if ours_s <= _GOAL_S else 'MISSED'}"
    name = f"plan {config.name} 1M at {budget}"
    return {"name": name, "ours_s": ours_s, "other_s": other_s, "ratio": other_s / ours_s, "note": note}


def _seconds(call: Callable[[], object]) -> float:
    begin_s = time.perf_counter()
    call()
    return time.perf_counter() - begin_s


if __name__ == "__main__":
    main()
