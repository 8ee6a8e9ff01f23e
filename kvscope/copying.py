"""Copying parts of a trace's HDF5 file to a new one: header, axes, and tables as far as they are committed.

Every object is made anew, because what datasets say of each other (their dimension scales) does not survive a plain
copy. What cannot be read stays at its fill value and is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import h5py
import numpy as np

from kvscope.creation import LIBVER, NO_VALUES
from kvscope.format import AXES
from kvscope.layout import datasets_of, is_scale
from kvscope.opening import DAMAGE, check_size, first_line, is_plain

_OF_HDF5 = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates")
"""Attributes by which datasets refer to each other; a new file gets its own."""
_MOST_BLOCKS = 1 << 16
"""No table of a trace has more chunks."""


def new_file(path: str) -> h5py.File:
    """An empty file, of the HDF5 version that traces have."""
    return h5py.File(path, "w", libver=LIBVER, track_order=True)


def copy_attributes(source: h5py.File | h5py.Dataset, target: h5py.File | h5py.Dataset) -> None:
    """Copy the attributes that are a text or a number."""
    for name in source.attrs:
        attribute = source.attrs.get_id(name)
        if name not in _OF_HDF5 and (is_plain(attribute) or attribute.dtype.kind == "f"):
            target.attrs.create(name, source.attrs[name], shape=attribute.shape, dtype=attribute.dtype)


def copy_axes(source: h5py.File, target: h5py.File, *, scales_done: int) -> None:
    """Make every axis that the source has."""
    for name, axis in datasets_of(source):
        if name in AXES or is_scale(axis):
            shape = (scales_done,) if name == "query_scale" else axis.shape
            made = target.create_dataset(
                name, shape, maxshape=axis.maxshape, chunks=axis.chunks, dtype=axis.dtype, data=axis[: shape[0]]
            )
            has_values = name == "query_scale" or not (name in AXES and AXES[name].grows)
            made.make_scale(name if has_values else NO_VALUES)
            copy_attributes(axis, made)


def copy_table(source: h5py.Dataset, target: h5py.File, shape: tuple[int, ...], axes: tuple[str, ...]) -> str | None:
    """Copy a table up to this shape. Returns what could not be read, in words; None: nothing."""
    name, is_compressed = source.name.lstrip("/"), source.id.get_create_plist().get_nfilters() > 0
    made = target.create_dataset(
        name,
        shape,
        maxshape=source.maxshape,
        chunks=source.chunks,
        dtype=source.dtype,
        fillvalue=None if source.dtype.names else source.fillvalue,
        # gzip whatever it was, so that anything can read the new file.
        compression="gzip" if is_compressed else None,
        compression_opts=1 if is_compressed else None,
        shuffle=is_compressed,
    )
    for index, axis in enumerate(axes):
        if axis in target:
            made.dims[index].attach_scale(target[axis])
    copy_attributes(source, made)
    return _copy_values(name, source, made)


def readable_length(dataset: h5py.Dataset, count: int, *, axis: int = 0) -> tuple[int, str]:
    """(how many entries along an axis can be read, of the first `count`; why no more, or nothing)."""
    step = dataset.chunks[axis] if dataset.chunks else max(1, count)
    for begin in range(0, count, step):
        place = (slice(None),) * axis + (slice(begin, min(begin + step, count)),)
        try:
            read = dataset[place]
        except DAMAGE as error:
            return begin, first_line(error)
        if read.shape[axis] < min(step, count - begin):
            return begin + int(read.shape[axis]), "the table is too short"
    return count, ""


def _copy_values(name: str, source: h5py.Dataset, made: h5py.Dataset) -> str | None:
    lost, total, reason = 0, 0, ""
    for block in _blocks(source, made.shape):
        total += 1
        try:
            values = source[block]
        except DAMAGE as error:
            lost, reason = lost + 1, first_line(error)
            continue
        made[block] = values
    return f"{name}: {lost} of {total} blocks ({reason})" if lost else None


def _blocks(source: h5py.Dataset, shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """The parts of a table that one read takes: its chunks; none where nothing was ever written."""
    if not math.prod(shape) or (source.chunks and not source.id.get_num_chunks()):
        return
    chunks = source.chunks or shape
    counts = [-(-length // chunk) for length, chunk in zip(shape, chunks, strict=True)]
    if math.prod(counts) > _MOST_BLOCKS:
        raise ValueError(f"{source.name} has {math.prod(counts):,} chunks, more than {_MOST_BLOCKS:,}")
    check_size(source.name, math.prod(chunks) * source.dtype.itemsize, source.file.id.get_filesize())
    for corner in np.ndindex(*counts):
        yield tuple(
            slice(index * chunk, min((index + 1) * chunk, length))
            for index, chunk, length in zip(corner, chunks, shape, strict=True)
        )
