"""Desk: makes plan files of what was edited, runs them, and reads back what the runs obeyed; each in a thread.

It posts a Reviewed or an Applied for every change, and the app puts them into the View. A run is started as
`kvscope apply` in a process of its own, or handed to the parent's process if that stays for more jobs.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from textual.message import Message

from heatkv.errors import HeatKVError
from kvscope.control.client import ask
from kvscope.control.protocol import Accepted
from kvscope.draft import orders_path
from kvscope.errors import KVScopeError
from kvscope.live import Launched
from kvscope.planfile import PlanFile, plan_file

if TYPE_CHECKING:
    from kvscope.after import After
    from kvscope.fidelity import Fidelity
    from kvscope.job import Job
    from kvscope.tui.editing import EditState
    from kvscope.tui.feed import Snapshot

Mode = Literal["free", "forced", "revise"]
"""`revise`: the parent's own run goes on with it."""
_ENDED = ("done", "failed", "cancelled", "crashed")
_ENDING_S = 10.0
"""How long a run may take to exit once its trace is closed; one that was not waited for stays a zombie."""
_STILL_LIVE = "the run is live: its trace grows, so a plan of it is stale at once; apply it when the run is done"


@dataclass(frozen=True, slots=True, eq=False)
class Review:
    """A plan file that was written, or why none was."""

    name: str
    schedule_sha256: str
    stale: tuple[str, ...] = ()
    """What has changed since it was made, a line each."""
    refused: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """A plan that was handed to a run, and what became of it."""

    mode: Mode
    path: Path
    """The run's trace; it need not be there yet."""
    plan: str
    schedule_sha256: str
    """Of the plan: what the run shall obey."""
    where: str
    """What process runs it, in words."""
    launched: Launched | Queued | None = None
    """What is waited for until the trace is there; None: nothing was begun."""
    status: str = "starting"
    """starting, or the status of the run's trace."""
    read_back: str = ""
    """What the run's trace says of its schedule; empty: there is no trace yet."""
    as_planned: bool | None = None
    """The run obeys exactly the plan; None: not known yet."""
    after: After | None = None
    """What was estimated beside what was measured or forced; None: the run has not ended."""
    refused: str = ""
    """Why nothing runs; empty: it does, or did."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A run that another process was handed, and has no trace yet."""

    path: Path
    pid: int

    def said(self) -> tuple[str, ...]:
        return (f"process {self.pid} has the plan, and begins when it is free",)

    def poll(self) -> int | None:
        """None as long as its process lives."""
        # Deferred: it knows where sockets are, which only this asks.
        from kvscope.control.places import is_running

        return None if is_running(self.pid) else 1

    def wait(self, _seconds: float) -> int | None:
        """Its process stays when the run has ended."""
        return self.poll()


class PlanReviewed(Message):
    """A plan file is there, or refused."""

    def __init__(self, review: Review) -> None:
        self.review = review
        super().__init__()


class PlanApplied(Message):
    """A plan's run has begun, or is refused, or has ended and was read back."""

    def __init__(self, applied: Applied) -> None:
        self.applied = applied
        super().__init__()


class Desk:
    """One plan at a time; what it is asked for while busy is refused in words."""

    def __init__(self, post: Callable[[Message], object]) -> None:
        self._post = post
        self._thread: threading.Thread | None = None

    def save(self, snapshot: Snapshot, state: EditState, fidelity: Fidelity | None) -> None:
        """Write the plan file in the current folder, under a name that is free; post a Reviewed."""
        self._start(lambda: self._post(PlanReviewed(reviewed(snapshot, state, fidelity))))

    def check(self, review: Review) -> None:
        """Look whether a plan has become stale; post it again."""
        self._start(lambda: self._post(PlanReviewed(rechecked(review))))

    def apply(
        self,
        snapshot: Snapshot,
        state: EditState,
        fidelity: Fidelity | None,
        *,
        mode: Mode,
        resident: bool,
        review: Review | None = None,
    ) -> None:
        """Run the plan file that was `review`ed, or write one if that is of something else; post what became of it."""

        def work() -> None:
            found = again(state, review) or reviewed(snapshot, state, fidelity)
            self._post(PlanReviewed(found))
            if not found.refused:
                self._post(PlanApplied(applied(snapshot, found, mode=mode, resident=resident)))

        self._start(work)

    def read_back(self, parent: Path, one: Applied) -> None:
        """Compare an ended run with what was estimated for it; post it with that."""
        self._start(lambda: self._post(PlanApplied(with_after(parent, one))))

    def wait(self, seconds: float) -> None:
        """Until what was begun is done, at most so long."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _start(self, work: Callable[[], object]) -> None:
        before = self._thread

        def after_that() -> None:
            if before is not None:
                before.join()
            work()

        # A daemon, so that a disk that does not answer cannot keep the process alive.
        self._thread = threading.Thread(target=after_that, name="kvscope-desk", daemon=True)
        self._thread.start()


def reviewed(snapshot: Snapshot, state: EditState, fidelity: Fidelity | None) -> Review:
    """The plan file of what was edited, written under a name that is free."""
    # Deferred: h5py belongs to threads.
    from kvscope.trace import Trace

    sha256 = state.schedule.content_hash
    try:
        with Trace.open(snapshot.path) as trace:
            job = replace(
                trace.header.job,
                parent=str(snapshot.path),
                mode="free",
                schedule=None,
                policy=state.schedule.policy,
            )
            plan = plan_file(
                trace,
                state.draft,
                state.edits,
                after=state.estimate,
                before=state.estimate_before,
                job=job,
                orders=orders_path(trace.header.job),
                fidelity=fidelity,
            )
        path = _free_name(f"{snapshot.path.stem}-plan", "json")
        plan.save(path)
    except (KVScopeError, HeatKVError, OSError) as error:
        return Review("", sha256, refused=str(error))
    return Review(path.name, sha256, tuple(plan.stale()))


def again(state: EditState, before: Review | None) -> Review | None:
    """The plan file that is there already for what is staged; None: there is none, or it is stale."""
    if before is None or before.refused or before.schedule_sha256 != state.schedule.content_hash:
        return None
    checked = rechecked(before)
    return None if checked.stale else checked


def rechecked(review: Review) -> Review:
    """The same plan, and whether it is stale by now."""
    try:
        return replace(review, stale=tuple(PlanFile.load(Path(review.name)).stale()))
    except (KVScopeError, HeatKVError, OSError) as error:
        return replace(review, stale=(str(error),))


def applied(snapshot: Snapshot, review: Review, *, mode: Mode, resident: bool) -> Applied:
    """The plan's run, begun: in a process of its own, or in the parent's if that is `resident`."""
    if mode == "revise":
        return _revised(snapshot, Applied(mode, snapshot.path, review.name, review.schedule_sha256, "the run itself"))
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    path = Path.cwd() / f"{snapshot.path.stem}-{mode}-{stamp}.h5"
    one = Applied(mode, path, review.name, review.schedule_sha256, "")
    if not resident and snapshot.status == "live":
        return replace(one, refused=_STILL_LIVE)
    if not resident and review.stale:
        return replace(one, refused=f"the plan is stale: {'; '.join(review.stale)}")
    try:
        return _submitted(snapshot, one) if resident else _launched(one)
    except (KVScopeError, HeatKVError, OSError) as error:
        return replace(one, refused=str(error))


def read_back_of(one: Applied, snapshot: Snapshot, wanted: EditState | None) -> Applied:
    """What the run's trace says of the schedule that it obeys, beside the plan's."""
    found = snapshot.plans[-1].asked_sha256
    if one.mode == "revise" and found != one.schedule_sha256 and not has_ended(snapshot.status):
        return replace(one, status=snapshot.status, read_back="not in force yet: it begins with the next scale")
    if found == one.schedule_sha256:
        words = f"the run obeys exactly the plan: sha256 {found[:12]}"
    else:
        words = f"NOT the plan: the run obeys {found[:12]}, the plan is {one.schedule_sha256[:12]}"
        if wanted is not None and wanted.schedule.content_hash == one.schedule_sha256:
            words += f"; {_differing(wanted, snapshot):,} head-scales differ"
    return replace(one, status=snapshot.status, read_back=words, as_planned=found == one.schedule_sha256)


def with_after(parent: Path, one: Applied) -> Applied:
    """An ended run, with what was estimated beside what was measured or forced."""
    # Deferred: h5py belongs to threads.
    from kvscope.after import after
    from kvscope.trace import Trace

    if one.launched is not None:
        one.launched.wait(_ENDING_S)
    try:
        with Trace.open(parent) as before, Trace.open(one.path) as now:
            return replace(one, after=after(before, now, one.schedule_sha256))
    except (KVScopeError, HeatKVError, OSError) as error:
        return replace(one, read_back=f"{one.read_back}; it cannot be compared: {error}")


def has_ended(status: str) -> bool:
    return status in _ENDED


def _launched(one: Applied) -> Applied:
    launched = Launched(["apply", one.plan, "--mode", one.mode, "--output", str(one.path), "--json"], one.path)
    return replace(one, launched=launched, where=f"process {launched.pid}, started by this viewer")


def _revised(snapshot: Snapshot, one: Applied) -> Applied:
    """Hand it to the run that records the parent, to go on with."""
    socket = snapshot.header.control_socket
    if socket is None:
        return replace(one, refused="the run's trace names no socket, so it cannot be revised")
    try:
        schedule = PlanFile.load(Path(one.plan)).schedule_beside(Path(one.plan)).absolute()
        reply = ask(socket, "revise", schedule=str(schedule), sha256=one.schedule_sha256).reply
    except (KVScopeError, HeatKVError, OSError) as error:
        return replace(one, refused=str(error))
    if isinstance(reply, Accepted):
        return replace(one, status=snapshot.status, where=f"the run itself: {reply.message}")
    return replace(one, refused=f"the run refused: {getattr(reply, 'reason', 'no reason given')}")


def _submitted(snapshot: Snapshot, one: Applied) -> Applied:
    """Hand it to the process that recorded the parent. Raises ControlError if that refuses."""
    socket = snapshot.header.control_socket
    if socket is None:
        return replace(one, refused="the run's trace names no socket, so no process waits for a plan")
    plan = PlanFile.load(Path(one.plan))
    schedule = plan.schedule_beside(Path(one.plan))
    answer = ask(socket, "submit", job=_job(plan, schedule, one.mode).to_json(), trace=str(one.path))
    reason = getattr(answer.reply, "reason", None)
    where = f"process {answer.welcome.pid}, which recorded the parent"
    if reason is not None:
        return replace(one, where=where, refused=f"{where}, refused: {reason}")
    return replace(one, where=where, launched=Queued(one.path, answer.welcome.pid))


def _job(plan: PlanFile, schedule: Path, mode: Mode) -> Job:
    """The parent's job under the plan's schedule, with paths that mean the same in another folder."""
    weights = plan.job.weights
    parent = Path(os.path.abspath(plan.parent))  # noqa: PTH100 - a link stays a link
    job = plan.job.replayed(parent, schedule.absolute(), mode)
    return replace(job, weights=None if weights is None else os.path.abspath(weights))  # noqa: PTH100


def _differing(wanted: EditState, snapshot: Snapshot) -> int:
    theirs = snapshot.schedule.drop_step
    ours = wanted.schedule.drop_step
    return int(np.count_nonzero(ours != theirs)) if ours.shape == theirs.shape else ours.size


def _free_name(stem: str, suffix: str) -> Path:
    number = 1
    while (path := Path(f"{stem}-{number}.{suffix}")).exists():
        number += 1
    return path
