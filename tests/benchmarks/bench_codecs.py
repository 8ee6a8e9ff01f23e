"""What coarser codecs cost in time: whole generations under the knapsack planner ÷ HeatKV's, at the same bytes.

At the same bytes a codec keeps several times the tokens, so attention reads more, and what it reads is decoded first.
Measurements and orders are random: time does not depend on what they say. No VAE, no text encoder, no probe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from heatkv.policies import make_policy
from heatkv.schedule import PruningSchedule
from tests.benchmarks.harness import Goal, Result, Row, take_turns
from tests.benchmarks.workload import SEED, Subject, Watch
from tests.heatkv.policies.measured import supplied

_BUDGET = 0.1
_CODECS = ("model", "int8", "int4", "k4v2")
_CASES: tuple[tuple[str, str | None, int], ...] = (("infinity-tiny", None, 25), ("infinity-2b", "0.06M", 3))
"""(model, resolution, rounds)."""


def run(*, quick: bool = False, cases: Sequence[tuple[str, str | None, int]] = _CASES) -> Result:
    """One row per model and codec; the first of a model is HeatKV again, and shows the noise."""
    cases = [(model, resolution, 1) for model, resolution, _ in cases[:1]] if quick else list(cases)
    rows = [row for model, resolution, repeats in cases for row in _rows(model, resolution, repeats)]
    title = f"codecs at {_BUDGET} of the history's bytes, in bfloat16, 2 rows"
    return Result(
        title, "HeatKV in the model's dtype, at the same bytes", max(each[2] for each in cases), SEED, tuple(rows)
    )


def _rows(model: str, resolution: str | None, repeats: int) -> list[Row]:
    subject = Subject.load(model, resolution, "cpu")
    given = supplied(subject.config, subject.scales, first_source=subject.config.sink_scales)
    heatkv = make_policy("heatkv", given).plan(subject.config, subject.scales, budget=_BUDGET)
    plans: dict[str, PruningSchedule] = {
        codec: make_policy(f"knapsack:codecs={codec}", given).plan(subject.config, subject.scales, budget=_BUDGET)
        for codec in _CODECS
    }
    variants: dict[str, Callable[[], object]] = {
        name: partial(subject.generate, heatkv) for name in ("heatkv", "again")
    }
    variants |= {codec: partial(subject.generate, plan) for codec, plan in plans.items()}
    times = take_turns(variants, repeats=repeats)
    rows = [times.row(f"{model}: heatkv again", "again", "heatkv")]
    for codec, plan in plans.items():
        watch = Watch()
        subject.generate(plan, probe=watch)
        note = f"{watch.accounted_bytes:,} bytes, {plan.peak_tokens:,} head-tokens at most"
        rows.append(times.row(f"{model}: knapsack in {codec}", codec, "heatkv", goal=Goal("at most", 1.1), note=note))
    return rows
