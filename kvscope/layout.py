"""Layout: what a trace file is made of, table by table as HDF5 stores it, and where that differs from format.py.

Reads descriptions only, never a table's content, so it takes the same time whatever the file's size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h5py
import numpy as np

from kvscope.findings import Finding
from kvscope.format import AXES, HEADER, TABLES, Table, map_table
from kvscope.header import text_of
from kvscope.opening import DAMAGE, axis_lengths, first_line, is_plain, root_dataset

if TYPE_CHECKING:
    from kvscope.header import Header

_MOST_OBJECTS = 1 << 10
_MOST_VALUES = 1 << 16
"""An axis with values is never longer."""
_MOST_REFERENCES_BYTES = 1 << 16
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
    stored_bytes: int | None
    """What it takes in the file, after compression; None: it was not asked for."""
    units: str
    long_name: str

    @property
    def plain_bytes(self) -> int:
        """What its present shape takes in memory."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


def read_layouts(file: h5py.File, *, sizes: bool = False) -> dict[str, TableLayout]:
    """Every table at the root of a trace that may be read, by name, in the order of the file.

    `sizes`: say also what each takes in the file. HDF5 then walks all chunks, so only who needs it asks.
    """
    layouts, attached = {}, attached_axes(file)
    for name, dataset in datasets_of(file):
        if name not in AXES:
            with contextlib.suppress(*DAMAGE):
                layouts[name] = layout_of(name, dataset, attached, sizes=sizes)
    return layouts


def datasets_of(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset at the root that may be read, axes included. Raises ValueError if there is too much there."""
    if len(file) > _MOST_OBJECTS:
        raise ValueError(f"{len(file):,} tables and groups, more than {_MOST_OBJECTS:,}")
    for name in file:
        try:
            yield name, root_dataset(file, name)
        except DAMAGE:
            continue


def layout_of(name: str, dataset: h5py.Dataset, attached: Mapping[tuple[int, int], str], *, sizes: bool) -> TableLayout:
    """`attached`: as attached_axes gives it; `sizes`: as in read_layouts."""
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index) for index in range(properties.get_nfilters())]
    return TableLayout(
        name=name,
        axes=tuple(attached.get((address_of(dataset), index), "") for index in range(dataset.ndim)),
        shape=dataset.shape,
        dtype=dataset.dtype,
        filters=tuple(_FILTERS.get(code, title.decode(errors="replace")) for code, _, _, title in filters),
        stored_bytes=dataset.id.get_storage_size() if sizes else None,
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
        is_text = is_plain(stored) and h5py.check_string_dtype(stored.dtype) is not None
        is_integer = stored.dtype.kind in "iu" and stored.shape == ()
        if not (is_text if key.kind == "text" else is_integer):
            yield Finding(f"header key {key.name}", f"{stored.dtype} of shape {list(stored.shape)}", f"one {key.kind}")


def axis_findings(file: h5py.File, header: Header, *, scales_done: int) -> Iterator[Finding]:
    """Axes that are missing, no dimension scales, or of another length than the header says."""
    lengths = axis_lengths(header)
    for axis in AXES.values():
        where = f"axis {axis.name}"
        try:
            dataset = root_dataset(file, axis.name)
            is_axis, shape = is_scale(dataset) and dataset.ndim == 1, dataset.shape
            values = dataset[:_MOST_VALUES] if is_axis else np.zeros(0)
        except DAMAGE as error:
            yield Finding(where, first_line(error), "a dimension scale")
            continue
        length = lengths.get(axis.name, scales_done if axis.name == "query_scale" else 0)
        if not is_axis:
            yield Finding(where, "something else", "a dimension scale")
        elif shape[0] < length or (shape[0] > length and not axis.grows):
            yield Finding(where, f"length {shape[0]}", f"length {length}")
        elif not np.array_equal(values[:length], np.arange(min(length, _MOST_VALUES))):
            yield Finding(where, "other values", f"0 to {length - 1}")


def table_findings(layouts: Mapping[str, TableLayout], header: Header) -> Iterator[Finding]:
    """Tables that are missing, or of another type, shape, axes or units than the format says.

    Columns, tables and keys that the format does not know are no finding: a newer minor version adds such.
    """
    lengths = axis_lengths(header)
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


def attached_axes(file: h5py.File) -> dict[tuple[int, int], str]:
    """(address of a table, index of its axis) → name of the dimension scale attached there.

    As the scales tell it. What tables say of it themselves (DIMENSION_LIST, which h5py's `dims` reads) is kept where
    HDF5 has no checksums: it hangs, or crashes, if that is damaged.
    """
    attached = {}
    for name, scale in datasets_of(file):
        if is_scale(scale):
            for address, index in _references(scale):
                attached[address, index] = name
    return attached


def address_of(dataset: h5py.Dataset) -> int:
    """Where in the file a dataset is: what makes two handles the same."""
    return _address(dataset.id)


def is_scale(dataset: h5py.Dataset) -> bool:
    """Whether a dataset is a dimension scale."""
    # Not h5py's `is_scale`: HDF5 crashes there if the attribute is of another type than it expects.
    return _text(dataset.attrs, "CLASS") == "DIMENSION_SCALE"


def type_text(dtype: np.dtype[np.generic]) -> str:
    """A type in a few letters: `u2`, or `rows of 8 columns`."""
    return f"rows of {len(dtype.names)} columns" if dtype.names else dtype.str.lstrip("<|")


def _references(scale: h5py.Dataset) -> list[tuple[int, int]]:
    """(address, axis) of every table that a dimension scale says it is attached to."""
    try:
        attribute = scale.attrs.get_id("REFERENCE_LIST")
        kind = attribute.dtype
        if kind.names is None or len(kind.names) != 2 or attribute.get_storage_size() > _MOST_REFERENCES_BYTES:
            return []
        if h5py.check_ref_dtype(kind[0]) is not h5py.Reference or kind[1].kind not in "iu":
            return []
        rows = scale.attrs["REFERENCE_LIST"]
        objects = [(h5py.h5r.dereference(reference, scale.file.id), int(index)) for reference, index in rows]
        return [(_address(found), index) for found, index in objects]
    except DAMAGE:
        return []


def _address(found: h5py.h5g.GroupID | h5py.h5d.DatasetID) -> int:
    # Not h5o.get_info, which also measures indices and heaps, and crashes if they are damaged.
    low, high = h5py.h5g.get_objinfo(found).objno  # two longs, of which 64-bit systems need one
    return int(low) | int(high) << 32


def _expected_tables(header: Header) -> Iterator[Table]:
    for table in TABLES.values():
        if table.since_minor > header.format_version[1]:
            continue
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


def _text(attributes: h5py.AttributeManager, key: str) -> str:
    try:
        return text_of(attributes, key) if is_plain(attributes.get_id(key)) else ""
    except DAMAGE:
        return ""
