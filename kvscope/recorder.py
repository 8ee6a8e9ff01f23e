"""Recorder: the Probe that writes a trace. Listens in the run's thread, writes in one of its own.

The run hands over arrays and goes on; it waits only if the writer is far behind, and never long. If the file can no
longer be written the run goes on without it: the trace ends at its last commit, and `failed` says why. Only GPU
samples may be dropped, and they are counted. When the run has ended the trace is written anew, small and quick to
read (see finalise.py); on a network file system it is recorded elsewhere, and moved then (see spool.py).
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from kvscope import rows
from kvscope.cost import RecordingCost
from kvscope.errors import OutputError
from kvscope.filters import DEFAULT_FILTER, filter_named
from kvscope.format import LEVELS, RECORDING_STOPPED, Status, map_table
from kvscope.header import header_of
from kvscope.liveness import HEARTBEAT_S
from kvscope.maps import MAP_CELLS
from kvscope.placing import TraceFile
from kvscope.spool import MOUNTS, Spool, spool_for
from kvscope.writer import NoRoomError, TraceWriter, check_output, reason_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.probe import Capture, RunStart, ScaleInfo, StepInfo
    from heatkv.schedule import PruningSchedule
    from kvscope.job import Job
    from kvscope.nvml import GpuSampler

Preview = Callable[[Any], "NDArray[np.uint8]"]  # Any: a torch tensor of codes, which this file need not know
Measure = Callable[["ScaleInfo"], Mapping[str, "NDArray[np.generic]"]]
"""What else to record of a finished scale: table along query scales → its one row."""
Ending = Literal["done", "failed", "cancelled"]

QUEUE_SLOTS = 64
"""Messages that may wait for the writer; a run has one per scale, and a few."""

MAX_WAIT_S = 5.0
"""The longest that a full queue may hold up the run, once: then recording is given up."""

CLOSE_WAIT_S = 60.0
"""The longest that `finish` waits for the writer."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """One finished scale, in host memory."""

    steps: NDArray[np.void]
    arrays: dict[str, NDArray[np.generic]]
    query_scale: int
    maps: list[NDArray[np.float32] | None]
    """One per layer, [head, token], not pooled yet; empty: no step measured one."""
    bits: NDArray[np.uint8]
    memory: NDArray[np.void]


@dataclass(frozen=True, slots=True)
class _Image:
    rgb: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _LogLine:
    t_ns: int
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class _End:
    status: Status
    message: str


_Message = _Scale | _Image | _LogLine | _End


class Recorder:
    """Writes one run to one trace file. Use it as a context manager, or call `finish`.

    Leaving the context on an exception ends the trace as failed, on Ctrl-C as cancelled, and passes the exception on.
    Raises OutputError at once if the path cannot be written, or exists and `overwrite` is not set; the file appears
    when the run starts. A sampler is started and stopped by the recorder. `filter`: see filters.FILTERS; raises
    UsageError if it is not installed. `narrate` is told, in one line each, what the user should know at once.
    """

    def __init__(
        self,
        path: Path | str,
        job: Job,
        *,
        overwrite: bool = False,
        sampler: GpuSampler | None = None,
        preview: Preview | None = None,
        measure: Measure | None = None,
        parent_run_id: str | None = None,
        control_socket: str | None = None,
        filter: str = DEFAULT_FILTER,  # noqa: A002  # as the trace's header calls it
        narrate: Callable[[str], None] = lambda _: None,
        mounts: Path = MOUNTS,
    ) -> None:
        self.path = Path(path)
        self.job = job
        self.run_id = uuid.uuid4().hex
        self.failed: str | None = None
        """Why recording stopped before the run's end; None: it did not."""
        self.file = TraceFile(self.path)
        """The file, where it really is, and what became of it."""
        self._reason = ""
        self._narrate, self._mounts = narrate, mounts
        filter_named(filter)
        self._target = check_output(self.path, overwrite=overwrite)
        self._overwrite = overwrite
        self._sampler = sampler
        self._preview, self._measure = preview, measure
        self._known = {
            "run_id": self.run_id,
            "parent_run_id": parent_run_id,
            "control_socket": control_socket,
            "filter": filter,
        }
        self._filter = filter
        self._start: RunStart | None = None
        self._steps: list[StepInfo] = []
        self._revision: dict[str, NDArray[np.generic]] = {}
        self._queue: queue.Queue[_Message] = queue.Queue(QUEUE_SLOTS)
        self._thread: threading.Thread | None = None
        self._created, self._ended = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._cost = RecordingCost()

    @property
    def is_in_place(self) -> bool:
        """Whether what is at `path` is the file that this recorder made: it was not moved, deleted or replaced since.

        The recorder itself does not notice: it goes on writing to its file, wherever that is, and `failed` stays None.
        """
        return self.file.is_in_place

    @property
    def problem(self) -> str | None:
        """What is wrong with the trace, now or after the run, as one line; None: nothing."""
        return self.failed if self.file.misplaced is None else f"{self.path}: {self.file.misplaced}"

    @property
    def capture(self) -> Capture:
        return self.job.capture

    def run_started(self, start: RunStart) -> None:
        """Create the file. Raises OutputError if that is not possible."""
        self._start = start
        if self._sampler is not None:
            self._sampler.start()
        self._thread = threading.Thread(target=self._write_all, name="kvscope-recorder", daemon=True)
        self._thread.start()
        self._created.wait()
        if self._error is not None:
            self._stop_sampler()
            raise self._error
        if self.file.spool is not None:
            self._narrate(self.file.spool.notice)

    def revised(self, schedule: PruningSchedule, asked_sha256: str) -> None:
        """The next scale obeys another schedule, made by `heatkv.revision.revised`; see format.TABLES for the hash."""
        self._revision = rows.revision_arrays(schedule, asked_sha256)

    def step_done(self, step: StepInfo) -> None:
        """Keep what a step says until its scale is done. Touches no tensor."""
        self._steps.append(step)

    def scale_done(self, scale: ScaleInfo) -> None:
        """Hand the finished scale to the writer; device tensors are read here, once per scale."""
        begin_ns = time.monotonic_ns()
        steps, self._steps = self._steps, []
        if self.failed is None and steps:
            self._send(self._host_arrays(steps, scale))
        self._cost.add(run_ns=time.monotonic_ns() - begin_ns)

    def image_done(self, rgb: NDArray[np.uint8]) -> None:
        """Record the final picture, uint8 [height, width, 3]."""
        begin_ns = time.monotonic_ns()
        self._send(_Image(np.array(rgb, dtype=np.uint8)))
        self._cost.add(run_ns=time.monotonic_ns() - begin_ns)

    def log(self, level: str, text: str) -> None:
        """Record a line, at level `info`, `warning` or `error`; before the run starts there is nowhere to."""
        self._send(_LogLine(time.monotonic_ns(), LEVELS.index(level), text))

    def finish(self, status: Ending = "done", message: str = "") -> str | None:
        """End the trace and close the file; later calls do nothing. Returns `failed`.

        A scale that is not done is not recorded. A Ctrl-C that comes meanwhile is passed on when the file is closed.
        """
        end = _End(Status[status.upper()], message)
        try:
            self._close(end)
        except KeyboardInterrupt:
            self._close(end)
            raise
        self._stop_sampler()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self.failed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        elif isinstance(error, KeyboardInterrupt):
            self.finish("cancelled", "stopped by the user")
        else:
            self.finish("failed", f"{type(error).__name__}: {error}")

    # In the run's thread.

    def _send(self, message: _Message) -> None:
        if self.failed is not None or self._thread is None:
            return
        try:
            self._queue.put(message, timeout=MAX_WAIT_S)
        except queue.Full:
            self._stop_recording(f"the file took no data for {MAX_WAIT_S:g} s")

    def _close(self, end: _End) -> None:
        # Not asked of the thread: a `join` that a signal interrupts takes it for dead (CPython before 3.13), and a
        # process that ends while it writes hangs, as HDF5's lock is then nobody's.
        if self._thread is not None and not self._ended.is_set():
            self._send(end)
            if not self._ended.wait(CLOSE_WAIT_S):
                self.failed = self.failed or f"the writer did not finish within {CLOSE_WAIT_S:.0f} s"

    def _stop_recording(self, reason: str) -> None:
        self._reason = reason
        self.failed = f"{self.path}: {RECORDING_STOPPED}{reason}; the run went on"
        self._narrate(self.failed)

    def _host_arrays(self, steps: list[StepInfo], scale: ScaleInfo) -> _Scale:
        assert self._start is not None  # run_started comes first
        arrays: dict[str, NDArray[np.generic]] = {
            "kept_tokens": np.stack([step.kept_tokens for step in steps]),
            "read_tokens": np.stack([step.read_tokens for step in steps]),
        } | self._revision
        self._revision = {}
        for name in ("attention_mass", "attention_mass_uncond"):
            if any(getattr(step, name) is not None for step in steps):
                arrays[name] = rows.mass_array(steps, name)
        if self._preview is not None:
            begin_ns = time.monotonic_ns()
            arrays["preview"] = self._preview(scale.codes)
            self._cost.add(preview_ns=time.monotonic_ns() - begin_ns)
        if self._measure is not None:
            arrays |= self._measure(scale)
        memory = rows.memory_row(time.monotonic_ns(), self._start.device)
        step_rows = rows.step_rows(steps)
        arrays["scale_summary"] = rows.summary_row(step_rows, arrays["kept_tokens"], arrays["read_tokens"])
        return _Scale(step_rows, arrays, scale.query_scale, rows.token_maps(steps), rows.on_host(scale.bits), memory)

    def _stop_sampler(self) -> None:
        if self._sampler is not None:
            self._sampler.stop()

    # In the writer's thread: the only one that touches the file.

    def _write_all(self) -> None:
        try:
            self._write_file()
        finally:
            self._ended.set()

    def _write_file(self) -> None:
        try:
            writer = self._create()
        except Exception as error:  # handed to run_started, which raises it
            self._error = error
            return
        finally:
            self._created.set()
        self._record(writer)
        self.file.settle(is_whole=self.failed is None, untold_ns=self._cost.untold_ns)

    def _record(self, writer: TraceWriter) -> None:
        """Write until the run ends; then the file is closed, or given up."""
        try:
            while self._write_batch(writer):
                pass
            self.file.find(writer)
            if self.failed is None:
                writer.close()
            else:
                writer.end_early(self._reason)
        except (OSError, RuntimeError) as error:  # RuntimeError is HDF5's for a flush that failed
            self._give_up(writer, error)
        except Exception as error:  # a bug: finish raises it in the run's thread
            self.failed, self._error = f"the recorder broke ({error!r})", error
            writer.abandon()

    def _give_up(self, writer: TraceWriter, error: OSError | RuntimeError) -> None:
        self._stop_recording(reason_text(error))
        self.file.find(writer)
        if isinstance(error, NoRoomError):
            with contextlib.suppress(OSError, RuntimeError):
                writer.end_early(self._reason)
                return
        writer.abandon()

    def _create(self) -> TraceWriter:
        start = self._start
        assert start is not None  # set before the thread starts
        lengths = {
            "layer": start.num_layers,
            "head": start.num_heads,
            "source_scale": start.scales.num_scales,
            "map_y": MAP_CELLS,
            "map_x": MAP_CELLS,
            "bit": start.bits_per_token,
            "rgb": 3,
        }
        sizes = np.array(start.scales.sizes)
        fixed = {"scale_height": sizes[:, 0], "scale_width": sizes[:, 1], "drop_step": start.schedule.drop_step}
        known = self._known | {"versions": json.dumps(rows.versions())} | _gpu_facts(self._sampler)
        header = header_of(self.job, start, known, has_previews=self._preview is not None)
        variants = [map_table(self.job.attention_map)] if self.job.attention_map else []
        spool = self.file.spool = spool_for(self._target, mounts=self._mounts)
        writer = TraceWriter.create(
            self.path if spool is None else spool.path,
            header,
            lengths,
            fixed,
            variants=variants,
            filter_name=self._filter,
            overwrite=self._overwrite,
        )
        self.file.status = writer.file_status
        writer.append_rows("allocator", rows.memory_row(time.monotonic_ns(), start.device))
        if spool is not None:
            self._link(spool, writer)
        return writer

    def _link(self, spool: Spool, writer: TraceWriter) -> None:
        try:
            self.file.spool = spool.linked(overwrite=self._overwrite)
        except OutputError:
            writer.close()
            spool.drop()
            raise
        line = rows.log_row(time.monotonic_ns(), LEVELS.index("info"), spool.notice)
        writer.append_rows("log", line)

    def _write_batch(self, writer: TraceWriter) -> bool:
        """Write what waits, or after a quiet moment only samples; False after the end."""
        messages = self._waiting()
        begin_ns = time.monotonic_ns()
        for message in messages:
            self._write(writer, message)
            writer.mark_whole()
        if self._sampler is not None:
            writer.append_rows("gpu", rows.gpu_rows(self._sampler.samples()))
        end = next((message for message in messages if isinstance(message, _End)), None)
        if end or any(isinstance(message, _Scale) for message in messages):
            writer.append_rows("cost", self._cost.row(writer.file_bytes, _dropped(self._sampler)))
        writer.commit(end.status if end else Status.RUNNING, message=end.message if end else "")
        self._cost.add(writer_ns=time.monotonic_ns() - begin_ns)
        return end is None and self.failed is None

    def _waiting(self) -> list[_Message]:
        messages: list[_Message] = []
        try:
            messages.append(self._queue.get(timeout=HEARTBEAT_S))
            while True:
                messages.append(self._queue.get_nowait())
        except queue.Empty:
            return messages

    def _write(self, writer: TraceWriter, message: _Message) -> None:
        match message:
            case _Scale():
                writer.append_rows("steps", message.steps)
                writer.append_scale(message.arrays | self._maps(message))
                writer.append_bits(message.bits)
                writer.append_rows("allocator", message.memory)
                self._cost.scales_done += 1
            case _Image():
                writer.write_image(message.rgb)
            case _LogLine():
                writer.append_rows("log", rows.log_row(message.t_ns, message.level, message.text))
            case _End():
                pass

    def _maps(self, scale: _Scale) -> dict[str, NDArray[np.generic]]:
        """The `attention_map` of a scale, as the job wants it stored; nothing if there is none."""
        # Pooled here and not in `scale_done`: it takes long, and the run need not wait.
        start, kind = self._start, self.job.attention_map
        assert start is not None  # set before the thread starts
        if kind is None or not scale.maps:
            return {}
        return {"attention_map": rows.map_array(scale.maps, start.num_heads, start.scales, scale.query_scale, kind)}


def _dropped(sampler: GpuSampler | None) -> int:
    return 0 if sampler is None else sampler.dropped


def _gpu_facts(sampler: GpuSampler | None) -> dict[str, str | None]:
    if sampler is None:
        return {"gpu_unavailable": "this run had no GPU sampler"}
    unavailable = sampler.unavailable
    return {"gpu_name": sampler.gpu_name, "gpu_unavailable": None if unavailable is None else unavailable.text}
