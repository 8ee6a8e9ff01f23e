"""TraceScreen: what every screen shares. A screen is a function of a View; it knows no file, socket or thread."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widget import Widget

from kvscope.tui.widgets.canvas import Canvas, View
from kvscope.tui.widgets.chrome import NEEDED, key_line, notice, notice_height, too_small, top_line


class TraceScreen(Screen[None]):
    """A top line, a notice where one is due, the screen's own parts, and the keys."""

    NAME: ClassVar[str]
    """Its name in SCREENS."""

    # Textual declares these as instance variables, so ClassVar is not for us to add.
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-normal"), (160, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (34, "-tall")]  # noqa: RUF012

    def compose(self) -> ComposeResult:
        yield Canvas(top_line, id="top")
        yield Canvas(notice, id="notice", height=notice_height)
        yield from self.parts()
        yield Canvas(key_line, id="keys")
        yield Canvas(too_small, id="too-small")

    def parts(self) -> Iterable[Widget]:
        """The screen's own widgets, in one container with the class `body`."""
        raise NotImplementedError

    def show(self, view: View) -> None:
        """Draw this view on every part."""
        self.set_class(not notice(view, 80, 0), "-all-well")
        for canvas in self.query(Canvas):
            canvas.show(view)

    def on_resize(self) -> None:
        width, height = self.size
        self.set_class(width < NEEDED[0] or height < NEEDED[1], "-too-small")
