"""docs/cli.md, made from the table of commands: `python -m kvscope.cli_docs [--check] docs/cli.md`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from kvscope.cli import COMMANDS, EXIT_CODES, load_command

_INTRODUCTION = """\
# Command line

stdout is data, stderr is narration. `--json` prints one object. An error is one line on stderr, and an exit code.
This page is made from the code by `python -m kvscope.cli_docs docs/cli.md`.
"""


def page() -> str:
    """The whole page, Markdown."""
    return "\n".join([_INTRODUCTION, *_exit_codes(), *(line for name in COMMANDS for line in _command(name))])


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n\n| code | meaning |\n| --- | --- |"
    for code, meaning in EXIT_CODES.items():
        yield f"| {code} | {meaning} |"
    yield ""


def _command(name: str) -> Iterator[str]:
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(add_help=False)
    load_command(name).add_options(parser)
    yield f"## kvscope {name}\n\n{command.help[0].upper()}{command.help[1:]}.\n\n```\n{command.example}\n```\n"
    # The only list of them that argparse keeps.
    verbs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    yield from _options([action for action in parser._actions if action not in verbs])
    for verb, one in (pair for action in verbs for pair in action.choices.items()):
        example = one.epilog.removeprefix("example:").strip()
        yield f"### kvscope {name} {verb}\n\n{one.description}\n\n```\n{example}\n```\n"
        yield from _options([action for action in one._actions if "--help" not in action.option_strings])


def _options(actions: list[argparse.Action]) -> Iterator[str]:
    if actions:
        yield "| option | meaning |\n| --- | --- |"
        for action in actions:
            names = ", ".join(action.option_strings) or action.dest.upper()
            yield f"| `{names}{_value(action)}` | {(action.help or '') % vars(action)} |"
        yield ""


def _value(action: argparse.Action) -> str:
    if not (action.metavar and action.option_strings):
        return ""
    return f" [{action.metavar}]" if action.nargs == "?" else f" {action.metavar}"


def main(arguments: list[str]) -> int:
    """Write the page, or with --check say whether it is up to date."""
    return write_or_check(arguments, page(), "kvscope.cli_docs")


def write_or_check(arguments: list[str], text: str, module: str) -> int:
    """Write a generated page, or with --check say whether the one that is there is this; returns the exit code."""
    path = Path(arguments[-1])
    if "--check" not in arguments:
        path.write_text(text, encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{path}: not what the code says; run `python -m {module} {path}`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
