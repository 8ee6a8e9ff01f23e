"""TraceWriter: the HDF5 file of a trace, while it is being written. Knows no threads, runs or tensors.

HDF5's single-writer-multiple-readers mode (SWMR) lets readers follow, if rules are kept that no error enforces:
everything is created before the mode starts, nothing that a reader needs whole is overwritten in place, and a
`commit` row is appended after the rows that it counts are flushed. One thread owns a writer from `create` to `close`.

HDF5 does not survive a write that fails (it crashes when the dataset is let go), so room is reserved on the disk
before HDF5 is asked to grow anything: a full disk is met here, as NoRoomError, with the file still whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

import heatkv.errors
from heatkv.files import check_new, exists_text, place
from kvscope import liveness, superblock
from kvscope.creation import CANNOT_RESERVE, create_axes, create_table, make_room, new_file, write_header
from kvscope.errors import OutputError, TraceError
from kvscope.filters import DEFAULT_FILTER, Filter, filter_named
from kvscope.format import COMMIT, COUNTED, RECORDING_STOPPED, TABLES, Status, Table, text_field
from kvscope.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CREATE_BYTES = 1 << 18
"""More than an empty trace takes."""
_END_BYTES = 1 << 16
"""Always kept in reserve, for the commit that ends a trace on a full disk."""
_INDEX_BYTES = 1 << 12
"""More than HDF5's bookkeeping grows by when a dataset grows by some chunks."""


class NoRoomError(OSError):
    """The file may not grow: the disk is full, or a quota or limit is reached."""


class TraceWriter:
    """A trace file in SWMR mode: append, then commit."""

    def __init__(self, file: h5py.File, descriptor: int, path: Path) -> None:
        self.path = path
        self._file = file
        self._descriptor = descriptor
        self._named: int | None = None
        # Opened once: a dataset that is let go of is flushed, which must not happen at a moment of its own.
        self._datasets = {name: file[name] for name in (*TABLES, "query_scale")}
        self._counts = dict.fromkeys((*COUNTED, "query_scale"), 0)
        self._committed = dict(self._counts)
        self._whole = dict(self._counts)
        self._has_previews = False
        self._epoch = 0
        self._reserved = self.file_bytes
        self._is_ending = False
        self._reserve(_END_BYTES)

    @classmethod
    def create(
        cls,
        path: Path,
        header: Mapping[str, str | int],
        lengths: Mapping[str, int],
        fixed: Mapping[str, NDArray[np.integer]],
        *,
        variants: Sequence[Table] = (),
        filter_name: str = DEFAULT_FILTER,
        overwrite: bool = False,
    ) -> TraceWriter:
        """Create the whole file beside `path`, enter SWMR, commit, and rename it to `path`.

        `lengths`: length of every axis that does not grow; `fixed`: the fixed tables; `variants`: tables that are
        stored otherwise than in TABLES; `filter_name`: of the compressed ones, as in filters.FILTERS. Raises
        OutputError, leaving nothing behind, if that cannot be done.
        """
        tables = TABLES | {table.name: table for table in variants}
        target = check_output(path, overwrite=overwrite)
        part = target.with_name(target.name + ".part")
        needed = _CREATE_BYTES + sum(2 * values.nbytes for values in fixed.values())
        try:
            make_room(part, needed)
        except FileExistsError:
            raise OutputError(
                f"{part}: exists; a run is starting there, or was cut off while it did: then delete it"
            ) from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({reason_text(error)}); nothing was left behind") from None
        try:
            writer = cls._started(part, header, lengths, fixed, tables.values(), filter_named(filter_name))
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise OutputError(f"{path}: cannot be written ({reason_text(error)}); nothing was left behind") from None
        try:
            writer._take_name(path, overwrite=overwrite)
        except OutputError:
            writer.close()
            part.unlink(missing_ok=True)
            raise
        return writer

    def _take_name(self, path: Path, *, overwrite: bool) -> None:
        """Rename the file from its part's name. Asked once more: the name may have been taken meanwhile."""
        try:
            place(self.path, check_output(path, overwrite=overwrite), overwrite=overwrite)
        except FileExistsError:
            raise OutputError(exists_text(path)) from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({reason_text(error)}); nothing was left behind") from None
        self.path = path
        # The other descriptor knows the file by the name it was created with, which may be gone.
        with contextlib.suppress(OSError):
            self._named = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    @classmethod
    def _started(
        cls,
        part: Path,
        header: Mapping[str, str | int],
        lengths: Mapping[str, int],
        fixed: Mapping[str, NDArray[np.integer]],
        tables: Iterable[Table],
        arrays: Filter,
    ) -> TraceWriter:
        file = new_file(part)
        descriptor, locked = liveness.hold(part)
        try:
            write_header(file, {**header, "liveness": "lock" if locked else "heartbeat"})
            create_axes(file, lengths)
            for table in tables:
                create_table(file, table, lengths, fixed.get(table.name), arrays)
            file.swmr_mode = True
            writer = cls(file, descriptor, part)
            writer.commit(Status.RUNNING)
        except BaseException:
            os.close(descriptor)
            raise
        return writer

    @property
    def file_status(self) -> os.stat_result:
        """What the system says of the file, under whatever name."""
        return os.fstat(self._descriptor)

    def current_path(self) -> Path | None:
        """Where the file is now, whoever moved it; None: it was deleted, or the system does not tell."""
        try:
            found = Path(f"/proc/self/fd/{self._named}").readlink()
            return found if os.path.samestat(found.stat(), self.file_status) else None
        except OSError:
            return None

    @property
    def file_bytes(self) -> int:
        """Length of the file, with the room reserved for what comes next."""
        return self.file_status.st_size

    def append_rows(self, name: str, rows: NDArray[np.void]) -> None:
        """Append rows to a table of rows."""
        if rows.size:
            begin, end = self._counts[name], self._counts[name] + rows.size
            self._grown(name, (end,))[begin:end] = rows
            self._counts[name] = end

    def append_scale(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Append one query scale to the tables along that axis; those not given stay at their fill value."""
        scale = self._counts["query_scale"]
        self._has_previews |= "preview" in arrays
        self._grown("query_scale", (scale + 1,))[scale] = scale
        for table in TABLES.values():
            if table.axes[0] == "query_scale" and (table.name != "preview" or self._has_previews):
                self._append_along_scales(table.name, scale, arrays.get(table.name))
        self._counts["query_scale"] = scale + 1

    def append_bits(self, bits: NDArray[np.uint8]) -> None:
        """Append the bits of one scale, [batch, tokens, bit]."""
        begin, end = self._counts["bits"], self._counts["bits"] + bits.shape[1]
        self._grown("bits", (bits.shape[0], end, bits.shape[2]))[:, begin:end] = bits
        self._counts["bits"] = end

    def write_image(self, rgb: NDArray[np.uint8]) -> None:
        """Store the final picture, [height, width, 3]."""
        assert not self._counts["image"], "a trace holds one final picture"
        self._grown("image", rgb.shape)[...] = rgb
        self._counts["image"] = rgb.shape[0]

    def commit(self, status: Status, *, message: str = "") -> None:
        """Make everything appended so far valid for readers."""
        self._file.flush()
        row = np.zeros(1, COMMIT.row_dtype)
        row["epoch"] = self._epoch
        row["t_ns"] = time.monotonic_ns()
        row["status"] = status
        row["scales_done"] = self._counts["query_scale"]
        row["previews"] = self._has_previews
        for name in COUNTED:
            row[f"{name}_rows"] = self._counts[name]
        row["message"] = text_field(message)
        dataset = self._grown("commit", (self._epoch + 1,))
        dataset[self._epoch :] = row
        dataset.flush()
        self._epoch += 1
        self._committed = dict(self._counts)
        self._whole = dict(self._counts)

    def mark_whole(self) -> None:
        """What was appended so far belongs together: if what comes next has no room, the trace ends here."""
        self._whole = dict(self._counts)

    def close(self) -> None:
        """Close the file, give back unused room and release the lock."""
        self._datasets.clear()
        self._file.close()
        with contextlib.suppress(OSError):  # the room only; the trace is whole
            _give_back_room(self._descriptor)
        self._let_go()

    def end_early(self, reason: str) -> None:
        """End a trace whose run goes on: what is whole stays, the last commit says why there is no more."""
        self._is_ending = True
        self._counts = dict(self._whole)
        scales = self._counts["query_scale"]
        recorded = "1 scale is recorded" if scales == 1 else f"{scales} scales are recorded"
        self.commit(Status.FAILED, message=f"{RECORDING_STOPPED}{reason}; the run went on, {recorded}")
        self.close()

    def abandon(self) -> None:
        """Let go of a file that HDF5 could not write; it stays as it is, and readers find its last commit.

        HDF5 can neither close such a file nor leave it: it would write again, at the latest when the process exits,
        mark the damaged file as closed, and crash. So its descriptor is turned to the null device, and it is kept.
        """
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, self._file.id.get_vfd_handle())
        os.close(null)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
        self._let_go()

    def _let_go(self) -> None:
        for descriptor in (self._descriptor, self._named):
            if descriptor is not None:
                os.close(descriptor)

    def _append_along_scales(self, name: str, scale: int, values: NDArray[np.generic] | None) -> None:
        # The first picture sets the size of all previews.
        is_first = values is not None and not self._datasets[name].size
        shape = values.shape if values is not None and is_first else self._datasets[name].shape[1:]
        dataset = self._grown(name, (scale + 1, *shape), is_written=values is not None)
        if values is not None:
            dataset[scale] = values

    def _grown(self, name: str, shape: tuple[int, ...], *, is_written: bool = True) -> h5py.Dataset:
        """The dataset, lengthened to this shape. Raises NoRoomError, before HDF5 sees it, if the file may not grow.

        What is not written takes no room: reading it gives the fill value.
        """
        dataset = self._datasets[name]
        new = _num_chunks(shape, dataset.chunks) - _num_chunks(dataset.shape, dataset.chunks)
        if new and is_written:
            chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
            self._reserve(_INDEX_BYTES + new * (chunk_bytes + chunk_bytes // 64 + 64))  # gzip may add a little
        dataset.resize(shape)
        return dataset

    def _reserve(self, num_bytes: int) -> None:
        if not self._is_ending and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._descriptor, self._reserved, num_bytes)
            except OSError as error:
                if error.errno in CANNOT_RESERVE:
                    return
                raise NoRoomError(error.errno, error.strerror) from None
            self._reserved += num_bytes


def _num_chunks(shape: tuple[int, ...], chunks: tuple[int, ...]) -> int:
    return math.prod(-(-length // chunk) for length, chunk in zip(shape, chunks, strict=True))


def check_output(path: Path, *, overwrite: bool) -> Path:
    """The file that a trace at this path makes or replaces, links followed; touches nothing.

    Raises OutputError if it cannot be written, exists (unless `overwrite`), or is being recorded by a run.
    """
    try:
        target = check_new(path, overwrite=overwrite)
    except heatkv.errors.OutputError as error:
        raise OutputError(str(error)) from None
    recorder = _recorder_of(target) if target.exists() else None
    if recorder is not None:
        raise OutputError(f"{path}: is being recorded by {recorder}; choose another name")
    return target


def _recorder_of(path: Path) -> str | None:
    """Who records this file now, in words; None: nobody."""
    try:
        with Trace.open(path) as trace:
            return f"process {trace.header.pid}" if trace.status == "live" else None
    except TraceError:
        return "another process" if liveness.is_held(path) else None


def reason_text(error: Exception) -> str:
    """What went wrong, in the system's words where they are known."""
    # HDF5 passes the system's words on inside its own.
    _, found, tail = str(error).partition("error message = '")
    if found:
        return tail.partition("'")[0]
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return words.partition("\n")[0].strip() or type(error).__name__


def _give_back_room(descriptor: int) -> None:
    """Cut a closed file to the length that HDF5 says it has; not if a reader in this process keeps it open."""
    block = superblock.parse(os.pread(descriptor, superblock.SIZE, 0))
    if block is not None and block.is_closed:
        os.ftruncate(descriptor, block.end)
