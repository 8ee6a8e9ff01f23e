"""Arguments of the command line: verbs, numbers with words for what is none, and outputs that are never an input."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvscope.errors import OutputError

_OUTPUTS = ("output", "image", "official", "save_plan", "csv", "html", "svg", "picture")
"""Options that name what is written; every other path is read."""


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb of a command that has several."""

    run: Callable[[argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None]
    help: str
    example: str


def add_verbs(parser: argparse.ArgumentParser, verbs: Mapping[str, Verb]) -> None:
    """Give a command its verbs; the one that was chosen is `args.verb`."""
    known = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", help=f"one of {', '.join(verbs)}", parser_class=type(parser)
    )
    for name, verb in verbs.items():
        one = known.add_parser(
            name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}.",
            epilog=f"example:\n  {verb.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_options(one)


def number(text: str) -> float:
    """A number. Raises argparse's error for any other text."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; expected one like 3 or 0.2") from None


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number; expected one like 3") from None


def fraction(text: str) -> float:
    """A fraction, as `0.2` or `20%`."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no fraction; expected one like 0.2 or 20%") from None


def check_outputs(args: argparse.Namespace) -> None:
    """Raises OutputError if what is to be written is a file that is to be read, or another output: not even --overwrite
    means that."""
    outputs = {name: path for name, path in vars(args).items() if name in _OUTPUTS and isinstance(path, Path)}
    if not outputs:
        return
    # Deferred: the viewer, which writes nothing, starts without it.
    from heatkv.files import is_same_file

    _check_two_names(outputs)
    for name, output in outputs.items():
        for given, path in _paths(args):
            if given not in outputs and is_same_file(output, path):
                raise OutputError(f"{output}: --{name.replace('_', '-')} is also what is read; choose another name")


def _check_two_names(outputs: dict[str, Path]) -> None:
    of_file: dict[str, str] = {}
    for name, output in outputs.items():
        option = f"--{name.replace('_', '-')}"
        other = of_file.setdefault(os.path.realpath(output), option)
        if other != option:
            raise OutputError(f"{output}: named for {other} and for {option}; give two names")


def _paths(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    for name, value in vars(args).items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Path):
                yield name, one
