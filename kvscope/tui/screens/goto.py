"""Goto: one line that says where to, `map q7 l12 h3 s5 mass`; what is wrong with it is said while it is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from kvscope.errors import UsageError
from kvscope.tui.cursor import shape_of
from kvscope.tui.goto import parse
from kvscope.tui.metrics import METRICS
from kvscope.tui.screens import SCREENS
from kvscope.tui.screens.line import LineScreen

if TYPE_CHECKING:
    from textual.app import App

    from kvscope.tui.view import View

_HISTORY: WeakKeyDictionary[App[None], list[str]] = WeakKeyDictionary()
"""The lines that led somewhere, oldest first; as long as their app lives."""


class GotoScreen(LineScreen):
    """Takes a line; enter goes there."""

    PLACEHOLDER = "go to: map q7 l12 h3 s5 mass"

    def earlier(self) -> list[str]:
        return _HISTORY.setdefault(self.app, [])

    def problem(self, line: str) -> str | None:
        return goto_problem(line, self._view)

    def words(self, line: str) -> str:
        return goto_words(line)

    def use(self, line: str) -> None:
        if line.strip():
            self.earlier().append(line)
        self.app.go_to(parse(line))


def goto_problem(line: str, view: View) -> str | None:
    """Why a line leads nowhere in the trace that is shown; None: it leads somewhere."""
    try:
        place = parse(line)
    except UsageError as error:
        return str(error)
    if view.snapshot is None:
        return "there is no trace yet, so no cell to go to" if place.axes else None
    return place.problem(shape_of(view.snapshot))


def goto_words(line: str) -> str:
    """Where a line leads, in words; for an empty one, what may be typed."""
    if not line.strip():
        return f"q l h s with a number · {' '.join(SCREENS)} · {' '.join(METRICS)} · ↑ earlier lines · esc back"
    place = parse(line)
    words = [f"{axis.replace('_', ' ')} {index}" for axis, index in place.axes]
    words += [f"screen {place.screen}"] * (place.screen is not None)
    words += [f"metric {place.metric}"] * (place.metric is not None)
    return f"enter: {', '.join(words)}"
