"""Snapshot, and the Feed: the one thread that owns a Trace, reads it while it grows, and posts what it found."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from kvscope.errors import KVScopeError, TraceError
from kvscope.tui.messages import AttentionTaken, RunSaid, SnapshotTaken, TraceLost, TraceRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from textual.message import Message

    from heatkv.schedule import PruningSchedule
    from kvscope.analysis import Summary
    from kvscope.header import Header
    from kvscope.in_force import Plans
    from kvscope.ledger import Ledger
    from kvscope.trace import Trace

FASTEST_S, SLOWEST_S = 0.1, 1.0
REMOTE_S = 0.25
"""The least time between two snapshots where every frame goes over a network."""

_BACK_OFF = 1.5
_MAY_CHANGE = ("live", "crashed")
"""A trace taken for crashed, where nothing but the age of its last commit tells, may turn out to live."""
_JOIN_S = 0.8
_SHOWN_S = 0.2
"""How long the ledger waits for the first snapshot to be drawn."""

Post = Callable[["Message"], object]
Place = tuple[int, int, int]
"""(query scale, layer, head)."""


class Launched(Protocol):
    """A run that was started with the viewer, and has no trace yet."""

    @property
    def pid(self) -> int: ...

    def said(self) -> tuple[str, ...]:
        """Its lines so far."""
        ...

    def poll(self) -> int | None:
        """Its exit code; None: it runs."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class AttentionRead:
    """The attention maps of one head at one query scale."""

    query_scale: int
    layer: int
    head: int
    maps: NDArray[np.float32] | None
    """[source_scale, 16, 16], NaN where nothing was measured; None: this trace records no maps."""

    @property
    def place(self) -> Place:
        return self.query_scale, self.layer, self.head


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Everything the screens know of a trace at one moment. Arrays are read-only and never change."""

    path: Path
    header: Header
    status: str
    """live, done, failed, cancelled or crashed."""
    message: str
    committed_ns: int
    """When the trace's last commit was made, on its clock."""
    plans: Plans
    """Every schedule that the run obeyed so far."""
    steps: NDArray[np.void]
    kept_tokens: NDArray[np.integer]
    """[query_scale, layer, head, source_scale], finished query scales only; so are the next three."""
    read_tokens: NDArray[np.integer]
    attention_mass: NDArray[np.floating]
    attention_mass_uncond: NDArray[np.floating]
    allocator: NDArray[np.void]
    gpu: NDArray[np.void]
    gpu_unavailable: str | None
    """Why there are no GPU samples; None: there are, or may be."""
    log: NDArray[np.void]
    previews: tuple[NDArray[np.uint8] | None, ...]
    """One per finished scale, [height, width, 3]."""
    image: NDArray[np.uint8] | None
    summary: Summary
    ledger: Ledger | None
    """None: not added up yet; the next snapshot has it."""

    @property
    def schedule(self) -> PruningSchedule:
        """The plan in force: the run's last."""
        return self.plans[-1].schedule

    @property
    def scales_done(self) -> int:
        return len(self.kept_tokens)

    @property
    def awaits_image(self) -> bool:
        """All scales are done and the picture is being made of them."""
        return self.status == "live" and self.image is None and self.scales_done == self.schedule.scales.num_scales


class Feed:
    """Follows a trace from its own thread until `stop`; reads attention maps as they are asked for.

    With `launched` the trace may not be there yet: what the run says is posted until it is. `opened` is called, in the
    feed's thread, once the trace can be read.
    """

    def __init__(
        self,
        path: Path,
        post: Post,
        *,
        launched: Launched | None = None,
        fastest_s: float = FASTEST_S,
        opened: Callable[[Path], None] = lambda _: None,
    ) -> None:
        self.path = path
        self._opened = opened
        self._post, self._launched, self._fastest_s = post, launched, fastest_s
        self._stopping = self._shown = self._settled = False
        self._first: Snapshot | None = None
        self._wanted: Place | None = None
        self._changed = threading.Condition()
        # A daemon, so that a read stuck on a dead disk cannot keep the process alive.
        self._thread = threading.Thread(target=self._run, name="kvscope-feed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def first(self, seconds: float) -> Snapshot | None:
        """The first snapshot, as soon as it is taken; None: it is not after so many seconds, or never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._settled, seconds)
            return self._first

    def shown(self) -> None:
        """Tell that a snapshot is drawn: what only later frames show may now be read."""
        with self._changed:
            self._shown = True
            self._changed.notify()

    def want(self, place: Place) -> None:
        """Ask for the attention maps of a head at a query scale; of several that wait, the last is read."""
        with self._changed:
            self._wanted = place
            self._changed.notify()

    def stop(self, *, wait: bool = True) -> None:
        """Ask the thread to end; with `wait`, for less than a second, until it has."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if wait and self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        # Deferred: h5py takes longer to import than the first frame to paint, and belongs to this thread.
        from kvscope.trace import Trace

        try:
            self._wait_for_trace()
            if self._stopping:
                return
            trace = Trace.open(self.path)
        except KVScopeError as error:
            self._refuse(error)
            return
        try:
            self._follow(trace)
        except TraceError as error:
            self._refuse(error)
        finally:
            trace.close()

    def _wait_for_trace(self) -> None:
        """Post what the run says until its trace is there. Raises KVScopeError if it ends without one."""
        told: tuple[tuple[str, ...], str | None] = ((), None)
        while self._launched is not None and not self.path.exists():
            ended = self._launched.poll()
            now = self._launched.said(), told[1] or _socket_of(self._launched.pid)
            if now != told:
                told = now
                self._tell(RunSaid(self, *now))
            if ended is not None and not self.path.exists():
                raise KVScopeError(now[0][-1] if now[0] else f"the run ended with code {ended} before its first step")
            if self._pause(self._fastest_s):
                return

    def _follow(self, trace: Trace) -> None:
        """Post a first snapshot, then one whenever the trace has grown; slower while nothing happens."""
        # The first snapshot is quick: what it takes to add up the ledger would be felt before the first frame.
        snapshot = take_snapshot(self.path, trace, None, with_ledger=False)
        self._settle(snapshot)
        self._tell(SnapshotTaken(self, snapshot))
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._shown, _SHOWN_S)
        self._opened(self.path)
        snapshot = replace(snapshot, ledger=_ledger(trace))
        self._tell(SnapshotTaken(self, snapshot))
        interval_s, lost = self._fastest_s, None
        while not self._pause(interval_s):
            self._read_wanted(trace)
            before, lost_before = snapshot, lost
            if snapshot.status in _MAY_CHANGE:
                snapshot, lost = self._refreshed(trace, snapshot)
            else:
                lost = None if self.path.exists() else self._gone
            if lost != lost_before:
                self._tell(TraceLost(self, lost))
            if snapshot is not before:
                self._tell(SnapshotTaken(self, snapshot))
            interval_s = self._fastest_s if snapshot is not before else min(SLOWEST_S, interval_s * _BACK_OFF)

    def _pause(self, seconds: float | None) -> bool:
        """Wait, until something is wanted at the latest; True: the feed shall stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._wanted is not None, seconds)
            return self._stopping

    def _read_wanted(self, trace: Trace) -> None:
        with self._changed:
            place, self._wanted = self._wanted, None
        if place is None or place[0] >= trace.scales_done:
            return
        maps = trace.attention_map(*place) if "maps" in trace.header.tiers else None
        self._tell(AttentionTaken(self, AttentionRead(*place, maps)))

    def _refreshed(self, trace: Trace, snapshot: Snapshot) -> tuple[Snapshot, str | None]:
        """A new snapshot if the trace has grown, else the one given; and why it cannot be read, if so."""
        if not self.path.exists():
            return snapshot, self._gone
        try:
            return (take_snapshot(self.path, trace, snapshot) if trace.refresh() else snapshot), None
        except TraceError as error:
            # It may have gone just now.
            return snapshot, f"{error}; trying again" if self.path.exists() else self._gone

    @property
    def _gone(self) -> str:
        return f"{self.path.name} is gone; what was read is shown"

    def _refuse(self, error: KVScopeError) -> None:
        self._settle(None)
        self._tell(TraceRefused(self, error))

    def _settle(self, first: Snapshot | None) -> None:
        """Let go who waits for the first snapshot."""
        with self._changed:
            self._first, self._settled = first, True
            self._changed.notify()

    def _tell(self, message: Message) -> None:
        if not self._stopping:
            self._post(message)


def _socket_of(pid: int) -> str | None:
    """Where a process listens for requests; None: nowhere yet."""
    # Deferred: only a run that was started with the viewer is looked for.
    from kvscope.control.places import socket_of

    return socket_of(pid)


def _ledger(trace: Trace) -> Ledger:
    # Deferred like Trace: only the feed's thread needs it.
    from kvscope.ledger import measure

    return measure(trace)


def take_snapshot(path: Path, trace: Trace, before: Snapshot | None, *, with_ledger: bool = True) -> Snapshot:
    """What the trace holds now; previews already read before are not read again."""
    # Deferred like Trace: only the feed's thread needs it.
    from kvscope.analysis import summarize

    known = before.previews if before else ()
    done = trace.scales_done
    return Snapshot(
        path=path,
        header=trace.header,
        status=trace.status,
        message=trace.message,
        committed_ns=trace.committed_ns,
        plans=trace.plans,
        steps=trace.steps,
        kept_tokens=trace.kept_tokens,
        read_tokens=trace.read_tokens,
        attention_mass=trace.attention_mass,
        attention_mass_uncond=trace.attention_mass_uncond,
        allocator=trace.allocator,
        gpu=trace.gpu,
        gpu_unavailable=trace.gpu_unavailable,
        log=trace.log,
        previews=known + tuple(trace.preview(scale) for scale in range(len(known), done)),
        image=trace.image,
        summary=summarize(trace),
        ledger=_ledger(trace) if with_ledger else None,
    )
