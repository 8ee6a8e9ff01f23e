"""`kvscope keys`: what every key does, under the user's keymap; or a keymap file to begin with."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kvscope.errors import UsageError
from kvscope.narration import print_data


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--keymap", type=Path, metavar="FILE", help="a file of changed keys (default: the user's own, if there is one)")
    add("--json", action="store_true", help="print one JSON object on stdout")
    add("--toml", action="store_true", help="print a keymap file with every action's own keys, commented out")


def run(args: argparse.Namespace) -> int:
    """Print the table of actions."""
    # Deferred: --help must not load textual.
    from kvscope.tui.keymap import key_records, keymap_text, keys_text, read_keymap

    if args.toml:
        if args.json or args.keymap is not None:
            raise UsageError("--toml prints a fresh keymap file; give it alone")
        print_data(keymap_text().rstrip("\n"))
        return 0
    keymap = read_keymap(args.keymap)
    if args.json:
        print_data(json.dumps({"actions": key_records(keymap)}, indent=2, ensure_ascii=False))
    else:
        print_data(keys_text(keymap))
    return 0
