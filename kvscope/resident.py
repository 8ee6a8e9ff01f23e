"""Resident: a process that stays when its job has ended, with its weights loaded, and takes further jobs (`--keep`)."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heatkv.errors import HeatKVError
from heatkv.files import check_new
from kvscope.errors import KVScopeError, OutputError, RunStopped
from kvscope.filters import filter_named
from kvscope.job import Job
from kvscope.plan import plan_job
from kvscope.runner import check_parent, check_weights
from kvscope.writer import check_output

if TYPE_CHECKING:
    from kvscope.control.gate import Gate
    from kvscope.control.protocol import Submit


@dataclass(frozen=True, slots=True)
class Task:
    """One job, and where what it makes goes."""

    job: Job
    trace: Path
    overwrite: bool = False
    image: Path | None = None
    trace_filter: str = "gzip"

    @classmethod
    def of(cls, submitted: Submit) -> Task:
        """The task that a viewer submits. Raises UsageError if its job is none."""
        image = None if submitted.image is None else Path(submitted.image)
        job = Job.from_json(submitted.job)
        return cls(job, Path(submitted.trace), submitted.overwrite, image, submitted.trace_filter)

    def check(self) -> None:
        """Raises the error of a task that could not be run, as far as that is known before weights are loaded."""
        plan = plan_job(self.job)
        check_weights(self.job, plan.config)
        check_parent(self.job)
        check_output(self.trace, overwrite=self.overwrite)
        filter_named(self.trace_filter)
        self.check_image()

    def check_image(self) -> None:
        """Raises OutputError for a picture that could not be written after the run."""
        if self.image is None:
            return
        if self.image.resolve() == self.trace.resolve():
            raise OutputError(f"{self.image}: named for the picture and for the trace; give two names")
        check_new(self.image, overwrite=self.overwrite)


def check_submitted(submitted: Submit) -> None:
    """Raises the error of a submitted job that could not be run."""
    Task.of(submitted).check()


def stay(first: Task, run: Callable[[Task], object], gate: Gate, narrate: Callable[[str], None]) -> None:
    """Run this task and all that are submitted after it, until a viewer ends the process. Ctrl-C is passed on.

    No task's failure ends it.
    """
    task: Task | None = first
    while task is not None:
        outcome = _outcome(task, run, narrate)
        gate.idle(outcome)
        narrate(f"{outcome}; waiting for a job (kvscope control submit {os.getpid()} …), Ctrl-C ends this")
        submitted = gate.next_task()
        task = None if submitted is None else Task.of(submitted)


def _outcome(task: Task, run: Callable[[Task], object], narrate: Callable[[str], None]) -> str:
    """What became of a task, in words."""
    try:
        run(task)
    except RunStopped as stop:
        return f"{task.trace}: {stop}"
    except (KVScopeError, HeatKVError) as error:
        narrate(f"error: {error}")
        return f"{task.trace}: failed: {error}"
    except Exception as error:  # a bug, or a device without memory: the next job may do better
        traceback.print_exc(file=sys.stderr)
        return f"{task.trace}: failed: {type(error).__name__}: {error}"
    return f"{task.trace}: done"
