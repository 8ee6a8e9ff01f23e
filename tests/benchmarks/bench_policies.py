"""What each policy costs: whole generations at a tenth of the history beside the full cache, one image with guidance.

Measurements and orders are random: how long a policy takes does not depend on what they say, but a little on how many
heads keep equally many tokens. No VAE, no text encoder, no probe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from heatkv.policies import POLICIES, make_policy
from tests.benchmarks.harness import Result, Row, Times, take_turns
from tests.benchmarks.workload import SEED, Subject, Watch
from tests.heatkv.policies.measured import supplied

_BUDGET = 0.1


def run(*, quick: bool = False, policies: Sequence[str] = tuple(POLICIES)) -> Result:
    """One row per policy but full; the first is full again, and shows the noise."""
    repeats = 3 if quick else 15
    subject = Subject.load("infinity-tiny", None, "cpu")
    given = supplied(subject.config, subject.scales, first_source=subject.config.sink_scales)
    plans = {
        name: make_policy(name, given).plan(subject.config, subject.scales, budget=_BUDGET)
        for name in policies
        if name != "full"
    }
    variants: dict[str, Callable[[], object]] = {"full": subject.generate, "full again": subject.generate}
    variants |= {name: partial(subject.generate, plan) for name, plan in plans.items()}
    times = take_turns(variants, repeats=repeats)
    rows = [times.row("full again", "full again", "full")]
    rows += [_row(name, times, partial(subject.generate, plan)) for name, plan in plans.items()]
    title = f"cost of policies at {_BUDGET}, infinity-tiny in bfloat16, 2 rows"
    return Result(title, "the full cache", repeats, SEED, tuple(rows))


def _row(name: str, times: Times, generate: Callable[..., object]) -> Row:
    watch = Watch()
    generate(probe=watch)
    return times.row(name, name, "full", note=f"{watch.accounted_bytes:,} bytes at most")
