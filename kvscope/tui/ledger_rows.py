"""The ledger as a screen shows it: its lines in one list, where each one's bar begins and ends, and shares of the sum.

Pure arithmetic over kvscope.ledger; no styles, no text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from typing import TYPE_CHECKING, Literal

from kvscope.ledger_report import LEAST_SHARE

if TYPE_CHECKING:
    from kvscope.ledger import Ledger
    from kvscope.ledger_sheet import Answer, Column, Line, Sheet

Group = Literal["defined", "sum", "beside"]
SAVED, REST = "saved", "the rest"
"""Shares that are no line."""

Span = tuple[int, int]
"""Bytes [begin, end) of a bar; a part's begins where the sum stands before it. begin > end: it takes away."""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One line of the ledger, for the whole run and for one scale of it."""

    group: Group
    run: Line
    scale: Line | None
    """The same line of one query scale; None: it is defined for the whole run only."""
    span: Span | None
    """Of the whole run; None: its bytes are not known."""


def ledger_rows(ledger: Ledger, query_scale: int) -> tuple[LedgerRow, ...]:
    """What defines the budget, the sum from the tokens up, and the memory beside it."""
    column = column_of(ledger.run)
    sheet = ledger.scales[query_scale]
    sums, spans = ledger.run.lines, spans_of(ledger.run.lines, column)
    return (
        *(LedgerRow("defined", line, None, _from_zero(line, column)) for line in ledger.defined),
        *(LedgerRow("sum", run, one, span) for run, one, span in zip(sums, sheet.lines, spans, strict=True)),
        *(
            LedgerRow("beside", run, one, _from_zero(run, column))
            for run, one in zip(ledger.run.beside, sheet.beside, strict=True)
        ),
    )


def num_rows(ledger: Ledger) -> int:
    """How many rows `ledger_rows` gives."""
    return len(ledger.defined) + len(ledger.run.lines) + len(ledger.run.beside)


def column_of(sheet: Sheet) -> Column:
    """What bars are drawn of: measured amounts, or before there are any, predicted ones."""
    return "measured" if any(line.measured.num_bytes is not None for line in sheet.lines) else "predicted"


def spans_of(lines: Sequence[Line], column: Column) -> list[Span | None]:
    """Each line's bar: levels from zero, parts from where the sum stands, so that they lead from level to level."""
    spans: list[Span | None] = []
    stands = 0
    for line in lines:
        size = line.amount(column).num_bytes
        if size is None:
            spans.append(None)
            continue
        begin = 0 if line.entry.is_level else stands
        stands = begin + size
        spans.append((begin, stands))
    return spans


def ceiling(rows: Iterable[LedgerRow]) -> int:
    """Where bars end: the most of what one process holds; a whole GPU may be far more."""
    ends = [max(row.span) for row in rows if row.span and (row.run.entry.is_total or row.group == "defined")]
    return max(ends, default=0) or max((max(row.span) for row in rows if row.span), default=0)


def cells_of(span: Span, top: int, width: int, *, floor: int = 0) -> Span:
    """The columns [begin, end) of a bar of `width` columns that ends at `top`; one column at least.

    With a `floor` in bytes the axis is logarithmic, and that is where it begins.
    """
    if top <= 0 or width <= 0:
        return 0, 0
    low, high = sorted(span)
    begin, end = (round(width * _share(value, top, floor)) for value in (low, high))
    begin = max(0, min(width - 1, begin))
    return begin, max(begin + 1, min(width, end))


def log_floor(rows: Iterable[LedgerRow], top: int) -> int:
    """Where a logarithmic axis begins: half the smallest bar."""
    sizes = [abs(end - begin) for row in rows if row.span for begin, end in (row.span,) if begin != end]
    return max(1, min(sizes, default=top) // 2)


def shares_of(answer: Answer, always: str) -> tuple[tuple[str, int, float], ...]:
    """(name, bytes, fraction) of what a full history needs in all: the total's parts, then what was saved.

    Small parts are one; the part named `always` is told whatever its size.
    """
    whole = answer.total_bytes + max(0, answer.saved_bytes)
    if whole <= 0:
        return ()
    parts = [(name, size) for name, size in answer.parts if size > 0]
    named = [part for part in parts if part[1] / whole >= LEAST_SHARE or part[0] == always]
    rest = sum(size for _, size in parts) - sum(size for _, size in named)
    if rest:
        named.append((REST, rest))
    if answer.saved_bytes > 0:
        named.append((SAVED, answer.saved_bytes))
    return tuple((name, size, size / whole) for name, size in named)


def scale_parts(sheet: Sheet, names: Sequence[str]) -> list[int]:
    """Bytes of the lines with these names, measured, or where the scale has not run, predicted; 0 where unknown."""
    column = column_of(sheet)
    sizes = {line.entry.name: line.amount(column).num_bytes or 0 for line in sheet.lines if not line.entry.is_level}
    sizes[sheet.lines[0].entry.name] = sheet.lines[0].amount(column).num_bytes or 0
    return [max(0, sizes.get(name, 0)) for name in names]


def stacked(sizes: Sequence[int], top: int, width: int) -> list[int]:
    """Columns of each part of a bar, so that the sum of all ends where it should."""
    ends, stands = [0], 0
    for size in sizes:
        stands += size
        ends.append(round(max(0, width) * stands / top) if top > 0 else 0)
    return [end - begin for begin, end in pairwise(ends)]


def divided(fractions: Sequence[float], width: int) -> list[int]:
    """Columns of each fraction, `width` in all, one at least; the largest gives what the smallest need."""
    if width <= len(fractions):
        return [1] * width + [0] * (len(fractions) - width)
    if not fractions:
        return []
    columns = [max(1, round(width * fraction / sum(fractions))) for fraction in fractions]
    while over := sum(columns) - width:
        columns[columns.index(max(columns))] -= 1 if over > 0 else over
    return columns


def _share(value: int, top: int, floor: int) -> float:
    if not floor:
        return value / top
    return log(max(value, floor) / floor) / log(top / floor) if top > floor else 1.0


def _from_zero(line: Line, column: Column) -> Span | None:
    size = line.amount(column).num_bytes
    return None if size is None else (0, size)
