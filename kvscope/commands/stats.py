"""`kvscope stats`: what a trace says, in numbers."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvscope import options
from kvscope.narration import print_data, print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    options.trace_options(parser)
    options.json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print them."""
    return report(args.trace, as_json=args.json)


def report(trace_path: Path, *, as_json: bool) -> int:
    """Print the summary of a trace; returns the exit code."""
    # Deferred: --help must load neither numpy nor h5py.
    from kvscope.analysis import summarize
    from kvscope.report import summary_text
    from kvscope.trace import Trace

    with Trace.open(trace_path) as trace:
        summary = summarize(trace)
    if as_json:
        print_json(summary.to_json())
    else:
        print_data(summary_text(summary))
    return 0
