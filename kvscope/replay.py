"""Replay: what a schedule alone does to a recorded run, measured by running the model again at the parent's bits.

`measure_of` is for one forced run that is recorded; `tried` tries many schedules on a recorded run without recording
any; `designed` makes the schedules that a fidelity is learnt from. torch is imported only inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.budget import minimum_budget
from heatkv.errors import BudgetError
from heatkv.policies.full import keep_everything
from heatkv.policies.heatkv import HeatKVPolicy
from heatkv.policies.knapsack import KnapsackPolicy
from heatkv.schedule import PruningSchedule
from heatkv.steps import own_steps
from kvscope.advisor import mean_mass
from kvscope.draft import Ground, ground_of
from kvscope.errors import UsageError
from kvscope.estimate import estimate
from kvscope.fidelity import Fidelity, Trial
from kvscope.plan import Plan, plan_job
from kvscope.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.forced import AnyPlan, ForcedError, Reference
    from heatkv.pipeline import Pipeline
    from heatkv.policies import PlannedPolicy
    from kvscope.job import Job
    from kvscope.recorder import Measure

_LEAST_BUDGET = 0.02
"""Below it hardly anything but sinks is kept, whatever the policy."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One schedule on one recorded run."""

    schedule: PruningSchedule
    peak_bytes: int
    """Estimated, and exact if the schedule is obeyed."""
    lost: float
    """Estimated: share of attention mass."""
    kl: float
    """Forced, as the next."""
    flips: float


def reference_of(trace: Trace, pipeline: Pipeline) -> Reference:
    """The recorded run again, at its own bits and with its own plan. Raises UsageError if it is not finished, or if an
    online policy's plan cannot be made again."""
    # Deferred: torch takes more than a second to import.
    import torch

    from heatkv.forced import Prompt, Reference
    from heatkv.generate import Sampling

    job, scales = trace.header.job, trace.schedule.scales
    if trace.scales_done < scales.num_scales:
        raise UsageError(f"{trace.path}: holds {trace.scales_done} scales; forcing bits needs a finished run")
    texts = [job.prompt, *([] if job.negative_prompt is None else [job.negative_prompt])]
    features = pipeline.encoder.encode(texts)
    sampling = Sampling(cfg=job.cfg, tau=job.tau, top_k=job.top_k, top_p=job.top_p)
    prompt = Prompt(pipeline.transformer, features[0], scales, sampling, features[1] if len(features) > 1 else None)
    bits = [torch.from_numpy(trace.bits(scale).copy()) for scale in range(scales.num_scales)]
    return Reference.of(prompt, _plan_of(trace), bits=bits)


def _plan_of(trace: Trace) -> AnyPlan:
    """What a recorded run obeyed; of an online policy what it is held to, planned again from its job."""
    if not trace.schedule.online:
        return trace.schedule
    job = trace.header.job
    if job.schedule is None:
        plan = plan_job(job).online
        if plan is not None and plan.bound().content_hash == trace.schedule.content_hash:
            return plan
    raise UsageError(f"{trace.path}: its policy {trace.schedule.policy} plans otherwise now; record the run again")


def measure_of(job: Job, pipeline: Pipeline, plan: Plan) -> Measure | None:
    """What a forced job records of every scale beside all else; None: the job is not forced.

    Runs the parent once for its logits, and once more for the error of each head's attention.
    """
    if job.mode != "forced" or job.parent is None:
        return None
    # Deferred: torch, as in reference_of.
    from heatkv.forced import attention_error, bit_flips, bit_kl

    with Trace.open(Path(job.parent)) as parent:
        reference = reference_of(parent, pipeline)
    errors = attention_error(reference, plan.online or plan.schedule).astype(np.float32)

    def measure(scale: Any) -> Mapping[str, NDArray[np.generic]]:  # Any: heatkv.probe.ScaleInfo, with torch tensors
        query_scale = scale.query_scale
        ours, theirs = reference.logits[query_scale], scale.logits.float()
        return {
            "forced_kl": np.float32(bit_kl(ours, theirs)),
            "forced_flips": np.float32(bit_flips(ours, theirs)),
            "attention_error": errors[query_scale],
        }

    return measure


def tried(trace: Trace, pipeline: Pipeline, schedules: Sequence[PruningSchedule]) -> Iterator[Tried]:
    """Each schedule, estimated from the trace and measured by a forced run."""
    # Deferred: torch, as in reference_of.
    from heatkv.forced import forced_error

    reference = reference_of(trace, pipeline)
    for schedule in schedules:
        guess = estimate(trace, schedule)
        error: ForcedError = forced_error(reference, schedule)
        yield Tried(schedule, guess.peak_bytes, guess.lost, error.mean_kl, error.mean_flips)


def learnt(traces: Sequence[Path], pipeline: Pipeline, *, count: int, seed: int) -> Fidelity:
    """A fidelity from `count` schedules on each recorded run. Raises UsageError as `kind_of`."""
    model, sizes = kind_of(traces)
    trials: list[Trial] = []
    for index, path in enumerate(traces):
        with Trace.open(path) as trace:
            mass = mean_mass([trace.attention_mass])
            schedules = designed(ground_of(trace.header), mass, count=count, seed=seed + index)
            trials += [_trial(index, one) for one in tried(trace, pipeline, schedules)]
    return Fidelity.learnt(model, sizes, trials)


def kind_of(traces: Sequence[Path]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The model and scales of recorded runs. Raises UsageError unless they are of one model and its scales, kept
    everything, and measured their attention."""
    kinds = []
    for path in traces:
        with Trace.open(path) as trace:
            check_full(trace)
            kinds.append((trace.header.model, trace.header.scales.sizes))
        if kinds[-1] != kinds[0]:
            raise UsageError(
                f"{path}: of {kinds[-1][0]}, the others of {kinds[0][0]}, or at other scales; learn from one kind"
            )
    if not kinds:
        raise UsageError("no trace to learn from; give at least two")
    return kinds[0]


def designed(ground: Ground, mass: NDArray[np.float64], *, count: int, seed: int) -> list[PruningSchedule]:
    """Schedules to learn from, a third of each kind: HeatKV's, where there are orders, and the knapsack's from this
    attention mass, both at all budgets; and random ones of all strengths."""
    generator = np.random.default_rng(seed)
    planned: list[PruningSchedule] = []
    if ground.orders is not None:
        sinks = min(ground.orders.first_source, ground.scales.num_scales - 1)
        planned += _at_all_budgets(HeatKVPolicy(ground.orders), ground, sinks, count // 3)
    planned += _at_all_budgets(KnapsackPolicy.of_mass(mass), ground, min(1, ground.scales.num_scales - 1), count // 3)
    return [*planned, *(_random(ground, generator) for _ in range(count - len(planned)))]


def _at_all_budgets(policy: PlannedPolicy, ground: Ground, sinks: int, count: int) -> list[PruningSchedule]:
    """Plans from hardly more than the sinks to nearly everything."""
    schedules = []
    least = max(minimum_budget(ground.scales, sinks), _LEAST_BUDGET)
    for budget in np.geomspace(least * 1.05, 0.97, count):
        with contextlib.suppress(BudgetError):
            schedules.append(policy.plan(ground.config, ground.scales, budget=float(budget), sink_scales=sinks))
    return schedules


def _trial(prompt: int, one: Tried) -> Trial:
    """With as many digits as can mean anything, so that a file of many stays small."""
    lost, kl, flips = (float(f"{value:.6g}") for value in (one.lost, one.kl, one.flips))
    return Trial(prompt, one.schedule.policy, lost, kl, flips)


def _random(ground: Ground, generator: np.random.Generator) -> PruningSchedule:
    """Some head-scales of some scales, freed at once or some scales later."""
    config, scales = ground.config, ground.scales
    drop_step = keep_everything(config, scales)
    own = np.broadcast_to(own_steps(config.num_layers, scales.num_scales)[:, None], drop_step.shape)
    later = own + generator.integers(0, 4, drop_step.shape) * config.num_layers
    share = generator.random() ** 1.5 * np.minimum(1.0, 1.5 * generator.random(scales.num_scales))
    gone = generator.random(drop_step.shape) < share
    gone[..., : int(generator.integers(1, 4))] = False
    gone[..., -1] = False
    drop_step = np.where(gone, np.minimum(later, ground.last_step), drop_step).astype(np.int16)
    return PruningSchedule(drop_step, config.name, scales, 1, "random")


def check_full(trace: Trace) -> None:
    """Raises UsageError unless the run kept everything and measured its attention."""
    if not trace.schedule.keeps_everything:
        raise UsageError(f"{trace.path}: recorded under {trace.schedule.policy}; learning needs runs of policy full")
    if "mass" not in trace.header.tiers:
        raise UsageError(f"{trace.path}: recorded without attention mass; record it again without --no-attention-mass")
