"""Prompts → attention mass → S-CAS: what tools/compute_scas.py of the reference measures, over our own generate.

The model is unpruned while it is measured; only the conditional row counts; the seed of prompt i is `seed` + i.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from heatkv.generate import Sampling, generate
from heatkv.probe import Capture, NullProbe, StepInfo
from heatkv.scas import ScasAccumulator

if TYPE_CHECKING:
    from heatkv.scales import ScaleSchedule
    from heatkv.text_encoder import TextEncoder
    from heatkv.transformer import Infinity


class ScasProbe(NullProbe):
    """Adds every step's attention mass to an accumulator."""

    capture = Capture(mass=True, bit_exact=False)

    def __init__(self, accumulator: ScasAccumulator) -> None:
        self._accumulator = accumulator

    def step_done(self, step: StepInfo) -> None:
        assert step.attention_mass is not None
        self._accumulator.add(step.query_scale, step.layer, step.attention_mass.cpu().double().numpy())


class MassProbe(NullProbe):
    """Keeps every step's attention mass: `mass` [query_scale, layer, head, source_scale] float32, NaN where none is."""

    capture = Capture(mass=True, bit_exact=False)

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.mass = np.full(shape, np.nan, np.float32)

    def step_done(self, step: StepInfo) -> None:
        assert step.attention_mass is not None
        self.mass[step.query_scale, step.layer] = step.attention_mass.float().cpu().numpy()


def measure_prompt(
    model: Infinity,
    encoder: TextEncoder,
    scales: ScaleSchedule,
    prompt: str,
    *,
    seed: int,
    sink_scales: int,
    sampling: Sampling | None = None,
) -> ScasAccumulator:
    """The mass of one prompt's full-cache run; merge the accumulators of many and ask for their scores."""
    config = model.config
    accumulator = ScasAccumulator(config.num_layers, config.num_heads, scales.num_scales, sink_scales)
    generate(model, encoder.encode([prompt]), scales, sampling=sampling, seed=seed, probe=ScasProbe(accumulator))
    accumulator.prompts += 1
    return accumulator
