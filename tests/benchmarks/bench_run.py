"""Whole generations at 256x256: what pruning, measuring attention and recording change. No VAE, no text encoder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from heatkv.generate import generate
from heatkv.probe import Capture
from kvscope.job import Job
from kvscope.recorder import Recorder
from tests.benchmarks.harness import Result, take_turns
from tests.benchmarks.workload import MODEL, SEED, Subject, Watch, orders_of, plan

_BUDGET = 0.1


def run(*, quick: bool = False, model: str = MODEL, resolution: str | None = "0.06M") -> Result:
    """One row per variant; the first is the same as what it is compared with, and shows the noise."""
    repeats = 1 if quick else 5
    subject = Subject.load(model, resolution, "cpu")
    subject.warm_up()
    pruned = plan(subject.config, subject.scales, _BUDGET)
    variants: dict[str, Callable[[], object]] = {
        "full": lambda: subject.generate(),
        "full again": lambda: subject.generate(),
        f"heatkv at {_BUDGET}, {orders_of(pruned)}": lambda: subject.generate(pruned),
        "full, attention mass measured, bit-exact": lambda: subject.generate(probe=Watch(Capture(mass=True))),
        "full, recorded": lambda: _record(subject, Capture()),
        "full, attention mass measured and recorded": lambda: _record(subject, Capture(mass=True)),
    }
    times = take_turns(variants, repeats=repeats, warm_up=False)
    rows = tuple(times.row(name, name, "full") for name in list(variants)[1:])
    title = f"recording a run, {model} {subject.scales.resolution} in bfloat16, 2 rows"
    return Result(title, "the full cache, nothing measured, nothing recorded", repeats, SEED, rows)


def _record(subject: Subject, capture: Capture) -> None:
    job = Job(prompt="bench", model=subject.config.name, policy="full", random_weights=True)
    with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder) / "bench.h5", job) as recorder:
        generate(subject.model, subject.texts, subject.scales, seed=SEED, probe=recorder)
