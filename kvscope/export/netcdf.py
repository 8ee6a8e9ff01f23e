"""Export as one closed netCDF-4 file of plain arrays: `xarray.open_dataset` and netCDF4 need nothing more.

Names are those of the trace; a table of rows becomes one variable per column (`steps_begin_ns`), a number of the
summary one scalar variable (`summary_seconds`), so that a folder of exports concatenates into one dataset of runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from kvscope.creation import LIBVER, NO_VALUES
from kvscope.export.content import HEAD_SCALE_TABLES, ROW_TABLES
from kvscope.export.values import json_text, unit_of
from kvscope.format import AXES, TABLES, TEXT_BYTES
from kvscope.maps import MAP_CELLS, MAP_GRID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.export.content import Content

_TEXT_AXIS = "text_byte"
_TITLE = "KV cache of one run of a visual autoregressive model"


def write(content: Content, part: Path) -> None:
    """Write the new file `part`."""
    # Made in memory: HDF5 can neither finish nor close a file on a full disk.
    with h5py.File(part, "w", driver="core", backing_store=False, libver=LIBVER, track_order=True) as file:
        for name, value in _attributes(content).items():
            _attribute(file, name, value)
        variables = _Variables(file)
        for scalar in _scalars(content):
            variables.add(*scalar)
        _add_arrays(content, variables)
        for name in ROW_TABLES:
            _add_rows(content, variables, name)
        if "maps" in content.tiers:
            _add_maps(content, variables)
        _add_pictures(content, variables)
        file.flush()
        part.write_bytes(file.id.get_file_image())


class _Variables:
    """Variables of a file; an axis is made by the first variable that has it."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file

    def add(
        self, name: str, axes: tuple[str, ...], values: Any, meaning: str, unit: str, **attributes: str
    ) -> h5py.Dataset:  # Any: an array, or a number
        values = np.asarray(values)
        dataset = self.empty(name, axes, values.shape, values.dtype, meaning, unit, **attributes)
        dataset[...] = values
        return dataset

    def empty(
        self,
        name: str,
        axes: tuple[str, ...],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        meaning: str,
        unit: str,
        **attributes: str,
    ) -> h5py.Dataset:
        """A variable to be filled; compressed if it is large."""
        # netCDF gives an axis of length 0 no place in a fixed array, so it is one that may grow.
        growing = tuple(length or None for length in shape)
        is_large = np.prod(shape) * dtype.itemsize > 1 << 16
        dataset = self._file.create_dataset(
            name,
            shape,
            dtype,
            maxshape=growing if None in growing else None,
            compression="gzip" if is_large else None,
            compression_opts=1 if is_large else None,
            shuffle=is_large,
            fillvalue=np.nan if dtype.kind == "f" else None,
        )
        for index, axis in enumerate(axes):
            dataset.dims[index].attach_scale(self._axis(axis, shape[index]))
        _attribute(dataset, "long_name", meaning)
        _attribute(dataset, "units", unit)
        if dtype.kind == "f":
            dataset.attrs["_FillValue"] = np.array([np.nan], dtype)
        for key, value in attributes.items():
            _attribute(dataset, key, value)
        return dataset

    def _axis(self, name: str, length: int) -> h5py.Dataset:
        if name in self._file:
            return self._file[name]
        maxshape = (None,) if not length else (length,)
        axis = self._file.create_dataset(name, data=np.arange(length, dtype=np.int32), maxshape=maxshape)
        axis.make_scale(name if name in _WITH_VALUES else NO_VALUES)
        _attribute(axis, "long_name", AXES[name].meaning if name in AXES else "Byte of a text")
        _attribute(axis, "units", "1")
        return axis


_WITH_VALUES = ("query_scale", "layer", "head", "source_scale")
"""Axes whose numbers mean something: xarray makes coordinates of them."""


def _attributes(content: Content) -> dict[str, str]:
    facts = content.facts
    header = {
        name: value for name, value in facts.header.items() if name not in ("scales", "tiers") and value is not None
    }
    texts = {name: value if isinstance(value, str) else json_text(value) for name, value in header.items()}
    return {
        "Conventions": "CF-1.11",
        "title": _TITLE,
        "source": content.made_by,
        "redacted": "; ".join(facts.removed) or "nothing",
        **texts,
        "tiers": ", ".join(content.tiers),
        "scales": json_text(facts.header["scales"]),
        "schedule": json_text(facts.schedule),
        "trace_status": facts.summary.status,
        "trace_message": facts.summary.message,
        "policy": facts.summary.policy,
        "denominator": facts.summary.denominator,
    }


def _scalars(content: Content) -> Iterator[tuple[Any, ...]]:  # Any: arguments of `add`
    """Every number of the summary, and what recording cost. Not known is NaN."""
    summary = content.facts.summary
    for field in fields(summary):
        value = getattr(summary, field.name)
        if field.name in summary.tags and isinstance(value, int | float | None):
            yield _scalar(field.name, value, summary.tags[field.name])
    if summary.recorder is not None:
        for field in fields(summary.recorder):
            yield _scalar(f"recorder_{field.name}", getattr(summary.recorder, field.name), summary.tags["recorder"])


def _scalar(name: str, value: float | None, tag: str) -> tuple[Any, ...]:  # Any: arguments of `add`
    number = np.float64(np.nan if value is None else value)
    return f"summary_{name}", (), number, f"{name.replace('_', ' ')} ({tag})", unit_of(name)


def _add_arrays(content: Content, variables: _Variables) -> None:
    sizes = np.array(content.scales.sizes, np.int32)
    for index, name in enumerate(("scale_height", "scale_width")):
        variables.add(name, ("source_scale",), sizes[:, index], TABLES[name].meaning, TABLES[name].unit)
    table = TABLES["drop_step"]
    variables.add("drop_step", table.axes, content.drop_step, table.meaning, table.unit)
    for name in HEAD_SCALE_TABLES:
        table = TABLES[name]
        variables.add(name, table.axes, content.head_scales(name), table.meaning, table.unit)


def _add_rows(content: Content, variables: _Variables, name: str) -> None:
    table, rows = TABLES[name], content.rows(name)
    for column in table.columns:
        values: NDArray[Any] = rows[column.name]  # Any: numbers, or the bytes of texts
        is_text = column.dtype == "text"
        axes = (*table.axes, _TEXT_AXIS) if is_text else table.axes
        more = {"_Encoding": "utf-8"} if is_text else {}
        if is_text:
            values = values.reshape(-1, TEXT_BYTES)
        variables.add(f"{name}_{column.name}", axes, values, column.meaning, column.unit, **more)


def _add_maps(content: Content, variables: _Variables) -> None:
    """Decoded, and one map at a time: all at once may not fit in memory."""
    table = TABLES["attention_map"]
    shape = (content.scales_done, *content.drop_step.shape, MAP_CELLS, MAP_CELLS)
    meaning = "Attention that the cell of tokens receives: mean over queries and conditional rows; NaN: not measured"
    dataset = variables.empty(
        "attention_map", table.axes, shape, np.dtype(np.float32), meaning, table.unit, grid=MAP_GRID
    )
    for scale, layer, head in np.ndindex(content.scales_done, content.num_layers, content.num_heads):
        dataset[scale, layer, head] = content.attention_map(scale, layer, head)


def _add_pictures(content: Content, variables: _Variables) -> None:
    if content.image is not None:
        variables.add("image", TABLES["image"].axes, content.image, TABLES["image"].meaning, "1")
    scales = range(content.scales_done)
    previews = [preview for scale in scales if (preview := content.preview(scale)) is not None]
    if previews:
        table = TABLES["preview"]
        variables.add("preview", table.axes, np.stack(previews), table.meaning, table.unit)
    bits = [bits for scale in scales if (bits := content.bits(scale)) is not None]
    if bits:
        table = TABLES["bits"]
        variables.add("bits", table.axes, np.concatenate(bits, axis=1), table.meaning, table.unit)


def _attribute(owner: h5py.File | h5py.Dataset, name: str, text: str) -> None:
    encoded = text.encode(errors="backslashreplace") or b" "  # HDF5 has no empty fixed-length text
    owner.attrs[name] = np.array(encoded, h5py.string_dtype("utf-8", len(encoded)))
