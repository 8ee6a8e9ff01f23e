"""Help: every key that works on the screen below, by what it is for, and what signs and tags mean; from the tables."""

from __future__ import annotations

from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.events import Key
from textual.screen import ModalScreen
from textual.strip import Strip

from kvscope.tui.actions import actions_of, keys_of, keys_shown
from kvscope.tui.widgets.canvas import Canvas, Part, View, fit, parts_width, row, rule

if TYPE_CHECKING:
    from kvscope.tui.actions import Action
    from kvscope.tui.palette import Ink

SIGNS = (
    ("·", "dropped: the head-scale is gone from the cache"),
    ("?", "not measured"),
    ("blank", "not written yet"),
    ("dim", "planned, not run yet"),
    ("____", "the budget"),
    ("↑ ↓", "more scales above or below than there is room for"),
    ("▸", "the part that has the focus; tab moves it"),
)
"""What is drawn where no number is."""

TAGS = (
    ("measured", "counted or timed in this run"),
    ("forced", "the run was made to read what another had generated"),
    ("planned", "what the schedule says; nothing was run for it"),
    ("est.", "worked out from a model of cost, not from this run"),
    ("defined", "follows from the settings alone"),
    ("perturbed", "measuring attention took memory and time too"),
)
"""Words beside numbers that tell how these came about."""

_AROUND = 4
"""Blanks before a key, between it and its words, and after these."""


class Overlay(ModalScreen[None]):
    """What lies over a screen, scrolls, and goes away by escape, by q, or by the key that brought it."""

    ACTION: ClassVar[str]
    """The action whose keys bring it; they take it away too."""

    BINDINGS: ClassVar = [
        Binding("escape,q,enter,space", "dismiss", "back", show=False),
        Binding("down,j", "scroll('down')", show=False),
        Binding("up,k", "scroll('up')", show=False),
        Binding("pagedown", "scroll('page_down')", show=False),
        Binding("pageup", "scroll('page_up')", show=False),
        Binding("g,home", "scroll('home')", show=False),
        Binding("G,end", "scroll('end')", show=False),
    ]

    AUTO_FOCUS = ""

    DEFAULT_CSS = """
    Overlay {
        align: center middle;
        #page {
            width: 80; max-width: 100%; height: auto; max-height: 100%; background: $panel;
            scrollbar-size-vertical: 1; scrollbar-color: $primary 60%; scrollbar-background: $panel;
        }
        /* Textual draws a scrollbar's ends with blocks. */
        #page.-plain { scrollbar-size-vertical: 0; }
        #page Canvas { height: auto; background: $panel; }
    }
    """

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="page", can_focus=False, classes="-plain" if self._view.ink.plain else None):
            yield from self.pages()

    def pages(self) -> list[Canvas]:
        """What there is to read."""
        raise NotImplementedError

    def on_mount(self) -> None:
        for canvas in self.query(Canvas):
            canvas.show(self._view)

    def on_key(self, event: Key) -> None:
        if event.key in keys_of(self.ACTION, self._view.keymap):
            event.stop()
            self.dismiss()

    def action_scroll(self, way: str) -> None:
        """Up, down, a page, or to an end."""
        page = self.query_one("#page", VerticalScroll)
        getattr(page, f"scroll_{way}")(animate=False)


class HelpScreen(Overlay):
    """Keys, signs and tags."""

    ACTION = "help"

    DEFAULT_CSS = "HelpScreen #page { width: 118; }"

    def pages(self) -> list[Canvas]:
        return [Canvas(help_lines, id="help", height=help_height)]


def help_lines(view: View, width: int, _height: int) -> list[Strip]:
    """The keys in columns, group by group, then the signs and the tags."""
    ink = view.ink
    actions = sorted(actions_of(view.screen, view.keymap), key=lambda action: _place(action, view.screen))
    closes = keys_shown("help", view.keymap)
    lines: list[Strip] = []
    for group, members in groupby(actions, key=lambda action: action.group):
        lines.append(rule(group, width, ink, tag="" if lines else f"↑ ↓ scroll · {closes} closes"))
        lines += _columns([(action.shown, action.help) for action in members], width, ink)
    lines.append(rule("signs", width, ink))
    lines += [row(_entry(sign, width, ink, 8)) for sign in SIGNS]
    lines.append(rule("tags of numbers", width, ink))
    return [*lines, *(row(_entry(tag, width, ink, 10)) for tag in TAGS)]


def help_height(view: View, width: int) -> int:
    return len(help_lines(view, width, 0))


def _place(action: Action, screen: str) -> int:
    """This screen's own actions first; the sort is stable."""
    return 0 if action.screen == screen else 1


def _columns(entries: list[tuple[str, str]], width: int, ink: Ink) -> list[Strip]:
    """Entries in as many columns as are wide enough for all of their words, read downwards."""
    key_width = max(len(keys) for keys, _ in entries)
    longest = max(len(words) for _, words in entries) + key_width + _AROUND
    num_columns = max(1, width // longest)
    each = -(-len(entries) // num_columns)
    columns = [entries[begin : begin + each] for begin in range(0, len(entries), each)]
    rows = zip_longest(*columns, fillvalue=("", ""))
    room = width // num_columns
    return [row([part for entry in line for part in _entry(entry, room, ink, key_width)]) for line in rows]


def _entry(entry: tuple[str, str], width: int, ink: Ink, key_width: int) -> list[Part]:
    keys, words = entry
    parts: list[Part] = [(f" {keys:>{key_width}}  ", ink.accent), (words, ink.text)]
    parts = fit(parts, width, ink.muted)
    return [*parts, (" " * (width - parts_width(parts)), ink.text)]
