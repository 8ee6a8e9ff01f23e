"""Prompts → attention mass → S-CAS: what tools/compute_scas.py of the reference measures, over our own generate.

The model is unpruned while it is measured; only the conditional row counts; the seed of prompt i is `seed` + i.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from heatkv.errors import HeatKVError
from heatkv.generate import Sampling, generate
from heatkv.probe import NullProbe, StepInfo
from heatkv.scas import ScasAccumulator

if TYPE_CHECKING:
    from heatkv.scales import ScaleSchedule
    from heatkv.text_encoder import TextEncoder
    from heatkv.transformer import Infinity


class ScasProbe(NullProbe):
    """Adds every step's attention mass to an accumulator."""

    wants_attention_mass = True

    def __init__(self, accumulator: ScasAccumulator) -> None:
        self._accumulator = accumulator

    def step_done(self, step: StepInfo) -> None:
        assert step.attention_mass is not None
        self._accumulator.add(step.query_scale, step.layer, step.attention_mass.cpu().double().numpy())


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


def read_prompts(path: Path) -> list[str]:
    """Prompts of a .txt (one a line) or .jsonl (`prompt`, `caption` or `captions[0]`); blank lines are skipped."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise HeatKVError(f"{path}: cannot be read as prompts ({error}); expected text, one prompt a line") from None
    lines = [line for line in lines if line]
    prompts = [_json_prompt(path, line) for line in lines] if path.suffix == ".jsonl" else lines
    if not prompts:
        raise HeatKVError(f"{path}: holds no prompts; expected one a line")
    return prompts


def _json_prompt(path: Path, line: str) -> str:
    try:
        record = json.loads(line)
        prompt = record.get("prompt") or record.get("caption") or record["captions"][0]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise HeatKVError(f"{path}: no prompt in {line[:60]!r}; expected prompt, caption or captions") from None
    return str(prompt)
