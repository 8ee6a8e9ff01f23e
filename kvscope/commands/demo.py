"""`kvscope demo`: record a HeatKV run of the bundled model, and open it."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvscope import options
from kvscope.arguments import whole
from kvscope.commands.run import check_keymap, report_made, run_alone
from kvscope.narration import has_terminal

_BUDGET = 0.2
_SEED = 7
"""That of the recordings in traces/, so that they compare."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="FILE", help="the trace (default: a new name in this folder)")
    add("--overwrite", action="store_true", help="replace an output file that exists")
    add("--threads", type=whole, metavar="N", help="CPU threads (default: torch's choice)")
    add("--json", action="store_true", help="print the summary as JSON; open no screen")
    options.keymap_option(parser)


def run(args: argparse.Namespace) -> int:
    """Record a HeatKV run of the bundled model and open it."""
    from kvscope.job import Job
    from kvscope.resident import Task

    opens = not args.json and has_terminal()
    if opens:
        check_keymap(args)
    job = Job(
        options.DEFAULT_PROMPT,
        "infinity-tiny",
        "heatkv",
        seed=_SEED,
        budget=_BUDGET,
        attention_mass=True,
        attention_mass_uncond=True,
        attention_map="uint8",
    )
    out = args.output or options.default_output("demo", "heatkv")
    made = run_alone(args, Task(job, out, args.overwrite))
    if made.failed or not opens:
        return report_made(made, as_json=args.json)
    from kvscope.tui.app import run_app

    return run_app(out, keymap=args.keymap)
