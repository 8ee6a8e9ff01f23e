"""Small whole files, and what may be read or replaced: JSON and text in, bytes beside the name and renamed.

Knows nothing of what the files mean. Every file that is written asks `check_new` first.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from heatkv.errors import OutputError


def check_new(path: Path, *, overwrite: bool = False) -> Path:
    """The file that writing to `path` makes or replaces: `path`, or what a link there leads to. Touches nothing.

    Raises OutputError if the folder is missing or closed to writing, or if something is there, a dangling link
    included: unless `overwrite`, and always if it is no regular file or may not be written to.
    """
    mode: int | None
    try:
        target = Path(os.path.realpath(path)) if stat.S_ISLNK(path.lstat().st_mode) else path
        mode = _mode(target)
    except FileNotFoundError:
        target, mode = path, None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another name") from None
    _check_folder(path, target.parent)
    if mode is not None:
        _check_existing(path, target, mode, overwrite=overwrite)
    return target


def is_same_file(one: Path, other: Path) -> bool:
    """Whether both lead to one file that is there."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


def _mode(target: Path) -> int:
    """What kind of file is there; 0: none, as where a link leads nowhere."""
    try:
        return target.stat().st_mode
    except FileNotFoundError:
        return 0


def _check_folder(path: Path, folder: Path) -> None:
    if not folder.is_dir():
        raise OutputError(f"{path}: the folder {folder} does not exist; create it, or choose another")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path}: no permission to write in {folder}; choose another folder")


def _check_existing(path: Path, target: Path, mode: int, *, overwrite: bool) -> None:
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path}: is a folder; give the name of a file")
    if mode and not stat.S_ISREG(mode):
        raise OutputError(f"{path}: not a regular file; choose another name")
    if not overwrite:
        raise OutputError(exists_text(path))
    if mode and not os.access(target, os.W_OK):
        raise OutputError(f"{path}: no permission to overwrite it; choose another name, or make it writable")


def exists_text(path: Path) -> str:
    """What is said of an output that exists and may not be overwritten."""
    return f"{path}: exists; choose another name, or overwrite it (--overwrite)"


def write_new(path: Path, content: bytes, *, overwrite: bool = False) -> Path:
    """Write the file whole or not at all, and return its path.

    Raises OutputError if it exists (unless `overwrite`), or if it cannot be written; see check_new.
    """
    target = check_new(path, overwrite=overwrite)
    try:
        _write_and_place(target, content, overwrite=overwrite)
    except FileExistsError:
        raise OutputError(exists_text(path)) from None
    except OSError as failure:
        raise OutputError(f"{path}: cannot be written ({failure.strerror}); nothing was left behind") from None
    return path


def place(beside: Path, target: Path, *, overwrite: bool) -> None:
    """Give a finished file its name, in one step.

    Without `overwrite` it raises FileExistsError if something has that name by now, and leaves both as they are.
    """
    if overwrite:
        beside.replace(target)
        return
    try:
        target.hardlink_to(beside)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: claim the name, then take it
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        beside.replace(target)
    else:
        beside.unlink()


def read_text(path: Path, *, expected: str, error: type[Exception]) -> str:
    """The text of a UTF-8 file, without a byte-order mark. Raises `error`, naming what was `expected`.

    Only regular files: reading a pipe would wait for its writer for ever.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode) or path.is_dir():
            return path.read_text(encoding="utf-8-sig")
    except OSError as failure:
        raise error(f"{path}: cannot be read ({failure.strerror}); expected {expected}") from None
    except UnicodeDecodeError as failure:
        raise error(f"{path}: not text (byte {failure.start} is not UTF-8); expected {expected}") from None
    except ValueError:  # a zero, or half a character
        raise error(f"{str(path)!r}: not a name that a file can have; expected {expected}") from None
    raise error(f"{path}: not a regular file; expected {expected}")


def read_json(path: Path, *, expected: str, error: type[Exception]) -> Any:  # Any: whatever the file holds
    """The value in a JSON file. Raises `error`, naming what was `expected`, if it is missing or not JSON."""
    text = read_text(path, expected=expected, error=error)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as failure:
        reason = str(failure).split(":")[0] or type(failure).__name__
        raise error(f"{path}: not JSON ({reason}); expected {expected}") from None


def _write_and_place(target: Path, content: bytes, *, overwrite: bool) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        beside.chmod(0o666 & ~_umask())  # mkstemp makes it private
        place(beside, target, overwrite=overwrite)
    finally:
        beside.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
