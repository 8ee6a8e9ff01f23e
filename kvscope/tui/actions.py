"""ACTIONS: everything a key can do, in one table. Bindings, footer, help and the command palette are read from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from textual.binding import Binding, BindingType

from kvscope.tui.cursor import LAST
from kvscope.tui.screens import SCREENS


@dataclass(frozen=True, slots=True)
class Action:
    """One thing a user can do."""

    id: str
    """Stable: what a keymap file names."""
    keys: tuple[str, ...]
    """Textual's names of the keys; any of them does it."""
    command: str
    """The app's action that it calls."""
    help: str
    shown: str
    """The keys as a person writes them."""
    hint: str = ""
    """Its word in the footer; empty: not in the footer."""
    screen: str | None = None
    """The only screen that has it; None: every screen."""
    always: bool = False
    """Works wherever the user is, help and palette included."""


def _move(name: str, keys: tuple[str, ...], axis: str, by: int, shown: str, words: str) -> Action:
    return Action(f"cursor.{name}", keys, f"move('{axis}', {by})", words, shown)


def _go(name: str, keys: tuple[str, ...], axis: str, index: int, shown: str, words: str) -> Action:
    return Action(f"cursor.{name}", keys, f"go('{axis}', {index})", words, shown)


ACTIONS: tuple[Action, ...] = (
    *(
        Action(f"screen.{name}", (row.key,), f"show('{name}')", row.help, row.key, row.hint)
        for name, row in SCREENS.items()
    ),
    _move("up", ("up", "k"), "layer", -1, "↑ k", "one layer up"),
    _move("down", ("down", "j"), "layer", 1, "↓ j", "one layer down"),
    _move("left", ("left", "h"), "head", -1, "← h", "one head left"),
    _move("right", ("right", "l"), "head", 1, "→ l", "one head right"),
    _go("top", ("g",), "layer", 0, "g", "first layer"),
    _go("bottom", ("G",), "layer", LAST, "G", "last layer"),
    _go("first_head", ("home",), "head", 0, "home", "first head"),
    _go("last_head", ("end",), "head", LAST, "end", "last head"),
    _move("query_back", ("left_square_bracket",), "query_scale", -1, "[", "previous query scale"),
    _move("query_on", ("right_square_bracket",), "query_scale", 1, "]", "next query scale, then follow"),
    _move("source_back", ("left_curly_bracket",), "source_scale", -1, "{", "previous source scale"),
    _move("source_on", ("right_curly_bracket",), "source_scale", 1, "}", "next source scale"),
    Action("metric.next", ("m",), "metric(1)", "next metric of the map", "m", "metric", screen="map"),
    Action("metric.back", ("M",), "metric(-1)", "previous metric", "M", screen="map"),
    Action("view.glyphs", ("c",), "glyphs", "glyphs instead of colour", "c", "glyphs", screen="map"),
    Action("view.write", ("w",), "write", "write this screen as SVG", "w", "write svg"),
    Action("help", ("question_mark", "f1"), "help", "this help", "?", "help"),
    Action("quit", ("q",), "quit", "quit", "q", "quit"),
    Action("quit.now", ("ctrl+c",), "quit", "quit, wherever you are", "^c", always=True),
)
"""In the order of the help."""

HINTS_OF_PAIRS: tuple[tuple[str, str], ...] = (("arrows", "cell"), ("[ ]", "query"), ("{ }", "source"))
"""Movement in the footer: keys that come in pairs, with one word for both."""


def actions_of(screen: str) -> Iterator[Action]:
    """The actions that work on this screen, in the table's order."""
    return (action for action in ACTIONS if action.screen in (None, screen))


def bindings(screen: str | None = None) -> list[BindingType]:
    """Textual's bindings of the actions that only this screen has; None: of those that every screen has."""
    return [
        Binding(
            ",".join(action.keys),
            f"app.{action.command}",
            action.help,
            id=action.id,
            show=False,
            priority=action.always,
        )
        for action in ACTIONS
        if action.screen == screen
    ]
