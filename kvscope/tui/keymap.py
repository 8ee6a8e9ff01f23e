"""Keymap files: which keys do what, changed by a TOML file of the user. Read once at the start, refused as a whole."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from textual.keys import REPLACED_KEYS, Keys, format_key, key_to_character

from kvscope.errors import UsageError
from kvscope.tui.actions import ACTIONS, NO_CHANGES, Action, Keymap, actions, key_text
from kvscope.tui.screens import SCREENS
from kvscope.units import printable

TAKEN = {
    "tab": "moves the focus",
    "shift+tab": "moves the focus",
    "ctrl+p": "opens the command palette",
    "ctrl+q": "quits",
}
"""Keys that no keymap can give away, and what they do."""

_IDS = [action.id for action in ACTIONS]
_MODIFIED = re.compile(r"(?:(?:ctrl|alt|shift|super)\+)+(?P<base>.+)")
_NAMES = frozenset(key.value for key in Keys if not key.value.startswith("<"))


def default_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where a user's own keymap is, if there is one."""
    folder = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "~"), ".config").expanduser()
    return Path(folder, "kvscope", "keymap.toml")


def read_keymap(path: Path | None) -> Keymap:
    """The keys that a file gives; None: the user's own file, if there is one.

    Raises UsageError for a file that cannot be read, that names no action or no key, or gives one key two meanings.
    """
    if path is None:
        path = default_path()
        if not path.exists():
            return NO_CHANGES
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not UTF-8 text"
        raise UsageError(f"{path}: no keymap can be read there: {reason}") from error
    return parse_keymap(text, str(path))


def parse_keymap(text: str, name: str) -> Keymap:
    """The keys that a keymap file's text gives. Raises UsageError, which begins with the file's `name`."""
    # Deferred: few users have a keymap.
    import tomllib

    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name}: not TOML: {printable(str(error))}") from error
    for table in tables:
        if table != "keys":
            raise UsageError(f"{name}: {table!r} is not read; actions and their keys stand under [keys]")
    keys = tables.get("keys", {})
    if not isinstance(keys, dict):
        raise UsageError(f"{name}: keys is {type(keys).__name__}; begin its lines with [keys]")
    keymap = {action_id: ",".join(_keys(value, f"{name}: {action_id}")) for action_id, value in _flat(keys, name)}
    _check_clashes(keymap, name)
    return keymap


def key_name(text: str) -> str:
    """Textual's name of a key that a person wrote: `?` or question_mark, up, ctrl+e, F1. Raises UsageError."""
    if len(text) == 1 and text.isprintable() and not text.isspace():
        return _name_of(text)
    name = text.lower()
    modified = _MODIFIED.fullmatch(name)
    base = modified["base"] if modified else name
    if modified and len(base) == 1 and base.isprintable() and not base.isspace():
        return name.removesuffix(base) + _name_of(base)
    if base in _NAMES or base in REPLACED_KEYS or (len(base) > 1 and key_to_character(base) is not None):
        return name
    near = difflib.get_close_matches(name, sorted(_NAMES), 1)
    hint = f"; nearest: {near[0]}" if near else ""
    raise UsageError(f"{text!r} is no key{hint}; write a character, or a name like up, pagedown, f5, ctrl+e")


def keymap_text() -> str:
    """A keymap file that changes nothing: every action with its own keys, commented out."""
    lines = [
        "# Keys of kvscope's screens. Take the # from a line and change its keys: one, or a list.",
        f"# Keys are characters or names; {', '.join(TAKEN)} are taken.",
        "[keys]",
    ]
    for group, members in itertools.groupby(sorted(ACTIONS, key=_place), key=lambda action: action.group):
        lines += ["", f"# {group}"]
        lines += [f'# "{action.id}" = {_toml(action.keys)}  # {action.help}' for action in members]
    return "\n".join(lines) + "\n"


def key_records(keymap: Keymap) -> list[dict[str, object]]:
    """Every action as `kvscope keys --json` prints it."""
    return [
        {
            "id": action.id,
            "screen": action.screen,
            "keys": list(action.keys),
            "shown": action.shown,
            "help": action.help,
            "group": action.group,
            "changed": action.id in keymap,
        }
        for action in actions(keymap)
    ]


def keys_text(keymap: Keymap) -> str:
    """The table that `kvscope keys` prints: where it works, keys, id, what it does; `*` marks a changed one."""
    rows = [
        (action.screen or "every", action.shown, action.id + ("*" if action.id in keymap else ""), action.help)
        for action in sorted(actions(keymap), key=_place)
    ]
    titles = ("screen", "keys", "id", "what it does")
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in (titles, *rows)
    )


def _place(action: Action) -> int:
    """Actions of every screen first, then screen by screen; each in the table's order, for the sort is stable."""
    return 0 if action.screen is None else 1 + list(SCREENS).index(action.screen)


def _flat(table: Mapping[str, object], name: str, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(action id, value): `metric.next = "n"` is a table in a table to TOML, `"metric.next" = "n"` is not."""
    for word, value in table.items():
        action_id = prefix + word
        if isinstance(value, dict):
            yield from _flat(value, name, f"{action_id}.")
        elif action_id in _IDS:
            yield action_id, value
        else:
            near = difflib.get_close_matches(action_id, _IDS, 1, 0.4)
            hint = f"; nearest: {near[0]}" if near else ""
            raise UsageError(f"{name}: {action_id!r} is no action{hint}; `kvscope keys` lists them")


def _keys(value: object, where: str) -> list[str]:
    """The names of the keys that one line gives."""
    written = value if isinstance(value, list) else [value]
    if not written or not all(isinstance(key, str) for key in written):
        raise UsageError(f'{where}: {value!r} is no key; write "x", or ["x", "y"]')
    try:
        names = [key_name(key) for key in cast(list[str], written)]
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    for name in names:
        if name in TAKEN:
            raise UsageError(f"{where}: {key_text(name)} cannot be given away, it {TAKEN[name]}; choose another key")
    return list(dict.fromkeys(names))


def _check_clashes(keymap: Keymap, name: str) -> None:
    """Raises UsageError where one key would do two things on one screen.

    An action of one screen may take a key of an action of every screen only where the table itself does so.
    """
    allowed = {(one.id, other.id) for one, other in _sharing(NO_CHANGES)}
    for one, other in _sharing(keymap):
        if (one.id, other.id) not in allowed:
            key = next(key for key in one.keys if key in other.keys)
            screen = next((action.screen for action in (one, other) if action.screen), None)
            where = f"on {screen}" if screen else "on every screen"
            raise UsageError(
                f"{name}: {key_text(key)} would be both {one.id} and {other.id} {where}; change one of them"
            )


def _sharing(keymap: Keymap) -> Iterator[tuple[Action, Action]]:
    """Pairs of actions with a key in common that meet on a screen."""
    for one, other in itertools.combinations(actions(keymap), 2):
        if (one.screen is None or other.screen in (None, one.screen)) and set(one.keys) & set(other.keys):
            yield one, other


def _name_of(character: str) -> str:
    """Textual's name of a character's key, found by asking what it calls the keys of ASCII."""
    return _NAMES_OF_SIGNS.get(character, character)


def _toml(keys: tuple[str, ...]) -> str:
    texts = [f'"{_written(key)}"' for key in keys]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def _written(key: str) -> str:
    """A key as a keymap file spells it: signs as themselves, where TOML needs no escape for them."""
    sign = format_key(key)
    return sign if _NAMES_OF_SIGNS.get(sign) == key and sign not in '"\\' else key


_SIGN_NAMES = (
    "exclamation_mark", "quotation_mark", "number_sign", "dollar_sign", "percent_sign", "ampersand", "apostrophe",
    "left_parenthesis", "right_parenthesis", "asterisk", "plus", "comma", "minus", "full_stop", "slash", "colon",
    "semicolon", "less_than_sign", "equals_sign", "greater_than_sign", "question_mark", "at", "left_square_bracket",
    "backslash", "right_square_bracket", "circumflex_accent", "underscore", "grave_accent", "left_curly_bracket",
    "vertical_line", "right_curly_bracket", "tilde",
)  # fmt: skip
_NAMES_OF_SIGNS = dict(zip("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", _SIGN_NAMES, strict=True))
"""Textual's names of the keys of ASCII's signs; letters, digits and what is beyond ASCII name themselves."""
