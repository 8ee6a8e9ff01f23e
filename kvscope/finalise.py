"""Finalising: a trace whose run has ended, written anew, smaller and quicker to read, in the place of the old file.

While a run goes on, rows are stored as they come, in small chunks, and large maps as they are. Afterwards every table
is stored in chunks of about 128 KiB, compressed. The recorded file is never touched: the new one is made in memory,
written beside it, brought to the disk, and renamed over it. Whatever goes wrong on the way, the old file is a whole
trace, and readers that have it open keep it, with its last commit.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from kvscope import copying
from kvscope.creation import LIBVER, cut_chunks
from kvscope.filters import DEFAULT_FILTER, FILTERS, Filter
from kvscope.format import TABLES, Status

MOST_BYTES = 128 << 20
"""Larger files stay as they were recorded: writing them anew would take longer than a user should wait."""

CHUNK_BYTES = 128 << 10
"""About how much one chunk holds: quick to find, quick to unpack."""

_SMALL = Filter(h5py.h5z.FILTER_DEFLATE, (4,), shuffle=True)
"""For rows, which gain most, whatever filter large arrays have."""


class NotFinalisedError(Exception):
    """Why a trace stays as it was recorded; nothing is lost."""


@dataclass(frozen=True, slots=True)
class Finalised:
    """What finalising took and gained."""

    seconds: float
    before_bytes: int
    after_bytes: int


def final_image(path: Path, made: os.stat_result, *, untold_ns: int = 0) -> bytes:
    """The content of the finalised file, of the closed one at this path, if that is still the file that was `made`.

    `untold_ns`: what recording took that no row of `cost` tells yet.
    Raises NotFinalisedError if it should stay as it is; OSError and what else HDF5 raises if it cannot be read.
    """
    begin_ns = time.monotonic_ns() - untold_ns
    with path.open("rb") as recorded:
        if not os.path.samestat(os.fstat(recorded.fileno()), made):
            raise NotFinalisedError("the trace was moved, deleted or replaced")
        length = os.fstat(recorded.fileno()).st_size
        if length > MOST_BYTES:
            raise NotFinalisedError(f"{length >> 20} MiB would take long; files of more than {MOST_BYTES >> 20} stay")
        with h5py.File(recorded, "r") as source:
            return _written_anew(source, begin_ns)


def replace_content(path: Path, content: bytes, made: os.stat_result) -> None:
    """Give the file at `path` this content in one step, if it still is the file that was `made`."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), made.st_mode & 0o777)
            file.flush()
            os.fsync(file.fileno())  # or a power failure could leave the new name on an empty file
        if not os.path.samestat(path.stat(), made):
            raise NotFinalisedError("the trace was moved, deleted or replaced")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _written_anew(source: h5py.File, begin_ns: int) -> bytes:
    last = source["commit"][-1]
    if last["status"] == Status.RUNNING:
        raise NotFinalisedError("the run has not ended")
    # In memory: HDF5 does not survive a write that fails, and nothing half done can be left on the disk.
    options = {"driver": "core", "backing_store": False, "libver": LIBVER, "track_order": True}
    with h5py.File(f"kvscope-{uuid.uuid4().hex}", "w", **options) as target:
        copying.copy_attributes(source, target)
        target.attrs["finalised"] = np.int64(1)
        copying.copy_axes(source, target, scales_done=int(last["scales_done"]))
        arrays = FILTERS[_text(source, "filter") or DEFAULT_FILTER]
        names = [name for name in TABLES if name in source]
        for name in sorted(names, key=lambda name: source[name].id.get_storage_size()):  # small ones near the front
            _copy_table(name, source[name], target, arrays)
        target.flush()
        _tell_cost(target, begin_ns)
        target.flush()
        return bytes(target.id.get_file_image())


def _copy_table(name: str, source: h5py.Dataset, target: h5py.File, arrays: Filter) -> None:
    wanted = arrays if TABLES[name].compressed else _SMALL
    is_final = _is_final(source, wanted)
    made = target.create_dataset(
        name,
        source.shape,
        maxshape=source.maxshape,
        chunks=source.chunks if is_final else _chunks(name, source.shape, source.dtype.itemsize),
        dtype=source.dtype,
        fillvalue=None if source.dtype.names else source.fillvalue,
        **wanted.creation,
    )
    for index, axis in enumerate(TABLES[name].axes):
        made.dims[index].attach_scale(target[axis])
    copying.copy_attributes(source, made)
    if not source.id.get_num_chunks():  # never written: every cell has the fill value
        return
    if is_final:
        _copy_chunks(source, made)
        return
    for block in _blocks(made):
        made[block] = source[block]


def _is_final(source: h5py.Dataset, wanted: Filter) -> bool:
    """Whether its chunks can be taken over as they are stored."""
    properties = source.id.get_create_plist()
    codes = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    compressed = [code for code in codes if code != h5py.h5z.FILTER_SHUFFLE]
    fits = all(chunk <= length for chunk, length in zip(source.chunks, source.shape, strict=True))
    chunk_bytes = math.prod(source.chunks) * source.dtype.itemsize
    return fits and chunk_bytes >= CHUNK_BYTES // 2 and compressed == ([wanted.code] if wanted.code else [])


def _copy_chunks(source: h5py.Dataset, made: h5py.Dataset) -> None:
    for index in range(source.id.get_num_chunks()):
        offset = source.id.get_chunk_info(index).chunk_offset
        mask, content = source.id.read_direct_chunk(offset)
        made.id.write_direct_chunk(offset, content, mask)


def _chunks(name: str, shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...]:
    """Parts of the table of about CHUNK_BYTES; maps layer by layer."""
    return cut_chunks((1, 1, *shape[2:]) if name == "attention_map" else shape, item_bytes, CHUNK_BYTES)


def _blocks(made: h5py.Dataset) -> Iterator[tuple[slice, ...]]:
    """Whole chunks along the first axis at a time, so that each is packed once and little is in memory."""
    for begin in range(0, made.shape[0], made.chunks[0]):
        yield (slice(begin, begin + made.chunks[0]),)


def _tell_cost(target: h5py.File, begin_ns: int) -> None:
    """Say in one more row of `cost` what ending and finalising took, and in the last commit that there is one."""
    cost, commit = target["cost"], target["commit"]
    row = np.zeros(1, cost.dtype)
    row["t_ns"] = now = time.monotonic_ns()
    row["scales_done"], row["writer_ns"] = commit[-1]["scales_done"], now - begin_ns
    row["file_bytes"] = target.id.get_filesize()
    cost.resize((len(cost) + 1,))
    cost[-1:] = row
    last = commit[-1:]
    last["t_ns"], last["cost_rows"] = time.monotonic_ns(), len(cost)
    commit[-1:] = last


def _text(source: h5py.File, key: str) -> str:
    value = source.attrs.get(key, b"")
    return value.decode() if isinstance(value, bytes) else str(value)
