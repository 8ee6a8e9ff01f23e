"""`kvscope apply`: run a reviewed plan: in a new process, or in one that stays; stale plans are refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from kvscope.commands import replay
from kvscope.narration import narrate, print_data

if TYPE_CHECKING:
    from kvscope.planfile import PlanFile


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("plan", type=Path, metavar="PLAN", help="a plan file made by `kvscope plan --save-plan`")
    add("--check", action="store_true", help="only say whether it is stale")
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
    plan.check()
    narrate(f"plan {args.plan}: {plan.changed_head_scales:,} head-scales change")
    for line in plan_text(plan).splitlines():
        narrate(line)
    return _applied(args, plan)


def _applied(args: argparse.Namespace, plan: PlanFile) -> int:
    # Beside the plan, not in a temporary place: the trace's job names it, and can be repeated.
    schedule = plan.schedule_beside(args.plan)
    parent = Path(plan.parent)
    job = plan.job.replayed(parent, schedule, args.mode)
    return replay.run_and_tell(args, job, parent, plan.schedule.content_hash)


def _check(args: argparse.Namespace, plan: PlanFile) -> int:
    if args.json:
        stale = plan.stale()
        print_data(json.dumps({"stale": bool(stale), "changed": stale}, indent=2))
    plan.check()
    if not args.json:
        print_data("not stale: trace, orders and model are those that the plan was made from")
    return 0
