"""After: what became of a schedule that was run, beside what was estimated for it. Pure numpy over two traces."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kvscope.errors import UsageError
from kvscope.estimate import check_planned, estimate
from kvscope.in_force import bytes_held

if TYPE_CHECKING:
    from kvscope.trace import Trace


@dataclass(frozen=True, slots=True)
class After:
    """A replayed run beside its estimate; None: not known."""

    parent: str
    trace: str
    mode: str
    """forced or free."""
    schedule_sha256: str
    """Read back from the run's trace."""
    as_planned: bool
    """The run's schedule is the one that was asked for."""
    steps_compared: int
    steps_as_estimated: int
    """Of those, steps whose accounted bytes are exactly the estimated ones."""
    estimated_peak_bytes: int
    accounted_peak_bytes: int | None
    """Measured, by the budget's way of counting; so is the next."""
    storage_peak_bytes: int | None
    lost: float | None
    """Estimated: share of the parent's attention."""
    why_no_lost: str | None
    """Why that cannot be estimated: an online policy chose which tokens stayed."""
    kl: float | None
    """Forced: mean KL of the bits, nats, over the whole image."""
    flips: float | None
    """Forced: share of bits."""
    kl_by_scale: tuple[float, ...]
    attention_error_by_layer: tuple[float, ...]
    """Forced: mean over scales, by their queries, and heads."""

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return asdict(self)


def after(parent: Trace, run: Trace, schedule_sha256: str) -> After:
    """How a run of another schedule went; `schedule_sha256`: the one that was asked for."""
    held_bytes = bytes_held(run.plans, run.header)
    lost, why_no_lost = _lost(parent, run)
    steps = run.steps
    places = steps["query_scale"].astype(np.int64) * run.schedule.num_layers + steps["layer"]
    exact = steps["accounted_bytes"] == held_bytes[places]
    weights = np.array(run.schedule.scales.tokens[: run.scales_done], np.float64)
    kl, flips = (_mean(np.asarray(values, np.float64), weights) for values in (run.forced_kl, run.forced_flips))
    errors = np.asarray(run.attention_error, np.float64).mean(axis=2) if run.scales_done else np.zeros((0, 0))
    return After(
        parent=str(parent.path),
        trace=str(run.path),
        mode=run.header.job.mode,
        schedule_sha256=run.schedule.content_hash,
        as_planned=run.plans[-1].asked_sha256 == schedule_sha256,
        steps_compared=len(steps),
        steps_as_estimated=int(exact.sum()),
        estimated_peak_bytes=int(held_bytes.max()),
        accounted_peak_bytes=int(steps["accounted_bytes"].max()) if len(steps) else None,
        storage_peak_bytes=int(steps["storage_bytes"].max()) if len(steps) else None,
        lost=lost,
        why_no_lost=why_no_lost,
        kl=kl,
        flips=flips,
        kl_by_scale=() if kl is None else tuple(float(value) for value in run.forced_kl),
        attention_error_by_layer=() if kl is None else tuple(float(one) for one in weights @ errors / weights.sum()),
    )


def _lost(parent: Trace, run: Trace) -> tuple[float | None, str | None]:
    """The estimated loss, or why there is none."""
    for trace in (parent, run):
        try:
            check_planned(trace.schedule)
        except UsageError:
            return None, f"{trace.schedule.policy} chose during the run which tokens stay"
    lost = estimate(parent, run.schedule).lost
    return (None if np.isnan(lost) else lost), None


def _mean(
    values: np.ndarray[Any, np.dtype[np.float64]], weights: np.ndarray[Any, np.dtype[np.float64]]
) -> float | None:
    """The weighted mean; None: something was not measured."""
    if not len(values) or np.isnan(values).any():
        return None
    return float((values * weights).sum() / weights.sum())
