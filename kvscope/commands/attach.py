"""`kvscope attach`: the viewer on a run that was started elsewhere, or left alone."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from kvscope import options
from kvscope.commands.control import TARGET_HELP, trace_of
from kvscope.loading import loading


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", metavar="TARGET", help=TARGET_HELP)
    options.viewer_options(parser)


def run(args: argparse.Namespace) -> int:
    """Open a live run's trace, or wait on the screen until it is there."""
    # Deferred: --help must not load textual.
    with loading():
        from kvscope.tui.app import run_app

    path, pid, is_there = trace_of(args.target)
    return run_app(
        path,
        launched=None if is_there else _Loading(path, pid),
        edit=options.wanted_edit(args, path),
        screen=options.known_screen(args),
        place=args.goto,
        light=args.light,
        plain=args.ascii or None,
        colours=options.wanted_colours(args),
        keymap=args.keymap,
    )


@dataclass(frozen=True, slots=True)
class _Loading:
    """A run of another terminal that has no trace yet: what it says is said there."""

    path: Path
    pid: int

    def said(self) -> tuple[str, ...]:
        return (f"process {self.pid} loads its weights",)

    def poll(self) -> int | None:
        """None as long as its process lives."""
        from kvscope.control.places import is_running

        return None if is_running(self.pid) else 1
