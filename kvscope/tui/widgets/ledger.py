"""The cache in bytes: accounted, stored, the budget and the full history, on one scale so that bars compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.strip import Strip

from kvscope import units
from kvscope.tui.widgets.canvas import Part, View, bar, field, rule, spread

if TYPE_CHECKING:
    from rich.style import Style

    from kvscope.tui.palette import Ink

_LABEL, _VALUE, _TAG = 14, 12, 9
_NARROW_WORDS, _ROOMY = 17, 64
_SHORTEST_BAR = 6


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    num_bytes: int | None
    words: str
    tag: str
    style: Style
    brief: str | None = None
    """The words where there is little room; None: the same."""


def ledger(view: View, width: int, _height: int) -> list[Strip]:
    """Four lines of bytes, each with its unit, its share, and how it is known."""
    if view.snapshot is None:
        return [rule("cache", width, view.ink)]
    lines = _lines(view)
    top = max((line.num_bytes or 0 for line in lines), default=0)
    none = "no scale is finished yet" if view.snapshot.status == "live" else "no scale was finished"
    body = [
        field(line.name, (none, view.ink.muted), "", width, view.ink, name_width=_LABEL - 1)
        if line.num_bytes is None
        else _bar_line(line, line.num_bytes, top, width, view.ink)
        for line in lines
    ]
    return [rule("cache, peak so far", width, view.ink), *body]


def ledger_height(view: View, _width: int) -> int:
    return 1 if view.snapshot is None else 1 + len(_lines(view))


def _lines(view: View) -> list[_Line]:
    snapshot, ink = view.snapshot, view.ink
    assert snapshot is not None
    summary, tags = snapshot.summary, snapshot.summary.tags
    over = (summary.accounted_peak_of_budget or 0) > 1
    lines = [
        _Line(
            "accounted",
            summary.accounted_peak_bytes,
            _share(summary.accounted_peak_of_budget, summary.accounted_peak_fraction),
            tags["accounted_peak_bytes"],
            ink.bad if over else ink.accent,
        ),
        _Line(
            "stored",
            summary.storage_peak_bytes,
            _share(summary.storage_peak_of_budget, summary.storage_peak_fraction),
            tags["storage_peak_bytes"],
            ink.accent,
        ),
    ]
    if summary.budget_bytes is not None:
        words = _share(None, summary.budget)
        lines.append(_Line("budget", summary.budget_bytes, words, tags["budget_bytes"], ink.text))
    words = units.head_tokens_text(summary.denominator_tokens)
    full_tag = tags["full_history_bytes"]
    lines.append(_Line("full history", summary.full_history_bytes, words, full_tag, ink.muted, brief="100 %"))
    return lines


def _share(of_budget: float | None, of_full: float | None) -> str:
    """Of the budget, or where there is none of the full history."""
    if of_budget is not None:
        return f"{units.fraction_text(of_budget)} of budget"
    return "" if of_full is None else f"{units.fraction_text(of_full)} of full"


def _bar_line(line: _Line, num_bytes: int, top: int, width: int, ink: Ink) -> Strip:
    head: list[Part] = [
        (f" {line.name:<{_LABEL - 1}}", ink.muted),
        (f"{units.bytes_text(num_bytes):>{_VALUE - 2}}  ", ink.strong),
    ]
    words = _NARROW_WORDS if width < _ROOMY else 27
    room = max(0, width - _LABEL - _VALUE - words - _TAG - 1)
    text = line.words if line.brief is None or width >= _ROOMY else line.brief
    tail: list[Part] = [(f" {text:<{words - 1}}", ink.text), (f"{line.tag:>{_TAG}} ", ink.muted)]
    body = bar(num_bytes, top, room, line.style, ink) if room >= _SHORTEST_BAR else []
    return spread([*head, *body], tail, width, fill=(" ", ink.muted))
