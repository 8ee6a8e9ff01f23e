"""`kvscope apply`: run a reviewed plan, or let the run that it was made from go on with it; stale ones are refused."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kvscope import options
from kvscope.commands import replay
from kvscope.narration import narrate, print_data

if TYPE_CHECKING:
    from kvscope.control.targets import Target
    from kvscope.job import Job
    from kvscope.planfile import PlanFile
    from kvscope.trace import Trace

_LOOK_S = 0.1


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("plan", type=Path, metavar="PLAN", help="a plan file made by `kvscope plan --save-plan`")
    add("--check", action="store_true", help="only say whether it is stale")
    add(
        "--revise",
        action="store_true",
        help="let the parent's own run, which is under way, go on with it from the next scale on",
    )
    replay.run_options(parser)
    parser.set_defaults(mode="free")


def run(args: argparse.Namespace) -> int:
    """Check the plan, run exactly its schedule, read back what the run obeyed."""
    # Deferred: --help must not load numpy.
    from kvscope.commands.plan import plan_text
    from kvscope.planfile import PlanFile

    plan = PlanFile.load(args.plan)
    if args.check:
        return _check(args, plan)
    if args.revise:
        return _revise(args, plan)
    plan.check()
    parent = Path(plan.parent)
    job = options.on_device(args, plan.job.replayed(parent, plan.schedule_path(args.plan), args.mode))
    out = replay.output_of(args, job, parent)
    narrate(f"plan {args.plan}: {plan.changed_head_scales:,} head-scales change")
    for line in plan_text(plan).splitlines():
        narrate(line)
    return _applied(args, plan, job, out)


def _applied(args: argparse.Namespace, plan: PlanFile, job: Job, out: Path) -> int:
    # Beside the plan, not in a temporary place: the trace's job names it, and can be repeated.
    was_there = plan.schedule_path(args.plan).exists()
    schedule = plan.schedule_beside(args.plan)
    try:
        return replay.run_and_tell(args, job, Path(plan.parent), plan.schedule.content_hash, out)
    finally:
        if not was_there and not out.exists():  # nothing was recorded that could name it
            schedule.unlink(missing_ok=True)


def _revise(args: argparse.Namespace, plan: PlanFile) -> int:
    """Hand the plan to the run that it was made from; wait until its trace says that it obeys."""
    # Deferred, as in run; and sockets.
    from kvscope.control.protocol import Refused
    from kvscope.control.targets import find_target
    from kvscope.errors import ControlError
    from kvscope.trace import Trace

    with Trace.open(Path(plan.parent)) as trace:
        plan.check_revision(trace)
        target = find_target(plan.parent)
        schedule, sha256 = plan.schedule_beside(args.plan).absolute(), plan.schedule.content_hash
        reply = target.ask("revise", schedule=str(schedule), sha256=sha256).reply
        if reply is None or isinstance(reply, Refused):
            raise ControlError(f"the run refused: {'no reason given' if reply is None else reply.reason}")
        narrate(reply.message)
        words = _read_back(trace, target, sha256)
    facts = {"message": reply.message, "schedule_sha256": sha256, "read_back": words}
    print_data(json.dumps(facts, indent=2) if args.json else f"{plan.parent}: {words}")
    return 0


def _read_back(trace: Trace, target: Target, sha256: str) -> str:
    """What the run's trace says, as soon as a scale is done under the plan; of a held run, that it waits."""
    while True:
        trace.refresh()
        obeyed = [one for one in trace.plans if one.asked_sha256 == sha256]
        if obeyed:
            return f"obeys the plan from scale {obeyed[-1].query_scale} on, as its trace says"
        if trace.status != "live":
            return f"ended ({trace.status}) before it was in force"
        if target.ask().progress.state == "paused":
            return "is paused, and obeys the plan as soon as it goes on (kvscope control resume)"
        time.sleep(_LOOK_S)


def _check(args: argparse.Namespace, plan: PlanFile) -> int:
    if args.json:
        stale = plan.stale()
        print_data(json.dumps({"stale": bool(stale), "changed": stale}, indent=2))
    plan.check()
    if not args.json:
        print_data("not stale: trace, orders and model are those that the plan was made from")
    return 0
