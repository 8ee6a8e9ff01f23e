"""`kvscope open`: the viewer on a trace, or on a league."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvscope import options
from kvscope.errors import UsageError
from kvscope.loading import loading


def add_options(parser: argparse.ArgumentParser) -> None:
    options.trace_options(parser)
    parser.add_argument("--with", dest="other", type=Path, metavar="B", help="the trace beside it, for screen compare")
    options.viewer_options(parser)


def run(args: argparse.Namespace) -> int:
    """Open a trace, or a league, finished or still growing, on the screen."""
    # Deferred: --help must load neither h5py nor textual.
    with loading():
        from kvscope.opening import is_league
        from kvscope.tui.app import run_app

    if is_league(args.trace):
        return _open_league(args)

    return run_app(
        args.trace,
        other=args.other,
        edit=options.wanted_edit(args, args.trace),
        screen=options.known_screen(args),
        place=args.goto,
        light=args.light,
        contrast=args.high_contrast,
        plain=args.ascii or None,
        colours=options.wanted_colours(args),
        keymap=args.keymap,
    )


def _open_league(args: argparse.Namespace) -> int:
    from kvscope.tui.league import run_league_app

    given = {"--with": args.other, "--edit": args.edit, "--screen": args.screen, "--goto": args.goto}
    unread = [name for name, value in given.items() if value]
    if unread:
        raise UsageError(f"{args.trace}: a league; {', '.join(unread)} is of traces; leave it out")
    return run_league_app(args.trace, light=args.light)
