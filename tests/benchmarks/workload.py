"""What the benchmarks run: a model with random weights, plans for it, whole generations and what they take.

Random weights cost the same time and bytes as trained ones. Default geometry: the true Infinity-2B.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from heatkv.budget import budget_bytes
from heatkv.checkpoint import random_transformer
from heatkv.config import ModelConfig, model_config
from heatkv.generate import Generation, generate
from heatkv.online import OnlinePlan
from heatkv.orders import HeadOrders
from heatkv.policies.full import FullPolicy
from heatkv.policies.heatkv import HeatKVPolicy
from heatkv.probe import Capture, NullProbe, ScaleInfo, StepInfo
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from heatkv.text_encoder import RandomTextEncoder
from heatkv.transformer import Infinity
from tests.benchmarks.memory import held_bytes, in_fresh_process, most_tensor_bytes, peak_bytes

MODEL = "infinity-2b"
SEED = 0
ROWS = 2
"""Conditional and unconditional: one image with guidance."""
DTYPE = torch.bfloat16

_PROMPT = "a red sports car on a mountain road"


class Watch(NullProbe):
    """Notes what a run stores at most, and when its scales end."""

    def __init__(self, capture: Capture | None = None) -> None:
        self.capture = capture or Capture()
        self.storage_bytes = 0
        self.accounted_bytes = 0
        self.ends: list[float] = []

    def step_done(self, step: StepInfo) -> None:
        self.storage_bytes = max(self.storage_bytes, step.storage_bytes)
        self.accounted_bytes = max(self.accounted_bytes, step.accounted_bytes)

    def scale_done(self, scale: ScaleInfo) -> None:
        self.ends.append(time.perf_counter())


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with random weights and a text, ready to generate."""

    model: Infinity
    texts: list[Tensor]
    scales: ScaleSchedule
    device: str

    @classmethod
    def load(cls, model: str, resolution: str | None, device: str) -> Subject:
        config = model_config(model)
        transformer = random_transformer(config, dtype=DTYPE, device=device, seed=SEED)
        return cls(transformer, texts_for(config, device), config.schedule_for(resolution), device)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))

    def at(self, resolution: str | None) -> Subject:
        """The same model at another resolution."""
        return Subject(self.model, self.texts, self.config.schedule_for(resolution), self.device)

    def generate(self, schedule: PruningSchedule | OnlinePlan | None = None, probe: Watch | None = None) -> Generation:
        planned, online = (None, schedule) if isinstance(schedule, OnlinePlan) else (schedule, None)
        return generate(self.model, self.texts, self.scales, schedule=planned, online=online, seed=SEED, probe=probe)

    def warm_up(self) -> None:
        """The first four scales: what a process does only once is done, at little cost."""
        generate(self.model, self.texts, ScaleSchedule.custom(self.scales.sizes[:4]), seed=SEED)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Time and memory of one whole generation in a process of its own."""

    scale_s: tuple[float, ...]
    """Seconds of each scale, sampling included."""
    weight_bytes: int
    loaded_bytes: float
    """Held when the weights were loaded; resident bytes on the CPU, bytes of tensors on CUDA. So are the next two."""
    warm_bytes: float
    """Held after a first, tiny generation."""
    peak_bytes: float
    """The most held during the generation."""
    storage_bytes: int
    """The most that the cache held, read from its tensors and arrays."""
    accounted_bytes: int
    budget_bytes: int
    transient_bytes: int
    """Predicted: tensors that live no longer than a scale."""
    orders: str


def footprint(model: str, resolution: str | None, budget: float | None, device: str) -> Footprint:
    """Generate one image, with HeatKV at a budget or with the full cache, in a process that does nothing else."""
    transient = in_fresh_process(transient_bytes, model_config(model), resolution, budget, device)
    return in_fresh_process(_footprint, model, resolution, budget, device, transient)


def _footprint(model: str, resolution: str | None, budget: float | None, device: str, transient: int) -> Footprint:
    subject = Subject.load(model, resolution, device)
    loaded = held_bytes(device)
    subject.warm_up()
    warm = held_bytes(device)
    schedule = plan(subject.config, subject.scales, budget)
    watch = Watch()
    begin = time.perf_counter()
    peak = peak_bytes(lambda: subject.generate(schedule, watch), device)
    allowed = budget_bytes(1.0 if budget is None else budget, subject.config, subject.scales, rows=ROWS)
    return Footprint(
        scale_s=tuple(np.diff([begin, *watch.ends]).tolist()),
        weight_bytes=subject.weight_bytes,
        loaded_bytes=loaded,
        warm_bytes=warm,
        peak_bytes=peak,
        storage_bytes=watch.storage_bytes,
        accounted_bytes=watch.accounted_bytes,
        budget_bytes=allowed,
        transient_bytes=transient,
        orders=orders_of(schedule),
    )


def transient_bytes(config: ModelConfig, resolution: str | None, budget: float | None, device: str) -> int:
    """Predicted bytes of what lives no longer than a scale: tensors of a model with a single layer, its cache aside."""
    small = replace(config, num_layers=1, num_chunks=1)
    scales = small.schedule_for(resolution)
    orders = random_orders(small, scales, min(small.sink_scales, scales.num_scales - 1), SEED)
    schedule = FullPolicy().plan(small, scales)
    if budget is not None:
        schedule = HeatKVPolicy(orders).plan(small, scales, budget=budget)
    subject = Subject(
        random_transformer(small, dtype=DTYPE, device=device, seed=SEED), texts_for(small, device), scales, device
    )
    subject.generate(schedule)  # what is computed once and kept is not of a scale
    cache_bytes = schedule.peak_tokens * config.kv_bytes_per_token(rows=ROWS)
    return most_tensor_bytes(lambda: subject.generate(schedule)) - cache_bytes


def texts_for(config: ModelConfig, device: str) -> list[Tensor]:
    """Features of one prompt, random as the weights are."""
    return [text.to(device) for text in RandomTextEncoder(config).encode([_PROMPT])]


def stack_flops(config: ModelConfig, *, tokens: int, keys: int, text_tokens: int) -> float:
    """Useful operations of all layers at one scale: matrix products only, text keys not computed again."""
    width = config.width
    products = 2 * width * (3 * width + width + 2 * width + 2 * config.ffn_width)  # qkv, proj, cross q and proj, ffn
    attention = 4 * width * (keys + text_tokens)
    return float(config.num_layers * ROWS * tokens * (products + attention))


def plan(config: ModelConfig, scales: ScaleSchedule, budget: float | None) -> PruningSchedule:
    """HeatKV's schedule from the published orders where they are at hand, else random ones; None: everything kept."""
    if budget is None:
        return FullPolicy().plan(config, scales)
    published = golden_file("heatkv_2b_orders.json") if config.name == "infinity-2b" else None
    if published is None:
        orders = random_orders(config, scales, min(config.sink_scales, scales.num_scales - 1), SEED)
    else:
        orders = HeadOrders.load(published, config=config)
    return HeatKVPolicy(orders).plan(config, scales, budget=budget)


def orders_of(schedule: PruningSchedule) -> str:
    """What a plan was made from, in words."""
    if schedule.policy == "full":
        return "everything kept"
    source = str(schedule.provenance["orders"])
    return "random orders" if source.startswith("random") else "published orders"


def random_orders(config: ModelConfig, scales: ScaleSchedule, sink_scales: int, seed: int) -> HeadOrders:
    """Orders for every source scale, each a seeded random permutation."""
    random = np.random.default_rng(seed)
    num_slots = config.num_layers * config.num_heads
    slots = [random.permutation(num_slots) for _ in range(sink_scales, scales.num_scales - 1)]
    ranked = np.array(slots, dtype=np.int32).reshape(-1, num_slots)
    return HeadOrders(ranked, sink_scales, config.num_layers, config.num_heads, f"random, seed {seed}")


def golden_file(name: str) -> Path | None:
    """A file of the reference implementation's numbers, or None; looked for where the tests look."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "golden"
    path = Path(os.environ.get("KVSCOPE_GOLDEN", beside)) / name
    return path if path.is_file() else None
