"""`kvscope trace`: what is done with a trace file itself: check it, save what a crash left, copy it, describe it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvscope.arguments import Verb, add_verbs
from kvscope.narration import print_data
from kvscope.units import printable, scales_text

if TYPE_CHECKING:
    from kvscope.recover import Recovered
    from kvscope.trace import Trace

UNREADABLE, BROKEN = 5, 8
"""Exit codes of `validate`: a file that is no readable trace; a trace that breaks its own rules."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_verbs(parser, VERBS)


def run(args: argparse.Namespace) -> int:
    """Run one verb; returns the exit code."""
    return VERBS[args.verb].run(args)


def validate_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("traces", type=Path, nargs="+", metavar="FILE", help="trace files (.h5); a live one is checked as it stands")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run_validate(args: argparse.Namespace) -> int:
    """Check every file, whatever is found in the ones before it; the worst of them gives the exit code."""
    # Deferred, here and below: --help must load neither numpy nor h5py.
    from kvscope.errors import TraceError
    from kvscope.trace import Trace
    from kvscope.validate import findings_of

    reports: list[dict[str, Any]] = []  # Any: JSON values
    for path in args.traces:
        try:
            with Trace.open(path) as trace:
                findings, error, reach = list(findings_of(trace)), None, _reach(trace)
        except TraceError as problem:
            findings, error, reach = [], str(problem), None
        reports.append(
            {"trace": str(path), "error": error, "reach": reach, "findings": [dict(_fields(one)) for one in findings]}
        )
        if not args.json:
            lines = [error] if error else [f"{path}: {finding.text}" for finding in findings]
            _print_lines(lines or [f"{path}: clean ({reach})"])
    if args.json:
        _print_json({"clean": not any(one["error"] or one["findings"] for one in reports), "traces": reports})
    if any(one["error"] for one in reports):
        return UNREADABLE
    return BROKEN if any(one["findings"] for one in reports) else 0


def _reach(trace: Trace) -> str:
    """How much there was to check: `done, 7 of 7 scales`."""
    return f"{trace.status}, {trace.scales_done} of {trace.header.scales.num_scales} scales"


def copy_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("trace", type=Path, metavar="FILE", help="a trace file (.h5); it is never changed")
    add("-o", "--output", type=Path, required=True, metavar="NEW", help="the new trace")
    add("--overwrite", action="store_true", help="replace an output file that exists")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run_recover(args: argparse.Namespace) -> int:
    """Save what a crash or damage left."""
    from kvscope.recover import recover

    return _report(recover(args.trace, args.output, overwrite=args.overwrite), as_json=args.json)


def run_snapshot(args: argparse.Namespace) -> int:
    """Copy a live trace at its last commit."""
    from kvscope.recover import snapshot

    return _report(snapshot(args.trace, args.output, overwrite=args.overwrite), as_json=args.json)


def info_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("trace", type=Path, metavar="FILE", help="a trace file (.h5), finished or still growing")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run_info(args: argparse.Namespace) -> int:
    """Print what a trace is."""
    from kvscope.info import describe, info_text
    from kvscope.trace import Trace

    with Trace.open(args.trace) as trace:
        info = describe(trace)
    if args.json:
        _print_json(info.to_json())
    else:
        print_data(info_text(info))
    return 0


VERBS: dict[str, Verb] = {
    "validate": Verb(
        run_validate,
        validate_options,
        "check traces against the format and their own plans",
        "kvscope trace validate run.h5",
    ),
    "recover": Verb(
        run_recover,
        copy_options,
        "save what can be read of a crashed or damaged trace to a new one",
        "kvscope trace recover crashed.h5 -o recovered.h5",
    ),
    "snapshot": Verb(
        run_snapshot,
        copy_options,
        "copy a trace that is being recorded, as it stands, while its run goes on",
        "kvscope trace snapshot live.h5 -o now.h5",
    ),
    "info": Verb(
        run_info, info_options, "print what a trace is, its tables, and what it cost", "kvscope trace info run.h5"
    ),
}
"""Every verb by name."""


def _report(made: Recovered, *, as_json: bool) -> int:
    """Say what a new trace holds, what it lacks, and whether it is clean."""
    from kvscope.validate import validate

    findings = [finding.text for finding in validate(made.path)]
    if as_json:
        record = dict(_fields(made)) | {"source": str(made.source), "path": str(made.path), "findings": findings}
        _print_json(record)
    else:
        _print_lines(
            [
                f"{made.path}: {made.status}, {scales_text(made.scales_done, made.num_scales)}, {made.commits} commits",
                *(f"lost: {line}" for line in made.lost),
                *(f"not as it should be: {line}" for line in findings),
            ]
        )
    return BROKEN if findings else 0


def _fields(record: Any) -> Any:  # Any: a frozen dataclass; its fields and their values
    return ((name, getattr(record, name)) for name in record.__dataclass_fields__)


def _print_lines(lines: list[str]) -> None:
    print_data("\n".join(map(printable, lines)))


def _print_json(record: dict[str, Any]) -> None:  # Any: a JSON object
    print_data(json.dumps(record, indent=2, allow_nan=False))
