"""Whole generations: HeatKV at a tenth of the history beside the full cache. No VAE, no text encoder."""

from __future__ import annotations

from tests.benchmarks.harness import Goal, Result, take_turns
from tests.benchmarks.workload import MODEL, SEED, Subject, Watch, orders_of, plan

_BUDGET = 0.1


def run(*, quick: bool = False, device: str = "cpu", model: str = MODEL, resolution: str | None = None) -> Result:
    """One row; its goal is for the CPU, 2B and 0.25M."""
    repeats = 1 if quick else 3
    wanted = resolution or ("0.06M" if quick else "0.25M")
    subject = Subject.load(model, wanted, device)
    subject.warm_up()
    schedules = {None: None, _BUDGET: plan(subject.config, subject.scales, _BUDGET)}
    stored: dict[float | None, int] = {}

    def generate(budget: float | None) -> None:
        watch = Watch()
        subject.generate(schedules[budget], watch)
        stored[budget] = watch.storage_bytes

    variants = {"full": lambda: generate(None), "pruned": lambda: generate(_BUDGET)}
    times = take_turns(variants, repeats=repeats, warm_up=False, device=device)
    schedule = schedules[_BUDGET]
    assert schedule is not None  # only the full cache has none
    goal = Goal("at most", 0.87) if device == "cpu" and wanted == "0.25M" else None
    note = f"{orders_of(schedule)}; bytes stored {stored[_BUDGET] / stored[None]:.4f} of full"
    row = times.row(f"{wanted}, heatkv at {_BUDGET}", "pruned", "full", goal=goal, note=note)
    return Result(f"whole generation, {model} in bfloat16, 2 rows", "the full cache", repeats, SEED, (row,), device)
