"""Recovery: a new, closed and clean trace with all that another one holds, whatever became of that one.

`recover` is for what a crash, or a damaged disk, left; `snapshot` for a trace that is still being recorded. Both only
read it, and write a file of their own; what could not be read is told, never made up. The new trace's last commit and
a line of its log say where it comes from.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

import kvscope
from heatkv.errors import HeatKVError
from heatkv.files import exists_text, place
from kvscope import copying, liveness
from kvscope.errors import KVScopeError, OutputError, TraceError, TraceFormatError
from kvscope.format import COUNTED, LEVELS, TABLES, Status, decode_text, text_field
from kvscope.header import read_header
from kvscope.layout import datasets_of
from kvscope.opening import (
    DAMAGE,
    axis_lengths,
    check_filter,
    check_version,
    first_line,
    header_attributes,
    open_file,
    open_remains,
    root_dataset,
    root_table,
)
from kvscope.rows import summary_row
from kvscope.units import scales_text
from kvscope.writer import check_output, reason_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.header import Header

ESSENTIAL = ("steps", "kept_tokens", "read_tokens", "bits")
"""Tables without which a scale is none: what is recovered ends before the first scale that lacks one of them."""

_ROOM_BYTES = 1 << 22
"""More than a trace takes beside what is in its tables."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A trace made from another."""

    source: Path
    path: Path
    status: str
    message: str
    scales_done: int
    num_scales: int
    commits: int
    """Commits of the source that could be read."""
    lost: tuple[str, ...]
    """What could not be read, one line each."""


def recover(source: Path | str, path: Path | str, *, overwrite: bool = False) -> Recovered:
    """Write all that can be read of a crashed or damaged trace to a new one. The source is not touched.

    It ends with the last scale that is whole. Raises TraceError if nothing can be read, or if the trace is being
    recorded; OutputError if `path` cannot be written.
    """
    source, path = Path(source), Path(path)
    target = _target(source, path, overwrite=overwrite)
    if source.is_file() and liveness.is_held(source):
        raise TraceError(f"{source}: is being recorded; `kvscope trace snapshot` copies it as it is now")
    with _reading(source), open_remains(source) as file:
        remains = _Remains.of(source, file, is_live=False)
        return _write(remains, path, target, overwrite=overwrite)


def snapshot(source: Path | str, path: Path | str, *, overwrite: bool = False) -> Recovered:
    """Write a trace as it stands at its last commit to a new one, while its run goes on undisturbed.

    Of a trace that has ended it makes a copy. Raises TraceError or OutputError.
    """
    source, path = Path(source), Path(path)
    target = _target(source, path, overwrite=overwrite)
    with _reading(source):
        file, is_live = open_file(source)
        with file:
            remains = _Remains.of(source, file, is_live=is_live)
            if remains.end_status is Status.RUNNING and not is_live:
                raise TraceError(f"{source}: is not being recorded, it crashed; `kvscope trace recover` recovers it")
            return _write(remains, path, target, overwrite=overwrite)


@dataclass(frozen=True, slots=True)
class _Remains:
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

    @classmethod
    def of(cls, path: Path, file: h5py.File, *, is_live: bool) -> _Remains:
        check_version(path, file)
        check_filter(path, file)
        header = read_header(header_attributes(file))
        commits = _commits(path, root_table(file, "commit", {}), is_live=is_live)
        done = int(commits["scales_done"][-1])
        if commits["scales_done"].max() > header.scales.num_scales:
            raise ValueError(f"{commits['scales_done'].max()} scales of {header.scales.num_scales}")
        scales, lost = _whole_scales(file, header, done, is_live=is_live)
        if done and not scales:
            raise TraceFormatError(f"{path}: nothing can be recovered ({'; '.join(lost)}); record it again")
        return cls(path, file, header, commits, scales, is_live, lost)

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

    def shape(self, name: str, dataset: h5py.Dataset) -> tuple[int, ...]:
        """How much of a table is committed."""
        axes, columns = copying.axes_of(name, dataset), self.commits.dtype.names or ()
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


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    try:
        yield
    except (KVScopeError, HeatKVError) as error:
        if isinstance(error, TraceError | OutputError):
            raise
        raise TraceFormatError(f"{source}: damaged ({first_line(error)}); nothing can be recovered") from None
    except DAMAGE as error:
        raise TraceFormatError(f"{source}: damaged ({first_line(error)}); nothing can be recovered") from None


def _target(source: Path, path: Path, *, overwrite: bool) -> Path:
    """The file that is to be made. Raises OutputError, for the source itself too: it is never changed."""
    if source.exists() and path.exists() and source.samefile(path):
        raise OutputError(f"{path}: is the trace itself, which is never changed; choose another name")
    return check_output(path, overwrite=overwrite)


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


def _write(remains: _Remains, path: Path, target: Path, *, overwrite: bool) -> Recovered:
    """Write the new trace beside its name, and then give it that."""
    descriptor, part = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with copying.new_file(part) as made:
            _reserve(descriptor, remains)
            recovered = _fill(remains, made, path)
        Path(part).chmod(0o666 & ~_umask())
        place(Path(part), target, overwrite=overwrite)
    except FileExistsError:
        raise OutputError(exists_text(path)) from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({reason_text(error)}); nothing was left behind") from None
    finally:
        os.close(descriptor)
        Path(part).unlink(missing_ok=True)
    return recovered


def _fill(remains: _Remains, made: h5py.File, path: Path) -> Recovered:
    lost = list(remains.lost)
    copying.copy_attributes(remains.file, made)
    made.attrs.pop("control_socket", None)
    copying.copy_axes(remains.file, made, scales_done=remains.scales)
    # Their names only: HDF5 reads a dataset wrong that is refreshed while another handle of it is open.
    for name in [name for name, _ in datasets_of(remains.file)]:
        if name not in made and name not in ("commit", "log"):
            lost += _copied(remains, made, name)
    if "scale_summary" in made and any(line.startswith("scale_summary") for line in lost):
        _sum_up(made)
    status, message = _end(remains, lost)
    lost += _copied(remains, made, "log")
    _add_line(made, remains, message)
    _write_commits(made, remains, status, message)
    return Recovered(
        source=remains.path,
        path=path,
        status=status.name.lower(),
        message=message,
        scales_done=remains.scales,
        num_scales=remains.header.scales.num_scales,
        commits=len(remains.commits),
        lost=tuple(lost),
    )


def _copied(remains: _Remains, made: h5py.File, name: str) -> list[str]:
    """Copy one table; what of it is lost."""
    try:
        dataset = remains.dataset(name)
        shape = remains.shape(name, dataset)
        lost = []
        if name in COUNTED and name not in ESSENTIAL:
            # Rows have no value that says "not measured": they end where they cannot be read, and so does a picture.
            count, reason = copying.readable_length(dataset, shape[0])
            if reason:
                count = 0 if name == "image" else count
                lost = [f"{name}: all after the first {count} rows ({reason})"]
                shape = (count, *shape[1:])
        problem = copying.copy_table(dataset, made, shape)
    except DAMAGE as error:
        made.pop(name, None)
        return [f"{name}: all of it ({first_line(error)})"]
    return lost if problem is None else [*lost, problem]


def _sum_up(made: h5py.File) -> None:
    """Make `scale_summary` anew: it only says again what the essential tables say."""
    steps, kept, read = made["steps"][...], made["kept_tokens"][...], made["read_tokens"][...]
    for scale in range(len(made["scale_summary"])):
        own = steps[steps["query_scale"] == scale]
        if len(own):
            made["scale_summary"][scale] = summary_row(own, kept[scale], read[scale])


def _end(remains: _Remains, lost: list[str]) -> tuple[Status, str]:
    """How the new trace says that its run ended."""
    name, by = remains.path.name, f"kvscope {kvscope.__version__}"
    reached = f"after {scales_text(remains.scales, remains.header.scales.num_scales)}"
    if remains.is_live:
        return Status.CANCELLED, f"snapshot of {name} by {by}, {reached}; the run went on"
    if remains.end_status is Status.RUNNING:
        how = "the run, or its recording, ended without saying so" if remains.is_whole else "the file is damaged"
        return Status.FAILED, f"recovered from {name} by {by}: {how} {reached}"
    said = decode_text(remains.last["message"])
    if not lost:
        return remains.end_status, said
    recovered = f"recovered from {name} by {by} without {', '.join(line.partition(':')[0] for line in lost)}"
    return remains.end_status, f"{said}; {recovered}" if said else recovered


def _add_line(made: h5py.File, remains: _Remains, message: str) -> None:
    """Say in the log, too, where the trace comes from: at the time of its last commit, as its clock has stopped."""
    if "log" in made and message:
        log = made["log"]
        row = np.zeros(1, log.dtype)
        row["t_ns"], row["level"], row["text"] = remains.last["t_ns"], LEVELS.index("warning"), text_field(message)
        log.resize((len(log) + 1,))
        log[-1:] = row


def _write_commits(made: h5py.File, remains: _Remains, status: Status, message: str) -> None:
    """The commits of the source as far as they hold, and the one that ends the new trace."""
    commits = remains.commits
    if not remains.is_whole or commits["status"][-1] == Status.RUNNING:
        commits = np.concatenate([commits, commits[-1:]])
    commits["epoch"] = np.arange(len(commits))
    commits["status"] = Status.RUNNING
    commits["scales_done"] = np.minimum(commits["scales_done"], remains.scales)
    for name in COUNTED:
        axis = 1 if name == "bits" else 0
        length = made[name].shape[axis] if name in made else 0
        commits[f"{name}_rows"] = np.minimum(commits[f"{name}_rows"], length)
        commits[f"{name}_rows"][-1] = length
    commits["status"][-1], commits["message"][-1] = status, text_field(message)
    lost = copying.copy_table(remains.dataset("commit"), made, (0,))
    assert lost is None, "nothing was read"
    made["commit"].resize(commits.shape)
    made["commit"][...] = commits


def _reserve(descriptor: int, remains: _Remains) -> None:
    """See that the new file may grow as long as it can become: HDF5 does not survive a full disk."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, 2 * remains.path.stat().st_size + _ROOM_BYTES)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
