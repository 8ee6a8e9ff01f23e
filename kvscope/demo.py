"""The job of `kvscope demo`: the bundled model under HeatKV. Where its weights are absent, it says so."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from heatkv.bundled import bundled_weights
from heatkv.config import MODELS
from kvscope.job import Job
from kvscope.options import DEFAULT_PROMPT

MODEL = "infinity-tiny"
BUDGET = 0.2
_CALIBRATION_PROMPTS = 2


def demo_job(narrate: Callable[[str], None]) -> Job:
    """A job whose orders are the bundled ones, or, without weights, measured here on random ones."""
    trained = bundled_weights(MODELS[MODEL]) is not None
    if not trained:
        narrate(
            f"{MODEL} comes without trained weights in this version: random ones stand in, the picture means nothing"
        )
    return Job(
        prompt=DEFAULT_PROMPT,
        model=MODEL,
        policy="heatkv",
        budget=BUDGET,
        orders=None if trained else str(_measured_orders()),
        random_weights=not trained,
        attention_mass=True,
    )


def _measured_orders() -> Path:
    """Orders from a short calibration of the random model."""
    # Deferred: torch, which the rest of kvscope never imports.
    from heatkv.calibrate import measure_prompt
    from heatkv.pipeline import Pipeline

    pipeline = Pipeline.random(MODELS[MODEL])
    scales, sinks = pipeline.config.schedule_for(), pipeline.config.sink_scales
    parts = [
        measure_prompt(pipeline.transformer, pipeline.encoder, scales, DEFAULT_PROMPT, seed=seed, sink_scales=sinks)
        for seed in range(_CALIBRATION_PROMPTS)
    ]
    for part in parts[1:]:
        parts[0].merge(part)
    return parts[0].scores().orders().save(Path(tempfile.mkdtemp()) / "orders.json")
