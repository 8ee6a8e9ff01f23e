"""The advisor's schedules beside HeatKV's at equal true bytes, and at fewer, on prompts that none of them has seen.

Both plan from one calibration. The advisor verifies on a few training prompts, by forced runs, and chooses, as `kvscope
tune` does; then both schedules run the held-out prompts: forced at the bits of the full cache, and freely with the seed
of the full cache's image. A ratio is of means over prompts; its range, and that of the difference in the note, hold
95 % of paired bootstraps over prompts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from heatkv.config import model_config
from heatkv.forced import Prompt, Reference, forced_error
from heatkv.generate import Generation, Sampling
from heatkv.pipeline import Pipeline
from heatkv.policies.full import FullPolicy
from heatkv.policies.heatkv import HeatKVPolicy
from heatkv.schedule import PruningSchedule
from heatkv.tiny.scenes import held_out_scenes, training_scenes
from kvscope.advice import advice
from kvscope.advisor import Candidate, Evidence, for_bytes, mean_mass, verified
from kvscope.calibration import Calibration
from kvscope.draft import ground_of
from kvscope.job import Job
from kvscope.likeness import psnr
from kvscope.replay import tried
from kvscope.runner import run_job
from kvscope.trace import Trace
from tests.benchmarks.harness import Goal, Result, Row
from tests.benchmarks.workload import SEED

MODEL = "infinity-tiny"
CALIBRATION = Path(__file__).parents[2] / "traces" / "infinity-tiny-scas.h5"
CASES = ((0.2, 1.0), (0.1, 1.0), (0.05, 1.0), (0.1, 0.75))
"""HeatKV's budget, and how much of the bytes that it takes the advisor may take."""
_TRAINING_PROMPTS, _HELD_OUT_PROMPTS = 6, 206
_FIRST_SEED = 1000
"""Of the held-out prompts; the next has the next."""
_BOOTSTRAPS = 10_000
_LESS, _MORE = Goal("at most", 1.0), Goal("at least", 1.0)
_MEASURES = (
    ("forced KL, nats per bit", _LESS),
    ("forced, share of bits that flip", _LESS),
    ("free, dB PSNR to the full cache's image", _MORE),
    ("free, share of bits that agree", _MORE),
)

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Full:
    """A prompt under the full cache: what others are held against."""

    prompt: str
    seed: int
    reference: Reference
    image: NDArray[np.uint8]


def run(*, quick: bool = False, cases: Sequence[tuple[float, float]] = CASES) -> Result:
    """For every case: bytes, and each measure over the held-out prompts."""
    pipeline = Pipeline.load(model_config(MODEL), None)
    prompts = [scene.caption for scene in held_out_scenes(4 if quick else _HELD_OUT_PROMPTS)]
    fulls = [full_run(pipeline, prompt, _FIRST_SEED + index) for index, prompt in enumerate(prompts)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        paths = _recorded(pipeline, Path(folder), 1 if quick else _TRAINING_PROMPTS)
        traces = [opened.enter_context(Trace.open(path)) for path in paths]
        evidence = _evidence(traces)
        for budget, share in cases:
            heatkv, chosen = _pair(evidence, traces, pipeline, budget, share)
            name = f"at {budget:g}" if share == 1 else f"at {budget:g}, {share:.0%} of its bytes"
            rows += _rows(pipeline, fulls, name, chosen, heatkv)
    title = f"tuned schedules of {MODEL} on {len(fulls)} held-out prompts; in brackets 95 % of bootstraps"
    return Result(title, "HeatKV, from the same calibration", 1, SEED, tuple(rows))


def full_run(pipeline: Pipeline, prompt: str, seed: int) -> Full:
    """The prompt's image and logits when everything is kept."""
    scales = pipeline.config.schedule_for()
    made = pipeline.generate([prompt], scales, seed=seed)
    sampling = Sampling(cfg=pipeline.config.cfg, tau=pipeline.config.tau)
    given = Prompt(pipeline.transformer, pipeline.encoder.encode([prompt])[0], scales, sampling)
    reference = Reference.of(given, FullPolicy().plan(pipeline.config, scales), bits=made.bits)
    return Full(prompt, seed, reference, _picture(made))


def measured(pipeline: Pipeline, full: Full, schedule: PruningSchedule) -> tuple[float, ...]:
    """A number for each of _MEASURES."""
    forced = forced_error(full.reference, schedule)
    free = pipeline.generate([full.prompt], schedule=schedule, seed=full.seed)
    ours, theirs = (torch.cat([one.flatten() for one in bits]) for bits in (free.bits, full.reference.bits))
    same = float((ours == theirs).double().mean())
    return forced.mean_kl, forced.mean_flips, psnr(_picture(free), full.image), same


def bootstrapped(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[Range, Range]:
    """95 % of bootstraps over pairs: of the difference of the means, and of their ratio."""
    picks = np.random.default_rng(SEED).integers(0, len(ours), (_BOOTSTRAPS, len(ours)))
    a, b = ours[picks].mean(axis=1), theirs[picks].mean(axis=1)
    return _middle(a - b), _middle(a / b)


def _middle(values: NDArray[np.float64]) -> Range:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _recorded(pipeline: Pipeline, folder: Path, count: int) -> list[Path]:
    """Full runs of training prompts that the calibration has not seen."""
    seen = set(Calibration.load(CALIBRATION).settings.prompts)
    prompts = [scene.caption for scene in training_scenes() if scene.caption not in seen]
    paths = []
    for index in np.random.default_rng(SEED).permutation(len(prompts))[:count]:
        job = Job(prompts[index], MODEL, "full", seed=int(index), attention_mass=True)
        paths.append(run_job(job, folder / f"{index}.h5", load=lambda *_, **__: pipeline).trace)
    return paths


def _evidence(traces: Sequence[Trace]) -> Evidence:
    calibration = Calibration.load(CALIBRATION)
    ground = replace(ground_of(traces[0].header), orders=calibration.scores().orders())
    return Evidence(ground, mean_mass(calibration.attention_mass), tuple(traces))


def _pair(
    evidence: Evidence, traces: Sequence[Trace], pipeline: Pipeline, budget: float, share: float
) -> tuple[Candidate, Candidate]:
    """HeatKV's plan of a budget, and what the advisor chooses for a share of the bytes that it takes."""
    ground = evidence.ground
    assert ground.orders is not None  # the calibration has them
    heatkv = evidence.candidate("heatkv", HeatKVPolicy(ground.orders).plan(ground.config, ground.scales, budget=budget))
    found = for_bytes(evidence, int(share * heatkv.peak_bytes))
    runs = [list(tried(trace, pipeline, [one.schedule for one in found])) for trace in traces]
    judged = [
        verified(one, [run[index].kl for run in runs], [run[index].flips for run in runs])
        for index, one in enumerate(found)
    ]
    return heatkv, advice(judged, by_bytes=True).chosen


def _rows(pipeline: Pipeline, fulls: Sequence[Full], name: str, ours: Candidate, theirs: Candidate) -> list[Row]:
    ratio = ours.peak_bytes / theirs.peak_bytes
    rows = [Row(f"{name}: bytes", ours.peak_bytes, "bytes", theirs.peak_bytes, ratio, goal=_LESS, note=ours.name)]
    columns = [np.array([measured(pipeline, full, one.schedule) for full in fulls]).T for one in (ours, theirs)]
    for (measure, goal), mine, other in zip(_MEASURES, *columns, strict=True):
        difference, spread = bootstrapped(mine, other)
        mean = float(mine.mean() - other.mean())
        note = f"difference {mean:+.3g} ({difference[0]:+.3g} to {difference[1]:+.3g})"
        ratio = float(mine.mean() / other.mean())
        rows.append(Row(f"{name}: {measure}", float(mine.mean()), "", float(other.mean()), ratio, spread, goal, note))
    return rows


def _picture(made: Generation) -> NDArray[np.uint8]:
    assert made.image is not None  # a pipeline has a VAE
    picture: NDArray[np.uint8] = made.image[0].cpu().numpy()
    return picture
