"""Runs as a list: the traces of a folder, those opened before elsewhere, and the files that are no traces.

No styles, no text, and no disk: paths are compared as they are written.
"""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kvscope.runs import Run, Runs
    from kvscope.tui.view import View

Kind = Literal["run", "recent", "unreadable"]


@dataclass(frozen=True, slots=True)
class RunRow:
    """One line of the list."""

    kind: Kind
    path: Path
    name: str
    """Relative to the folder; of a trace elsewhere, its whole path."""
    run: Run | None = None
    """None: it was not read, or cannot be."""
    reason: str = ""
    """Why it cannot be read."""


def run_rows(view: View) -> tuple[RunRow, ...]:
    """Live runs, the others newest first, traces opened before that are elsewhere, and what is not readable."""
    here = _rows_here(view.runs) if view.runs else []
    known = {_written(row.path) for row in here}
    recent = [RunRow("recent", Path(path), path) for path in view.recent if _written(Path(path)) not in known]
    readable = [row for row in here if row.kind == "run"]
    return (*readable, *recent, *(row for row in here if row.kind == "unreadable"))


def row_of(rows: Sequence[RunRow], path: Path | None) -> int | None:
    """Where a trace stands in the list now; None: it does not."""
    if path is None:
        return None
    written = _written(path)
    return next((index for index, row in enumerate(rows) if _written(row.path) == written), None)


def chosen(view: View, rows: Sequence[RunRow]) -> RunRow | None:
    """The line that is chosen; None: the list is empty."""
    return rows[max(0, min(view.row, len(rows) - 1))] if rows else None


def is_home(view: View) -> bool:
    """Nothing is open, and nothing is being opened."""
    return view.snapshot is None and not view.name


def marks(view: View) -> dict[str, str]:
    """Path as it is written → `A`, the trace shown; `B`, the one that it is compared with; or `AB`."""
    found: dict[str, str] = {}
    for letter, snapshot in (("A", view.snapshot), ("B", view.other)):
        if snapshot is not None:
            key = _written(snapshot.path)
            found[key] = found.get(key, "") + letter
    return found


def mark_of(row: RunRow, found: dict[str, str]) -> str:
    """Of `marks`, the letters of a line."""
    return found.get(_written(row.path), "") if found else ""


def _rows_here(runs: Runs) -> list[RunRow]:
    folder = Path(runs.folder)
    live_first = sorted(runs.runs, key=lambda run: run.status != "live")
    return [
        *(RunRow("run", folder / run.file, run.file, run) for run in live_first),
        *(RunRow("unreadable", folder / one.file, one.file, reason=one.reason) for one in runs.unreadable),
    ]


def _written(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - Path.resolve would ask the disk
