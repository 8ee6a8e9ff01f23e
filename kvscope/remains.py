"""Remains: what can be read of a trace, from its first scale to the last one that is whole. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from kvscope import copying
from kvscope.errors import TraceFormatError
from kvscope.format import TABLES, Status
from kvscope.header import read_header
from kvscope.layout import address_of, attached_axes
from kvscope.opening import (
    DAMAGE,
    axis_lengths,
    check_filter,
    check_version,
    first_line,
    header_attributes,
    root_dataset,
    root_table,
)
from kvscope.rows import summary_row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.header import Header

ESSENTIAL = ("steps", "kept_tokens", "read_tokens", "bits")
"""Tables without which a scale is none: what is whole ends before the first scale that lacks one of them."""


@dataclass(frozen=True, slots=True)
class Remains:
    """What can be read of a trace."""

    path: Path
    file: h5py.File
    header: Header
    commits: NDArray[np.void]
    """All that can be read, from the first one."""
    scales: int
    """How many scales are whole, from the first."""
    is_live: bool
    lost: list[str]
    """What essential tables lack."""
    attached: Mapping[tuple[int, int], str]
    """As layout.attached_axes gives it."""

    @classmethod
    def of(cls, path: Path, file: h5py.File, *, is_live: bool) -> Remains:
        """Raises TraceError, or what DAMAGE lists, if there is nothing to read."""
        attributes = header_attributes(file)
        check_version(path, attributes)
        check_filter(path, file)
        header = read_header(attributes)
        commits = _commits(path, root_table(file, "commit", {}), is_live=is_live)
        done = int(commits["scales_done"][-1])
        if commits["scales_done"].max() > header.scales.num_scales:
            raise ValueError(f"{commits['scales_done'].max()} scales of {header.scales.num_scales}")
        scales, lost = _whole_scales(file, header, done, is_live=is_live)
        if done and not scales:
            raise TraceFormatError(f"{path}: nothing can be recovered ({'; '.join(lost)}); record it again")
        return cls(path, file, header, commits, scales, is_live, lost, attached_axes(file))

    @property
    def last(self) -> np.void:
        last: np.void = self.commits[-1]
        return last

    @property
    def is_whole(self) -> bool:
        """No scale that was committed is lost."""
        return self.scales == int(self.last["scales_done"])

    @property
    def end_status(self) -> Status:
        """How the trace ended, as far as that can be read."""
        return Status(int(self.last["status"])) if self.is_whole else Status.RUNNING

    def dataset(self, name: str) -> h5py.Dataset:
        lengths = axis_lengths(self.header)
        dataset = root_table(self.file, name, lengths) if name in TABLES else root_dataset(self.file, name)
        if self.is_live:
            dataset.id.refresh()
        return dataset

    def axes(self, name: str, dataset: h5py.Dataset) -> tuple[str, ...]:
        """Names of a table's axes: those of the format, or of a table that it does not know, those attached."""
        if name in TABLES:
            return TABLES[name].axes
        address = address_of(dataset)
        return tuple(self.attached.get((address, index), "") for index in range(dataset.ndim))

    def shape(self, name: str, dataset: h5py.Dataset) -> tuple[int, ...]:
        """How much of a table is committed."""
        axes, columns = self.axes(name, dataset), self.commits.dtype.names or ()
        rest = tuple(dataset.shape[1:])
        if axes[0] == "query_scale":
            has_none = name == "preview" and not self.last["previews"]
            return (self.scales, 0, 0, 3) if has_none else (self.scales, *rest)
        if name in ESSENTIAL and not self.is_whole:
            count = _entries(name, self.header, self.scales)
            return (count,) if name == "steps" else (dataset.shape[0], count, *rest[1:])
        if name == "bits":
            return (dataset.shape[0], int(self.last["bits_rows"]), *rest[1:])
        if f"{name}_rows" in columns:
            count = int(self.last[f"{name}_rows"])
            return (count, *rest) if count or name != "image" else (0, 0, 3)
        return tuple(dataset.shape)


def _commits(path: Path, dataset: h5py.Dataset, *, is_live: bool) -> NDArray[np.void]:
    """The commits that can be read, from the first one."""
    if is_live:
        dataset.id.refresh()
    step, blocks = dataset.chunks[0] if dataset.chunks else max(1, len(dataset)), []
    for begin in range(0, len(dataset), step):
        try:
            block = dataset[begin : begin + step]
        except DAMAGE:
            break
        # A crash may have lengthened the table for a commit that was never written.
        is_written = block["epoch"] == np.arange(begin, begin + len(block))
        blocks.append(block[: len(block) if is_written.all() else int(np.argmin(is_written))])
        if not is_written.all():
            break
    commits = np.concatenate(blocks) if blocks else np.zeros(0, dataset.dtype)
    if not len(commits):
        raise TraceFormatError(f"{path}: damaged: no commit can be read, so nothing can be recovered")
    return commits


def _entries(name: str, header: Header, scales: int) -> int:
    """Length that an essential table has when so many scales are done, along the axis that grows."""
    return {"steps": scales * header.num_layers, "bits": header.scales.offsets[scales]}.get(name, scales)


def _whole_scales(file: h5py.File, header: Header, done: int, *, is_live: bool) -> tuple[int, list[str]]:
    """(how many scales are whole in every essential table, from the first; why no more)"""
    whole, lost = done, []
    for name in ESSENTIAL:
        try:
            dataset = root_table(file, name, {})
            if is_live:
                dataset.id.refresh()
            axis = TABLES[name].axes.index("token") if name == "bits" else 0
            readable, reason = copying.readable_length(dataset, _entries(name, header, done), axis=axis)
        except DAMAGE as error:
            readable, reason = 0, first_line(error)
        if reason:
            lost.append(f"{name}: all after the first {readable} ({reason})")
            whole = max(scale for scale in range(whole + 1) if _entries(name, header, scale) <= readable)
    matching = _matching_scales(file, header, whole)
    if matching < whole:
        lost.append(f"scales: all after the first {matching} (their tokens and steps are not what scale_summary says)")
    return matching, lost


def _matching_scales(file: h5py.File, header: Header, done: int) -> int:
    """How many scales, from the first, hold what their summary says: a block that a disk lost reads as zeros."""
    try:
        # Refreshed already, where the trace is live.
        steps, kept, read, stored = (
            root_table(file, name, {}) for name in ("steps", "kept_tokens", "read_tokens", "scale_summary")
        )
        for scale in range(done):
            own = steps[scale * header.num_layers : (scale + 1) * header.num_layers]
            if summary_row(own, kept[scale], read[scale]).tobytes() != stored[scale].tobytes():
                return scale
    except DAMAGE:
        return done  # a trace without summaries, or one that lost them: that alone costs no scale
    return done
