"""Snapshot, and the Feed: the one thread that owns the Trace, reads it while it grows, and posts what it found."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvscope.errors import KVScopeError, TraceError
from kvscope.tui.messages import SnapshotTaken, TraceLost, TraceRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from textual.message import Message

    from heatkv.schedule import PruningSchedule
    from kvscope.analysis import Summary
    from kvscope.header import Header
    from kvscope.trace import Trace

FASTEST_S, SLOWEST_S = 0.1, 1.0
_BACK_OFF = 1.5
_MAY_CHANGE = ("live", "crashed")
"""A trace taken for crashed, where nothing but the age of its last commit tells, may turn out to live."""
_JOIN_S = 0.8

Post = Callable[["Message"], object]


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
    schedule: PruningSchedule
    steps: NDArray[np.void]
    kept_tokens: NDArray[np.integer]
    """[query_scale, layer, head, source_scale], finished query scales only; so are the next two."""
    read_tokens: NDArray[np.integer]
    attention_mass: NDArray[np.floating]
    gpu: NDArray[np.void]
    gpu_unavailable: str | None
    """Why there are no GPU samples; None: there are, or may be."""
    log: NDArray[np.void]
    previews: tuple[NDArray[np.uint8] | None, ...]
    """One per finished scale, [height, width, 3]."""
    image: NDArray[np.uint8] | None
    summary: Summary

    @property
    def scales_done(self) -> int:
        return len(self.kept_tokens)

    @property
    def awaits_image(self) -> bool:
        """All scales are done and the picture is being made of them."""
        return self.status == "live" and self.image is None and self.scales_done == self.schedule.scales.num_scales


class Feed:
    """Follows a trace from its own thread until it is final, or until `stop`."""

    def __init__(self, path: Path, post: Post) -> None:
        self._path, self._post = path, post
        self._stopping = threading.Event()
        # A daemon, so that a read stuck on a dead disk cannot keep the process alive.
        self._thread = threading.Thread(target=self._run, name="kvscope-feed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end and wait for it, less than a second."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        # Deferred: h5py takes longer to import than the first frame to paint, and belongs to this thread.
        from kvscope.trace import Trace

        try:
            trace = Trace.open(self._path)
        except KVScopeError as error:
            self._tell(TraceRefused(error))
            return
        try:
            self._follow(trace)
        except TraceError as error:
            self._tell(TraceRefused(error))
        finally:
            trace.close()

    def _follow(self, trace: Trace) -> None:
        """Post a first snapshot, then one whenever the trace has grown; slower while nothing happens."""
        snapshot = take_snapshot(self._path, trace, None)
        self._tell(SnapshotTaken(snapshot))
        interval_s, lost = FASTEST_S, None
        while snapshot.status in _MAY_CHANGE and not self._stopping.wait(interval_s):
            before, lost_before = snapshot, lost
            snapshot, lost = self._refreshed(trace, snapshot)
            if lost != lost_before:
                self._tell(TraceLost(lost))
            if snapshot is not before:
                self._tell(SnapshotTaken(snapshot))
            interval_s = FASTEST_S if snapshot is not before else min(SLOWEST_S, interval_s * _BACK_OFF)

    def _refreshed(self, trace: Trace, snapshot: Snapshot) -> tuple[Snapshot, str | None]:
        """A new snapshot if the trace has grown, else the one given; and why it cannot be read, if so."""
        if not self._path.exists():
            return snapshot, f"{self._path.name} is gone; what was read is shown"
        try:
            return (take_snapshot(self._path, trace, snapshot) if trace.refresh() else snapshot), None
        except TraceError as error:
            return snapshot, f"{error}; trying again"

    def _tell(self, message: Message) -> None:
        if not self._stopping.is_set():
            self._post(message)


def take_snapshot(path: Path, trace: Trace, before: Snapshot | None) -> Snapshot:
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
        schedule=before.schedule if before else trace.schedule,
        steps=trace.steps,
        kept_tokens=trace.kept_tokens,
        read_tokens=trace.read_tokens,
        attention_mass=trace.attention_mass,
        gpu=trace.gpu,
        gpu_unavailable=trace.gpu_unavailable,
        log=trace.log,
        previews=known + tuple(trace.preview(scale) for scale in range(len(known), done)),
        image=trace.image,
        summary=summarize(trace),
    )
