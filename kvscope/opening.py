"""Opening the HDF5 file of a trace: as it was left, and only as far as it can be trusted.

A trace may come from anybody. So nothing in it may lead to another file, and nothing may be read that takes more
memory than a trace has reason to: what is odd is refused in one line, before HDF5 follows it.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from kvscope import liveness, superblock
from kvscope.errors import TraceError, TraceFormatError, TraceVersionError
from kvscope.filters import missing_filter, needs_filter
from kvscope.format import FORMAT, HEADER, TABLES, VERSION, Table
from kvscope.header import optional_text, text_of
from kvscope.job import MAP_KINDS
from kvscope.maps import MAP_CELLS
from kvscope.units import printable

if TYPE_CHECKING:
    from kvscope.header import Attributes, Header

DAMAGE = (OSError, LookupError, ValueError, RuntimeError, TypeError, AttributeError, ArithmeticError, MemoryError)
"""What h5py, and what makes sense of its answers, raise for damage."""

MOST_BYTES = 1 << 30
"""The most memory that one answer of a trace may take."""
MOST_UNPACKED = 1 << 10
"""No file holds more than so many times its length: gzip can pack no better."""
MOST_CHUNK_BYTES = 1 << 24
"""The most that one chunk may unpack to: HDF5 unpacks it whole, whatever part of it is wanted."""
MOST_ATTRIBUTE_BYTES = 1 << 20
LEAGUE_FORMAT = "kvscope.league"
_OTHER_FILES = {
    "kvscope.calibration": "a calibration, not a trace; `kvscope run --orders` and `plan --orders` read it",
    LEAGUE_FORMAT: "a league, not a trace; `kvscope league show` and `kvscope open` read it",
}
_UNWRITTEN_COMMITS = 64
"""More commits than a writer leaves unwritten."""


def open_file(path: Path) -> tuple[h5py.File, bool]:
    """(the file, whether it is followed): a live file is, what a dead writer left is read as if it had been closed."""
    beginning, held = _beginning_of(path)
    _check_length(path, beginning)
    block = superblock.parse(beginning)
    followed = held or (block is not None and not block.is_closed and not liveness.SUPPORTED)
    try:
        if followed:
            return h5py.File(path, "r", swmr=True, locking="best-effort"), True
        if block is None or block.is_closed:
            return h5py.File(path, "r", locking="best-effort"), False
        return h5py.File(superblock.RepairedFile(path), "r"), False
    except OSError as error:
        raise TraceFormatError(f"{path}: not a trace that HDF5 can open ({first_line(error)})") from None


def open_remains(path: Path) -> h5py.File:
    """A file that nobody writes, even if it was cut short: what is left of it."""
    beginning, _ = _beginning_of(path)
    try:
        if superblock.parse(beginning) is None:
            return h5py.File(path, "r", locking="best-effort")
        return h5py.File(superblock.RepairedFile(path), "r")
    except OSError as error:
        raise TraceFormatError(f"{path}: not a trace that HDF5 can open ({first_line(error)})") from None


def is_league(path: Path) -> bool:
    """Whether a file says that it is a league; it is opened for no more than that."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for its writer for ever
            return False
        with h5py.File(path, "r") as file:
            return optional_text(_plain_attributes(file, ["format"]), "format") == LEAGUE_FORMAT
    except DAMAGE:  # ValueError, too, for what is no name that a file can have
        return False


def check_version(path: Path, attributes: Attributes) -> None:
    """Raises TraceFormatError or TraceVersionError unless a header is that of a trace that this version reads."""
    found = optional_text(attributes, "format")
    if found != FORMAT:
        what = _OTHER_FILES.get(found or "", "an HDF5 file, but not a trace; expected one made by `kvscope run`")
        raise TraceFormatError(f"{path}: {what}")
    version = text_of(attributes, "format_version")
    major, _, _ = version.partition(".")
    if major != str(VERSION[0]):
        raise TraceVersionError(
            f"{path}: format version {printable(version[:20])}, this kvscope reads {VERSION[0]}.x; upgrade kvscope"
        )


def check_filter(path: Path, file: h5py.File) -> None:
    """Raises TraceError if the trace is sound, but needs a filter that is not installed."""
    # All compressed tables of a trace have one filter.
    table = file["kept_tokens"] if has_own(file, "kept_tokens") else None
    missing = missing_filter(table) if isinstance(table, h5py.Dataset) else None
    if missing is not None:
        raise TraceError(f"{path}: {needs_filter(missing)}")


def header_attributes(file: h5py.File) -> dict[str, Any]:  # Any: bytes or an integer
    """The header keys among the attributes of the root, each one text or one integer; others are as good as absent."""
    return _plain_attributes(file, [key.name for key in HEADER])


def axis_lengths(header: Header) -> dict[str, int]:
    """Length of every axis of a trace that does not grow."""
    return {
        "layer": header.num_layers,
        "head": header.num_heads,
        "source_scale": header.scales.num_scales,
        "map_y": MAP_CELLS,
        "map_x": MAP_CELLS,
        "bit": header.bits_per_token,
        "rgb": 3,
    }


def has_own(file: h5py.File, name: str) -> bool:
    """Whether the file has something of that name. Raises ValueError if that is elsewhere: a link, and not followed."""
    # Not `name in file`, nor `file.get`: they open the file that a link leads to, be it a pipe.
    links = file.id.links
    if not links.exists(name.encode()):
        return False
    if links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"{name} is a link to somewhere else")
    return True


def root_table(file: h5py.File, name: str, lengths: Mapping[str, int]) -> h5py.Dataset:
    """The table of that name, of the type and the axes that the format says; `lengths`: of those that are known.

    Raises KeyError if there is none, ValueError if it is something else.
    """
    dataset = root_dataset(file, name)
    _check_table(TABLES[name], dataset, lengths)
    return dataset


def root_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset of that name, whatever is in it, if it is one that may be read.

    Raises KeyError if there is none, ValueError if it is no dataset of this file's own.
    """
    if not has_own(file, name):
        raise KeyError(f"{name} is missing")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is no table")
    _check_storage(name, dataset)
    return dataset


def last_commit(path: Path, dataset: h5py.Dataset) -> np.void:
    """The last commit that was written. Raises TraceFormatError if there is none.

    A writer that dies, or is just at it, may leave the table longer than what it has written.
    """
    for row in range(len(dataset) - 1, max(-1, len(dataset) - _UNWRITTEN_COMMITS), -1):
        commit: np.void = dataset[row]
        if commit["epoch"] == row:
            return commit
    raise TraceFormatError(f"{path}: damaged: it has no commit; expected a file made by `kvscope run`")


def is_plain(attribute: h5py.h5a.AttrID) -> bool:
    """Whether an attribute is one text or one integer, stored where it stands, and not too long to read.

    Texts of variable length are stored where HDF5 has no checksums: it hangs, or crashes, if that is damaged.
    """
    if attribute.shape != () or attribute.get_storage_size() > MOST_ATTRIBUTE_BYTES:
        return False
    kind = attribute.get_type()
    if isinstance(kind, h5py.h5t.TypeStringID):
        return not kind.is_variable_str()
    return isinstance(kind, h5py.h5t.TypeIntegerID)


def check_size(name: str, num_bytes: int, file_bytes: int) -> None:
    """Raises ValueError for an answer that would take more memory than a trace of that length has reason to."""
    most = min(MOST_BYTES, MOST_UNPACKED * file_bytes)
    if num_bytes > most:
        raise ValueError(f"{name} would take {num_bytes:,} bytes of memory, more than {most:,}")


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = str(error.args[0]) if error.args else type(error).__name__
    return text.partition("\n")[0]


def _plain_attributes(file: h5py.File, names: Sequence[str]) -> dict[str, Any]:  # Any: bytes or an integer
    attributes = file.attrs
    return {name: attributes[name] for name in names if name in attributes and is_plain(attributes.get_id(name))}


def _beginning_of(path: Path) -> tuple[bytes, bool]:
    """(the first bytes of an HDF5 file, whether a live recorder holds it)"""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a pipe would wait for its writer for ever
            raise TraceError(f"{path}: not a regular file; expected a trace made by `kvscope run`")
        held = liveness.is_held(path)
        with path.open("rb") as file:
            beginning = file.read(superblock.SIZE)
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file; expected a trace made by `kvscope run`") from None
    except OSError as error:
        hint = "; `kvscope runs FOLDER` lists its traces" if isinstance(error, IsADirectoryError) else ""
        raise TraceError(f"{path}: cannot be read ({error.strerror}){hint}") from None
    except ValueError:  # a zero, or half a character
        raise TraceError(f"{str(path)!r}: not a name that a file can have") from None
    if not beginning.startswith(superblock.SIGNATURE):
        raise TraceFormatError(f"{path}: not an HDF5 file; expected a trace made by `kvscope run`")
    return beginning, held


def _check_length(path: Path, beginning: bytes) -> None:
    """Raises TraceFormatError if a closed file is shorter than it was then. (A live one's length says nothing.)"""
    block, length = superblock.parse(beginning), path.stat().st_size
    way_out = "`kvscope trace recover` saves what can still be read, if anything can"
    if length < superblock.SIZE:
        raise TraceFormatError(f"{path}: cut short, {length} bytes are left; copy or record it again")
    if block is not None and block.is_closed and length < block.end:
        raise TraceFormatError(f"{path}: cut short, {length} of {block.end} bytes are left; {way_out}")


def _check_storage(name: str, dataset: h5py.Dataset) -> None:
    """Raises ValueError if reading the dataset could lead to another file, or need what is not here."""
    properties = dataset.id.get_create_plist()
    if properties.get_layout() not in (h5py.h5d.CHUNKED, h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT):
        raise ValueError(f"{name} is a view of other tables")
    if properties.get_external_count():
        raise ValueError(f"{name} is stored in another file")
    missing = missing_filter(dataset)
    if missing is not None:
        raise ValueError(f"{name} {needs_filter(missing)}")
    if dataset.dtype.hasobject:
        raise ValueError(f"{name} holds {dataset.dtype}")
    if dataset.chunks is not None and math.prod(dataset.chunks) * dataset.dtype.itemsize > MOST_CHUNK_BYTES:
        raise ValueError(f"{name} has chunks of {list(dataset.chunks)}, more than {MOST_CHUNK_BYTES:,} bytes each")


def _check_table(table: Table, dataset: h5py.Dataset, lengths: Mapping[str, int]) -> None:
    """Raises ValueError unless type and shape are what the format says; more columns are as good."""
    if not is_type_of(table, dataset.dtype):
        raise ValueError(f"{table.name} is {dataset.dtype}; expected {table.stored_dtype}")
    if dataset.ndim != len(table.axes):
        raise ValueError(f"{table.name} has {dataset.ndim} axes; expected {len(table.axes)}")
    for axis, length in zip(table.axes, dataset.shape, strict=True):
        if length != lengths.get(axis, length):
            raise ValueError(f"{table.name} has {length} along {axis}; expected {lengths[axis]}")
    # What is read at once of tables that grow: one scale of previews, all tokens' bits, all else.
    one_answer = dataset.shape[1:] if table.name in ("preview", "attention_map") else dataset.shape
    check_size(table.name, math.prod(one_answer) * dataset.dtype.itemsize, dataset.file.id.get_filesize())


def is_type_of(table: Table, dtype: np.dtype[Any]) -> bool:
    """Whether a type is that of the table; rows may have more columns, maps either type."""
    if table.name == "attention_map":
        return dtype in MAP_KINDS
    if not table.columns:
        return dtype == table.stored_dtype
    found: Mapping[str, Any] = dtype.fields or {}
    wanted: Mapping[str, Any] = table.row_dtype.fields or {}
    return all(name in found and found[name][0] == expected[0] for name, expected in wanted.items())
