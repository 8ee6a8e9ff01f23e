"""Creation: an empty trace file, with its header, its axes and its tables, before any run is in it."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from kvscope.filters import FILTERS, Filter
from kvscope.format import AXES, Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Not "latest": what today's HDF5 writes under that name, HDF5 1.14 cannot read.
LIBVER = ("v110", "v110")

CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""What a file system says that has no such call: then there is nothing to rely on but what it has."""

# h5netcdf and netCDF-C take a dimension scale of this name for an axis without values.
NO_VALUES = "This is a netCDF dimension but not a netCDF variable."


MOST_CHUNK_BYTES = 256 << 10
"""More would take too long to read for one map."""


def new_file(part: Path) -> h5py.File:
    """An empty HDF5 file, with HDF5's own lock where the file system has locks."""
    # Without a cache of chunks: what is appended is written once, at once, and if that fails it fails there.
    options = {"libver": LIBVER, "track_order": True, "rdcc_nbytes": 0}
    try:
        return h5py.File(part, "w", locking="best-effort", **options)
    except OSError as error:
        if error.errno != errno.ENOLCK and "No locks available" not in str(error):
            raise
        return h5py.File(part, "w", locking=False, **options)


def write_header(file: h5py.File, header: Mapping[str, str | int]) -> None:
    """Write the attributes of the root group, every text at its own fixed length."""
    for key, value in header.items():
        if isinstance(value, str):
            _write_text(file, key, value)
        else:
            file.attrs[key] = np.int64(value)


def create_axes(file: h5py.File, lengths: Mapping[str, int]) -> None:
    """Make the dimension scales. `lengths`: of every axis that does not grow."""
    for axis in AXES.values():
        length = 0 if axis.grows else lengths[axis.name]
        dataset = file.create_dataset(
            axis.name,
            data=np.arange(length, dtype=np.int32),
            maxshape=(None if axis.grows else length,),
            chunks=(length or 16,),
        )
        has_values = axis.name == "query_scale" or not axis.grows
        dataset.make_scale(axis.name if has_values else NO_VALUES)
        _write_text(dataset, "long_name", axis.meaning)
        _write_text(dataset, "units", "1")


def create_table(
    file: h5py.File, table: Table, lengths: Mapping[str, int], values: NDArray[np.integer] | None, arrays: Filter
) -> None:
    """Make a table. `values`: content of a fixed one, others start empty; `arrays`: how compressed ones are stored."""
    shape = tuple(0 if AXES[axis].grows else lengths[axis] for axis in table.axes)
    stored = arrays if arrays.keeps_up or not table.late else FILTERS["none"]
    chunks = tuple(wanted or length for wanted, length in zip(table.chunk, shape, strict=True))
    dataset = file.create_dataset(
        table.name,
        shape=shape,
        maxshape=tuple(None if AXES[axis].grows else lengths[axis] for axis in table.axes),
        dtype=table.stored_dtype,
        chunks=cut_chunks(chunks, table.stored_dtype.itemsize, MOST_CHUNK_BYTES),
        fillvalue=None if table.columns else table.fill,
        **(stored.creation if table.compressed else {}),
    )
    for index, axis in enumerate(table.axes):
        dataset.dims[index].attach_scale(file[axis])
    _write_text(dataset, "long_name", table.meaning)
    units = "; ".join(f"{column.name}: {column.unit}" for column in table.columns)
    _write_text(dataset, "units", units or table.unit)
    for key, value in table.attributes:
        if isinstance(value, str):
            _write_text(dataset, key, value)
        else:
            dataset.attrs[key] = value
    if values is not None:
        dataset[...] = values


def cut_chunks(shape: tuple[int, ...], item_bytes: int, most_bytes: int) -> tuple[int, ...]:
    """The shape, with its first axes cut into parts of equal length until it takes no more than that."""
    chunks = [max(1, length) for length in shape]
    for axis, length in enumerate(chunks):
        room = max(1, most_bytes // (item_bytes * math.prod(chunks[axis + 1 :])))
        chunks[axis] = -(-length // -(-length // room))
    return tuple(chunks)


def make_room(part: Path, num_bytes: int) -> None:
    """Create the file, and see that it may grow to this length. Raises OSError; then only an older file is there."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        if error.errno in CANNOT_RESERVE:
            return
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _write_text(owner: h5py.File | h5py.Dataset, key: str, text: str) -> None:
    encoded = text.encode() or b" "  # HDF5 has no empty fixed-length text
    owner.attrs[key] = np.array(encoded, h5py.string_dtype("utf-8", len(encoded)))
