"""Trace: one recorded run, read-only; while it is recorded and afterwards. Knows nothing of screens.

The last `commit` row is read first, and nothing past its counts is ever looked at, so every answer is whole and
belongs to one moment, until `refresh` moves on to a later one. A Trace is used by one thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import h5py
import numpy as np

from heatkv.errors import ScheduleError
from heatkv.schedule import PruningSchedule
from kvscope import liveness, maps
from kvscope.errors import TraceError, TraceFormatError, UsageError
from kvscope.format import RECORDING_STOPPED, TABLES, Reason, Status, decode_text
from kvscope.header import read_header, text_of
from kvscope.in_force import InForce, sole
from kvscope.opening import (
    DAMAGE,
    axis_lengths,
    check_filter,
    check_version,
    first_line,
    has_own,
    header_attributes,
    last_commit,
    open_file,
    root_table,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.layout import TableLayout

TraceStatus = Literal["live", "done", "failed", "cancelled", "crashed"]

CRASHED_MESSAGE = "the run, or its recording, ended without saying so; what it had committed is here"


class Trace:
    """A trace file. Open it with `Trace.open`; arrays it gives are read-only."""

    def __init__(self, path: Path, file: h5py.File, *, followed: bool) -> None:
        self.path = path
        self._file = file
        self._followed = followed
        self._rows: dict[str, NDArray[Any]] = {}
        self._commit: np.void
        self._alive = True
        self._checked: set[str] = set()
        with self._reading():
            attributes = header_attributes(file)
            check_version(path, attributes)
            check_filter(path, file)
            self.header = read_header(attributes)
            self._lengths = axis_lengths(self.header)
            self.plans = sole(self._read_schedule())
            """Every schedule that the run obeyed so far; more than one where it was revised under way."""
            self._read_commit()
        self._read_revisions()

    @classmethod
    def open(cls, path: Path | str) -> Trace:
        """Open a trace, live, ended or crashed. Raises TraceError, or a child that says what is wrong."""
        path = Path(path)
        file, followed = open_file(path)
        try:
            return cls(path, file, followed=followed)
        except BaseException:
            file.close()
            raise

    def refresh(self) -> bool:
        """Move on to the last commit. True if anything changed, the status included."""
        if self.status != "live":
            return False
        before = (self._commit["epoch"], self.status)
        with self._reading():
            self._read_commit()
        self._read_revisions()
        return before != (self._commit["epoch"], self.status)

    @property
    def schedule(self) -> PruningSchedule:
        """The plan in force: the run's last."""
        return self.plans[-1].schedule

    @property
    def file(self) -> h5py.File:
        """The HDF5 file itself, for what is asked of its structure; nothing in it has been checked."""
        return self._file

    def layouts(self, *, sizes: bool = False) -> dict[str, TableLayout]:
        """Every table that the file holds, as it describes it; `sizes`: with what each takes in the file."""
        # Deferred: the viewer, which reads every trace, asks for none.
        from kvscope.layout import read_layouts

        with self._reading():
            return read_layouts(self._file, sizes=sizes)

    @property
    def status(self) -> TraceStatus:
        """`crashed`: no end was written, and the process that recorded is gone."""
        status = Status(int(self._commit["status"]))
        if status is Status.RUNNING:
            return "live" if self._alive else "crashed"
        return cast(TraceStatus, status.name.lower())

    @property
    def message(self) -> str:
        """Why the run failed, was cancelled or is taken for crashed, or its recording stopped; else empty."""
        return CRASHED_MESSAGE if self.status == "crashed" else decode_text(self._commit["message"])

    @property
    def recording_stopped(self) -> bool:
        """It is not the run that failed, but its recording, as on a full disk: the run went on without it."""
        return self.status == "failed" and self.message.startswith(RECORDING_STOPPED)

    @property
    def scales_done(self) -> int:
        return int(self._commit["scales_done"])

    @property
    def committed_ns(self) -> int:
        """When the last commit was made, on the trace's clock."""
        return int(self._commit["t_ns"])

    @property
    def file_bytes(self) -> int:
        """Length of the file; while it is live, with the room that is reserved for what comes next."""
        return self.path.stat().st_size

    @property
    def scale_summary(self) -> NDArray[np.void]:
        """One row per finished scale: what its steps add up to; columns as in format.TABLES["scale_summary"]."""
        return self._table("scale_summary")

    @property
    def revisions(self) -> NDArray[np.void]:
        """One row per finished scale: whether the run got another plan before it; columns as in format.TABLES."""
        return self._table("revisions")

    @property
    def steps(self) -> NDArray[np.void]:
        """One row per step; columns as in format.TABLES["steps"]."""
        return self._table("steps")

    @property
    def kept_tokens(self) -> NDArray[np.uint16]:
        """[scales_done, layer, head, source_scale]: held by the layer after its step's write and eviction."""
        return self._table("kept_tokens")

    @property
    def read_tokens(self) -> NDArray[np.uint16]:
        """[scales_done, layer, head, source_scale]: what attention could read, the current scale included."""
        return self._table("read_tokens")

    @property
    def attention_mass(self) -> NDArray[np.float32]:
        """[scales_done, layer, head, source_scale]; NaN: not measured, or not visible."""
        return self._table("attention_mass")

    @property
    def attention_mass_uncond(self) -> NDArray[np.float32]:
        """[scales_done, layer, head, source_scale]: the same of the unconditional rows."""
        return self._table("attention_mass_uncond")

    @property
    def forced_kl(self) -> NDArray[np.float32]:
        """[scales_done]: of a forced run, mean KL of the bits from the parent's, in nats; NaN: not measured."""
        return self._scales_of("forced_kl")

    @property
    def forced_flips(self) -> NDArray[np.float32]:
        """[scales_done]: of a forced run, share of the bits whose likelier value is not the parent's."""
        return self._scales_of("forced_flips")

    @property
    def attention_error(self) -> NDArray[np.float32]:
        """[scales_done, layer, head]: of a forced run, relative error of the head's output; NaN: not measured."""
        return self._scales_of("attention_error")

    def attention_map(self, query_scale: int, layer: int, head: int) -> NDArray[np.float32]:
        """[source_scale, map_y, map_x]: attention that each cell of tokens receives; NaN: not measured, or not visible.

        Reads this one map from the file. How tokens become cells: see maps.MAP_GRID.
        """
        self._check_done(query_scale)
        if not (0 <= layer < self.header.num_layers and 0 <= head < self.header.num_heads):
            raise TraceError(
                f"{self.path}: there is no head {head} in layer {layer}; "
                f"there are {self.header.num_layers} layers of {self.header.num_heads} heads, from 0"
            )
        if not self._has("attention_map"):
            return np.full((self.header.scales.num_scales, maps.MAP_CELLS, maps.MAP_CELLS), np.nan, np.float32)
        stored = self._read("attention_map", lambda dataset: dataset[query_scale, layer, head])
        return maps.decode(stored) if stored.dtype == np.uint8 else stored

    @property
    def gpu(self) -> NDArray[np.void]:
        """NVML samples; a value is NaN where its `_reason` is not 0."""
        return self._table("gpu")

    @property
    def gpu_unavailable(self) -> str | None:
        """Why there are no GPU samples, or no more of them; None: there are."""
        if self.header.gpu_unavailable is not None:
            return self.header.gpu_unavailable
        last = self.gpu[-1:]
        if last.size and last["used_bytes_reason"][0] == Reason.GPU_LOST:
            return Reason.GPU_LOST.text
        return None

    @property
    def allocator(self) -> NDArray[np.void]:
        """Memory of the run's process, at the start and after every scale."""
        return self._table("allocator")

    @property
    def cost(self) -> NDArray[np.void]:
        """What recording itself cost."""
        return self._table("cost")

    @property
    def log(self) -> NDArray[np.void]:
        """What the run said: t_ns, level (an index of format.LEVELS), text (see format.decode_text)."""
        return self._table("log")

    @property
    def commits(self) -> NDArray[np.void]:
        """Every commit so far, the last one last."""
        count = int(self._commit["epoch"]) + 1
        return cast("NDArray[np.void]", self._read("commit", lambda dataset: dataset[:count]))

    def bits(self, scale: int) -> NDArray[np.uint8]:
        """[batch, tokens, bit]: the sampled bits of a finished scale."""
        self._check_done(scale)
        begin, end = self.header.scales.offsets[scale : scale + 2]
        bits = self._read("bits", lambda dataset: dataset[:, begin:end])
        if bits.shape[1] != end - begin:
            raise TraceFormatError(f"{self.path}: damaged: bits of scale {scale} are missing; record it again")
        return cast("NDArray[np.uint8]", bits)

    def preview(self, scale: int) -> NDArray[np.uint8] | None:
        """[height, width, 3]: the picture after a finished scale; None: none was made."""
        self._check_done(scale)
        if not self._commit["previews"]:
            return None
        return cast("NDArray[np.uint8]", self._read("preview", lambda dataset: dataset[scale]))

    @property
    def image(self) -> NDArray[np.uint8] | None:
        """[height, width, 3]: the final picture; None: there is none, or not yet."""
        height = self._count("image")
        return self._read("image", lambda dataset: dataset[:height]) if height else None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read_commit(self) -> None:
        # Asked before reading: the recorder lets go of its lock only after its last commit. The other way round,
        # a run that ends in between would look crashed.
        held = self.header.liveness == "lock" and liveness.is_held(self.path)
        self._commit = last_commit(self.path, self._dataset("commit"))
        Status(int(self._commit["status"]))  # ValueError if it is none
        if self.scales_done > self.header.scales.num_scales:
            raise ValueError(f"{self.scales_done} scales of {self.header.scales.num_scales}")
        self._alive = held or (self.header.liveness == "heartbeat" and self._is_fresh())

    def _is_fresh(self) -> bool:
        age_ns = time.time_ns() - self.header.wall_ns(self.committed_ns)
        return age_ns < liveness.STALE_S * 1e9

    def _count(self, name: str) -> int:
        return int(self._commit[TABLES[name].count_name])

    def _table(self, name: str) -> NDArray[Any]:
        """The committed part of a table; grown by what is new since it was last read."""
        table = TABLES[name]
        if not self._has(name):
            return np.zeros((0,) * len(table.axes), table.stored_dtype)
        count, known = self._count(name), self._rows.get(name)
        if known is None or len(known) < count:
            begin = 0 if known is None else len(known)
            new = self._read(name, lambda dataset: dataset[begin:count])
            if len(new) != count - begin:
                raise TraceFormatError(f"{self.path}: damaged: rows of {name} are missing; record it again")
            known = new if known is None else np.concatenate([known, new])
            known.flags.writeable = False
            self._rows[name] = known
        return known

    def _scales_of(self, name: str) -> NDArray[np.float32]:
        """A table along query scales that older traces have not: then NaN."""
        if self._has(name):
            return cast("NDArray[np.float32]", self._table(name))
        shape = (self.scales_done, self.header.num_layers, self.header.num_heads)[: len(TABLES[name].axes)]
        return np.full(shape, np.nan, np.float32)

    def _has(self, name: str) -> bool:
        with self._reading():
            return has_own(self._file, name)

    def _read(self, name: str, select: Callable[[h5py.Dataset], Any]) -> Any:  # Any: what h5py gives, an array
        with self._reading():
            return select(self._dataset(name))

    def _dataset(self, name: str) -> h5py.Dataset:
        # Opened anew each time, and let go of at once: HDF5 reads a dataset wrong, without a word, that is refreshed
        # while another handle of it is open in the process (its first chunk in the place of all others).
        dataset = self._file[name] if name in self._checked else root_table(self._file, name, self._lengths)
        self._checked.add(name)
        if self._followed:
            dataset.id.refresh()
        return dataset

    def _read_schedule(self) -> PruningSchedule:
        record = json.loads(text_of(self._file.attrs, "schedule"))
        schedule = PruningSchedule.from_json(record | {"drop_step": self._dataset("drop_step")[...]})
        if schedule.scales.sizes != self.header.scales.sizes:
            raise ValueError("the schedule is for other scales than the header's")
        return schedule

    def _read_revisions(self) -> None:
        """Add the plans that were put in force since the last look; each is there when its first scale is done."""
        for scale in np.flatnonzero(self.revisions["is_revised"]).tolist():
            if scale > self.plans[-1].query_scale or (scale == 0 and len(self.plans) == 1):
                with self._reading():
                    self.plans += (self._revised(scale),)

    def _revised(self, scale: int) -> InForce:
        row, before = self.revisions[scale], self.schedule
        budget = float(row["budget"])
        schedule = replace(
            before,
            drop_step=self._dataset("revised_drop_step")[scale],
            sink_scales=int(row["sink_scales"]),
            policy=decode_text(row["policy"]),
            budget=None if np.isnan(budget) else budget,
            codec=None if before.codec is None else self._dataset("revised_codec")[scale],
        )
        return InForce(scale, schedule, decode_text(row["asked_sha256"]))

    def _check_done(self, scale: int) -> None:
        if not 0 <= scale < self.scales_done:
            raise TraceError(f"{self.path}: scale {scale} is not recorded; {self.scales_done} scales are, from 0")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (*DAMAGE, ScheduleError, UsageError) as error:
            # HDF5 tells of damage in many ways; here they all mean that one thing.
            raise TraceFormatError(
                f"{self.path}: damaged or cut short ({first_line(error)}); expected a file made by `kvscope run`"
            ) from None
