"""Help: every key that works on the screen below, and what the signs mean; from the table of actions."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.screen import ModalScreen
from textual.strip import Strip

from kvscope.tui.actions import actions_of
from kvscope.tui.widgets.canvas import Canvas, Part, View, row, rule

if TYPE_CHECKING:
    from kvscope.tui.palette import Ink

SIGNS = (
    ("·", "dropped: the head-scale is gone from the cache"),
    ("?", "not measured"),
    ("blank", "not written yet"),
    ("____", "the budget"),
    ("dim", "planned, not run yet"),
    ("↑ ↓", "more scales above or below than there is room for"),
)
"""What is drawn where no number is."""


class HelpScreen(ModalScreen[None]):
    """Keys and signs; any of its keys goes back."""

    BINDINGS: ClassVar = [Binding("escape,question_mark,f1,q,enter,space", "dismiss", "back", show=False)]

    DEFAULT_CSS = """
    HelpScreen {
        align: center middle;
        #help { width: 78; max-width: 100%; height: auto; background: $panel; }
    }
    """

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view

    def compose(self) -> ComposeResult:
        yield Canvas(help_lines, id="help", height=help_height)

    def on_mount(self) -> None:
        self.query_one(Canvas).show(self._view)


def help_lines(view: View, width: int, _height: int) -> list[Strip]:
    """The keys in two columns, then the signs."""
    ink = view.ink
    entries = [(action.shown, action.help) for action in actions_of(view.screen)]
    half = -(-len(entries) // 2)
    columns = zip_longest(entries[:half], entries[half:], fillvalue=("", ""))
    keys = [row([*_entry(left, ink, width // 2), *_entry(right, ink, width // 2)]) for left, right in columns]
    signs = [row(_entry(sign, ink, width)) for sign in SIGNS]
    return [rule("keys", width, ink, tag="? closes"), *keys, rule("signs", width, ink), *signs]


def _entry(entry: tuple[str, str], ink: Ink, width: int) -> list[Part]:
    return [(f" {entry[0]:>5}  ", ink.accent), (entry[1].ljust(width - 8), ink.text)]


def help_height(view: View, width: int) -> int:
    return len(help_lines(view, width, 0))
