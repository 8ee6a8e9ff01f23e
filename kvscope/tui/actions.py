"""ACTIONS: everything a key can do, in one table. Bindings, footer, help, command palette and docs are read from it.

A keymap gives some actions other keys; `actions_of` and `hints_of` tell what then works, and so do all that ask them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from textual.binding import Binding, BindingType
from textual.keys import format_key

from kvscope.tui.cursor import LAST
from kvscope.tui.screens import SCREENS

Keymap = Mapping[str, str]
"""Action id → the keys it has instead of the table's, comma-separated, as Textual takes them."""

NO_CHANGES: Keymap = MappingProxyType({})


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
    hint: str = ""
    """Its word in the footer; empty: not in the footer."""
    screen: str | None = None
    """The only screen that has it; None: every screen."""
    always: bool = False
    """Works wherever the user is, help and palette included."""

    @property
    def shown(self) -> str:
        """The keys as a person writes them."""
        return " ".join(map(key_text, self.keys))

    @property
    def group(self) -> str:
        """Under what it stands in the help."""
        if self.screen is not None:
            return f"on {self.screen}"
        return _GROUPS.get(self.id.partition(".")[0], "what is shown")


_GROUPS = {
    "screen": "screens",
    "cursor": "the cursor",
    "run": "the run",
    **dict.fromkeys(("write", "help", "about", "quit"), "out, and help"),
}
"""First word of an action's id → its group; what every other word means is one group too."""


def _move(name: str, keys: tuple[str, ...], axis: str, by: int, words: str) -> Action:
    return Action(f"cursor.{name}", keys, f"move('{axis}', {by})", words)


def _go(name: str, keys: tuple[str, ...], axis: str, index: int, words: str) -> Action:
    return Action(f"cursor.{name}", keys, f"go('{axis}', {index})", words)


def _list(screen: str) -> tuple[Action, ...]:
    """The keys of a screen that is a list."""
    return (
        Action(f"{screen}.up", ("up", "k"), "row(-1)", "one line up", screen=screen),
        Action(f"{screen}.down", ("down", "j"), "row(1)", "one line down", screen=screen),
        Action(f"{screen}.page_up", ("pageup",), "row(-10)", "ten lines up", screen=screen),
        Action(f"{screen}.page_down", ("pagedown",), "row(10)", "ten lines down", screen=screen),
        Action(f"{screen}.top", ("g", "home"), f"row(-{LAST})", "first line", screen=screen),
        Action(f"{screen}.bottom", ("G", "end"), f"row({LAST})", "last line", screen=screen),
    )


def _edits(screen: str) -> tuple[Action, ...]:
    """The keys that edit as a whole, on a screen of the editor."""
    fill = Action("edit.fill", ("f",), "edit('fill')", "let policy heatkv fill in, or not", "fill", screen=screen)
    more, less = ("plus",), ("minus",)
    return (
        Action(f"{screen}.more", more, "nudge(1)", "raise the budget by a token a head", screen=screen),
        Action(f"{screen}.less", less, "nudge(-1)", "lower it by a token a head", screen=screen),
        Action(f"{screen}.type", ("equals_sign",), "over('edit')", "type an edit", "type", screen=screen),
        Action(f"{screen}.undo", ("u",), "edit('undo')", "undo the last edit", "undo", screen=screen),
        Action(f"{screen}.redo", ("U",), "edit('redo')", "redo what was undone", screen=screen),
        *((fill,) if screen == "schedule" else ()),
    )


ACTIONS: tuple[Action, ...] = (
    *(Action(f"screen.{name}", (row.key,), f"show('{name}')", row.help, row.hint) for name, row in SCREENS.items()),
    _move("up", ("up", "k"), "layer", -1, "one layer up"),
    _move("down", ("down", "j"), "layer", 1, "one layer down"),
    _move("left", ("left", "h"), "head", -1, "one head left"),
    _move("right", ("right", "l"), "head", 1, "one head right"),
    _move("page_up", ("pageup",), "layer", -8, "eight layers up"),
    _move("page_down", ("pagedown",), "layer", 8, "eight layers down"),
    _go("top", ("g",), "layer", 0, "first layer"),
    _go("bottom", ("G",), "layer", LAST, "last layer"),
    _go("first_head", ("home",), "head", 0, "first head"),
    _go("last_head", ("end",), "head", LAST, "last head"),
    _move("query_back", ("left_square_bracket",), "query_scale", -1, "previous query scale"),
    _move("query_on", ("right_square_bracket",), "query_scale", 1, "next query scale, then follow"),
    _move("source_back", ("left_curly_bracket",), "source_scale", -1, "previous source scale"),
    _move("source_on", ("right_curly_bracket",), "source_scale", 1, "next source scale"),
    Action("cursor.goto", ("colon",), "over('goto')", "go to q7 l12 h3 s5", "go to"),
    # Screens that move another way.
    Action("mass.up", ("up",), "move('query_scale', -1)", "previous query scale", screen="mass"),
    Action("mass.down", ("down",), "move('query_scale', 1)", "next query scale", screen="mass"),
    Action("mass.left", ("left",), "move('source_scale', -1)", "previous source scale", screen="mass"),
    Action("mass.right", ("right",), "move('source_scale', 1)", "next source scale", screen="mass"),
    Action("mass.layer_up", ("k",), "move('layer', -1)", "one layer up", screen="mass"),
    Action("mass.layer_down", ("j",), "move('layer', 1)", "one layer down", screen="mass"),
    Action("mass.head_left", ("h",), "move('head', -1)", "one head left", screen="mass"),
    Action("mass.head_right", ("l",), "move('head', 1)", "one head right", screen="mass"),
    Action("time.left", ("left", "h"), "step(-1)", "one step back", screen="time"),
    Action("time.right", ("right", "l"), "step(1)", "one step on", screen="time"),
    Action("time.first", ("home",), f"step(-{LAST})", "first step", screen="time"),
    Action("time.last", ("end",), f"step({LAST})", "last step", screen="time"),
    Action("schedule.up", ("up", "k"), "lane(-1)", "one head up", screen="schedule"),
    Action("schedule.down", ("down", "j"), "lane(1)", "one head down", screen="schedule"),
    Action("schedule.page_up", ("pageup",), "lane(-16)", "sixteen heads up", screen="schedule"),
    Action("schedule.page_down", ("pagedown",), "lane(16)", "sixteen heads down", screen="schedule"),
    Action("schedule.left", ("left", "h"), "move('source_scale', -1)", "previous source scale", screen="schedule"),
    Action("schedule.right", ("right", "l"), "move('source_scale', 1)", "next source scale", screen="schedule"),
    *_list("plan"),
    *_list("ledger"),
    *_list("runs"),
    Action("ledger.enter", ("enter",), "enter", "go to the step of its peak", "peak", screen="ledger"),
    # What is shown, and how.
    Action("enter", ("enter",), "enter", "why it is kept or dropped", "why"),
    Action("metric.next", ("m",), "metric(1)", "next metric", "metric"),
    Action("metric.back", ("M",), "metric(-1)", "previous metric"),
    Action("span", ("v",), "span", "select a range from here", "range", screen="map"),
    Action("time.span", ("v",), "span", "select a range from here", "range", screen="time"),
    Action("clear", ("escape",), "clear", "drop selection and zoom"),
    Action("time.zoom", ("z",), "zoom", "zoom in on it, and out", "zoom", screen="time"),
    Action("time.axis", ("a",), "choose('axis', 1)", "by steps, or by time", "axis", screen="time"),
    Action("mass.guidance", ("u",), "choose('guidance', 1)", "conditional, or unconditional", "row", screen="mass"),
    # Editing; of a viewer that was not opened for it, they say how.
    Action("edit.range", ("v",), "span", "select a range from here", screen="schedule"),
    Action("edit.drop", ("d",), "edit('drop')", "drop it after the cursor's query scale", "drop", screen="schedule"),
    Action("edit.never", ("D",), "edit('never')", "never keep it", screen="schedule"),
    Action("edit.pin", ("p",), "edit('pin')", "keep it to the end", "pin", screen="schedule"),
    Action("edit.clear", ("C", "backspace"), "edit('clear')", "decide nothing of it any more", screen="schedule"),
    *(one for screen in ("schedule", "plan") for one in _edits(screen)),
    Action("edit.plan", ("a",), "review", "review all edits as a plan", "review", screen="schedule"),
    Action("plan.apply", ("y",), "over('apply')", "run the plan", "run it", screen="plan"),
    Action("plan.enter", ("enter",), "over('apply')", "run the plan, too", screen="plan"),
    Action("plan.mode", ("f",), "choose('mode', 1)", "a free run, or a forced one", "mode", screen="plan"),
    Action("plan.save", ("s",), "save_plan", "write the plan file", "save", screen="plan"),
    Action("plan.discard", ("x",), "over('discard')", "take back every edit", "discard", screen="plan"),
    Action("compare.side", ("d",), "choose('side', 1)", "difference, A or B", "side", screen="compare"),
    Action("compare.enter", ("enter",), "enter", "go to this difference", "go", screen="compare"),
    Action("compare.next", ("n",), "row(1)", "next difference of the list", "next", screen="compare"),
    Action("compare.back", ("N",), "row(-1)", "previous difference", screen="compare"),
    Action("runs.open", ("enter",), "enter", "open this trace", "open", screen="runs"),
    Action("runs.mark", ("x",), "mark", "compare it with the trace shown", "compare", screen="runs"),
    Action("runs.demo", ("d",), "demo", "record a demo run, and show it", "demo", screen="runs"),
    Action("runs.browse", ("b",), "over('browse')", "look in another folder", "browse", screen="runs"),
    Action("runs.again", ("r",), "list", "list the folder again", "again", screen="runs"),
    Action("view.log", ("L",), "choose('heat', 1)", "linear heat, or logarithmic"),
    Action("view.glyphs", ("c",), "glyphs", "glyphs instead of colour", "glyphs"),
    Action("view.theme", ("T",), "theme", "dark, or light"),
    Action("view.picture", ("i",), "over('picture')", "the picture, large"),
    Action("view.pause", ("space",), "pause", "pause a live view; play a finished run", "pause"),
    Action("play", ("greater_than_sign",), "play", "play the run step by step, or stop"),
    Action("play.speed", ("S",), "speed(1)", "play 1×, 4×, 16×, or as it was"),
    # The run.
    Action("run.pause", ("P",), "ask('pause')", "pause the run after this scale", "pause run"),
    Action("run.resume", ("R",), "ask('resume')", "let the run go on"),
    Action("run.step", ("full_stop",), "ask('step')", "one scale, then pause the run"),
    Action("run.stop", ("X",), "over('stop')", "end the run after this scale"),
    # Out, and help.
    Action("write.svg", ("w",), "write('svg')", "write this screen as SVG", "write"),
    Action("write.csv", ("W",), "write('csv')", "write its numbers as csv"),
    Action("write.json", ("J",), "write('json')", "write its numbers as JSON"),
    Action("help", ("question_mark",), "over('help')", "every key of this screen", "help"),
    Action("about", ("f1",), "over('about')", "help for the part in focus"),
    Action("quit", ("q",), "quit", "quit", "quit"),
    Action("quit.now", ("ctrl+c",), "quit", "quit, wherever you are", always=True),
)
"""In the order of the help. An action of one screen takes its keys from those of every screen."""

_LISTS = ("runs", "ledger")
"""Screens that are lists."""

_TOGETHER: tuple[tuple[tuple[str, ...], str], ...] = (
    (("cursor.up", "cursor.down", "cursor.left", "cursor.right"), "cell"),
    (("mass.up", "mass.down", "mass.left", "mass.right"), "scales"),
    (("mass.layer_up", "mass.layer_down", "mass.head_left", "mass.head_right"), "head"),
    (("time.left", "time.right"), "step"),
    (("schedule.up", "schedule.down", "schedule.left", "schedule.right"), "lane"),
    (("plan.up", "plan.down"), "line"),
    (("ledger.up", "ledger.down"), "line"),
    (("runs.up", "runs.down"), "line"),
    (("cursor.query_back", "cursor.query_on"), "query"),
    (("cursor.source_back", "cursor.source_on"), "source"),
)
"""Movement in the footer: actions that have one word together, where a screen has all of them."""

_FIRST, _LAST = "screen.", ("help", "quit")
"""Where hints stand in the footer: the screens before movement, these two at the very end."""

_ARROWS = ("up", "down", "left", "right")
_KEY_TEXTS = {
    **dict(zip(_ARROWS, "↑↓←→", strict=True)),
    "pageup": "pgup",
    "pagedown": "pgdn",
    "enter": "enter",
    "backspace": "bksp",
}


def actions(keymap: Keymap = NO_CHANGES) -> list[Action]:
    """The whole table, with the keys that a keymap gives."""
    return [replace(one, keys=tuple(keymap[one.id].split(","))) if one.id in keymap else one for one in ACTIONS]


def actions_of(screen: str, keymap: Keymap = NO_CHANGES) -> Iterator[Action]:
    """The actions that work on this screen, in the table's order, with the keys that do them there."""
    everything = actions(keymap)
    own = {key for action in everything if action.screen == screen for key in action.keys}
    for action in everything:
        left = action.keys if action.screen == screen else tuple(key for key in action.keys if key not in own)
        if action.screen in (None, screen) and left:
            yield action if left == action.keys else replace(action, keys=left)


def hints_of(screen: str, keymap: Keymap = NO_CHANGES) -> list[tuple[str, str]]:
    """(keys, word) of the footer, most important first: the screens, movement, this screen's own; then `last_hints`."""
    here = {action.id: action for action in actions_of(screen, keymap)}
    hinted = [action for action in here.values() if action.hint and action.id not in _LAST]
    screens = [action for action in hinted if action.id.startswith(_FIRST)]
    own = [action for action in hinted if action.screen == screen]
    others = [action for action in hinted if action not in screens and action not in own]
    pairs = [(_pair_text([here[one] for one in ids]), word) for ids, word in _TOGETHER if here.keys() >= set(ids)]
    # A list has no cell: its lines are all there is to move along.
    moves = pairs[:1] if screen in _LISTS else pairs
    return [*map(_hint, screens), *moves[:1], *map(_hint, own), *moves[1:], *map(_hint, others)]


def last_hints(screen: str, keymap: Keymap = NO_CHANGES) -> list[tuple[str, str]]:
    """(keys, word) of the footer's right end: help, and the way out."""
    return [_hint(action) for action in actions_of(screen, keymap) if action.id in _LAST]


def keys_of(action_id: str, keymap: Keymap = NO_CHANGES) -> tuple[str, ...]:
    """The keys of one action."""
    return next(action.keys for action in actions(keymap) if action.id == action_id)


def keys_shown(action_id: str, keymap: Keymap = NO_CHANGES) -> str:
    """The keys of one action as a person writes them."""
    return " ".join(map(key_text, keys_of(action_id, keymap)))


def key_text(key: str) -> str:
    """A key as a person writes it: `↑`, `pgup`, `^c`, `F1`, `?`."""
    modifier, _, base = key.rpartition("+")
    if modifier:
        return f"{'^' if modifier == 'ctrl' else modifier + '+'}{key_text(base)}"
    if base in _KEY_TEXTS:
        return _KEY_TEXTS[base]
    if base[0] == "f" and base[1:].isdigit():
        return base.upper()
    return format_key(base)


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


def _hint(action: Action) -> tuple[str, str]:
    return action.shown, action.hint


def _pair_text(together: list[Action]) -> str:
    firsts = tuple(action.keys[0] for action in together)
    return "arrows" if firsts == _ARROWS else " ".join(map(key_text, firsts))
