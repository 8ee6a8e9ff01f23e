"""The ledger as text of 80 columns: the answer first, then the sums, then what each line is."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from kvscope.units import bytes_text, fraction_text, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kvscope.ledger import Ledger
    from kvscope.ledger_sheet import Amount, Answer, Line, Sheet

_WIDTH = 80
LEAST_SHARE = 0.001
"""Smaller parts are not worth naming in the answer; the keys and values are, whatever their size."""
_ABSENT = "-"
_NO_BREAK = "\N{NO-BREAK SPACE}"


def ledger_text(ledger: Ledger, scale: int | None = None, *, explain: bool = True) -> str:
    """The whole run with its answer and a table of its scales, or one scale; to `explain` is to define each line."""
    sheet = ledger.run if scale is None else ledger.scales[scale]
    blocks = [_wrapped(_title(ledger)), _sheet_lines(ledger, sheet)]
    if scale is None:
        blocks.insert(1, _answer_lines(ledger))
        blocks.append(_scale_lines(ledger))
    blocks.append(_definitions(ledger, sheet) if explain else ["`--explain` says what each line is."])
    return "\n\n".join("\n".join(map(printable, block)) for block in blocks)


def _title(ledger: Ledger) -> str:
    budget = "no budget" if ledger.budget is None else f"budget {fraction_text(ledger.budget)}"
    named = "" if ledger.trace is None else f"{ledger.trace}: "
    model = f"{ledger.model} {ledger.resolution}, policy {ledger.policy}, {budget}"
    revised = "".join(f"; from scale {scale} on the plan of {policy}" for scale, policy in ledger.revised)
    return f"{named}{ledger.status}; {model}, {ledger.dtype} on {ledger.device}, {ledger.rows} rows{revised}"


def answer_text(ledger: Ledger) -> str:
    """What the cache saved, of what a full history needs in all."""
    answer = ledger.answer
    if answer is None:
        return "Where memory went is not known: no total was recorded."
    share = fraction_text(answer.stored_bytes / answer.full_bytes if answer.full_bytes else None)
    took = "took" if answer.column == "measured" else "will take"
    return (
        f"A full history is {bytes_text(answer.full_bytes)} of keys and values; the cache {took} "
        f"{bytes_text(answer.stored_bytes)} ({share}). {_saved(answer)}"
    )


def _answer_lines(ledger: Ledger) -> list[str]:
    answer = ledger.answer
    if answer is None:
        return _wrapped(answer_text(ledger))
    were = "were" if answer.column == "measured" else "will be"
    total = f"The {bytes_text(answer.total_bytes)} ({answer.total_name}) {were} mostly:"
    return _wrapped(f"{answer_text(ledger)} {total}") + [
        f"  {fraction_text(num_bytes / answer.total_bytes):>7}  {bytes_text(num_bytes):>9}  {name}"
        for name, num_bytes in answer.parts
        if num_bytes / answer.total_bytes >= LEAST_SHARE or name == ledger.run.lines[0].entry.name
    ]


def _saved(answer: Answer) -> str:
    if answer.saved_bytes <= 0:
        return "Nothing is saved: what is stored takes as much as the full history."
    would = bytes_text(answer.total_bytes + answer.saved_bytes)
    part = fraction_text(answer.saved_fraction)
    whole = "in all" if answer.column == "measured" else "of tensors, as far as it is predicted,"
    return f"That saves {bytes_text(answer.saved_bytes)}, or {part} of the {would} {whole} that a full history needs."


def _sheet_lines(ledger: Ledger, sheet: Sheet) -> list[str]:
    what = "the whole run" if sheet.scale is None else f"scale {sheet.scale}"
    has_run = _has_run(sheet)
    titles = ("predicted", "measured", "difference") if has_run else ("predicted",)
    lines = [_columns(f"The most during {what}, in bytes", titles)]
    for line in ledger.defined:
        amount = line.predicted
        cells = [amount.note] if amount.num_bytes is None else [_text(amount), amount.tag]
        lines.append(_columns(f"  {line.entry.name}", cells))
    lines.append("")
    for index, line in enumerate(sheet.lines):
        sign = " " if not index else "=" if line.entry.is_level else "+"
        lines.append(_columns(f"{sign} {line.entry.name}", _amounts(line) if has_run else [_text(line.predicted)]))
        if line.measured.num_bytes is not None and line.measured.num_bytes < 0:
            lines += _wrapped(line.measured.note, indent="    ")
    if has_run:
        lines += _beside_lines(sheet)
    return lines


def _beside_lines(sheet: Sheet) -> Iterator[str]:
    """Memory that is no part of the sum, and whatever could not be measured, each reason once."""
    known = [line for line in sheet.beside if line.measured.num_bytes is not None]
    if known:
        yield "beside it:"
    yield from (_columns(f"  {line.entry.name}", _amounts(line)) for line in known)
    unknown = [line for line in (*sheet.lines, *sheet.beside) if line.measured.num_bytes is None]
    for reason, names in _by_reason(unknown).items():
        yield from _wrapped(f"unavailable: {', '.join(names)} ({reason})", indent="  ")


def _by_reason(lines: Iterable[Line]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for line in lines:
        reasons.setdefault(line.measured.note, []).append(line.entry.name)
    return reasons


def _scale_lines(ledger: Ledger) -> list[str]:
    """What each scale kept and stored, what that differs from the prediction, and the total of the process."""
    if not _has_run(ledger.run):
        keys = ("kept", "stored", "moment")
        rows = [[_text(sheet.line(key).predicted) for key in keys] for sheet in ledger.scales]
        titles = f"{'scale':>5}  {'kept':>10}  {'stored':>10}  {ledger.run.line('moment').entry.name:>30}"
        return [titles, *(f"{scale:>5}  {k:>10}  {s:>10}  {m:>30}" for scale, (k, s, m) in enumerate(rows))]
    total = next(line for line in reversed(ledger.run.lines) if line.entry.is_total)
    lines = [f"{'scale':>5}  {'kept':>10}  {'differs':>9}  {'stored':>10}  {'differs':>9}  {total.entry.name:>24}"]
    for sheet in ledger.scales:
        kept, stored = sheet.line("kept"), sheet.line("stored")
        lines.append(
            f"{sheet.scale:>5}  {_text(kept.measured):>10}  {_difference(kept):>9}  {_text(stored.measured):>10}  "
            f"{_difference(stored):>9}  {_text(sheet.line(total.key).measured):>24}"
        )
    return lines


def _definitions(ledger: Ledger, sheet: Sheet) -> list[str]:
    lines = ["What each line is, and [where it was measured | what it is predicted from]:"]
    for line in (*ledger.defined, *sheet.lines):
        entry = line.entry
        lines += _wrapped(f"{entry.name}: {entry.definition} [{entry.source} | {entry.formula}]", indent="  ", hang=4)
        if line.measured.note and line.measured.num_bytes is not None:
            lines += _wrapped(f"measured: {line.measured.note}", indent="    ")
    return lines


def _has_run(sheet: Sheet) -> bool:
    return any(line.measured.num_bytes is not None for line in sheet.lines)


def _amounts(line: Line) -> list[str]:
    return [_text(line.predicted), _text(line.measured), _difference(line)]


def _difference(line: Line) -> str:
    return bytes_text(line.difference, absent="")


def _text(amount: Amount) -> str:
    return bytes_text(amount.num_bytes, absent=_ABSENT)


def _columns(name: str, cells: Iterable[str]) -> str:
    return (f"{name:<38}" + "".join(f"  {cell:>11}" for cell in cells)).rstrip()


def _wrapped(text: str, *, indent: str = "", hang: int | None = None) -> list[str]:
    # printable first: a name with a line break in it must not begin lines of its own.
    rest = indent if hang is None else " " * hang
    unbroken = printable(text).replace(" %", f"{_NO_BREAK}%")
    lines = textwrap.wrap(unbroken, _WIDTH, initial_indent=indent, subsequent_indent=rest)
    return [line.replace(_NO_BREAK, " ") for line in lines]
