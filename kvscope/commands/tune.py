"""`kvscope tune`: a schedule for a target of bytes or of loss, verified by forced runs, with the reasons."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from kvscope.arguments import number, whole
from kvscope.errors import UsageError
from kvscope.narration import narrate, print_data
from kvscope.units import bytes_text, fraction_text, parse_bytes

if TYPE_CHECKING:
    from kvscope.advisor import Advice, Candidate, Evidence
    from kvscope.trace import Trace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("traces", type=Path, nargs="+", metavar="TRACE", help="recorded runs of policy full, of one model")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--target-bytes", metavar="BYTES", help="the most that the cache may take, as in 40MB or 321MiB"
    )
    target.add_argument("--max-loss", type=number, metavar="X", help="the most attention that may be lost, as in 0.02")
    add("--calibration", type=Path, metavar="FILE", help="plan from these measurements, not from the traces' own")
    add(
        "--verify",
        type=whole,
        metavar="N",
        help="run the best N plans, forced (default: all; 0: none)",
    )
    add("--threads", type=whole, metavar="N", help="CPU threads (default: torch's choice)")
    add("-o", "--output", type=Path, metavar="FILE", help="write the schedule that is advised")
    add("--overwrite", action="store_true", help="replace an output file that exists")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Search, verify, and say what is advised and why."""
    # Deferred: --help must not load numpy.
    from heatkv.files import check_new
    from kvscope import advisor
    from kvscope.trace import Trace

    if args.output is not None:
        check_new(args.output, overwrite=args.overwrite)
    with ExitStack() as opened:
        traces = [opened.enter_context(Trace.open(path)) for path in args.traces]
        evidence = _evidence(traces, args.calibration)
        by_bytes = args.target_bytes is not None
        if by_bytes:
            found = advisor.for_bytes(evidence, _bytes(args.target_bytes))
        else:
            found = advisor.for_loss(evidence, args.max_loss)
        advice = advisor.advice(_verified(args, traces, found), by_bytes=by_bytes)
    if args.output is not None:
        advice.chosen.schedule.save(args.output, overwrite=args.overwrite)
        narrate(f"schedule written to {args.output}")
    print_data(json.dumps(advice.to_json(), indent=2, allow_nan=False) if args.json else advice_text(advice))
    return 0


def advice_text(advice: Advice) -> str:
    """What was tried as a table, the front marked, then the choice and the reasons."""
    front = {one.schedule.content_hash for one in advice.front}
    titles = ["", "plan", "peak (est.)", "lost (est.)", "KL (forced)", "flips (forced)"]
    cells = (_cells(one, chosen=one is advice.chosen, front=one.schedule.content_hash in front) for one in advice.tried)
    rows = [titles, *cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "", "> chosen, * on the front: none has both fewer bytes and less error", *advice.words])


def _cells(one: Candidate, *, chosen: bool, front: bool) -> list[str]:
    return [
        ">" if chosen else "*" if front else "",
        one.name,
        bytes_text(one.peak_bytes),
        fraction_text(one.lost),
        "not verified" if one.kl is None else f"{one.kl:.4g}",
        "" if one.flips is None else fraction_text(one.flips),
    ]


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"--target-bytes {error}") from None


def _evidence(traces: Sequence[Trace], calibration: Path | None) -> Evidence:
    from kvscope.advisor import Evidence, mean_mass
    from kvscope.calibration import Calibration
    from kvscope.draft import ground_of
    from kvscope.replay import check_full

    for trace in traces:
        check_full(trace)
        if trace.header.model != traces[0].header.model or trace.header.scales.sizes != traces[0].header.scales.sizes:
            raise UsageError(f"{trace.path}: of another model, or at other scales, than {traces[0].path}")
    masses = (
        [trace.attention_mass for trace in traces]
        if calibration is None
        else list(Calibration.load(calibration).attention_mass)
    )
    return Evidence(ground_of(traces[0].header), mean_mass(masses), tuple(traces))


def _verified(args: argparse.Namespace, traces: Sequence[Trace], found: list[Candidate]) -> list[Candidate]:
    """The candidates, the best of them with what forced runs measured; HeatKV's always among them."""
    count = len(found) if args.verify is None else args.verify
    if count <= 0:
        return found
    # Deferred: torch takes more than a second to import.
    from heatkv.config import model_config
    from kvscope.advisor import verified
    from kvscope.replay import tried
    from kvscope.runner import load_pipeline

    first = traces[0].header.job
    best = {id(one) for one in (*found[:count], *(one for one in found if one.name == "heatkv"))}
    chosen = [one for one in found if id(one) in best]
    pipeline = load_pipeline(first, model_config(first.model), narrate, threads=args.threads)
    measured = [list(tried(trace, pipeline, [one.schedule for one in chosen])) for trace in traces]
    by_id = {
        id(one): verified(one, [runs[index].kl for runs in measured], [runs[index].flips for runs in measured])
        for index, one in enumerate(chosen)
    }
    return [by_id.get(id(one), one) for one in found]
