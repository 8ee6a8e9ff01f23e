"""Layout: what a trace file is made of, table by table as HDF5 stores it, and where that differs from format.py.

Reads descriptions only, never a table's content, so it takes the same time whatever the file's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h5py
import numpy as np

from kvscope.findings import Finding
from kvscope.format import AXES, HEADER, TABLES, Table, map_table
from kvscope.header import Attributes, text_of
from kvscope.maps import MAP_CELLS
from kvscope.opening import DAMAGE

if TYPE_CHECKING:
    from kvscope.header import Header

_FILTERS = {h5py.h5z.FILTER_DEFLATE: "gzip", h5py.h5z.FILTER_SHUFFLE: "shuffle", h5py.h5z.FILTER_LZF: "lzf"}


@dataclass(frozen=True, slots=True)
class TableLayout:
    """One dataset as the file describes it."""

    name: str
    axes: tuple[str, ...]
    """Names of the dimension scales attached; empty where there is none."""
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    filters: tuple[str, ...]
    stored_bytes: int
    """What it takes in the file, after compression."""
    units: str
    long_name: str

    @property
    def plain_bytes(self) -> int:
        """What its present shape takes in memory."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


def read_layouts(file: h5py.File) -> dict[str, TableLayout]:
    """Every dataset at the root of a trace that is no axis, by name, in the order of the file."""
    return {name: layout_of(name, dataset) for name, dataset in datasets_of(file) if name not in AXES}


def datasets_of(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset at the root, axes included; links that lead elsewhere are not followed."""
    for name in file:
        if isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset):
            yield name, file[name]


def layout_of(name: str, dataset: h5py.Dataset) -> TableLayout:
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index) for index in range(properties.get_nfilters())]
    return TableLayout(
        name=name,
        axes=tuple(axis_name(dataset, index) for index in range(dataset.ndim)),
        shape=dataset.shape,
        dtype=dataset.dtype,
        filters=tuple(_FILTERS.get(code, title.decode(errors="replace")) for code, _, _, title in filters),
        stored_bytes=dataset.id.get_storage_size(),
        units=_text(dataset.attrs, "units"),
        long_name=_text(dataset.attrs, "long_name"),
    )


def findings(file: h5py.File, header: Header, *, scales_done: int) -> Iterator[Finding]:
    """Where the file is laid out otherwise than the format says: header keys, axes, tables."""
    yield from header_findings(file.attrs)
    yield from axis_findings(file, header, scales_done=scales_done)
    yield from table_findings(read_layouts(file), header)


def header_findings(attributes: h5py.AttributeManager) -> Iterator[Finding]:
    """Keys of the header that are missing, or of another type than the format says."""
    for key in HEADER:
        if key.name not in attributes:
            if not key.optional:
                yield Finding(f"header key {key.name}", "absent", key.kind)
            continue
        stored = attributes.get_id(key.name)
        is_text = h5py.check_string_dtype(stored.dtype) is not None and stored.shape == ()
        is_integer = stored.dtype.kind in "iu" and stored.shape == ()
        if not (is_text if key.kind == "text" else is_integer):
            yield Finding(f"header key {key.name}", f"{stored.dtype} of shape {list(stored.shape)}", f"one {key.kind}")


def axis_findings(file: h5py.File, header: Header, *, scales_done: int) -> Iterator[Finding]:
    """Axes that are missing, no dimension scales, or of another length than the header says."""
    lengths = _lengths(header)
    for axis in AXES.values():
        where, dataset = f"axis {axis.name}", file.get(axis.name)
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or not dataset.is_scale:
            yield Finding(where, "absent" if dataset is None else "something else", "a dimension scale")
            continue
        length = lengths.get(axis.name, scales_done if axis.name == "query_scale" else 0)
        if len(dataset) < length or (len(dataset) > length and not axis.grows):
            yield Finding(where, f"length {len(dataset)}", f"length {length}")
        elif not np.array_equal(dataset[:length], np.arange(length)):
            yield Finding(where, "other values", f"0 to {length - 1}")


def table_findings(layouts: Mapping[str, TableLayout], header: Header) -> Iterator[Finding]:
    """Tables that are missing, or of another type, shape, axes or units than the format says.

    Columns, tables and keys that the format does not know are no finding: a newer minor version adds such.
    """
    lengths = _lengths(header)
    for table in _expected_tables(header):
        layout = layouts.get(table.name)
        if layout is None:
            yield Finding(f"table {table.name}", "absent", f"{type_text(table.stored_dtype)} {_axes_text(table.axes)}")
            continue
        yield from _type_findings(table, layout)
        if len(layout.shape) != len(table.axes):
            yield Finding(f"table {table.name}", f"{len(layout.shape)} axes", _axes_text(table.axes))
            continue
        if layout.axes != table.axes:
            yield Finding(f"table {table.name}", f"axes {_axes_text(layout.axes)}", _axes_text(table.axes))
        for axis, length in zip(table.axes, layout.shape, strict=True):
            if length != lengths.get(axis, length):
                yield Finding(f"table {table.name}, axis {axis}", f"length {length}", f"length {lengths[axis]}")
        yield from _words_findings(table, layout)


def axis_name(dataset: h5py.Dataset, index: int) -> str:
    """Name of the dimension scale attached to an axis; empty: none, or none that can be followed."""
    # What is attached is a reference, which damage may lead anywhere.
    try:
        scales = dataset.dims[index].values()
        return scales[0].name.lstrip("/") if scales else ""
    except DAMAGE:
        return ""


def type_text(dtype: np.dtype[np.generic]) -> str:
    """A type in a few letters: `u2`, or `rows of 8 columns`."""
    return f"rows of {len(dtype.names)} columns" if dtype.names else dtype.str.lstrip("<|")


def _lengths(header: Header) -> dict[str, int]:
    """Length of every axis that does not grow."""
    return {
        "layer": header.num_layers,
        "head": header.num_heads,
        "source_scale": header.scales.num_scales,
        "map_y": MAP_CELLS,
        "map_x": MAP_CELLS,
        "bit": header.bits_per_token,
        "rgb": 3,
    }


def _expected_tables(header: Header) -> Iterator[Table]:
    for table in TABLES.values():
        is_map = table.name == "attention_map" and header.job.attention_map is not None
        yield map_table(header.job.attention_map) if is_map and header.job.attention_map else table


def _type_findings(table: Table, layout: TableLayout) -> Iterator[Finding]:
    where = f"table {table.name}"
    if not table.columns:
        if layout.dtype != table.stored_dtype:
            yield Finding(where, type_text(layout.dtype), type_text(table.stored_dtype))
        return
    found = layout.dtype.fields
    if found is None:
        yield Finding(where, type_text(layout.dtype), type_text(table.stored_dtype))
        return
    for name, (expected, *_) in (table.row_dtype.fields or {}).items():
        if name not in found:
            yield Finding(f"{where}, column {name}", "absent", type_text(expected))
        elif found[name][0] != expected:
            yield Finding(f"{where}, column {name}", str(found[name][0]), str(expected))


def _words_findings(table: Table, layout: TableLayout) -> Iterator[Finding]:
    units = {column.name: column.unit for column in table.columns}
    if table.columns:
        found = dict(part.split(": ", 1) for part in layout.units.split("; ") if ": " in part)
        wrong = [name for name, unit in units.items() if found.get(name) != unit]
        if wrong:
            yield Finding(
                f"units of {table.name}.{wrong[0]}", repr(found.get(wrong[0], "absent")), repr(units[wrong[0]])
            )
    elif layout.units != table.unit:
        yield Finding(f"units of {table.name}", repr(layout.units or "absent"), repr(table.unit))
    if not layout.long_name.strip():
        yield Finding(f"long_name of {table.name}", "absent", repr(table.meaning))


def _axes_text(axes: tuple[str, ...]) -> str:
    return f"[{', '.join(axis or 'unnamed' for axis in axes)}]"


def _text(attributes: Attributes, key: str) -> str:
    try:
        return text_of(attributes, key)
    except DAMAGE:
        return ""
