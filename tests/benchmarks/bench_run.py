"""Whole generations of the true Infinity-2B geometry at 256x256, random weights: what pruning, measuring attention and
recording change, each beside the plain full-cache run in the same process. No VAE, no text encoder.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heatkv.checkpoint import random_transformer
from heatkv.config import model_config
from heatkv.generate import generate
from heatkv.orders import HeadOrders
from heatkv.policies.heatkv import HeatKVPolicy
from heatkv.probe import NullProbe, Probe, StepInfo
from heatkv.schedule import PruningSchedule
from heatkv.text_encoder import RandomTextEncoder
from kvscope.job import Job
from kvscope.recorder import Recorder

_MODEL, _RESOLUTION, _BUDGET = "infinity-2b", "0.06M", 0.1
_REPEATS = 3


class _Peak(NullProbe):
    def __init__(self, *, mass: bool = False) -> None:
        self.wants_attention_mass = mass
        self.stored = 0

    def step_done(self, step: StepInfo) -> None:
        self.stored = max(self.stored, step.storage_bytes)


def run() -> dict[str, Any]:  # Any: JSON values
    """Rows of (name, ours_s, other_s, ratio, note): medians, variants interleaved; ratio = ours / other, full = 1."""
    config = model_config(_MODEL)
    scales = config.schedule_for(_RESOLUTION)
    model = random_transformer(config, dtype=torch.bfloat16, device="cpu", seed=0)
    texts = RandomTextEncoder(config).encode(["a red sports car on a mountain road"])
    random = np.random.default_rng(0)
    slots = [random.permutation(config.num_layers * config.num_heads) for _ in range(9)]
    orders = HeadOrders(np.array(slots, np.int32), 3, config.num_layers, config.num_heads, "random")
    pruned = HeatKVPolicy(orders).plan(config, scales, budget=_BUDGET)
    stored: dict[str, int] = {}

    def timed(name: str, schedule: PruningSchedule | None, probe: Probe) -> float:
        begin = time.perf_counter()
        generate(model, texts, scales, schedule=schedule, seed=1, probe=probe)
        taken = time.perf_counter() - begin
        if isinstance(probe, _Peak):
            stored[name] = probe.stored
        return taken

    variants: dict[str, Callable[[str], float]] = {
        "full": lambda name: timed(name, None, _Peak()),
        "heatkv at 0.1": lambda name: timed(name, pruned, _Peak()),
        "full, attention mass measured": lambda name: timed(name, None, _Peak(mass=True)),
        "full, recorded without mass": lambda name: _recorded(lambda probe: timed(name, None, probe)),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(_REPEATS):
        for name, variant in variants.items():
            times[name].append(variant(name))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "name": f"{_MODEL} {_RESOLUTION}, bfloat16, 2 rows, {torch.get_num_threads()} threads",
        "seed": 1,
        "repeats": _REPEATS,
        "other": "the full cache, nothing measured, nothing recorded",
        "rows": [_row(name, medians, times[name], stored) for name in variants],
    }


def _recorded(run_with: Callable[[Probe], float]) -> float:
    job = Job(prompt="bench", model=_MODEL, policy="full", resolution=_RESOLUTION, random_weights=True)
    with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder) / "bench.h5", job) as recorder:
        return run_with(recorder)


def _row(name: str, medians: dict[str, float], taken: list[float], stored: dict[str, int]) -> dict[str, Any]:
    bytes_note = f"stored peak {stored[name] / stored['full']:.4f} of full, " if name in stored else ""
    spread = f"{min(taken):.1f} to {max(taken):.1f} s"
    ratio = medians[name] / medians["full"]
    return {
        "name": name,
        "ours_s": medians[name],
        "other_s": medians["full"],
        "ratio": ratio,
        "note": bytes_note + spread,
    }
