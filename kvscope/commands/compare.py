"""`kvscope compare`: runs beside the first of them, in numbers; with conditions, a check for a script."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvscope import options
from kvscope.arguments import whole
from kvscope.errors import UsageError
from kvscope.narration import narrate, print_data
from kvscope.units import printable

if TYPE_CHECKING:
    import argparse

    from kvscope.compare import CellDifference, Comparison
    from kvscope.conditions import Condition
    from kvscope.trace import Trace

CONDITION_HOLDS = 9
"""The exit code where a condition of --fail-if holds."""

MEASURES = ("kept", "read", "mass")
"""The names of compare.MEASURES, which loads numpy."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("a", type=Path, metavar="A", help="the trace that the others are compared with")
    add("others", nargs="+", type=Path, metavar="B", help="a trace to compare with A, or several")
    add(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help="exit with code 9 if it holds, as 'storage_peak_bytes>+2%%' (B - A, of A) or 'psnr<30'; may be repeated",
    )
    add(
        "--measure",
        choices=MEASURES,
        default=MEASURES[0],
        help="what the largest differences are of (default: %(default)s)",
    )
    add("--largest", type=whole, default=10, metavar="N", help="how many of them to say (default: %(default)s)")
    add("--lpips", action="store_true", help="also LPIPS of the pictures, where its package and weights are at hand")
    options.json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the comparison; 9 if a condition holds."""
    # Deferred: --help must load neither numpy nor h5py.
    from kvscope.analysis import summarize
    from kvscope.compare import compare, side_name
    from kvscope.conditions import parse_condition
    from kvscope.trace import Trace

    if args.largest < 0:
        raise UsageError(f"--largest {args.largest}; expected 0 or more")
    conditions = [parse_condition(text) for text in args.fail_if]
    with ExitStack() as files:
        traces = [files.enter_context(Trace.open(path)) for path in (args.a, *args.others)]
        summaries = [summarize(trace) for trace in traces]
        comparisons = [
            compare(traces[0], trace, (summaries[0], summary), side_name(index))
            for index, (trace, summary) in enumerate(zip(traces[1:], summaries[1:], strict=True), 1)
        ]
        if args.lpips:
            comparisons = _with_lpips(traces, comparisons)
        held = [(one, condition) for one in comparisons for condition in conditions if condition.holds(one)]
        if args.json:
            print_data(json.dumps(_record(args, traces, comparisons, held), indent=2, allow_nan=False))
        else:
            print_data(_text(args, traces, comparisons))
    for one, condition in held:
        line = f"{one.b.trace}: {condition.text} holds: {condition.found(one)}"
        sys.stderr.write(f"kvscope: {printable(line)}\n")
    return CONDITION_HOLDS if held else 0


def _with_lpips(traces: list[Trace], comparisons: list[Comparison]) -> list[Comparison]:
    """The same, with LPIPS of the pictures that are compared; why there is none is narrated."""
    from kvscope.lpips import lpips, unavailable

    reason = unavailable()
    if reason is not None:
        narrate(f"LPIPS is not measured: {reason}")
        return comparisons
    measured = []
    for trace, one in zip(traces[1:], comparisons, strict=True):
        a, b = traces[0].image, trace.image
        value = None if one.likeness.reason is not None or a is None or b is None else lpips(a, b)
        measured.append(replace(one, likeness=replace(one.likeness, lpips=value)))
    return measured


def _text(args: argparse.Namespace, traces: list[Trace], comparisons: list[Comparison]) -> str:
    from kvscope.compare_report import comparison_text, comparisons_text

    if len(comparisons) > 1:
        return comparisons_text(comparisons)
    return comparison_text(comparisons[0], _largest(args, traces[0], traces[1]), args.measure)


def _record(
    args: argparse.Namespace,
    traces: list[Trace],
    comparisons: list[Comparison],
    held: list[tuple[Comparison, Condition]],
) -> dict[str, Any]:  # Any: a JSON object
    from kvscope.compare import facts
    from kvscope.compare_report import verdict

    return {
        "a": facts(comparisons[0].a),
        "comparisons": [
            one.to_json()
            | {
                "verdict": verdict(one),
                "measure": args.measure,
                "largest": [cell.to_json() for cell in _largest(args, traces[0], trace)],
                "conditions_held": [condition.text for other, condition in held if other is one],
            }
            for trace, one in zip(traces[1:], comparisons, strict=True)
        ],
    }


def _largest(args: argparse.Namespace, a: Trace, b: Trace) -> list[CellDifference]:
    from kvscope.compare import MEASURES, largest

    values_of = MEASURES[args.measure]
    return largest(values_of(a), values_of(b), args.largest)
