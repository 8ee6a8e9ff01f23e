"""Export as a folder of CSV files, one per table: rows of different kinds do not fit in one.

The first line names each column, with its unit in brackets where it has one: `begin_ns [ns]`. Units stand in the names
because a spreadsheet and `pandas.read_csv` take exactly one header line. A cell is empty where nothing was measured.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvscope.analysis import ScaleSummary, StepPlace
from kvscope.export.content import HEAD_SCALE_TABLES, ROW_TABLES
from kvscope.export.values import Cell, harmless, unit_of
from kvscope.format import LEVELS, TABLES, decode_text

if TYPE_CHECKING:
    from kvscope.export.content import Content


def write(content: Content, part: Path) -> None:
    """Write every file into the new folder `part`; a table without rows is its first line."""
    part.mkdir()
    _write(part / "facts.csv", ("name", "value"), _facts(content))
    _write(part / "summary.csv", ("name", "value", "unit", "tag"), _summary(content))
    _write(part / "scales.csv", *_scales(content))
    _write(part / "head_scales.csv", *_head_scales(content))
    for name in ROW_TABLES:
        columns = TABLES[name].columns
        rows = content.rows(name)
        titles = [_title(column.name, column.unit) for column in columns]
        _write(
            part / f"{name}.csv", titles, ([_cell(column.name, row[column.name]) for column in columns] for row in rows)
        )


def _write(path: Path, titles: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    with path.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(titles)
        writer.writerows([harmless(cell) for cell in row] for row in rows)


def _facts(content: Content) -> Iterator[tuple[str, Cell]]:
    facts = content.facts
    yield "made_by", content.made_by
    yield "redacted", "; ".join(facts.removed)
    for name, value in facts.header.items():
        yield from _flat(name, value)
    yield from _flat("schedule", {key: value for key, value in facts.schedule.items() if key != "scales"})


def _flat(name: str, value: object) -> Iterator[tuple[str, Cell]]:
    """One row per value: `job.seed`, `scales.sizes`."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(f"{name}.{key}", part)
    elif isinstance(value, list | tuple):
        yield name, " ".join("x".join(map(str, part)) if isinstance(part, list) else str(part) for part in value)
    else:
        yield name, value if isinstance(value, str | int | float | None) else str(value)


def _summary(content: Content) -> Iterator[tuple[str, Cell, str, str]]:
    summary = content.facts.summary
    for field in fields(summary):
        value, tag = getattr(summary, field.name), summary.tags.get(field.name, "")
        if field.name in ("scales", "tags"):
            continue
        parts = {field.name: value}
        if field.name == "recorder" and value is not None:
            parts = {f"recorder.{part.name}": getattr(value, part.name) for part in fields(value)}
        elif isinstance(value, StepPlace):
            parts = {f"{field.name}.{part.name}": getattr(value, part.name) for part in fields(value)}
        for name, part in parts.items():
            yield name, part, unit_of(name) if isinstance(part, int | float) else "", tag


def _scales(content: Content) -> tuple[list[str], list[list[Cell]]]:
    names = [field.name for field in fields(ScaleSummary)]
    rows = [[getattr(scale, name) for name in names] for scale in content.facts.summary.scales]
    return [_title(name, unit_of(name)) for name in names], rows


def _head_scales(content: Content) -> tuple[list[str], Iterator[list[Cell]]]:
    """Every head-scale that was written by then, after every scale: the arrays, as a tidy table."""
    axes = TABLES["kept_tokens"].axes
    titles = [*axes, "drop_step", *(_title(name, TABLES[name].unit) for name in HEAD_SCALE_TABLES)]
    return titles, _head_scale_rows(content)


def _head_scale_rows(content: Content) -> Iterator[list[Cell]]:
    arrays = [content.head_scales(name) for name in HEAD_SCALE_TABLES]
    for scale in range(content.scales_done):
        for layer, head, source in np.ndindex(content.num_layers, content.num_heads, scale + 1):
            # Where tokens are chosen during the run only sinks and the last scale have a planned step.
            planned = not content.is_chosen(source)
            drop_step = int(content.drop_step[layer, head, source]) if planned else None
            values = [_number(array[scale, layer, head, source].item()) for array in arrays]
            yield [scale, layer, head, source, drop_step, *values]


def _title(name: str, unit: str) -> str:
    return f"{name} [{unit}]" if unit not in ("", "1") else name


def _cell(name: str, value: np.generic | np.ndarray[tuple[int], np.dtype[np.bytes_]]) -> Cell:
    if isinstance(value, np.ndarray):
        return decode_text(value)
    number = value.item()
    if name == "level" and number < len(LEVELS):
        return LEVELS[number]
    return _number(number)


def _number(value: float) -> float | None:
    return None if value != value else value
