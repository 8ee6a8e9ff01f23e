"""`kvscope tune`: a schedule for a target of bytes or of loss, verified by forced runs, with the reasons.

What it may store in coarser codecs is an option. The default has each codec that was best somewhere on infinity-tiny,
and pairs of a finer and a coarser one; of the others fp8 and int2 never were (docs/tuning.md).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvscope import options
from kvscope.arguments import fraction, whole
from kvscope.errors import UsageError
from kvscope.narration import narrate, print_data
from kvscope.units import bytes_text, fraction_text, parse_bytes

if TYPE_CHECKING:
    from kvscope.advice import Advice
    from kvscope.advisor import Candidate, Evidence
    from kvscope.planfile import PlanFile
    from kvscope.trace import Trace

DEFAULT_CODECS = "int8,int4,k4v2,int8+int4,int8+k4v2"
_NO_CODECS = "none"


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("traces", type=Path, nargs="+", metavar="TRACE", help="recorded runs of policy full, of one model")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--target-bytes", metavar="BYTES", help="the most that the cache may take, as in 40MB or 321MiB"
    )
    target.add_argument(
        "--max-loss", type=fraction, metavar="X", help="the most attention that may be lost, as in 0.02"
    )
    add("--calibration", type=Path, metavar="FILE", help="plan from these measurements, not from the traces' own")
    add(
        "--codecs",
        default=DEFAULT_CODECS,
        metavar="LIST",
        help="what plans may also store tokens in, each choice tried by itself, as in int4 or, two chosen between per "
        f"head-scale, int8+int4; {_NO_CODECS}: the model's dtype alone (default: %(default)s)",
    )
    add(
        "--verify",
        type=whole,
        metavar="N",
        help="run the best N plans, forced (default: all; 0: none)",
    )
    options.device_option(parser)
    add("--threads", type=whole, metavar="N", help="CPU threads (default: torch's choice)")
    add("-o", "--output", type=Path, metavar="FILE", help="write the schedule that is advised")
    add("--save-plan", type=Path, metavar="FILE", help="write it as a change of the first trace, for `kvscope apply`")
    add("--overwrite", action="store_true", help="replace an output file that exists")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Search, verify, and say what is advised and why."""
    # Deferred: --help must not load numpy.
    from heatkv.files import check_new
    from kvscope.advice import advice
    from kvscope.trace import Trace

    if args.verify is not None and args.verify < 0:
        raise UsageError(f"--verify {args.verify}; expected 0 or more")
    for path in (args.output, args.save_plan):
        if path is not None:
            check_new(path, overwrite=args.overwrite)
    with ExitStack() as opened:
        traces = [opened.enter_context(Trace.open(path)) for path in args.traces]
        evidence = _evidence(traces, args.calibration)
        found = _found(args, evidence)
        advised = advice(_verified(args, traces, found), by_bytes=args.target_bytes is not None)
        plan = None if args.save_plan is None else _plan(args, traces[0], evidence, advised.chosen)
    if args.output is not None:
        advised.chosen.schedule.save(args.output, overwrite=args.overwrite)
        narrate(f"schedule written to {args.output}")
    if plan is not None:
        plan.save(args.save_plan, overwrite=args.overwrite)
        narrate(f"plan written to {args.save_plan}; `kvscope apply {args.save_plan}` runs it")
    print_data(json.dumps(advised.to_json(), indent=2, allow_nan=False) if args.json else advice_text(advised))
    return 0


def _found(args: argparse.Namespace, evidence: Evidence) -> list[Candidate]:
    from kvscope import advisor

    codecs = [] if args.codecs == _NO_CODECS else [one.strip() for one in args.codecs.split(",")]
    if args.target_bytes is not None:
        return advisor.for_bytes(evidence, _bytes(args.target_bytes), codecs)
    return advisor.for_loss(evidence, args.max_loss, codecs)


def advice_text(advice: Advice) -> str:
    """What was tried as a table, the front marked, then the choice and the reasons."""
    front = {one.schedule.content_hash for one in advice.front}
    titles = ["", "plan", "peak (est.)", "lost (est.)", "output (est.)", "KL (forced)", "flips (forced)"]
    cells = (_cells(one, chosen=one is advice.chosen, front=one.schedule.content_hash in front) for one in advice.tried)
    rows = [titles, *cells]
    if all(one.output_error is None for one in advice.tried):
        rows = [[*row[:4], *row[5:]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "", "> chosen, * on the front: none has both fewer bytes and less error", *advice.words])


def _cells(one: Candidate, *, chosen: bool, front: bool) -> list[str]:
    return [
        ">" if chosen else "*" if front else "",
        one.name,
        bytes_text(one.peak_bytes),
        fraction_text(one.lost, absent="unknown"),
        fraction_text(one.output_error),
        "not verified" if one.kl is None else f"{one.kl:.4g}",
        "" if one.flips is None else fraction_text(one.flips),
    ]


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"--target-bytes {error}") from None


def _evidence(traces: Sequence[Trace], path: Path | None) -> Evidence:
    from kvscope.advisor import Evidence, mean_mass
    from kvscope.calibration import Calibration
    from kvscope.draft import ground_of, measured_by
    from kvscope.replay import check_full

    for trace in traces:
        check_full(trace)
        if trace.header.model != traces[0].header.model or trace.header.scales.sizes != traces[0].header.scales.sizes:
            raise UsageError(f"{trace.path}: of another model, or at other scales, than {traces[0].path}")
    ground = ground_of(traces[0].header)
    if path is None:
        return Evidence(ground, mean_mass(trace.attention_mass for trace in traces), tuple(traces))
    calibration = Calibration.load(path)
    calibration.measurements().require(["attention_mass"], ground.config, ground.scales)
    ground = replace(ground, measurements=measured_by(path, ground.config, ground.scales, None))
    return Evidence(ground, mean_mass(calibration.attention_mass), tuple(traces))


def _plan(args: argparse.Namespace, trace: Trace, evidence: Evidence, chosen: Candidate) -> PlanFile:
    """What is advised as a change of a recorded run, to review and apply."""
    from kvscope.draft import Draft
    from kvscope.estimate import estimate
    from kvscope.planfile import plan_file

    schedule = chosen.schedule
    draft = replace(Draft.of(trace.schedule, evidence.ground), schedule=schedule, budget=schedule.budget)
    job = replace(trace.header.job, parent=str(trace.path), mode="free", schedule=None, policy=schedule.policy)
    before, after = (estimate(trace, one) for one in (trace.schedule, schedule))
    edits = [f"# tuned: {chosen.name}"]
    return plan_file(trace, draft, edits, after=after, before=before, job=job, orders=args.calibration)


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

    first = options.on_device(args, traces[0].header.job)
    best = {id(one) for one in (*found[:count], *(one for one in found if one.name == "heatkv"))}
    chosen = [one for one in found if id(one) in best]
    pipeline = load_pipeline(first, model_config(first.model), narrate, threads=args.threads)
    measured = [list(tried(trace, pipeline, [one.schedule for one in chosen])) for trace in traces]
    by_id = {
        id(one): verified(one, [runs[index].kl for runs in measured], [runs[index].flips for runs in measured])
        for index, one in enumerate(chosen)
    }
    return [by_id.get(id(one), one) for one in found]
