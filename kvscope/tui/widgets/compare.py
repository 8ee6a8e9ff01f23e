"""The parts of Compare that are lines of words and numbers: what is compared, totals, differences, pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from textual.strip import Strip

from kvscope import units
from kvscope.compare import Comparison, Pair
from kvscope.compare_report import amount_text, change_text, points_text, psnr_text, signed_text, ssim_text, verdict
from kvscope.tui.beside import compared, largest_differences
from kvscope.tui.metrics import METRICS
from kvscope.tui.widgets.canvas import Part, View, fit, row, rule, spread
from kvscope.tui.widgets.picture import picture, picture_of

if TYPE_CHECKING:
    from kvscope.compare import CellDifference
    from kvscope.tui.feed import Snapshot
    from kvscope.tui.metrics import Metric

ABOUT_HEAD = (
    "Which two runs, and B against A in one line. B - A is what B has more; a change is a fraction of A. "
    "Lines with ! say what must be known to read the numbers right."
)
ABOUT_TOTALS = (
    "Numbers of both runs: first of the whole run, then of the query scale under the cursor. "
    "PSNR and SSIM are of the final pictures; they are missing where prompt, seed or model differ."
)
ABOUT_LIST = (
    "The head-scales that differ most in the metric shown, each at the query scale where it does. "
    "Enter moves the cursor to the chosen one."
)
ABOUT_PICTURES = "The pictures of A and B after the cursor's query scale; at the last one, the final ones."

_MOST_NOTES = 2
_ROOM_FOR_DIFFERENCE = 58
_ROOM_FOR_BOTH = 56


def comparison_of(view: View) -> tuple[Snapshot, Snapshot, Comparison] | None:
    """Both snapshots and their comparison; None: there is nothing to compare, `absence` says why."""
    if view.snapshot is None or view.other is None or view.other_refused is not None:
        return None
    comparison = compared(view.snapshot, view.other)
    if isinstance(comparison, str) or not comparison.scales_shared:
        return None
    return view.snapshot, view.other, comparison


def absence(view: View) -> list[str]:
    """Why nothing is compared, and the way out; empty: something is, or nothing is open yet."""
    if view.other_refused is not None:
        return ["B cannot be read", view.other_refused, "press 9 and choose another trace: x compares it with this one"]
    if view.snapshot is None:
        return []
    if view.other is None:
        return [
            "no other trace yet",
            "press 9 and choose a trace: x compares it with this one",
            "or start with both: kvscope open A --with B",
        ]
    comparison = compared(view.snapshot, view.other)
    if isinstance(comparison, str):
        return ["these two cannot be compared", comparison]
    if not comparison.scales_shared:
        done = f"A has {view.snapshot.scales_done}, B has {view.other.scales_done}"
        return [f"no scale that both have yet: {done}"]
    return []


def head(view: View, width: int, _height: int) -> list[Strip]:
    """The two runs, the verdict, and what must be known beside it."""
    ink = view.ink
    found = comparison_of(view)
    if found is None:
        return [rule("compare", width, ink)]
    a, b, comparison = found
    lines = [
        rule("compare", width, ink, tag=comparison.total("storage_peak_bytes").tag),
        _run_line("A", a, view, width),
        _run_line("B", b, view, width),
        row(fit([(f" {verdict(comparison)}", ink.strong)], width, ink.muted)),
    ]
    notes = [f" ! {units.printable(note.text)}" for note in comparison.notes]
    if len(notes) > _MOST_NOTES:
        notes[_MOST_NOTES - 1 :] = [f" ! {len(notes) - _MOST_NOTES + 1} more to know: kvscope compare A B"]
    return [*lines, *(row(fit([(note, ink.muted)], width, ink.muted)) for note in notes)]


def head_height(view: View, width: int) -> int:
    return len(head(view, width, 0))


def totals(view: View, width: int, height: int) -> list[Strip]:
    """The numbers of both runs: name, A, B, difference where there is room, change."""
    ink, found = view.ink, comparison_of(view)
    if found is None:
        return []
    comparison = found[2]
    titles = ("", "A", "B", "B - A", "change")
    lines = [
        rule("totals", width, ink),
        row([(_columns(titles, width), ink.muted)], width),
        *(_pair_line(pair, view, width) for pair in _pairs(comparison)),
        *_picture_lines(comparison, view, width),
    ]
    scale = view.cursor.query_scale
    if scale < comparison.scales_shared and len(lines) + 4 <= height:
        lines.append(rule(f"query scale {scale}", width, ink))
        lines += [_pair_line(pair, view, width) for pair in comparison.scales[scale].numbers]
    return lines[:height]


def totals_height(view: View, width: int) -> int:
    return len(totals(view, width, 1000))


def differences_list(view: View, width: int, height: int) -> list[Strip]:
    """The head-scales that differ most; the chosen one is marked."""
    ink, found = view.ink, comparison_of(view)
    if found is None:
        return []
    metric, cells = METRICS[view.metric], largest_differences(found[0], found[1], view.metric)
    chosen = min(view.row, len(cells) - 1)
    tag = f"{chosen + 1} of {len(cells)}" if cells else ""
    lines = [rule(f"largest differences · {metric.label}", width, ink, tag=tag)]
    if not cells:
        return [*lines, row([(f" no head-scale differs in {metric.title}", ink.muted)], width)]
    first = _first_line(chosen, len(cells), height - 1)
    for index, cell in list(enumerate(cells))[first : first + height - 1]:
        lines.append(_difference_line(cell, view, found[0], width, chosen=index == chosen))
    return lines


def differences_hit(view: View, _width: int, height: int, _x: int, y: int) -> int | None:
    """The line of `differences_list` at a place."""
    found = comparison_of(view)
    if found is None or y < 1:
        return None
    count = len(largest_differences(found[0], found[1], view.metric))
    index = _first_line(min(view.row, count - 1), count, height - 1) + y - 1
    return index if index < count else None


def pictures(view: View, width: int, height: int) -> list[Strip]:
    """A's picture beside B's."""
    found = comparison_of(view)
    if found is None:
        return []
    half = (width - 1) // 2
    columns = []
    for side, snapshot in zip("AB", found[:2], strict=True):
        _, title = picture_of(snapshot, view.cursor.query_scale)
        drawn = picture(replace(view, snapshot=snapshot), half, height)[1:]
        columns.append([rule(f"{side} · {title}", half, view.ink), *drawn])
    gap = row([(" ", view.ink.text)])
    count = max(map(len, columns))
    for column in columns:
        column += [Strip([])] * (count - len(column))
    return [Strip.join([left.adjust_cell_length(half), gap, right]) for left, right in zip(*columns, strict=True)]


def difference_text(metric: Metric, snapshot: Snapshot, difference: float) -> str:
    """A difference of a metric's values in its words, with a sign; `no difference` for none."""
    if difference == 0:
        return "no difference"
    if metric.name in _COUNTED:
        return signed_text(difference, lambda value: f"{value:g} {_COUNTED[metric.name]}{'' if value == 1 else 's'}")
    return points_text(signed_text(difference, lambda value: metric.words(snapshot, value, brief=True)))


_COUNTED = {"drop_step": "step", "rank": "rank"}
"""Metrics whose values are places: their differences are counts of these."""


def _run_line(side: str, snapshot: Snapshot, view: View, width: int) -> Strip:
    ink, job = view.ink, snapshot.header.job
    budget = snapshot.schedule.budget
    policy = units.printable(snapshot.schedule.policy)
    share = "" if budget is None else f" {units.fraction_text(budget)}"
    state = snapshot.status
    if state != "done":
        state += f" {units.scales_text(snapshot.scales_done, snapshot.schedule.scales.num_scales)}"
    facts: list[Part] = [(f" {policy}{share} · seed {job.seed} · {state} ", ink.muted)]
    name: list[Part] = [(f" {side} ", ink.accent), (units.printable(snapshot.path.name), ink.text)]
    return spread(name, facts, width, fill=(" ", ink.muted))


def _pairs(comparison: Comparison) -> Iterator[Pair]:
    """The totals that at least one run has measured."""
    return (pair for pair in comparison.totals if pair.tag != "defined" and (pair.a, pair.b) != (None, None))


def _pair_line(pair: Pair, view: View, width: int) -> Strip:
    difference = signed_text(pair.difference, lambda value: amount_text(pair, value), absent="")
    values = (amount_text(pair, value, absent="–") for value in (pair.a, pair.b))
    texts = (pair.title, *values, difference, change_text(pair.change, absent=""))
    return row([(_columns(texts, width), view.ink.text)], width)


def _picture_lines(comparison: Comparison, view: View, width: int) -> Iterator[Strip]:
    alike, ink = comparison.likeness, view.ink
    if alike.reason is not None:
        yield row(fit([(f" pictures not compared: {alike.reason}", ink.muted)], width, ink.muted))
    if alike.psnr is not None:
        ssim = "" if alike.ssim is None else f" · SSIM {ssim_text(alike.ssim)}"
        yield row(fit([(f" pictures: PSNR {psnr_text(alike.psnr)}{ssim}", ink.text)], width, ink.muted))


def _columns(texts: tuple[str, ...], width: int) -> str:
    """Name, A, B, difference if there is room, change."""
    name, a, b, difference, change = texts
    middle = f"{difference:>12}" if width >= _ROOM_FOR_DIFFERENCE else ""
    right = f"{a:>9}{b:>9}{middle}{change:>9}"
    room = max(0, width - len(right) - 1)
    return f" {name[:room]:<{room}}{right}"


def _difference_line(cell: CellDifference, view: View, snapshot: Snapshot, width: int, *, chosen: bool) -> Strip:
    ink, metric = view.ink, METRICS[view.metric]
    place = f"q{cell.query_scale} L{cell.layer} h{cell.head} s{cell.source_scale}"
    left: list[Part] = [("▸" if chosen else " ", ink.accent), (f"{place:<15}", ink.strong if chosen else ink.text)]
    if width >= _ROOM_FOR_BOTH:
        a, b = (metric.words(snapshot, value, brief=True) for value in (cell.a, cell.b))
        left.append((f"{a} → {b}", ink.muted))
    right = [(f" {difference_text(metric, snapshot, cell.difference)} ", ink.strong if chosen else ink.text)]
    return spread(left, right, width, fill=(" ", ink.muted))


def _first_line(chosen: int, count: int, room: int) -> int:
    """The first line shown of a list, such that the chosen one is among them."""
    return max(0, min(chosen - room // 2, count - room))
