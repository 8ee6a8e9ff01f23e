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


def _list(screen: str) -> tuple[Action, ...]:
    """The keys of a screen that is a list."""
    return (
        Action(f"{screen}.up", ("up", "k"), "row(-1)", "one line up", "↑ k", screen=screen),
        Action(f"{screen}.down", ("down", "j"), "row(1)", "one line down", "↓ j", screen=screen),
        Action(f"{screen}.page_up", ("pageup",), "row(-10)", "ten lines up", "pgup", screen=screen),
        Action(f"{screen}.page_down", ("pagedown",), "row(10)", "ten lines down", "pgdn", screen=screen),
        Action(f"{screen}.top", ("g", "home"), f"row(-{LAST})", "first line", "g", screen=screen),
        Action(f"{screen}.bottom", ("G", "end"), f"row({LAST})", "last line", "G", screen=screen),
    )


ACTIONS: tuple[Action, ...] = (
    *(
        Action(f"screen.{name}", (row.key,), f"show('{name}')", row.help, row.key, row.hint)
        for name, row in SCREENS.items()
    ),
    _move("up", ("up", "k"), "layer", -1, "↑ k", "one layer up"),
    _move("down", ("down", "j"), "layer", 1, "↓ j", "one layer down"),
    _move("left", ("left", "h"), "head", -1, "← h", "one head left"),
    _move("right", ("right", "l"), "head", 1, "→ l", "one head right"),
    _move("page_up", ("pageup",), "layer", -8, "pgup", "eight layers up"),
    _move("page_down", ("pagedown",), "layer", 8, "pgdn", "eight layers down"),
    _go("top", ("g",), "layer", 0, "g", "first layer"),
    _go("bottom", ("G",), "layer", LAST, "G", "last layer"),
    _go("first_head", ("home",), "head", 0, "home", "first head"),
    _go("last_head", ("end",), "head", LAST, "end", "last head"),
    _move("query_back", ("left_square_bracket",), "query_scale", -1, "[", "previous query scale"),
    _move("query_on", ("right_square_bracket",), "query_scale", 1, "]", "next query scale, then follow"),
    _move("source_back", ("left_curly_bracket",), "source_scale", -1, "{", "previous source scale"),
    _move("source_on", ("right_curly_bracket",), "source_scale", 1, "}", "next source scale"),
    Action("cursor.goto", ("colon",), "over('goto')", "go to q7 l12 h3 s5", ":", "go to"),
    # Screens that move another way.
    Action("mass.up", ("up",), "move('query_scale', -1)", "previous query scale", "↑", screen="mass"),
    Action("mass.down", ("down",), "move('query_scale', 1)", "next query scale", "↓", screen="mass"),
    Action("mass.left", ("left",), "move('source_scale', -1)", "previous source scale", "←", screen="mass"),
    Action("mass.right", ("right",), "move('source_scale', 1)", "next source scale", "→", screen="mass"),
    Action("mass.layer_up", ("k",), "move('layer', -1)", "one layer up", "k", screen="mass"),
    Action("mass.layer_down", ("j",), "move('layer', 1)", "one layer down", "j", screen="mass"),
    Action("mass.head_left", ("h",), "move('head', -1)", "one head left", "h", screen="mass"),
    Action("mass.head_right", ("l",), "move('head', 1)", "one head right", "l", screen="mass"),
    Action("time.left", ("left", "h"), "step(-1)", "one step back", "← h", screen="time"),
    Action("time.right", ("right", "l"), "step(1)", "one step on", "→ l", screen="time"),
    Action("schedule.up", ("up", "k"), "lane(-1)", "one head up", "↑ k", screen="schedule"),
    Action("schedule.down", ("down", "j"), "lane(1)", "one head down", "↓ j", screen="schedule"),
    Action("schedule.page_up", ("pageup",), "lane(-16)", "sixteen heads up", "pgup", screen="schedule"),
    Action("schedule.page_down", ("pagedown",), "lane(16)", "sixteen heads down", "pgdn", screen="schedule"),
    Action(
        "schedule.left", ("left", "h"), "move('source_scale', -1)", "previous source scale", "← h", screen="schedule"
    ),
    Action("schedule.right", ("right", "l"), "move('source_scale', 1)", "next source scale", "→ l", screen="schedule"),
    *_list("ledger"),
    *_list("runs"),
    # What is shown, and how.
    Action("enter", ("enter",), "enter", "why this cell is kept or dropped", "enter", "why"),
    Action("metric.next", ("m",), "metric(1)", "next metric", "m", "metric"),
    Action("metric.back", ("M",), "metric(-1)", "previous metric", "M"),
    Action("span", ("v",), "span", "select a range from here", "v", "range", screen="map"),
    Action("time.span", ("v",), "span", "select a range from here", "v", "range", screen="time"),
    Action("clear", ("escape",), "clear", "drop selection and zoom", "esc"),
    Action("time.zoom", ("z",), "zoom", "zoom to the range or scale, and out", "z", "zoom", screen="time"),
    Action("time.axis", ("a",), "choose('axis', 1)", "by steps, or by time", "a", "axis", screen="time"),
    Action(
        "mass.guidance", ("u",), "choose('guidance', 1)", "conditional row, or unconditional", "u", "row", screen="mass"
    ),
    Action("compare.side", ("d",), "choose('side', 1)", "difference, A or B", "d", "side", screen="compare"),
    Action("compare.next", ("n",), "row(1)", "next difference of the list", "n", "next", screen="compare"),
    Action("compare.back", ("N",), "row(-1)", "previous difference", "N", screen="compare"),
    Action("runs.mark", ("x",), "mark", "compare this trace with the one shown", "x", "compare", screen="runs"),
    Action("runs.demo", ("d",), "demo", "record a demo run, and show it", "d", "demo", screen="runs"),
    Action("runs.browse", ("b",), "over('browse')", "look in another folder", "b", "browse", screen="runs"),
    Action("runs.again", ("r",), "list", "list the folder again", "r", "again", screen="runs"),
    Action("view.log", ("L",), "choose('heat', 1)", "linear heat, or logarithmic", "L"),
    Action("view.glyphs", ("c",), "glyphs", "glyphs instead of colour", "c", "glyphs"),
    Action("view.theme", ("T",), "theme", "dark, or light", "T"),
    Action("view.picture", ("i",), "over('picture')", "the picture, large", "i"),
    Action("view.pause", ("space",), "pause", "pause this view, not the run", "space", "pause"),
    # The run.
    Action("run.pause", ("P",), "ask('pause')", "pause the run after this scale", "P", "pause run"),
    Action("run.resume", ("R",), "ask('resume')", "let the run go on", "R"),
    Action("run.step", ("full_stop",), "ask('step')", "one scale, then pause the run", "."),
    Action("run.stop", ("X",), "over('stop')", "end the run after this scale", "X"),
    # Out, and help.
    Action("write.svg", ("w",), "write('svg')", "write this screen as SVG", "w", "write"),
    Action("write.csv", ("W",), "write('csv')", "write its numbers as csv", "W"),
    Action("write.json", ("J",), "write('json')", "write its numbers as JSON", "J"),
    Action("help", ("question_mark",), "over('help')", "every key of this screen", "?", "help"),
    Action("about", ("f1",), "over('about')", "help for the part in focus (tab)", "F1"),
    Action("quit", ("q",), "quit", "quit", "q", "quit"),
    Action("quit.now", ("ctrl+c",), "quit", "quit, wherever you are", "^c", always=True),
)
"""In the order of the help. An action of one screen takes its keys from those of every screen."""

HINTS_OF_PAIRS: tuple[tuple[str, str], ...] = (("arrows", "cell"), ("[ ]", "query"), ("{ }", "source"))
"""Movement in the footer: keys that come in pairs, with one word for both."""


def actions_of(screen: str) -> Iterator[Action]:
    """The actions that work on this screen, in the table's order."""
    own = {key for action in ACTIONS if action.screen == screen for key in action.keys}
    for action in ACTIONS:
        if action.screen == screen or (action.screen is None and not own.issuperset(action.keys)):
            yield action


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
