"""`kvscope runs`: the traces of a folder, newest first."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from kvscope.narration import print_data


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of traces; folders in it are looked into")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Print a line for every trace; files that are none are named with the reason."""
    # Deferred: --help must load neither numpy nor h5py.
    from kvscope.runs import list_runs, runs_text

    found = list_runs(args.folder)
    if args.json:
        print_data(json.dumps(found.to_json(), indent=2, allow_nan=False))
    else:
        print_data(runs_text(found, now_ns=time.time_ns()))
    return 0
