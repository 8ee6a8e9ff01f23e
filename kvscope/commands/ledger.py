"""kvscope ledger: where the memory went. Of a trace: measured beside predicted; of a plan: predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kvscope import options
from kvscope.arguments import whole
from kvscope.errors import UsageError
from kvscope.narration import print_data

if TYPE_CHECKING:
    import argparse

    from kvscope.ledger import Ledger

_PLANNED_BY = ("resolution", "policy", "budget", "orders", "schedule", "sink_scales", "kv_codec", "cfg")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("trace", nargs="?", type=Path, help="a trace file (.h5)")
    add("--scale", type=whole, metavar="N", help="of this scale only (default: of the whole run)")
    add(
        "--plan",
        nargs="?",
        const=True,
        metavar="SCHEDULE",
        help="read no trace, but predict: of this schedule file, or of what the options below say (not needed beside "
        "--policy or --budget)",
    )
    add("--device", metavar="D", help="where a plan would run: cpu or cuda (default: cpu)")
    options.model_options(parser)
    options.policy_options(parser)
    add("--explain", action="store_true", help="say also what each line is, and where its numbers come from")
    options.json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the ledger."""
    if args.device not in (None, "cpu", "cuda"):
        raise UsageError(f"--device {args.device}; expected cpu or cuda")
    if args.trace is None and args.plan is None and (args.policy is not None or args.budget is not None):
        args.plan = True
    if (args.trace is None) == (args.plan is None):
        raise UsageError("give a trace, or --plan with a schedule file or the options of `kvscope plan`; one of them")
    ledger = _planned(args) if args.trace is None else _recorded(args)
    if args.scale is not None and not 0 <= args.scale < len(ledger.scales):
        raise UsageError(f"--scale {args.scale}; there are {len(ledger.scales)} scales, from 0")
    if args.json:
        record = ledger.to_json()
        if args.scale is not None:
            record["scales"] = [record["scales"][args.scale]]
        print_data(json.dumps(record, indent=2, allow_nan=False))
        return 0
    # Deferred, as everything that only a command that runs needs.
    from kvscope.ledger_report import ledger_text

    print_data(ledger_text(ledger, args.scale, explain=args.explain))
    return 0


def _recorded(args: argparse.Namespace) -> Ledger:
    # Deferred: numpy and h5py.
    from kvscope.ledger import measure
    from kvscope.trace import Trace

    _refuse_unread(args, f"{args.trace}")
    unread = ["--device"] * (args.device is not None) + ["--dtype"] * (args.dtype != options.DEFAULT_DTYPE)
    if unread:
        raise UsageError(f"{args.trace} says what {' and '.join(unread)} would; leave that out")
    with Trace.open(args.trace) as trace:
        return measure(trace)


def _planned(args: argparse.Namespace) -> Ledger:
    # Deferred: numpy.
    from heatkv.codecs import MODEL
    from heatkv.config import model_config
    from heatkv.schedule import PruningSchedule
    from kvscope.job import DTYPE_BYTES, Job
    from kvscope.ledger import predict
    from kvscope.plan import plan_job

    config = model_config(args.model)
    guidance = config.cfg if args.cfg is None else args.cfg
    job = Job(
        prompt="",
        model=config.name,
        policy=args.policy or ("full" if args.budget is None else "heatkv"),
        resolution=args.resolution,
        aspect=args.aspect,
        budget=args.budget,
        orders=None if args.orders is None else str(args.orders),
        schedule=None if args.schedule is None else str(args.schedule),
        sink_scales=args.sink_scales,
        kv_codec=args.kv_codec or MODEL,
        cfg=guidance,
        dtype=args.dtype,
    )
    if args.plan is True:
        schedule = plan_job(job).schedule
    else:
        _refuse_unread(args, f"--plan {args.plan}")
        schedule = PruningSchedule.load(args.plan)
        config = model_config(schedule.model)
        schedule.validate(config, schedule.scales)
    device = args.device or "cpu"
    return predict(schedule, config, 1 if guidance == 1 else 2, DTYPE_BYTES[job.dtype], device=device)


def _refuse_unread(args: argparse.Namespace, source: str) -> None:
    """Raises UsageError for options that would be read by nobody, because a file says it all."""
    unread = [f"--{name.replace('_', '-')}" for name in _PLANNED_BY if getattr(args, name) is not None]
    if args.plan is not None:
        unread = [name for name in unread if name != "--cfg"]  # a schedule file does not say how many rows there are
    if unread:
        raise UsageError(f"{source} says all that {', '.join(unread)} would; give one or the other")
