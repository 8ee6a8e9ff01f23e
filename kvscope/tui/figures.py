"""What the Live screen counts beside the Summary: bytes by the plan, and tokens freed. Pure numpy over a Snapshot."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from kvscope.in_force import bytes_held

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.tui.feed import Snapshot


@lru_cache(maxsize=4)
def planned_bytes(snapshot: Snapshot) -> NDArray[np.int64]:
    """Accounted bytes after each step if the plan is obeyed: [num_steps]."""
    return bytes_held(snapshot.plans, snapshot.header)


@lru_cache(maxsize=4)
def planned_peaks(snapshot: Snapshot) -> NDArray[np.int64]:
    """The most of `planned_bytes` within each query scale: [num_scales]."""
    return byte_peaks(planned_bytes(snapshot), snapshot.schedule.num_layers)


def byte_peaks(held_bytes: NDArray[np.int64], num_layers: int) -> NDArray[np.int64]:
    """The most after any step of each query scale: [num_scales], of [num_steps]."""
    peaks: NDArray[np.int64] = held_bytes.reshape(-1, num_layers).max(axis=1)
    return peaks


@lru_cache(maxsize=4)
def freed_tokens(snapshot: Snapshot) -> NDArray[np.int64]:
    """Tokens freed within each finished query scale, over all layers and heads: [scales_done]."""
    steps = snapshot.steps
    freed = np.bincount(steps["query_scale"], steps["evicted_tokens"], minlength=snapshot.scales_done)
    return freed.astype(np.int64)


@lru_cache(maxsize=4)
def bytes_in_columns(snapshot: Snapshot, columns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The most bytes within each of `columns` equal parts of the run's steps: (measured, planned), [columns] each.

    Measured is 0 beyond the last recorded step, planned is 0 before it: a column has one of the two.
    """
    plan, measured_steps = planned_bytes(snapshot), snapshot.steps["accounted_bytes"]
    edges = np.arange(columns + 1) * len(plan) // columns
    measured, planned = np.zeros(columns), np.zeros(columns)
    for column, begin in enumerate(edges[:-1].tolist()):
        end = max(begin + 1, int(edges[column + 1]))
        if begin < len(measured_steps):
            measured[column] = measured_steps[begin:end].max()
        else:
            planned[column] = plan[begin:end].max()
    return measured, planned
