"""docs/keys.md, made from the table of actions: `python -m kvscope.keys_docs [--check] docs/keys.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby

from kvscope.cli_docs import write_or_check
from kvscope.tui.actions import ACTIONS, Action, key_text
from kvscope.tui.keymap import TAKEN
from kvscope.tui.screens import SCREENS

_INTRODUCTION = """\
# Keys

What every key does, by what it is for. `?` in the viewer lists those of the screen that is up, F1 tells what its parts
show, and `kvscope keys` prints this table, with your own keymap's changes. How to change keys:
[terminal.md](terminal.md#keys). This page is made from the code by `python -m kvscope.keys_docs docs/keys.md`.
"""


def page() -> str:
    """The whole page, Markdown."""
    return "\n".join([_INTRODUCTION, *_groups(), *_taken()])


def _groups() -> Iterator[str]:
    ordered = sorted(ACTIONS, key=lambda action: -1 if action.screen is None else list(SCREENS).index(action.screen))
    for group, members in groupby(ordered, key=lambda action: action.group):
        yield f"## {group[0].upper()}{group[1:]}\n\n| keys | what it does | id |\n| --- | --- | --- |"
        yield from map(_line, members)
        yield ""


def _line(action: Action) -> str:
    keys = " ".join(f"`{key_text(key)}`" for key in action.keys)
    return f"| {keys} | {action.help} | `{action.id}` |"


def _taken() -> Iterator[str]:
    yield "## Not to be given away\n\n| key | what it does |\n| --- | --- |"
    for key, words in TAKEN.items():
        yield f"| `{key_text(key)}` | {words} |"
    yield ""


def main(arguments: list[str]) -> int:
    """Write the page, or with --check say whether it is up to date."""
    return write_or_check(arguments, page(), "kvscope.keys_docs")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
