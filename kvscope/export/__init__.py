"""EXPORTERS: every form that a trace can be handed on in. A new one is one file here and one line in the table.

An exporter is a function `(content, part)` that writes `content` to the new path `part`: one file, or one folder.
It never meets the trace itself, so it cannot tell what was redacted; giving the result its name is done here.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import heatkv.errors
from heatkv.errors import UnknownNameError
from heatkv.files import check_new, exists_text, place
from kvscope.errors import OutputError

if TYPE_CHECKING:
    from kvscope.export.content import Content

Exporter = Callable[["Content", Path], None]

EXPORTERS: dict[str, str] = {
    "csv": "kvscope.export.csv:write",
    "html": "kvscope.export.html:write",
    "json": "kvscope.export.json:write",
    "netcdf": "kvscope.export.netcdf:write",
    "perfetto": "kvscope.export.perfetto:write",
}
"""Format name → "module:function", loaded on use."""

FOLDERS = frozenset(("csv",))
"""Formats that are a folder of files."""


def load_exporter(name: str) -> Exporter:
    """The function of a format. Raises UnknownNameError, naming the known ones."""
    if name not in EXPORTERS:
        raise UnknownNameError("export format", name, EXPORTERS)
    module, _, function = EXPORTERS[name].partition(":")
    exporter: Exporter = getattr(importlib.import_module(module), function)
    return exporter


def check_output(name: str, path: Path, *, overwrite: bool) -> Path:
    """The file or folder that this export makes or replaces. Raises OutputError if it may not; touches nothing."""
    if name in FOLDERS and path.is_dir():
        if not overwrite:
            raise OutputError(exists_text(path))
        if not os.access(path, os.W_OK):
            raise OutputError(f"{path}: no permission to write in it; choose another name")
        return path
    if name in FOLDERS and path.exists():
        raise OutputError(f"{path}: is a file; format {name} makes a folder, choose another name")
    try:
        return check_new(path, overwrite=overwrite)
    except heatkv.errors.OutputError as error:
        raise OutputError(str(error)) from None


def write_export(content: Content, name: str, path: Path, *, overwrite: bool = False) -> list[Path]:
    """Write one export, whole or not at all, and return the files made.

    A folder that exists (with `overwrite`) keeps whatever else is in it. Raises OutputError, UnknownNameError.
    """
    export = load_exporter(name)
    target = check_output(name, path, overwrite=overwrite)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".part", dir=target.parent) as folder:
            part = Path(folder) / target.name
            export(content, part)
            return _placed(part, target, overwrite=overwrite)
    except FileExistsError:
        raise OutputError(exists_text(path)) from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); nothing was left behind") from None


def _placed(part: Path, target: Path, *, overwrite: bool) -> list[Path]:
    if part.is_file():
        place(part, target, overwrite=overwrite)
        return [target]
    names = sorted(file.name for file in part.iterdir())
    if target.is_dir():
        for name in names:
            place(part / name, target / name, overwrite=overwrite)
    else:
        shutil.move(part, target)
    return [target / name for name in names]
