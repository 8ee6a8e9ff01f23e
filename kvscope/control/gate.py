"""The gate: where a run's thread passes between scales, and waits if a viewer wants so. A Probe, the last to be told.

Requests come from the server's thread, the run passes in its own; one lock guards what both read. Nothing in here
knows sockets.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from heatkv.errors import HeatKVError
from heatkv.probe import Capture
from kvscope.control.protocol import (
    Accepted,
    Message,
    Pause,
    Progress,
    Refused,
    Resume,
    Revise,
    State,
    Step,
    Stop,
    Submit,
)
from kvscope.errors import KVScopeError, RunStopped
from kvscope.units import seconds_text

if TYPE_CHECKING:
    from heatkv.probe import RunStart, ScaleInfo, StepInfo
    from heatkv.schedule import PruningSchedule

MOST_WAITING = 8
"""Jobs that may wait for their turn."""

STOPPED = "stopped by a viewer"
"""The message of a trace whose run a viewer ended."""

_AFTER = "after this scale"
_PICTURE = "all scales are done and the picture is being made"
_NO_JOB = "no job is running"

Log = Callable[[str], None]
Revised = Callable[["PruningSchedule", str], None]
"""Told of a schedule that is in force from the next scale on, and the content hash of the one that was asked for."""
Check = Callable[[Submit], None]
"""Raises a KVScopeError or HeatKVError for a job that could not be run."""


class _Not(Exception):  # noqa: N818 - an answer, not an error
    """Why a request is refused."""


@dataclass(frozen=True, slots=True)
class _Revision:
    """A schedule that is put in force before a query scale."""

    query_scale: int
    schedule: PruningSchedule
    asked_sha256: str


class Gate:
    """One process's runs, one after another, as viewers see and steer them.

    With `check` the process stays when a job has ended, and takes others.
    """

    capture = Capture()

    def __init__(self, *, check: Check | None = None) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """Called after every change, from whatever thread; it must not wait."""
        self._check = check
        self._changed = threading.Condition()
        self._progress = Progress("loading")
        self._layer: int | None = None
        self._hold = self._stop = self._is_waiting = self._is_over = False
        self._tasks: deque[Submit] = deque()
        self._log: Log = lambda _: None
        self._start: RunStart | None = None
        self._in_force: PruningSchedule | None = None
        self._revised: Revised | None = None
        self._pending: _Revision | None = None

    @property
    def commands(self) -> tuple[str, ...]:
        """The kinds of request that make sense here."""
        always = (Pause.kind, Resume.kind, Step.kind, Stop.kind, Revise.kind)
        return always if self._check is None else (*always, Submit.kind)

    @property
    def progress(self) -> Progress:
        """How the run stands now."""
        progress = self._progress
        return replace(progress, layer=self._layer) if progress.state == "running" else progress

    # Requests, from the server's thread.

    def ask(self, request: Message) -> Accepted | Refused:
        """Take a request, or say why not. It takes effect between scales."""
        try:
            words = self._take(request)
        except (_Not, KVScopeError, HeatKVError) as reason:
            return Refused(request.kind, str(reason))
        self.on_change()
        return Accepted(request.kind, words)

    def _take(self, request: Message) -> str:
        match request:
            case Submit():
                return self._submit(request)
            case Revise():
                return self._revise(request)
        with self._changed:
            match request:
                case Pause():
                    return self._pause()
                case Resume():
                    return self._resume()
                case Step():
                    return self._step()
                case Stop():
                    return self._end()
        raise _Not(f"{request.kind} is no request")

    def _pause(self) -> str:
        self._check_runs()
        if self._is_waiting:
            raise _Not("it is paused already")
        if self._hold:
            raise _Not(f"it pauses {_AFTER} already")
        self._hold = True
        return self._pausing()

    def _resume(self) -> str:
        self._check_runs()
        if not self._hold:
            raise _Not("it is not paused")
        self._hold = False
        self._go_on("")
        return "it goes on"

    def _step(self) -> str:
        if not self._is_waiting:
            return self._pause()
        self._check_runs()
        if self._progress.query_scale is None:
            raise _Not(f"all {self._progress.scales_done} scales are done; resume makes the picture")
        self._go_on(f"it pauses {_AFTER}")
        return f"it computes scale {self._progress.query_scale} and pauses"

    def _go_on(self, words: str) -> None:
        if self._is_waiting:
            self._is_waiting = False
            self._set("running")
        self._set(message=words)
        self._changed.notify_all()

    def _end(self) -> str:
        if self._progress.state == "idle":
            self._is_over = True
        else:
            self._check_runs()
        now = self._is_waiting or self._is_over
        words = "it ends" if now else f"it ends {_AFTER if self._progress.num_scales else 'before its first scale'}"
        self._stop, self._is_waiting = True, False
        self._set("stopping", message=words)
        self._changed.notify_all()
        return words

    def _check_runs(self) -> None:
        progress = self._progress
        if self._stop or progress.state == "ended":
            raise _Not("it is ending already")
        if progress.state == "idle":
            raise _Not(_NO_JOB)
        if progress.num_scales and progress.query_scale is None and not self._is_waiting:
            raise _Not(_PICTURE)

    def _pausing(self) -> str:
        words = f"it pauses {_AFTER}" if self._progress.num_scales else "it pauses before its first scale"
        self._set(message=words)
        return words

    def _revise(self, request: Revise) -> str:
        # Deferred: numpy, which a gate needs for nothing else; and without the lock, as the file may be slow to read.
        from heatkv.schedule import PruningSchedule

        wanted = PruningSchedule.load(request.schedule)
        if wanted.content_hash != request.sha256:
            raise _Not(f"{request.schedule} is not the schedule that was reviewed; review it anew")
        with self._changed:
            self._check_runs()
            scale = self._next_scale()
            self._pending = _Revision(scale, self._checked(wanted, scale), request.sha256)
            words = f"it goes on with the schedule from scale {scale} on"
            self._set(message=words if not self._hold or self._is_waiting else f"it pauses {_AFTER}; {words}")
        return words

    def _next_scale(self) -> int:
        """The first scale that a revision can still reach."""
        now = self._progress.query_scale
        if self._start is None or now is None:
            raise _Not("its model is loading; ask again when it runs" if self._start is None else _PICTURE)
        scale = now if self._is_waiting else now + 1
        if scale >= self._progress.num_scales:
            raise _Not("it computes its last scale; submit a job with the schedule")
        return scale

    def _checked(self, wanted: PruningSchedule, scale: int) -> PruningSchedule:
        """What the run will obey. Raises ScheduleError if it cannot, _Not if it is none to be revised."""
        # Deferred: numpy, as in _revise.
        from heatkv.revision import check_room, revised

        start = self._start
        if start is None or start.revise is None or self._revised is None or self._in_force is None:
            raise _Not("its schedule cannot be revised: it is forced to repeat another, or its policy decides online")
        one = revised(self._in_force, wanted, scale)
        check_room(one, scale, start.rooms)
        return one

    def _submit(self, task: Submit) -> str:
        if self._check is None:
            raise _Not("this run ends with its job; start one with `kvscope run --keep`")
        # Without the lock, as it may take seconds; only the server's thread adds tasks.
        try:
            self._check(task)
        except (KVScopeError, HeatKVError):
            raise
        except Exception as error:  # a bug in the check must not cost the run its viewers
            raise _Not(f"it could not be checked ({error!r:.200})") from error
        with self._changed:
            if self._is_over:
                raise _Not("it is ending already")
            if len(self._tasks) >= MOST_WAITING:
                raise _Not(f"{MOST_WAITING} jobs wait already; try again when one has ended")
            self._check_outputs(task)
            self._tasks.append(task)
            is_next = self._progress.state == "idle" and len(self._tasks) == 1
            self._set(waiting=len(self._tasks))
            self._changed.notify_all()
        return "it begins" if is_next else f"it waits as number {len(self._tasks)}"

    def _check_outputs(self, task: Submit) -> None:
        taken = {self._real(one) for other in self._tasks for one in (other.trace, other.image) if one}
        if self._progress.state != "idle":
            taken.add(self._real(self._progress.trace))
        for one in (task.trace, task.image):
            if one and self._real(one) in taken:
                raise _Not(f"{one}: another job of this process writes it; choose another name")

    @staticmethod
    def _real(path: str) -> str:
        return os.path.realpath(path)

    # The run, from its own thread.

    def loading(self, trace: Path | str, message: str = "") -> None:
        """A job begins that will write this trace."""
        with self._changed:
            self._layer, self._log = None, lambda _: None
            self._start = self._in_force = self._revised = self._pending = None
            path = os.path.abspath(trace)  # noqa: PTH100 - a link stays a link
            state: State = "stopping" if self._stop else "loading"
            self._progress = Progress(state, path, message=message, waiting=len(self._tasks))
        self.on_change()

    def recording(self, run_id: str, log: Log, revised: Revised | None = None) -> None:
        """The job's trace has this id, and takes log lines, and revised schedules; None: it may not be revised."""
        with self._changed:
            self._log, self._revised = log, revised
            self._set(run_id=run_id)
        self.on_change()

    def run_started(self, start: RunStart) -> None:
        with self._changed:
            state: State = "stopping" if self._stop else "running"
            self._start, self._in_force = start, getattr(start, "schedule", None)
            self._set(state, query_scale=0, num_scales=start.scales.num_scales)
        self._pass()

    def step_done(self, step: StepInfo) -> None:
        """Remember the layer. Takes no lock: this is told for every layer of every scale."""
        self._layer = step.layer

    def scale_done(self, scale: ScaleInfo) -> None:
        done = scale.query_scale + 1
        self._layer = None
        with self._changed:
            self._set(scales_done=done, query_scale=done if done < self._progress.num_scales else None)
        self._pass()

    def idle(self, message: str) -> None:
        """A job has ended; the process waits for the next."""
        with self._changed:
            self._hold = self._stop = False
            self._progress = Progress("idle", self._progress.trace, message=message, waiting=len(self._tasks))
        self.on_change()

    def next_task(self) -> Submit | None:
        """The next job, waited for; None: a viewer ended the process."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self._is_over)
            if self._is_over:
                return None
            task = self._tasks.popleft()
            self._progress = Progress("loading", task.trace, waiting=len(self._tasks))
            return task

    def ended(self, message: str = "") -> None:
        """No more is done here, and no request is taken."""
        with self._changed:
            self._is_over = True
            self._set("ended", message=message)
        self.on_change()

    def _pass(self) -> None:
        """Go on, or wait here as long as viewers want; raises RunStopped if one ended the run."""
        with self._changed:
            must_wait = self._hold and not self._stop
            if must_wait:
                self._is_waiting = True
                self._set("paused", message=self._held())
        self.on_change()
        if must_wait:
            self._wait()
        if self._stop:
            self._log(STOPPED)
            raise RunStopped(STOPPED)
        self._go_on_revised()

    def _go_on_revised(self) -> None:
        """Put the schedule in force that waits for this scale, if one does."""
        with self._changed:
            pending, start = self._pending, self._start
            if pending is None or pending.query_scale != self._progress.query_scale:
                return
            assert start is not None  # else it was refused
            assert start.revise is not None
            assert self._revised is not None
            self._in_force = start.revise(pending.schedule, pending.query_scale)
            self._revised(self._in_force, pending.asked_sha256)
            self._pending = None
            self._set(message="")
        self._log(f"revised by a viewer: from scale {pending.query_scale} on schedule {pending.asked_sha256[:12]}")

    def _wait(self) -> None:
        self._log(f"paused by a viewer, {self._held()}")
        begin = time.monotonic()
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._is_waiting)
        finally:
            how = "" if self._stop or self._is_waiting else "stepped: " if self._hold else "resumed: "
            self._is_waiting = False
            self._log(f"{how}paused for {seconds_text(time.monotonic() - begin)} by a viewer; no layer's time has it")

    def _held(self) -> str:
        """Where it is held, in words."""
        done, scales = self._progress.scales_done, self._progress.num_scales
        if not done:
            return "before scale 0"
        return f"after scale {done - 1}" + (" and before the picture" if done == scales else "")

    def _set(self, state: State | None = None, **changes: str | int | None) -> None:
        """Change the progress; the caller holds the lock."""
        self._progress = replace(self._progress, state=state or self._progress.state, **changes)  # type: ignore[arg-type]
