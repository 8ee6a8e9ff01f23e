"""The league's file: HDF5, whole at every moment. Each save writes beside the name and renames, so that whatever stops
the process leaves the rows of the last save; the same command goes on from there.

A lock beside it keeps a second process from the same league.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from heatkv.files import check_new
from kvscope import liveness
from kvscope.errors import OutputError, TraceFormatError, TraceVersionError, UsageError
from kvscope.header import optional_text
from kvscope.league.entrants import Entrant
from kvscope.league.settings import Settings
from kvscope.league.table import NUMBERS, League, as_arrays, from_arrays
from kvscope.opening import LEAGUE_FORMAT, header_attributes

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
_ROWS, _KL, _ENTRANTS, _PROMPTS = "rows", "kl_by_scale", "entrants", "prompts"


def load(path: Path) -> League:
    """Raises TraceFormatError if the file is not a readable league, TraceVersionError if it is of a later format."""
    try:
        if not path.exists():
            raise OSError("no such file")
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for its writer for ever
            raise OSError("not a regular file")
        with h5py.File(path, "r") as file:
            return _league(path, file)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        # HDF5 tells of damage in many ways.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TraceFormatError(
            f"{path}: cannot be read as a league ({reason}); expected a file made by `kvscope league run`"
        ) from None


def save(path: Path, league: League) -> None:
    """Write all of it, in place of what had the name. Raises OutputError; what was there before is then still there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(beside, "w", libver=("v110", "v110")) as file:
            _write(file, league)
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path}: cannot be written ({error}); the rows of the last save are safe") from None
    finally:
        beside.unlink(missing_ok=True)


def begun(path: Path, settings: Settings, *, overwrite: bool) -> League | None:
    """The league of these settings that `path` holds rows of, to go on with; None: there is none, begin it.

    Raises UsageError if the file is of other settings, or no league; OutputError if it cannot be written.
    """
    try:
        found = None if overwrite or not path.exists() else load(path)
    except TraceFormatError:
        raise UsageError(f"{path}: exists, and is no readable league; choose another name, or --overwrite") from None
    if found is None:
        check_new(path, overwrite=overwrite)
    if found is None or not found.rows:
        return None
    given, kept = _plain(settings.to_json()), _plain(found.settings.to_json())
    changed = [name for name, value in given.items() if value != kept[name]]
    if changed:
        raise UsageError(
            f"{path}: a league with other {', '.join(changed)}; give the same options to go on with it, "
            "or another -o, or start anew with --overwrite"
        )
    return found


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this league. Raises OutputError if another process does, or it cannot be made."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give the name of a file")
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.touch(0o666)
        descriptor, _ = liveness.hold(lock)
    except BlockingIOError:
        raise OutputError(f"{path}: another process measures into it; wait for it, or choose another name") from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _write(file: h5py.File, league: League) -> None:
    rows, kl = as_arrays(league.rows, league.settings.scales.num_scales)
    # Of fixed length, so that what asks only for the format need not trust the file.
    file.attrs.update({"format": np.bytes_(LEAGUE_FORMAT), "format_version": VERSION})
    file.attrs["settings"] = json.dumps(league.settings.to_json())
    file.create_dataset(_ENTRANTS, data=_entrant_table(league.entrants))
    file.create_dataset(_PROMPTS, data=np.array([prompt.encode() for prompt in league.settings.prompts]))
    table = file.create_dataset(_ROWS, data=rows)
    for name, column in NUMBERS.items():
        table.attrs[name] = f"{column.words} [{column.unit}]"
    scales = file.create_dataset(_KL, data=kl)
    scales.attrs.update({"units": "nat/bit", "long_name": "mean KL(full || this) of a bit, at full's bits"})
    for axis, name in enumerate(("row", "query_scale")):
        scales.dims[axis].label = name


def _entrant_table(entrants: tuple[Entrant, ...]) -> NDArray[np.void]:
    """One record an entrant; NaN: none."""
    width = max(len(one.policy.encode()) for one in entrants)
    columns = [("policy", f"S{width}"), ("target_bytes", "<f8"), ("budget", "<f8"), ("peak_bytes", "<i8")]
    table = np.empty(len(entrants), np.dtype([*columns, ("is_reachable", "u1")]))
    for place, one in zip(table, entrants, strict=True):
        record = asdict(one) | {"policy": one.policy.encode()}
        for name in table.dtype.names or ():
            place[name] = np.nan if record[name] is None else record[name]
    return table


def _league(path: Path, file: h5py.File) -> League:
    if optional_text(header_attributes(file), "format") != LEAGUE_FORMAT:
        raise ValueError("no league")
    if file.attrs["format_version"] != VERSION:
        found = file.attrs["format_version"]
        raise TraceVersionError(f"{path}: league format {found}, this kvscope reads {VERSION}; upgrade kvscope")
    settings = Settings.from_json(json.loads(file.attrs["settings"]))
    entrants = tuple(_entrant(place) for place in file[_ENTRANTS][:])
    return League(settings, entrants, from_arrays(file[_ROWS][:], file[_KL][:]))


def _entrant(place: Any) -> Entrant:  # Any: a record of a numpy table
    target, budget = float(place["target_bytes"]), float(place["budget"])
    return Entrant(
        place["policy"].decode(),
        None if np.isnan(target) else int(target),
        None if np.isnan(budget) else budget,
        int(place["peak_bytes"]),
        bool(place["is_reachable"]),
    )


def _plain(value: Any) -> Any:  # Any: a JSON value; lists and tuples are the same there
    return json.loads(json.dumps(value))
