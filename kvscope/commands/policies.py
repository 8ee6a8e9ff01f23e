"""`kvscope policies`: every cache policy, a line each."""

from __future__ import annotations

import argparse
import json

from kvscope.narration import print_data


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Print what each policy does, with its parameters and their defaults."""
    # Deferred: --help must load no numpy.
    from kvscope.policy_list import policies_text, policy_records

    records = policy_records()
    if args.json:
        print_data(json.dumps({"policies": [one.to_json() for one in records]}, indent=2, ensure_ascii=False))
    else:
        print_data(policies_text(records))
    return 0
