"""LineScreen: a line typed over a screen; what it would do, or what is wrong with it, is said as it is typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widgets import Input

from kvscope.tui.widgets.canvas import Canvas, View, paragraph

if TYPE_CHECKING:
    from kvscope.tui.app import KVScopeApp


class LineScreen(ModalScreen[None]):
    """Takes a line; enter uses it, up and down recall earlier ones, escape leaves."""

    app: KVScopeApp

    PLACEHOLDER: ClassVar[str]
    """What stands in an empty line."""

    BINDINGS: ClassVar = [
        Binding("escape", "dismiss", "back", show=False),
        Binding("up", "recall(-1)", show=False),
        Binding("down", "recall(1)", show=False),
    ]

    DEFAULT_CSS = """
    LineScreen {
        align: center bottom;
        #typed { width: 100%; height: auto; background: $panel; margin-bottom: 1; }
        #line { border: none; height: 1; padding: 0 1; background: $panel; }
        #line:focus { border: none; }
        #words { height: 2; background: $panel; }
    }
    """

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view
        self._recalled = 0
        """How far back in the earlier lines this one is; 0: it is new."""

    def earlier(self) -> Sequence[str]:
        """The lines that can be recalled, oldest first."""
        raise NotImplementedError

    def problem(self, line: str) -> str | None:
        """What is wrong with a line; None: it can be used."""
        raise NotImplementedError

    def words(self, line: str) -> str:
        """What a line would do; for an empty one, what may be typed."""
        raise NotImplementedError

    def use(self, line: str) -> None:
        """Do what a line says that has no problem; it may be empty."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        with Vertical(id="typed"):
            yield Input(placeholder=self.PLACEHOLDER, id="line", compact=True)
            yield Canvas(self._lines, id="words")

    def on_mount(self) -> None:
        self._draw()

    def on_input_changed(self) -> None:
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if self.problem(event.value) is None or not event.value.strip():
            self.dismiss()
            self.use(event.value)

    def action_recall(self, by: int) -> None:
        """An earlier line, or one after that."""
        before = self.earlier()
        self._recalled = max(0, min(len(before), self._recalled - by))
        line = self.query_one(Input)
        line.value = before[-self._recalled] if self._recalled else ""
        line.cursor_position = len(line.value)

    def _draw(self) -> None:
        self.query_one("#words", Canvas).show(self._view)

    def _lines(self, view: View, width: int, height: int) -> list[Strip]:
        line = self.query_one(Input).value
        problem = self.problem(line)
        if problem is not None:
            return paragraph(problem, view.ink.bad, width)[:height]
        return paragraph(self.words(line), view.ink.muted, width)[:height]
