"""Recent: the traces that were opened last, in a small file of the user's own.

It is a convenience: a file that is damaged, missing or cannot be written is passed over without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

MOST = 20
"""Traces that are remembered."""

_MOST_BYTES = 1 << 20
"""A larger file is none of ours."""


def recent(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The traces opened last, newest first, by their whole paths; those that are gone are left out."""
    return tuple(path for path in _remembered(_file(environ)) if os.path.isfile(path))  # noqa: PTH113 - True or False


def remember(path: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Put a trace first."""
    file = _file(environ)
    if file is None:
        return
    name = os.path.abspath(path)  # noqa: PTH100 - links stay as the user knows them
    paths = [name, *(other for other in _remembered(file) if other != name)][:MOST]
    with contextlib.suppress(OSError, UnicodeError):
        _replace(file, json.dumps({"version": 1, "traces": paths}, indent=1))


def _file(environ: Mapping[str, str]) -> Path | None:
    """Where it is kept; None: the user has no home."""
    state = environ.get("XDG_STATE_HOME", "")
    home = environ.get("HOME", "")
    if not os.path.isabs(state):  # noqa: PTH117 - the XDG specification says to ignore others
        if not home:
            return None
        state = os.path.join(home, ".local", "state")  # noqa: PTH118 - text, like what it is made of
    return Path(state) / "kvscope" / "recent.json"


def _remembered(file: Path | None) -> list[str]:
    """What the file says, as far as it makes sense."""
    if file is None:
        return []
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return []
    paths = found.get("traces") if isinstance(found, dict) else None
    if not isinstance(paths, list):
        return []
    # A name with a null in it can be asked for nowhere.
    whole = (path for path in paths if isinstance(path, str) and os.path.isabs(path) and "\0" not in path)  # noqa: PTH117
    return list(dict.fromkeys(whole))[:MOST]


def _replace(file: Path, text: str) -> None:
    """The file with this text, whole or not at all."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            opened.write(text)
        os.replace(name, file)  # noqa: PTH105 - names as mkstemp gives them
    except BaseException:
        os.unlink(name)  # noqa: PTH108
        raise
