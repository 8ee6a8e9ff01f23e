"""How well a plan is estimated before it runs: attention lost, and error of attention's output, beside its forced KL.

Plans are those that the advisor makes at four budgets, in the model's dtype and in every codec and some pairs; each is
forced on training prompts that the calibration has not seen. Noise is what codecs lose, a share of the estimated loss.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from heatkv.config import model_config
from heatkv.pipeline import Pipeline
from kvscope.advisor import Candidate, Evidence, candidates
from kvscope.estimate import estimate
from kvscope.fidelity import COARSE, Fidelity, rank_correlation
from kvscope.replay import tried
from kvscope.trace import Trace
from tests.benchmarks.bench_tuning import MODEL, evidence_of, recorded
from tests.benchmarks.harness import Goal, Result, Row
from tests.benchmarks.workload import SEED

BUDGETS = (0.2, 0.1, 0.05, 0.02)
CODECS = ("fp8", "int8", "int4", "k4v2", "int2", "model+int4", "int8+int4", "int8+k4v2", "int4+k4v2", "int4+int2")
_FIDELITY = Path(__file__).parents[2] / "traces" / f"{MODEL}-fidelity.json"
_PROMPTS = 6
_BINS = (0.0, COARSE, 0.2, 0.4, 1.0)
"""Edges of the shares of noise that are told apart."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan on one prompt."""

    candidate: Candidate
    lost: float
    coarse_share: float
    kl: float
    """Forced."""


def run(*, quick: bool = False) -> Result:
    """Rank correlations of both estimates with KL, and how many trials the fidelity's band holds, by share of noise."""
    pipeline = Pipeline.load(model_config(MODEL), None)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        paths = recorded(pipeline, Path(folder), 1 if quick else _PROMPTS)
        traces = [opened.enter_context(Trace.open(path)) for path in paths]
        evidence = evidence_of(traces)
        plans = [one for budget in BUDGETS[:: 3 if quick else 1] for one in candidates(evidence, budget, CODECS)]
        trials = [trial for trace in traces for trial in _trials(evidence, trace, pipeline, plans)]
    rows = [*_ranks(trials), *_held(trials)]
    title = f"estimates of {len(plans)} plans of {MODEL}, each forced on {len(traces)} training prompts"
    return Result(title, "by attention lost; of the band: without codecs", 1, SEED, tuple(rows))


def _trials(evidence: Evidence, trace: Trace, pipeline: Pipeline, plans: Sequence[Candidate]) -> Iterator[Trial]:
    for plan, one in zip(plans, tried(trace, pipeline, [plan.schedule for plan in plans]), strict=True):
        yield Trial(plan, one.lost, estimate(trace, plan.schedule).coarse_share, one.kl)


def _ranks(trials: Sequence[Trial]) -> Iterator[Row]:
    """Of plans at all budgets: their order by an estimate beside that by KL, both means over prompts."""
    kinds = {
        "all": trials,
        "without codecs": [one for one in trials if not one.candidate.schedule.codecs],
        "in codecs": [one for one in trials if one.candidate.schedule.codecs],
    }
    for name, some in kinds.items():
        hashes = sorted({one.candidate.schedule.content_hash for one in some})
        of = {key: [one for one in some if one.candidate.schedule.content_hash == key] for key in hashes}
        kl, lost = (
            [float(np.mean([getattr(one, what) for one in of[key]])) for key in hashes] for what in ("kl", "lost")
        )
        error = [of[key][0].candidate.output_error or 0.0 for key in hashes]
        ours, theirs = rank_correlation(error, kl), rank_correlation(lost, kl)
        goal, note = Goal("at least", 0.9, of_value=True), f"{len(hashes)} plans"
        yield Row(
            f"rank correlation with KL, by output error: {name}", ours, "", theirs, ours / theirs, None, goal, note
        )


def _held(trials: Sequence[Trial]) -> Iterator[Row]:
    fidelity = Fidelity.load(_FIDELITY)
    plain = _in_band(fidelity, [one for one in trials if not one.candidate.schedule.codecs])[0]
    coded = [one for one in trials if one.candidate.schedule.codecs]
    for low, high in pairwise(_BINS):
        some = [one for one in coded if low < one.coarse_share <= high]
        if not some:
            continue
        held, count, off = _in_band(fidelity, some)
        goal = Goal("at least", 0.75, of_value=True) if high == COARSE else None
        note = (
            f"{count} trials, KL {off[1]:.2f} times the prediction in the median ({off[0]:.2f} to {off[2]:.2f} of 90 %)"
        )
        name = f"in codecs, held by the fidelity's band: noise {low:.0%} to {high:.0%}"
        yield Row(name, held, "", plain, held / plain, None, goal, note)


def _in_band(fidelity: Fidelity, trials: Sequence[Trial]) -> tuple[float, int, tuple[float, float, float]]:
    """The share that is held, of how many, and KL over its prediction: 5 %, half and 95 % of them lie below."""
    pairs = [(one.kl, band) for one in trials if (band := fidelity.predict("kl", one.lost)) is not None]
    held = float(np.mean([band.low <= kl <= band.high for kl, band in pairs]))
    low, middle, high = np.quantile([kl / band.middle for kl, band in pairs], (0.05, 0.5, 0.95)).tolist()
    return held, len(pairs), (low, middle, high)
