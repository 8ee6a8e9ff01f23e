"""Small whole files: read JSON with an error that says what is wrong, write beside and rename.

Knows nothing of what the files mean.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatkv.errors import OutputError

if TYPE_CHECKING:
    from heatkv.errors import HeatKVError


def read_json(path: Path, *, expected: str, error: type[HeatKVError]) -> Any:  # Any: whatever the file holds
    """The value in a JSON file. Raises `error`, naming what was `expected`, if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as failure:
        raise error(f"{path}: cannot be read ({failure.strerror}); expected {expected}") from None
    except (ValueError, RecursionError) as failure:
        reason = str(failure).split(":")[0] or type(failure).__name__
        raise error(f"{path}: not JSON ({reason}); expected {expected}") from None


def write_new(path: Path, content: bytes, *, overwrite: bool = False) -> Path:
    """Write the file whole or not at all, and return its path.

    Raises OutputError if it exists (unless `overwrite`), or if it cannot be written.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists; choose another name, or allow overwriting")
    try:
        _write_and_rename(path, content)
    except OSError as failure:
        raise OutputError(f"{path}: cannot be written ({failure.strerror}); nothing was left behind") from None
    return path


def _write_and_rename(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        beside.chmod(0o666 & ~_umask())  # mkstemp makes it private
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
