"""TraceScreen: what every screen shares. A screen is a function of a View; it knows no file, socket or thread."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widget import Widget

from kvscope.tui.cursor import Cursor
from kvscope.tui.widgets.canvas import Canvas
from kvscope.tui.widgets.chrome import NEEDED, key_line, notice, notice_height, too_small, top_line

if TYPE_CHECKING:
    from kvscope.tui.view import View

Record = dict[str, str | int | float | None]
"""One line of what a screen shows, for csv and JSON: column → value; None: not known. Bytes, ns, tokens, fractions."""


class TraceScreen(Screen[None]):
    """A top line, a notice where one is due, the screen's own parts, and the keys."""

    NAME: ClassVar[str]
    """Its name in SCREENS."""

    AUTO_FOCUS = ""

    # Textual declares these as instance variables, so ClassVar is not for us to add.
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-normal"), (160, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (34, "-tall")]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self._view: View | None = None
        """What was shown last."""

    def compose(self) -> ComposeResult:
        self._classify(update=False)  # the parts are not styled yet
        yield Canvas(top_line, id="top")
        yield Canvas(notice, id="notice", height=notice_height)
        yield from self.parts()
        yield Canvas(key_line, id="keys")
        yield Canvas(too_small, id="too-small")

    def parts(self) -> Iterable[Widget]:
        """The screen's own widgets, in one container with the class `body`."""
        raise NotImplementedError

    def records(self, view: View) -> list[Record]:
        """What the screen shows, as lines of one table."""
        raise NotImplementedError

    def rows(self, view: View) -> int:  # noqa: ARG002 - for screens that are lists
        """How many lines there are to choose from, on a screen that is a list."""
        return 0

    def entered(self, view: View) -> Cursor | Path | None:  # noqa: ARG002 - for screens that lead on
        """What the enter key leads to: another cell, another trace, or, None, why the cell is as it is."""
        return None

    def chosen_path(self, view: View) -> Path | None:  # noqa: ARG002 - for screens that list traces
        """The trace of the chosen line; None: there is none that can be opened."""
        return None

    def row_of(self, view: View, path: Path | None) -> int:  # noqa: ARG002 - for screens that list traces
        """The line of a trace."""
        return 0

    def show(self, view: View) -> None:
        """Draw this view on every part; before they are mounted, as soon as they are."""
        self._view = view
        self._classify()
        for canvas in self.query(Canvas):
            canvas.show(view)

    def on_mount(self) -> None:
        if self._view is not None:
            self.show(self._view)

    def on_resize(self) -> None:
        self._classify()

    def _classify(self, *, update: bool = True) -> None:
        """Set the classes that say how large the screen is, and whether there is a notice.

        Textual sets those of its breakpoints itself, but only after it has drawn the first frame.
        """
        width, height = self.app.size
        classes = {"-too-small": width < NEEDED[0] or height < NEEDED[1]}
        if self._view is not None:
            classes["-all-well"] = not notice(self._view, 80, 0)
        for length, breakpoints in ((width, self.HORIZONTAL_BREAKPOINTS), (height, self.VERTICAL_BREAKPOINTS)):
            reached = max(least for least, _ in breakpoints if length >= least)
            classes |= {name: least == reached for least, name in breakpoints}
        self.update_classes(classes, update=update)
