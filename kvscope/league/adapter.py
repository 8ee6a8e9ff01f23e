"""What the league asks of a plan: its exact peak, and a run under it. The one place that knows how plans are obeyed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from heatkv.generate import Generation
    from heatkv.pipeline import Pipeline
    from heatkv.probe import Probe
    from kvscope.job import Job
    from kvscope.plan import Plan


def peak_bytes(plan: Plan, *, rows: int, dtype_bytes: int) -> int:
    """Keys and values that the plan's pools have room for, exactly: what may be held after any step, in all codecs."""
    return plan.capacity_bytes(rows=rows, dtype_bytes=dtype_bytes)


def generated(pipeline: Pipeline, plan: Plan, job: Job, *, bits: Sequence[Tensor] | None, probe: Probe) -> Generation:
    """One image of the job under its plan; `bits`: forced, one tensor a scale, or None for the run's own."""
    # Deferred: torch takes more than a second to import, and only the workers need it.
    from heatkv.generate import Sampling

    return pipeline.generate(
        [job.prompt],
        plan.scales,
        sampling=Sampling(cfg=job.cfg, tau=job.tau, top_k=job.top_k, top_p=job.top_p),
        schedule=plan.schedule,
        online=plan.online,
        seed=job.seed,
        forced_bits=bits,
        probe=probe,
    )
