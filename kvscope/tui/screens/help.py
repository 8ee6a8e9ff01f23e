"""Help: every key that works on the screen below, and what the signs mean; from the table of actions."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.screen import ModalScreen

from textual.strip import Strip

from kvscope.tui.actions import actions_of
from kvscope.tui.widgets.canvas import Canvas, View, row, rule

SIGNS = (
    ("·", "dropped: the head-scale is gone from the cache"),
    ("?", "not measured"),
    ("blank", "not written yet"),
    ("┤ ╌", "the budget; dim columns are the plan, not yet run"),
)
"""What is drawn where no number is."""


class HelpScreen(ModalScreen[None]):
    """Keys and signs; any of its keys goes back."""

    BINDINGS: ClassVar = [Binding("escape,question_mark,f1,q,enter,space", "dismiss", "back", show=False)]

    DEFAULT_CSS = """
    HelpScreen {
        align: center middle;
        #help { width: 76; max-width: 100%; height: auto; background: $panel; }
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
    column = width // 2
    lines = [rule("keys", width, ink, tag="? closes")]
    for index in range(half):
        pair = [entries[index], *entries[index + half : index + half + 1]]
        lines.append(row([part for keys, text in pair for part in ((f" {keys:>5}  ", ink.accent), (f"{text[:column - 9]:<{column - 8}}", ink.text))]))
    lines.append(rule("signs", width, ink))
    lines += [row([(f" {sign:>5}  ", ink.accent), (text, ink.text)]) for sign, text in SIGNS]
    return lines


def help_height(view: View, width: int) -> int:
    return len(help_lines(view, width, 0))
