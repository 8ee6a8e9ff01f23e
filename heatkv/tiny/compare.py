"""How far pruned runs of infinity-tiny depart from full-cache runs: rankings beside each other at equal bytes.

Free: same seed, own bits. Forced: the full run's bits, so that only the cache differs. Knows no files and no CLI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatkv.budget import budget_from_tokens, minimum_budget
from heatkv.config import ModelConfig
from heatkv.generate import Generation
from heatkv.orders import HeadOrders
from heatkv.pipeline import Pipeline
from heatkv.policies.heatkv import HeatKVPolicy
from heatkv.probe import NullProbe, ScaleInfo, StepInfo
from heatkv.schedule import PruningSchedule
from heatkv.tiny.detect import align
from heatkv.tiny.scenes import Scene

_BATCH = 25
_SHIFTS = np.linspace(-0.04, 0, 81)
_LEAST_SQUARED_ERROR = 0.01
"""Caps the PSNR of equal images at 68 dB, so that means stay finite."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts run together under one seed, and what the full cache made of them."""

    scenes: tuple[Scene, ...]
    seed: int
    full: Run

    def captions(self) -> list[str]:
        return [scene.caption for scene in self.scenes]


@dataclass(frozen=True, slots=True)
class Run:
    """What one batch came to."""

    bits: tuple[Tensor, ...]
    """Per scale, [batch, tokens, bits]."""
    chances: Tensor
    """[batch, all bits] float32: probability of a 1, after guidance."""
    images: NDArray[np.uint8]
    peak_bytes: int
    """Peak of accounted bytes, per image."""


@dataclass(frozen=True, slots=True)
class Row:
    """One ranking at one budget; every measure per prompt, [prompts]."""

    ranking: str
    budget: float | None
    peak_bytes: int
    measures: dict[str, NDArray[np.float64]]

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Means, each with the half width of its 95 % confidence interval."""
        numbers = {}
        for name, values in self.measures.items():
            half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
            numbers[name] = [round(float(values.mean()), 5), round(float(half), 5)]
        return {"ranking": self.ranking, "budget": self.budget, "peak_bytes": self.peak_bytes, **numbers}


def reference_runs(pipeline: Pipeline, scenes: Sequence[Scene], *, seed: int) -> tuple[Batch, ...]:
    """The full-cache runs that everything is compared to."""
    batches = []
    for begin in range(0, len(scenes), _BATCH):
        part = tuple(scenes[begin : begin + _BATCH])
        full = _run(pipeline, [scene.caption for scene in part], seed + begin, None, None)
        batches.append(Batch(part, seed + begin, full))
    return tuple(batches)


def rankings(orders: HeadOrders, *, num_random: int) -> dict[str, HeadOrders]:
    """HeatKV's own, reversed and random ones, by name."""
    shape = orders.first_source, orders.num_layers, orders.num_heads
    named = {"heatkv": orders, "reversed": HeadOrders(orders.slots[:, ::-1], *shape, source="reversed")}
    for seed in range(num_random):
        rng = np.random.default_rng(seed)
        slots = np.stack([rng.permutation(orders.slots.shape[1]) for _ in orders.slots]).astype(np.int32)
        named[f"random-{seed}"] = HeadOrders(slots, *shape, source=f"random-{seed}")
    return named


def compare(
    pipeline: Pipeline, batches: Sequence[Batch], orders: HeadOrders, *, budgets: Sequence[float], num_random: int = 5
) -> Iterator[Row]:
    """Full first, then every ranking at every budget, then the sinks alone.

    The peak that HeatKV's own ranking reaches at a budget is what the others are planned to, see `plan_to_peak`.
    """
    yield _row("full", None, batches, lambda batch: (batch.full, batch.full))
    scales = pipeline.config.schedule_for()
    for budget in budgets:
        peak = HeatKVPolicy(orders).plan(pipeline.config, scales, budget=budget).peak_tokens
        for name, ranked in rankings(orders, num_random=num_random).items():
            yield _pruned_row(pipeline, name, budget, batches, plan_to_peak(pipeline.config, ranked, peak))
    sinks = minimum_budget(scales, orders.first_source)
    schedule = HeatKVPolicy(orders).plan(pipeline.config, scales, budget=sinks)
    yield _pruned_row(pipeline, "sinks-only", sinks, batches, schedule)


def plan_to_peak(config: ModelConfig, orders: HeadOrders, peak_tokens: int) -> PruningSchedule:
    """The HeatKV schedule of these orders whose peak is nearest to `peak_tokens`, and not above.

    Head-scales go as wholes, so two rankings reach one budget with peaks that differ by a percent or so; nearby
    budgets are tried until the bytes are equal too.
    """
    scales = config.schedule_for()
    budgets = {budget_from_tokens(round(peak_tokens * (1 + shift)), config, scales) for shift in _SHIFTS}
    feasible = sorted(budget for budget in budgets if budget >= minimum_budget(scales, orders.first_source))
    schedules = [HeatKVPolicy(orders).plan(config, scales, budget=budget) for budget in feasible]
    return min(schedules, key=lambda schedule: abs(schedule.peak_tokens - peak_tokens))


def _pruned_row(
    pipeline: Pipeline, name: str, budget: float, batches: Sequence[Batch], schedule: PruningSchedule
) -> Row:
    def free_and_forced(batch: Batch) -> tuple[Run, Run]:
        captions = batch.captions()
        free = _run(pipeline, captions, batch.seed, schedule, None)
        return free, _run(pipeline, captions, batch.seed, schedule, batch.full.bits)

    return _row(name, budget, batches, free_and_forced)


def _row(name: str, budget: float | None, batches: Sequence[Batch], runs: Callable[[Batch], tuple[Run, Run]]) -> Row:
    measured: dict[str, list[NDArray[np.float64]]] = {}
    peak_bytes = 0
    for batch in batches:
        free, forced = runs(batch)
        peak_bytes = max(peak_bytes, free.peak_bytes)
        for measure, values in _measures(batch, free, forced).items():
            measured.setdefault(measure, []).append(values)
    return Row(name, budget, peak_bytes, {measure: np.concatenate(parts) for measure, parts in measured.items()})


def _measures(batch: Batch, free: Run, forced: Run) -> dict[str, NDArray[np.float64]]:
    full = batch.full
    aligned = [align(image, scene) for image, scene in zip(free.images, batch.scenes, strict=True)]
    same_free = torch.cat([(a == b).flatten(1) for a, b in zip(free.bits, full.bits, strict=True)], 1)
    same_forced = (forced.chances > 0.5) == (full.chances > 0.5)
    return {
        "psnr": _psnr(free.images, full.images),
        "chance_change_forced": (forced.chances - full.chances).abs().mean(1).double().numpy(),
        "agreement_free": same_free.double().mean(1).numpy(),
        "agreement_forced": same_forced.double().mean(1).numpy(),
        "chance_change_free": (free.chances - full.chances).abs().mean(1).double().numpy(),
        "colour": np.array([one.colour for one in aligned]),
        "shape": np.array([one.shape for one in aligned]),
        "position": np.array([one.position for one in aligned]),
        "all_right": np.array([one.all_right for one in aligned]),
    }


def _psnr(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    error = ((images.astype(np.float64) - others) ** 2).mean(axis=(1, 2, 3))
    return np.asarray(10 * np.log10(255**2 / np.maximum(error, _LEAST_SQUARED_ERROR)))


def _run(
    pipeline: Pipeline,
    captions: Sequence[str],
    seed: int,
    schedule: PruningSchedule | None,
    forced_bits: tuple[Tensor, ...] | None,
) -> Run:
    listener = _Listener()
    made: Generation = pipeline.generate(
        captions, schedule=schedule, seed=seed, forced_bits=forced_bits, probe=listener
    )
    assert made.image is not None
    return Run(made.bits, torch.cat(listener.chances, 1), made.image.numpy(), listener.peak_bytes // len(captions))


class _Listener(NullProbe):
    def __init__(self) -> None:
        self.chances: list[Tensor] = []
        self.peak_bytes = 0

    def step_done(self, step: StepInfo) -> None:
        self.peak_bytes = max(self.peak_bytes, step.accounted_bytes)

    def scale_done(self, scale: ScaleInfo) -> None:
        self.chances.append(scale.logits.unflatten(-1, (-1, 2)).softmax(-1)[..., 1].flatten(1))
