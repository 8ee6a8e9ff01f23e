"""Goto: one line that says where to, `map q7 l12 h3 s5 mass`; what is wrong with it is said while it is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widgets import Input

from kvscope.errors import UsageError
from kvscope.tui.goto import parse
from kvscope.tui.metrics import METRICS
from kvscope.tui.screens import SCREENS
from kvscope.tui.widgets.canvas import Canvas, View, paragraph

if TYPE_CHECKING:
    from kvscope.tui.app import KVScopeApp
    from kvscope.tui.cursor import Axis

_NAMES: dict[Axis, str] = {
    "query_scale": "query scale",
    "layer": "layer",
    "head": "head",
    "source_scale": "source scale",
}
_HISTORY: WeakKeyDictionary[App[None], list[str]] = WeakKeyDictionary()
"""The lines that led somewhere, oldest first; as long as their app lives."""


class GotoScreen(ModalScreen[None]):
    """Takes a line; enter goes there."""

    app: KVScopeApp

    BINDINGS: ClassVar = [
        Binding("escape", "dismiss", "back", show=False),
        Binding("up", "recall(-1)", show=False),
        Binding("down", "recall(1)", show=False),
    ]

    DEFAULT_CSS = """
    GotoScreen {
        align: center bottom;
        #goto { width: 100%; height: auto; background: $panel; margin-bottom: 1; }
        #line { border: none; height: 1; padding: 0 1; background: $panel; }
        #line:focus { border: none; }
        #words { height: 2; background: $panel; }
    }
    """

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view
        self._recalled = 0
        """How far back in the history the line is; 0: it is new."""

    def compose(self) -> ComposeResult:
        with Vertical(id="goto"):
            yield Input(placeholder="go to: map q7 l12 h3 s5 mass", id="line", compact=True)
            yield Canvas(self._words, id="words")

    def on_mount(self) -> None:
        self._draw()

    def on_input_changed(self) -> None:
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if goto_problem(event.value, self._view) is not None:
            return
        if event.value.strip():
            self._lines_before.append(event.value)
        self.dismiss()
        self.app.go_to(parse(event.value))

    def action_recall(self, by: int) -> None:
        """A line typed before, or one after that."""
        before = self._lines_before
        self._recalled = max(0, min(len(before), self._recalled - by))
        line = self.query_one(Input)
        line.value = before[-self._recalled] if self._recalled else ""
        line.cursor_position = len(line.value)

    @property
    def _lines_before(self) -> list[str]:
        return _HISTORY.setdefault(self.app, [])

    def _draw(self) -> None:
        self.query_one("#words", Canvas).show(self._view)

    def _words(self, view: View, width: int, height: int) -> list[Strip]:
        line, ink = self.query_one(Input).value, view.ink
        problem = goto_problem(line, view)
        if problem is not None:
            return paragraph(problem, ink.bad, width)[:height]
        return paragraph(goto_words(line), ink.muted, width)[:height]


def goto_problem(line: str, view: View) -> str | None:
    """Why a line leads nowhere in the trace that is shown; None: it leads somewhere."""
    try:
        place = parse(line)
    except UsageError as error:
        return str(error)
    if view.snapshot is None:
        return "there is no trace yet, so no cell to go to" if place.axes else None
    scales = view.snapshot.schedule.scales.num_scales
    ends: dict[Axis, int] = {
        "query_scale": max(1, view.snapshot.scales_done),
        "layer": view.snapshot.schedule.num_layers,
        "head": view.snapshot.schedule.num_heads,
        "source_scale": scales,
    }
    for axis, index in place.axes:
        if index >= ends[axis]:
            far = " so far" if axis == "query_scale" and ends[axis] < scales else ""
            return f"{_NAMES[axis]} {index}: they go from 0 to {ends[axis] - 1}{far}"
    return None


def goto_words(line: str) -> str:
    """Where a line leads, in words; for an empty one, what may be typed."""
    if not line.strip():
        return f"q l h s with a number · {' '.join(SCREENS)} · {' '.join(METRICS)} · ↑ earlier lines · esc back"
    place = parse(line)
    words = [f"{_NAMES[axis]} {index}" for axis, index in place.axes]
    words += [f"screen {place.screen}"] * (place.screen is not None)
    words += [f"metric {place.metric}"] * (place.metric is not None)
    return f"enter: {', '.join(words)}"
