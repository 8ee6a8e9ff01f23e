"""Pairs of traces to compare, made without a model: the fake run with any schedule, job, picture and bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from heatkv.schedule import PruningSchedule
from kvscope.recorder import Recorder


def full_schedule(run: ModuleType) -> PruningSchedule:
    """Nothing leaves before the end."""
    pruned = run.fake_schedule()
    drop_step = np.full_like(pruned.drop_step, run.LAYERS * run.SCALES.num_scales - 1)
    drop_step[:, :, -1] = pruned.drop_step[:, :, -1]
    return PruningSchedule(drop_step, "fake", run.SCALES, 1, "full")


def record(
    run: ModuleType,
    path: Path,
    schedule: PruningSchedule | None = None,
    *,
    scales: int | None = None,
    status: str = "done",
    image: NDArray[np.uint8] | None = None,
    start: dict[str, object] | None = None,
    **job: object,
) -> Path:
    """A trace of the fake run under a schedule; `start` and `job` change facts of it."""
    schedule = schedule or run.fake_schedule()
    count = run.SCALES.num_scales if scales is None else scales
    recorder = Recorder(path, replace(run.fake_job(), policy=schedule.policy, **job))
    recorder.run_started(replace(run.fake_start(schedule), **(start or {})))
    for query_scale in range(count):
        run.run_scale(recorder, schedule, query_scale)
    if count == run.SCALES.num_scales and status == "done":
        recorder.image_done(run.fake_image() if image is None else image)
    recorder.finish(status)
    return path
