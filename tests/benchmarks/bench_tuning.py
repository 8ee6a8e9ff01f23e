"""The advisor's schedules beside HeatKV's at equal true bytes, and at fewer, on prompts that none of them has seen.

Both plan from one calibration. The advisor verifies on a few training prompts, by forced runs, and chooses, as `kvscope
tune` does by default, or in plain cases by attention mass alone and in the model's dtype. Then both schedules run the
held-out prompts: forced at the bits of the full cache, and freely with the seed of the full cache's image. A ratio is
of means over prompts; its range, and that of the difference in the note, hold 95 % of paired bootstraps over prompts.
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

from heatkv.bundled import bundled_calibration
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
from kvscope.commands.tune import DEFAULT_CODECS
from kvscope.draft import ground_of, measured_by
from kvscope.job import Job
from kvscope.likeness import psnr
from kvscope.replay import tried
from kvscope.runner import run_job
from kvscope.trace import Trace
from tests.benchmarks.harness import Goal, Result, Row
from tests.benchmarks.workload import SEED

MODEL = "infinity-tiny"
CALIBRATION = bundled_calibration(model_config(MODEL))
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
class Case:
    """A budget of HeatKV's, and how much of the bytes that it then takes the advisor may take."""

    budget: float
    share: float = 1.0
    is_plain: bool = False
    """Whether the advisor plans by attention mass alone, in the model's dtype."""

    @property
    def name(self) -> str:
        share = "" if self.share == 1 else f", {self.share:.0%} of its bytes"
        return f"{'plain, ' if self.is_plain else ''}at {self.budget:g}{share}"


CASES = (
    *(Case(budget) for budget in (0.2, 0.1, 0.05)),
    Case(0.1, 0.5),
    *(Case(budget, is_plain=True) for budget in (0.2, 0.1, 0.05)),
    Case(0.1, 0.75, is_plain=True),
)


@dataclass(frozen=True, slots=True)
class Full:
    """A prompt under the full cache: what others are held against."""

    prompt: str
    seed: int
    reference: Reference
    image: NDArray[np.uint8]


def run(*, quick: bool = False, cases: Sequence[Case] = CASES) -> Result:
    """For every case: bytes, and each measure over the held-out prompts."""
    pipeline = Pipeline.load(model_config(MODEL), None)
    prompts = [scene.caption for scene in held_out_scenes(4 if quick else _HELD_OUT_PROMPTS)]
    fulls = [full_run(pipeline, prompt, _FIRST_SEED + index) for index, prompt in enumerate(prompts)]
    rows: list[Row] = []
    columns: dict[str, NDArray[np.float64]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        paths = recorded(pipeline, Path(folder), 1 if quick else _TRAINING_PROMPTS)
        traces = [opened.enter_context(Trace.open(path)) for path in paths]
        evidence = evidence_of(traces)
        for case in cases:
            pair = _pair(evidence, traces, pipeline, case)
            for one in pair:
                if one.schedule.content_hash not in columns:
                    found = np.array([measured(pipeline, full, one.schedule) for full in fulls])
                    columns[one.schedule.content_hash] = found.T
            rows += _rows(case, *pair, *(columns[one.schedule.content_hash] for one in pair))
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


def recorded(pipeline: Pipeline, folder: Path, count: int) -> list[Path]:
    """Full runs of training prompts that the calibration has not seen."""
    seen = set(Calibration.load(CALIBRATION).settings.prompts)
    prompts = [scene.caption for scene in training_scenes() if scene.caption not in seen]
    paths = []
    for index in np.random.default_rng(SEED).permutation(len(prompts))[:count]:
        job = Job(prompts[index], MODEL, "full", seed=int(index), attention_mass=True)
        paths.append(run_job(job, folder / f"{index}.h5", load=lambda *_, **__: pipeline).trace)
    return paths


def evidence_of(traces: Sequence[Trace]) -> Evidence:
    """What `kvscope tune` plans from and judges on, with the orders of the same calibration."""
    calibration = Calibration.load(CALIBRATION)
    ground = ground_of(traces[0].header)
    measurements = measured_by(CALIBRATION, ground.config, ground.scales, None)
    ground = replace(ground, orders=calibration.scores().orders(), measurements=measurements)
    return Evidence(ground, mean_mass(calibration.attention_mass), tuple(traces))


def _middle(values: NDArray[np.float64]) -> Range:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _pair(evidence: Evidence, traces: Sequence[Trace], pipeline: Pipeline, case: Case) -> tuple[Candidate, Candidate]:
    """What the advisor chooses for a share of the bytes that HeatKV's plan takes, and that plan."""
    if case.is_plain:
        evidence = replace(evidence, ground=replace(evidence.ground, measurements=None))
    ground = evidence.ground
    assert ground.orders is not None  # the calibration has them
    plan = HeatKVPolicy(ground.orders).plan(ground.config, ground.scales, budget=case.budget)
    heatkv = evidence.candidate("heatkv", plan)
    codecs = [] if case.is_plain else DEFAULT_CODECS.split(",")
    found = for_bytes(evidence, int(case.share * heatkv.peak_bytes), codecs)
    runs = [list(tried(trace, pipeline, [one.schedule for one in found])) for trace in traces]
    judged = [
        verified(one, [run[index].kl for run in runs], [run[index].flips for run in runs])
        for index, one in enumerate(found)
    ]
    return advice(judged, by_bytes=True).chosen, heatkv


def _rows(
    case: Case,
    ours: Candidate,
    theirs: Candidate,
    our_measures: NDArray[np.float64],
    their_measures: NDArray[np.float64],
) -> list[Row]:
    """`our_measures`, `their_measures`: [measure, prompt]."""
    name, ratio = case.name, ours.peak_bytes / theirs.peak_bytes
    rows = [Row(f"{name}: bytes", ours.peak_bytes, "bytes", theirs.peak_bytes, ratio, goal=_LESS, note=ours.name)]
    for (measure, goal), mine, other in zip(_MEASURES, our_measures, their_measures, strict=True):
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
