"""A sheet of the ledger: lines with a predicted and a measured amount, and residuals that make every sum exact.

Knows neither traces nor schedules: it is given what is known, and finds what is left between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kvscope.ledger_lines import Entry, lines_beside, lines_of

Tag = Literal["measured", "predicted", "defined", "unavailable"]
Column = Literal["predicted", "measured"]


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes, and how they are known; or why they are not."""

    num_bytes: int | None
    tag: Tag
    note: str = ""
    """Why it is unavailable, at what moment it was measured, or what else it contains."""

    def noted(self, note: str) -> Amount:
        return Amount(self.num_bytes, self.tag, "; ".join(filter(None, (self.note, note))))


Known = dict[str, Amount]
"""Key of a line → its amount."""


def unavailable(reason: str) -> Amount:
    return Amount(None, "unavailable", reason)


NOT_RUN = unavailable("this has not run")
_OPEN = unavailable("the level above it is not known")


@dataclass(frozen=True, slots=True)
class Line:
    """One line: what it is, and how much, predicted and measured."""

    entry: Entry
    predicted: Amount
    measured: Amount

    @property
    def key(self) -> str:
        return self.entry.key

    @property
    def difference(self) -> int | None:
        """Measured less predicted; None: one of them is not known."""
        if self.measured.num_bytes is None or self.predicted.num_bytes is None:
            return None
        return self.measured.num_bytes - self.predicted.num_bytes

    def amount(self, column: Column) -> Amount:
        return self.predicted if column == "predicted" else self.measured

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        amounts = {"predicted": asdict(self.predicted), "measured": asdict(self.measured)}
        return asdict(self.entry) | amounts | {"difference": self.difference}


@dataclass(frozen=True, slots=True)
class Sheet:
    """The most of each line during one scale, or during the whole run."""

    scale: int | None
    """None: the whole run."""
    lines: tuple[Line, ...]
    """Levels and the parts between them, from the tokens up."""
    beside: tuple[Line, ...]
    """Memory that is no part of the sum."""

    def line(self, key: str) -> Line:
        return next(line for line in (*self.lines, *self.beside) if line.key == key)

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return {
            "scale": self.scale,
            "lines": [line.to_json() for line in self.lines],
            "beside": [line.to_json() for line in self.beside],
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """Where the memory went that a smaller cache did not save."""

    column: Column
    """Whether it is about what was measured, or about what is predicted."""
    full_bytes: int
    """Keys and values of the whole history."""
    stored_bytes: int
    saved_bytes: int
    total_name: str
    total_bytes: int
    saved_fraction: float
    """Of what the total would have been with the whole history stored."""
    parts: tuple[tuple[str, int], ...]
    """What the total is made of, the largest first."""


def sheet_of(scale: int | None, device: str, predicted: Known, measured: Known | None) -> Sheet:
    """The lines of a device, with every residual; `measured` None: this has not run."""
    entries = lines_of(device)
    recorded, missing = measured or {}, NOT_RUN if measured is None else unavailable("not recorded")
    not_predicted = unavailable("not predicted")
    columns = (
        with_residuals(entries, predicted, "predicted", not_predicted),
        with_residuals(entries, recorded, "measured", missing),
    )
    beside = tuple(Line(entry, not_predicted, recorded.get(entry.key, missing)) for entry in lines_beside(device))
    return Sheet(scale, tuple(Line(entry, *(column[entry.key] for column in columns)) for entry in entries), beside)


def with_residuals(entries: Sequence[Entry], known: Known, column: Column, missing: Amount) -> Known:
    """Every line's amount. Between two known levels one residual takes what the other parts leave."""
    default = {True: _OPEN if known else missing, False: missing}
    found: Known = {entry.key: known.get(entry.key, default[entry.is_residual]) for entry in entries}
    between: list[Entry] = []
    below: int | None = None
    for entry in entries:
        if not entry.is_level:
            between.append(entry)
            continue
        level = found[entry.key].num_bytes
        if level is None:
            continue
        if below is not None:
            found |= _residuals(level - below, between, found, column)
        below, between = level, []
    return found


def answer_of(sheet: Sheet, full_bytes: int, column: Column) -> Answer | None:
    """None: this column knows no total."""
    ends = [index for index, line in enumerate(sheet.lines) if line.entry.is_total and _bytes(line, column) is not None]
    stored = _bytes(sheet.line("stored"), column)
    if stored is None or not ends:
        return None
    total = sheet.lines[ends[-1]]
    name, total_bytes = total.entry.name, _bytes(total, column) or 0
    parts = [line for line in sheet.lines[: ends[-1]] if not line.entry.is_level] + [sheet.lines[0]]
    weights = sheet.line("weights")
    if weights not in parts and _bytes(weights, column) is not None:
        # What a process has before its run cannot be predicted, but its weights can.
        parts.append(weights)
        name, total_bytes = f"{name}, and weights", total_bytes + (_bytes(weights, column) or 0)
    sizes = {line.entry.key: size for line in parts if (size := _bytes(line, column))}
    if on_host := sizes.pop("index_on_host", 0):  # of another memory: no part of this total
        sizes["index"] = sizes.get("index", 0) + on_host
    named = [(line.entry.name, sizes[line.entry.key]) for line in parts if sizes.get(line.entry.key)]
    saved = full_bytes - stored
    return Answer(
        column=column,
        full_bytes=full_bytes,
        stored_bytes=stored,
        saved_bytes=saved,
        total_name=name,
        total_bytes=total_bytes,
        saved_fraction=saved / (total_bytes + saved) if total_bytes + saved > 0 else 0.0,
        parts=tuple(sorted(named, key=lambda part: -part[1])),
    )


def _residuals(rest: int, between: Sequence[Entry], found: Known, column: Column) -> Known:
    """The last residual of the parts between two known levels; others, below an unknown level, are part of it."""
    *inner, last = [entry for entry in between if entry.is_residual]
    apart = [entry for entry in between if not entry.is_residual]
    amount = Amount(rest - sum(found[entry.key].num_bytes or 0 for entry in apart), column)
    contained = [*inner, *(entry for entry in apart if found[entry.key].num_bytes is None)]
    if contained:
        amount = amount.noted("contains " + ", ".join(entry.name for entry in contained))
    if amount.num_bytes is not None and amount.num_bytes < 0:
        amount = amount.noted(f"less than nothing: {last.negative}")
    return {last.key: amount} | {entry.key: unavailable(f"part of {last.name}") for entry in inner}


def _bytes(line: Line, column: Column) -> int | None:
    return line.amount(column).num_bytes
