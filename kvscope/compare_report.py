"""A comparison in words, for stdout and the screens. Numbers come from `compare`, their wording from `units`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from kvscope import units
from kvscope.comparable import shared_text
from kvscope.report import wrapped

if TYPE_CHECKING:
    from kvscope.analysis import Summary
    from kvscope.compare import CellDifference, Comparison, Likeness, Pair


def comparison_text(comparison: Comparison, cells: Sequence[CellDifference], measure: str) -> str:
    """B beside A: which runs, the verdict, totals, scale by scale, notes, and the head-scales that differ most.

    `measure`: of compare.MEASURES, what `cells` are differences of.
    """
    lines: list[str] = []
    for block in (
        [_run_line("A", comparison.a), _run_line("B", comparison.b)],
        [verdict(comparison)],
        _table([("", "A", "B", "B - A", "change", ""), *map(_pair_row, _known(comparison.totals))]),
        [likeness_text(comparison.likeness)],
        _table(list(_scale_rows(comparison))),
        [f"note: {note.text}" for note in comparison.notes],
        _cell_lines(cells, measure),
    ):
        lines += ["", *block] if lines and block else block
    return _lines_text(lines)


def comparisons_text(comparisons: Sequence[Comparison]) -> str:
    """Several runs, each beside the first: a line a run."""
    first = comparisons[0].a
    rows = [("", "stored peak", "to A", "time", "PSNR", "SSIM", "bits"), _first_row(first)]
    lines = [_run_line("A", first), *(_run_line(one.side, one.b) for one in comparisons)]
    rows += map(_run_row, comparisons)
    notes: dict[str, list[str]] = {}
    for one in comparisons:
        for note in one.notes:
            notes.setdefault(note.text, []).append(one.side)
    notes_lines = [
        f"note: {text}" if len(sides) == len(comparisons) else f"note on A and {', '.join(sides)}: {text}"
        for text, sides in notes.items()
    ]
    return _lines_text([*lines, "", *_table(rows), "", *notes_lines])


def verdict(comparison: Comparison) -> str:
    """B against A in one line: stored bytes, picture, time."""
    if comparison.a.run_id == comparison.b.run_id:
        return f"A and {comparison.side} are one run"
    if not comparison.scales_shared:
        return "no scale that both have yet"
    parts = [text for text in (_bytes_part(comparison), _picture_part(comparison), _time_part(comparison)) if text]
    part = "" if comparison.whole else f", {shared_text(comparison.scales_shared)}"
    return f"B{part}: {', '.join(parts)}"


def change_text(change: float | None, *, absent: str = units.NOT_MEASURED) -> str:
    """A relative change with its sign: `-41.2 %`, `+0.5 %`; `same` for none at all."""
    return "same" if change == 0 else signed_text(change, units.fraction_text, absent=absent)


def signed_text(value: float | None, text_of: Callable[[float], str], *, absent: str = units.NOT_MEASURED) -> str:
    """A difference in its unit's words, with a sign in front."""
    if value is None or math.isnan(value):
        return absent
    return f"{'+' if value > 0 else '-' if value < 0 else ''}{text_of(abs(value))}"


def amount_text(pair: Pair, value: float | None, *, absent: str = units.NOT_MEASURED) -> str:
    """One number of a pair in its unit."""
    return (units.bytes_text if pair.unit == "bytes" else units.seconds_text)(value, absent=absent)


def likeness_text(likeness: Likeness) -> str:
    """How alike the pictures are, and the bits that they were made of."""
    parts = [f"pictures not compared: {likeness.reason}"] if likeness.reason else []
    if likeness.psnr is not None:
        parts.append(f"PSNR {psnr_text(likeness.psnr)}")
    if likeness.ssim is not None:
        parts.append(f"SSIM {ssim_text(likeness.ssim)}")
    if likeness.lpips is not None:
        parts.append(f"LPIPS {likeness.lpips:.4f}")
    if likeness.bit_agreement is not None:
        parts.append(f"{units.fraction_text(likeness.bit_agreement)} of the sampled bits are the same")
    return ", ".join(parts)


def cell_text(measure: str, value: float, *, absent: str = units.NOT_MEASURED) -> str:
    """A value of one of compare.MEASURES."""
    if measure == "mass":
        return units.fraction_text(value, absent=absent)
    return units.tokens_text(round(value)) if math.isfinite(value) else absent


def points_text(difference: str) -> str:
    """A difference of fractions in percentage points, `pp`, so that none takes it for a change."""
    return difference.replace(" %", " pp")


def ssim_text(value: float) -> str:
    return f"{value:.3f}"


def psnr_text(value: float) -> str:
    """`27.9 dB`; `the same picture` for no difference at all."""
    return "the same picture" if math.isinf(value) else f"{value:.1f} dB"


def _bytes_part(comparison: Comparison) -> str:
    change = comparison.total("storage_peak_bytes").change
    if change is None:
        return ""
    return "the same stored bytes" if change == 0 else f"{change_text(change)} stored bytes"


def _picture_part(comparison: Comparison) -> str:
    value = comparison.likeness.psnr
    if value is None:
        return ""
    return "the same picture as A" if math.isinf(value) else f"PSNR to A {psnr_text(value)}"


def _time_part(comparison: Comparison) -> str:
    ratio = comparison.total("layer_seconds").ratio
    if ratio is None or any("do not compare" in note.text for note in comparison.notes):
        return ""
    return f"{ratio:.2f}× time in layers"


def _run_line(side: str, summary: Summary) -> str:
    budget = "" if summary.budget is None else f" {units.fraction_text(summary.budget)}"
    return (
        f"{side} {summary.trace}: {summary.model} {summary.resolution}, policy {summary.policy}{budget}, "
        f"{summary.status}, {units.scales_text(summary.scales_done, summary.num_scales)}"
    )


def _known(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Those that at least one run has."""
    return (pair for pair in pairs if pair.a is not None or pair.b is not None)


def _pair_row(pair: Pair) -> tuple[str, ...]:
    difference = signed_text(pair.difference, lambda value: amount_text(pair, value), absent="")
    values = (amount_text(pair, value, absent="none") for value in (pair.a, pair.b))
    return pair.title, *values, difference, change_text(pair.change, absent=""), pair.tag


def _scale_rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """Scale by scale: stored bytes, time in layers, bits."""
    if not comparison.scales:
        return
    yield "scale", "tokens", "stored A", "stored B", "change", "time A", "time B", "same bits"
    for scale in comparison.scales:
        stored, seconds = scale.number("storage_bytes"), scale.number("seconds")
        yield (
            str(scale.query_scale),
            f"{scale.tokens:,}",
            amount_text(stored, stored.a),
            amount_text(stored, stored.b),
            change_text(stored.change, absent=""),
            amount_text(seconds, seconds.a),
            amount_text(seconds, seconds.b),
            units.fraction_text(scale.bit_agreement, absent=""),
        )


def _cell_lines(cells: Sequence[CellDifference], measure: str) -> list[str]:
    if not cells:
        return [f"no head-scale differs in {measure}"]
    rows = [("largest differences", "A", "B", "B - A")]
    for cell in cells:
        place = f"query {cell.query_scale} L{cell.layer} h{cell.head} source {cell.source_scale}"
        difference = points_text(signed_text(cell.difference, lambda value: cell_text(measure, value)))
        rows.append((place, cell_text(measure, cell.a), cell_text(measure, cell.b), difference))
    return _table(rows)


def _first_row(first: Summary) -> tuple[str, ...]:
    return "A", units.bytes_text(first.storage_peak_bytes), "", "", "", "", ""


def _run_row(comparison: Comparison) -> tuple[str, ...]:
    stored, ratio = comparison.total("storage_peak_bytes"), comparison.total("layer_seconds").ratio
    likeness = comparison.likeness
    return (
        comparison.side,
        amount_text(stored, stored.b),
        change_text(stored.change, absent=""),
        "" if ratio is None else f"{ratio:.2f}×",
        "" if likeness.psnr is None else psnr_text(likeness.psnr),
        "" if likeness.ssim is None else ssim_text(likeness.ssim),
        units.fraction_text(likeness.bit_agreement, absent=""),
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned columns, the first and what is words to the left; columns without a word are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    aligned = []
    for index, column in enumerate(columns):
        width = max(map(len, column))
        to_left = index == 0 or not column[0]
        aligned.append([cell.ljust(width) if to_left else cell.rjust(width) for cell in column])
    return ["  " + "  ".join(cells).rstrip() for cells in zip(*aligned, strict=True)]


def _lines_text(lines: Iterable[str]) -> str:
    """The lines as one text, sentences wrapped; what is foreign in them cannot begin lines of its own."""
    return "\n".join(part for line in lines for part in wrapped(units.printable(line)))
