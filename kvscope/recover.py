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

import h5py
import numpy as np

import kvscope
from heatkv.errors import HeatKVError
from heatkv.files import exists_text, is_same_file, place
from kvscope import copying, liveness
from kvscope.errors import KVScopeError, OutputError, TraceError, TraceFormatError
from kvscope.format import COUNTED, LEVELS, TABLES, Status, decode_text, text_field
from kvscope.layout import datasets_of
from kvscope.opening import DAMAGE, first_line, open_file, open_remains
from kvscope.remains import ESSENTIAL, Remains
from kvscope.rows import summary_row
from kvscope.units import scales_text
from kvscope.writer import check_output, reason_text

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
    with _reading(source), open_remains(source) as file:
        if liveness.is_held(source):
            raise TraceError(f"{source}: is being recorded; `kvscope trace snapshot` copies it as it is now")
        remains = Remains.of(source, file, is_live=False)
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
            remains = Remains.of(source, file, is_live=is_live)
            if remains.end_status is Status.RUNNING and not is_live:
                raise TraceError(f"{source}: is not being recorded, it crashed; `kvscope trace recover` recovers it")
            return _write(remains, path, target, overwrite=overwrite)


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
    if is_same_file(source, path):
        raise OutputError(f"{path}: is the trace itself, which is never changed; choose another name")
    return check_output(path, overwrite=overwrite)


def _write(remains: Remains, path: Path, target: Path, *, overwrite: bool) -> Recovered:
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


def _fill(remains: Remains, made: h5py.File, path: Path) -> Recovered:
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


def _copied(remains: Remains, made: h5py.File, name: str) -> list[str]:
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
        problem = copying.copy_table(dataset, made, shape, remains.axes(name, dataset))
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


def _end(remains: Remains, lost: list[str]) -> tuple[Status, str]:
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


def _add_line(made: h5py.File, remains: Remains, message: str) -> None:
    """Say in the log, too, where the trace comes from: at the time of its last commit, as its clock has stopped."""
    if "log" in made and message:
        log = made["log"]
        row = np.zeros(1, log.dtype)
        row["t_ns"], row["level"], row["text"] = remains.last["t_ns"], LEVELS.index("warning"), text_field(message)
        log.resize((len(log) + 1,))
        log[-1:] = row


def _write_commits(made: h5py.File, remains: Remains, status: Status, message: str) -> None:
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
    lost = copying.copy_table(remains.dataset("commit"), made, (0,), TABLES["commit"].axes)
    assert lost is None, "nothing was read"
    made["commit"].resize(commits.shape)
    made["commit"][...] = commits


def _reserve(descriptor: int, remains: Remains) -> None:
    """See that the new file may grow as long as it can become: HDF5 does not survive a full disk."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, 2 * remains.path.stat().st_size + _ROOM_BYTES)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
