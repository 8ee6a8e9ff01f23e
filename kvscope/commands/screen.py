"""`kvscope screen`: one screen of a trace without a terminal, as text, as a picture, or as its numbers."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kvscope import options
from kvscope.errors import UsageError
from kvscope.narration import print_data
from kvscope.units import printable

if TYPE_CHECKING:
    from kvscope.tui.terminal import Colours


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("trace", type=Path, help="a trace file (.h5); a live one is drawn as it stands")
    add("--with", dest="other", type=Path, metavar="B", help="the trace beside it, for screen compare")
    options.place_options(parser)
    add(
        "--press", default="", metavar="KEYS", help="keys to press before it is drawn, as in 'n n d' or 'question_mark'"
    )
    add("--edit-script", type=Path, metavar="FILE", help="stage the edits of this file, one a line; nothing is kept")
    add("--size", default="120x40", metavar="WxH", help="columns and rows, from 80x24 (default: %(default)s)")
    add("--format", default="text", metavar="F", help="text, svg, csv or json (default: %(default)s)")
    add("--glyphs", action="store_true", help="values as glyphs, not as colour (text: always)")
    options.look_options(parser)
    add("-o", "--output", type=Path, metavar="FILE", help="write to this file (default: print on stdout)")
    add("--overwrite", action="store_true", help="replace an output file that exists")


def run(args: argparse.Namespace) -> int:
    """Draw the screen, then print or write it."""
    # Deferred: --help must load neither numpy nor textual.
    from heatkv.files import check_new, write_new
    from kvscope.tui.shot import FORMS, Form, Look, shoot

    if args.format not in FORMS:
        raise UsageError(f"--format {args.format}; give one of {', '.join(FORMS)}")
    if args.output is not None:
        check_new(args.output, overwrite=args.overwrite)
    width, height = _size(args.size)
    if args.other is not None:
        from kvscope.trace import Trace

        Trace.open(args.other).close()  # a picture of an error is no answer
    look = Look(
        width=width,
        height=height,
        light=args.light,
        contrast=args.high_contrast,
        plain=args.ascii,
        glyphs=args.glyphs or args.format == "text",
        colours=_colours(args),
    )
    text = shoot(
        args.trace,
        cast(Form, args.format),
        look,
        other=args.other,
        screen=options.known_screen(args),
        place=args.goto,
        presses=args.press.split(),
        edits=None if args.edit_script is None else _script(args.edit_script),
    )
    if args.output is None:
        print_data(text.rstrip("\n"))
    else:
        written = write_new(args.output, text.encode(), overwrite=args.overwrite)
        sys.stderr.write(f"kvscope: written to {printable(str(written))}\n")
    return 0


def _script(path: Path) -> tuple[str, ...]:
    """The lines of a file of edits. Raises UsageError."""
    from heatkv.files import read_text

    return tuple(read_text(path, expected="a file of edits", error=UsageError).splitlines())


def _colours(args: argparse.Namespace) -> Colours:
    """Text has no colour to tell values by; a picture has them all, whatever this terminal can."""
    wanted = options.wanted_colours(args)
    if wanted is None:
        return "none" if args.format == "text" or os.environ.get("NO_COLOR") else "truecolor"
    return cast("Colours", wanted)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})[x×](\d{1,4})", text)
    if match is None:
        raise UsageError(f"--size {text}; give columns and rows of up to four digits, as in 120x40")
    return int(match[1]), int(match[2])
