"""Runs: every trace in a folder and below, from what opening it reads and the few rows of its steps; no large array.

A file that is no readable trace is listed too, with the one line that says why.
"""

from __future__ import annotations

import os
import textwrap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvscope.errors import TraceError
from kvscope.trace import Trace
from kvscope.units import age_text, bytes_text, fraction_text, printable

if TYPE_CHECKING:
    from kvscope.trace import TraceStatus

_COLUMNS = 80
_GAP = "  "
_SUFFIX = ".h5"

_TITLES = ("file", "age", "model", "policy", "scales", "stored", "size")
_WORDS = (2, 3)
"""Of those, the ones that may be cut: model, policy."""


@dataclass(frozen=True, slots=True)
class Run:
    """One trace of a folder."""

    file: str
    """Relative to the folder."""
    run_id: str
    created_ns: int
    model: str
    resolution: str
    policy: str
    budget: float | None
    status: TraceStatus
    scales_done: int
    num_scales: int
    storage_peak_bytes: int | None
    """The most that the cache really held after any step; None: no step is recorded."""
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file of a folder that is no readable trace."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Runs:
    """What a folder holds; the runs newest first, the rest by name."""

    folder: str
    runs: tuple[Run, ...]
    unreadable: tuple[Unreadable, ...]

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return asdict(self)


def list_runs(folder: Path) -> Runs:
    """The traces (`*.h5`) of a folder and below; hidden folders and links to folders are passed by.

    Raises TraceError if the folder cannot be listed.
    """
    return runs_of(folder, (run_of(path, folder) for paths in walk(folder) for path in paths))


def runs_of(folder: Path, found: Iterable[Run | Unreadable]) -> Runs:
    """What was found in a folder, in order."""
    runs, unreadable = [], []
    for one in found:
        if isinstance(one, Run):
            runs.append(one)
        else:
            unreadable.append(one)
    runs.sort(key=lambda run: (-run.created_ns, run.file))
    return Runs(str(folder), tuple(runs), tuple(sorted(unreadable, key=lambda one: one.file)))


def run_of(path: Path, folder: Path) -> Run | Unreadable:
    """What a file of a folder is."""
    name = str(path.relative_to(folder))
    try:
        return _run(path, name)
    except (TraceError, OSError) as error:  # OSError: deleted since it was listed
        return Unreadable(name, str(error).removeprefix(f"{path}: "))


def walk(folder: Path) -> Iterator[list[Path]]:
    """The files named like traces, of one folder after another, the nearest first; a caller may stop in between.

    Raises TraceError if the folder itself cannot be listed; one below it that cannot is passed by.
    """
    waiting = deque([folder])
    while waiting:
        parent = waiting.popleft()
        try:
            with os.scandir(parent) as entries:
                seen = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            if parent is folder:
                raise TraceError(f"{folder}: cannot be listed ({error.strerror}); give a folder of traces") from None
            continue
        seen.sort(key=lambda entry: entry.name)
        waiting.extend(parent / entry.name for entry in seen if entry.is_dir(follow_symlinks=False))
        named = (parent / entry.name for entry in seen if entry.name.endswith(_SUFFIX))
        yield [path for path in named if not path.is_dir()]


def _run(path: Path, name: str) -> Run:
    with Trace.open(path) as trace:
        header, schedule, stored = trace.header, trace.schedule, trace.steps["storage_bytes"]
        return Run(
            file=name,
            run_id=header.run_id,
            created_ns=header.created_ns,
            model=header.model,
            resolution=header.scales.resolution,
            policy=schedule.policy,
            budget=schedule.budget,
            status=trace.status,
            scales_done=trace.scales_done,
            num_scales=header.scales.num_scales,
            storage_peak_bytes=int(stored.max()) if stored.size else None,
            file_bytes=trace.file_bytes,
        )


def runs_text(found: Runs, *, now_ns: int) -> str:
    """A line a run, at most 80 columns wide; a long name stands on a line of its own."""
    lines = _lines([_cells(run, now_ns) for run in found.runs]) or [f"{printable(found.folder)}: no trace in it"]
    if found.unreadable:
        lines += ["", "no traces, or not readable:"]
    for one in found.unreadable:
        reason = textwrap.wrap(printable(one.reason), _COLUMNS, initial_indent="    ", subsequent_indent="    ")
        lines += [_cut(f"  {printable(one.file)}", _COLUMNS), *reason]
    return "\n".join(lines)


def _cells(run: Run, now_ns: int) -> list[str]:
    budget = "" if run.budget is None else f" {fraction_text(run.budget)}"
    scales = f"{run.scales_done}" if run.status == "done" else f"{run.scales_done}/{run.num_scales}"
    return [
        printable(run.file),
        age_text(now_ns - run.created_ns),
        printable(f"{run.model} {run.resolution}"),
        printable(run.policy) + budget,
        f"{run.status} {scales}",
        bytes_text(run.storage_peak_bytes, absent="–"),
        bytes_text(run.file_bytes),
    ]


def _lines(rows: list[list[str]]) -> list[str]:
    """Rows as aligned columns under their titles."""
    if not rows:
        return []
    widths = _widths([_TITLES, *rows])
    lines = []
    for name, *cells in [list(_TITLES), *rows]:
        rest = "".join(_GAP + _cut(cell, width).ljust(width) for cell, width in zip(cells, widths[1:], strict=True))
        if len(name) > widths[0]:
            lines.append(_cut(name, _COLUMNS))
            name = ""
        lines.append((name.ljust(widths[0]) + rest).rstrip())
    return lines


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Columns of each cell: as wide as needed, but words give way where there is too little room, and then names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = _COLUMNS - len(_GAP) * (len(widths) - 1) - len(_TITLES[0])
    while sum(widths[1:]) > room:
        widths[max(_WORDS, key=lambda index: widths[index])] -= 1
    widths[0] = min(widths[0], room + len(_TITLES[0]) - sum(widths[1:]))
    return widths


def _cut(text: str, width: int) -> str:
    """The text, without its middle if it is too long."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
