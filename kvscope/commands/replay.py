"""`kvscope replay`: run a recorded job again under another schedule or policy, at the parent's bits or freely."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvscope import options
from kvscope.arguments import fraction, whole
from kvscope.errors import OutputError, UsageError
from kvscope.narration import narrate, print_data
from kvscope.units import bytes_text, fraction_text, printable

if TYPE_CHECKING:
    from kvscope.after import After
    from kvscope.job import Job

MODES = ("forced", "free")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("trace", type=Path, metavar="TRACE", help="the recorded run")
    add("--schedule", type=Path, metavar="FILE", help="the schedule to obey instead")
    add("--policy", metavar="P", help="or the policy to run instead (default: heatkv with a budget)")
    add("--budget", type=fraction, metavar="B", help="of the policy: peak of the cached tokens, of the history's")
    add("--orders", type=Path, metavar="FILE", help="of the policy: head orders, or a calibration")
    add("--sink-scales", type=whole, metavar="N", help="of the policy: first scales that are never evicted")
    options.codec_option(parser)
    run_options(parser)


def run_options(parser: argparse.ArgumentParser) -> None:
    """What `replay` and `apply` share."""
    add = parser.add_argument
    add("--mode", default="forced", metavar="M", help="forced: at the parent's bits; free: a new image (%(default)s)")
    add("-o", "--output", type=Path, metavar="FILE", help="the new trace (default: a new name in this folder)")
    options.device_option(parser)
    add("--threads", type=whole, metavar="N", help="CPU threads (default: torch's choice)")
    add("--overwrite", action="store_true", help="replace an output file that exists")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Run it, record it, and say what became of it beside what was estimated."""
    # Deferred: --help must not load numpy.
    from kvscope.plan import plan_job
    from kvscope.trace import Trace

    of_policy = [name for name in ("policy", "budget", "orders", "sink_scales") if getattr(args, name) is not None]
    if args.schedule is not None and of_policy:
        unread = ", ".join(f"--{name.replace('_', '-')}" for name in of_policy)
        raise UsageError(f"--schedule says all that {unread} would; give one or the other")
    if args.schedule is None and args.policy is None and args.budget is None:
        raise UsageError("replay under what? give --schedule FILE, or --policy P with --budget B")
    with Trace.open(args.trace) as parent:
        job = _job(args, parent.header.job)
    if args.kv_codec is not None:
        job = replace(job, kv_codec=args.kv_codec)
    job = options.on_device(args, job)
    sha256 = plan_job(job).schedule.content_hash
    return run_and_tell(args, job, args.trace, sha256, output_of(args, job, args.trace))


def _job(args: argparse.Namespace, recorded: Job) -> Job:
    if args.schedule is not None:
        return recorded.replayed(args.trace, args.schedule, args.mode)
    return recorded.replanned(
        args.trace,
        args.mode,
        policy=args.policy or "heatkv",
        budget=args.budget,
        orders=args.orders,
        sink_scales=args.sink_scales,
    )


def run_and_tell(args: argparse.Namespace, job: Job, parent: Path, schedule_sha256: str, out: Path) -> int:
    """Run a job that has a parent, record it to `out`, and print what became of it."""
    from kvscope.after import after
    from kvscope.progress import ProgressProbe
    from kvscope.runner import run_job
    from kvscope.trace import Trace

    made = run_job(job, out, overwrite=args.overwrite, threads=args.threads, narrate=narrate, progress=ProgressProbe())
    problem = made.problem()
    if problem is not None:
        raise OutputError(problem)
    with Trace.open(parent) as before, Trace.open(made.trace) as now:
        found = after(before, now, schedule_sha256)
    print_data(json.dumps(found.to_json(), indent=2, allow_nan=False) if args.json else after_text(found))
    return 0


def output_of(args: argparse.Namespace, job: Job, parent: Path) -> Path:
    """Where the new trace goes. Raises OutputError if that is the parent's place, or cannot be written."""
    from heatkv.files import is_same_file
    from kvscope.writer import check_output

    out: Path = args.output or options.default_output(job.model, f"{job.mode}-replay")
    if is_same_file(out, parent):
        raise OutputError(f"{out}: is the recorded run itself; choose another name")
    check_output(out, overwrite=args.overwrite)
    return out


def after_text(found: After) -> str:
    """What was estimated, and what was measured or forced, a line each."""
    exact = f"{found.steps_as_estimated} of {found.steps_compared} steps took exactly the estimated bytes"
    obeyed = "as asked for" if found.as_planned else "NOT the one asked for"
    guess = f"est. {bytes_text(found.estimated_peak_bytes)}"
    taken = f"accounted {bytes_text(found.accounted_peak_bytes)}, stored {bytes_text(found.storage_peak_bytes)}"
    lines = [
        f"trace           {printable(found.trace)}",
        f"schedule        {found.schedule_sha256[:12]}, {obeyed}",
        f"peak            {guess}, {taken}; {exact}",
        f"attention lost  est. {fraction_text(found.lost, absent=_unknown(found))}",
    ]
    if found.kl is not None:
        scales = "  ".join(f"{value:.2g}" for value in found.kl_by_scale)
        layers = "  ".join(f"{value:.2g}" for value in found.attention_error_by_layer)
        lines += [
            f"KL              forced {found.kl:.4g} nats per bit; by scale  {scales}",
            f"bits that flip  forced {fraction_text(found.flips)}",
            f"attention error forced, by layer  {layers}",
        ]
    return "\n".join(lines)


def _unknown(found: After) -> str:
    return "unknown" if found.why_no_lost is None else f"unknown: {found.why_no_lost}"
