"""Measures infinity-tiny: `python -m heatkv.tiny.evaluate gates`, `… heads` or `… policies`; JSON lines on stdout.

The gates are what weights must pass before they are committed; `heads` tells how S-CAS spreads over heads, and how
stable it is; `policies` is the table of rankings and budgets. Pictures are made from held-out captions only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heatkv.calibrate import measure_prompt
from heatkv.generate import Sampling
from heatkv.orders import HeadOrders
from heatkv.pipeline import DTYPES, Pipeline
from heatkv.probe import Capture, NullProbe, StepInfo
from heatkv.scas import ScasAccumulator, ScasScores
from heatkv.tiny.compare import compare, reference_runs
from heatkv.tiny.scenes import Scene, held_out_scenes, render, training_scenes
from heatkv.tiny.stages import CONFIG, alignment_scores, batched, to_tensor
from heatkv.vae import ResidualCodes

_BATCH = 32


@dataclass(frozen=True, slots=True)
class Gate:
    """One figure and the least it must be."""

    name: str
    least: float
    figure: float
    prompts: int

    @property
    def holds(self) -> bool:
        return self.figure >= self.least

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        figures = {"least": self.least, "figure": round(self.figure, 4), "prompts": self.prompts}
        return {"gate": self.name, "holds": self.holds, **figures}


def gates(pipeline: Pipeline, scenes: tuple[Scene, ...], *, sampling: Sampling, seed: int = 0) -> Iterator[Gate]:
    """Every gate in turn: detector, VAE, generated images, attention."""
    count, rng = len(scenes), np.random.default_rng(seed)
    pictures = np.stack([render(scene, rng) for scene in scenes])
    drawn = alignment_scores(pictures, scenes)
    rebuilt = alignment_scores(reconstruct(pipeline, pictures), scenes)
    made = alignment_scores(generate_pictures(pipeline, scenes, sampling=sampling, seed=seed), scenes)
    for what, scores, least in (
        ("detector on renders", drawn, {"colour": 0.99, "shape": 0.95}),
        ("vae reconstruction", rebuilt, {"colour": 0.98, "shape": 0.90}),
        ("generated", made, {"colour": 0.90, "shape": 0.85, "position": 0.85, "background": 0.0, "all_right": 0.0}),
    ):
        for part, bound in least.items():
            yield Gate(f"{what}: {part}", bound, scores[part], count)
    yield Gate("attention: distance from uniform", 0.15, float(np.mean(uniform_distance(pipeline, scenes[:64]))), 64)


def calibrate(pipeline: Pipeline, *, prompts: range, seed: int = 0) -> ScasScores:
    """S-CAS from training captions with these numbers; disjoint ranges are disjoint sets of captions."""
    scenes = training_scenes()
    order = np.random.default_rng(seed).permutation(len(scenes))
    scales = CONFIG.schedule_for()
    shape = CONFIG.num_layers, CONFIG.num_heads, scales.num_scales, CONFIG.sink_scales
    total = ScasAccumulator(*shape)
    sampling = Sampling(cfg=CONFIG.cfg, tau=CONFIG.tau)
    for index in prompts:
        caption = scenes[order[index]].caption
        measured = measure_prompt(
            pipeline.transformer,
            pipeline.encoder,
            scales,
            caption,
            seed=seed + index,
            sink_scales=CONFIG.sink_scales,
            sampling=sampling,
        )
        total.merge(measured)
    return total.scores()


def heads(pipeline: Pipeline, *, prompts: int, seed: int = 0) -> Iterator[dict[str, Any]]:  # Any: JSON objects
    """Per source scale: quantiles of S-CAS over heads, and the rank correlation of two halves of the prompts."""
    half = prompts // 2
    first = calibrate(pipeline, prompts=range(half), seed=seed)
    second = calibrate(pipeline, prompts=range(half, 2 * half), seed=seed)
    for source in first.sources:
        one, other = first.scores[:, :, source].ravel(), second.scores[:, :, source].ravel()
        spread = np.quantile((one + other) / 2, [0, 0.1, 0.5, 0.9, 1]).round(4).tolist()
        yield {
            "source_scale": source,
            "side": CONFIG.scales[source][0],
            "quantiles_0_10_50_90_100": spread,
            "rank_correlation": round(rank_correlation(one, other), 3),
            "prompts_per_half": half,
        }


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman's, for values without ties."""
    return float(np.corrcoef(one.argsort().argsort(), other.argsort().argsort())[0, 1])


def reconstruct(pipeline: Pipeline, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures through the VAE and its bits, and back."""
    codes = ResidualCodes.of(CONFIG, CONFIG.schedule_for())
    made = []
    with torch.inference_mode():
        for begin in range(0, len(pictures), _BATCH):
            images = to_tensor(list(pictures[begin : begin + _BATCH])).to(pipeline.vae.decoder.conv_in.weight.dtype)
            _, quantised = codes.quantise(pipeline.vae.encode(images).float())
            made.append(pipeline.vae.decode_rgb(quantised).numpy())
    return np.concatenate(made)


def generate_pictures(
    pipeline: Pipeline, scenes: Sequence[Scene], *, sampling: Sampling, seed: int
) -> NDArray[np.uint8]:
    """One full-cache picture per scene."""
    made = []
    for index, part in enumerate(batched(scenes, _BATCH)):
        done = pipeline.generate([scene.caption for scene in part], sampling=sampling, seed=seed + index)
        assert done.image is not None
        made.append(done.image.numpy())
    return np.concatenate(made)


def uniform_distance(pipeline: Pipeline, scenes: Sequence[Scene], *, seed: int = 0) -> NDArray[np.float64]:
    """How far each head's attention at the last scale is from uniform over all tokens: [layer, head], 0 to 1.

    Total variation between the mass per source scale and the scale's share of the visible tokens.
    """
    listener = _LastScaleMass()
    pipeline.generate([scene.caption for scene in scenes], seed=seed, probe=listener)
    tokens = np.array(CONFIG.schedule_for().tokens)
    mass = np.stack(listener.masses)
    return np.asarray(0.5 * np.abs(mass - tokens / tokens.sum()).sum(-1))


class _LastScaleMass(NullProbe):
    capture = Capture(mass=True, bit_exact=False)

    def __init__(self) -> None:
        self.masses: list[NDArray[np.float64]] = []
        """Per layer, [head, source_scale]."""

    def step_done(self, step: StepInfo) -> None:
        if step.query_scale == len(CONFIG.scales) - 1:
            assert step.attention_mass is not None
            self.masses.append(step.attention_mass.double().numpy())


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    pipeline = Pipeline.load(CONFIG, options.weights, dtype=options.dtype)
    scenes = held_out_scenes(options.prompts, seed=options.seed)
    if options.what == "gates":
        sampling = Sampling(cfg=options.cfg or CONFIG.cfg, tau=CONFIG.tau)
        measured = [_write(gate.to_json())["holds"] for gate in gates(pipeline, scenes, sampling=sampling)]
        return 0 if all(measured) else 1
    if options.what == "heads":
        for record in heads(pipeline, prompts=options.prompts or 64):
            _write(record)
        return 0
    orders = calibrate(pipeline, prompts=range(32)).orders()
    if options.orders is not None:
        orders = HeadOrders.load(options.orders, config=CONFIG)
    batches = reference_runs(pipeline, scenes, seed=options.seed)
    for row in compare(pipeline, batches, orders, budgets=options.budgets, num_random=options.random):
        _write(row.to_json())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m heatkv.tiny.evaluate", description="Measure infinity-tiny.")
    parser.add_argument("what", choices=["gates", "heads", "policies"])
    parser.add_argument("--weights", type=Path, help="weights folder (default: the bundled one)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="default: bfloat16")
    parser.add_argument("--prompts", type=int, default=None, help="held-out prompts (default: all)")
    parser.add_argument("--cfg", type=float, default=None, help="guidance of the gates (default: the model's)")
    parser.add_argument("--orders", type=Path, help="head orders for `policies` (default: from 32 captions)")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.2, 0.1, 0.05], help="fractions kept")
    parser.add_argument("--random", type=int, default=5, help="random rankings (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts and bits (default: 0)")
    return parser


def _write(record: dict[str, Any]) -> dict[str, Any]:  # Any: a JSON object
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()
    return record


if __name__ == "__main__":
    sys.exit(main())
