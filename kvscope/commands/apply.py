"""`kvscope apply`: run a reviewed plan: in a new process, or in one that stays; stale plans are refused."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kvscope.commands import replay
from kvscope.errors import UsageError
from kvscope.narration import print_data

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
    replay._say(f"plan {args.plan}: {plan.changed_head_scales:,} head-scales change")
    for line in plan_text(plan).splitlines():
        replay._say(line)
    return _applied(args, plan)


def _applied(args: argparse.Namespace, plan: PlanFile) -> int:
    with tempfile.TemporaryDirectory(prefix="kvscope-") as folder:
        schedule = plan.schedule.save(Path(folder) / "schedule.json")
        job = replay.replayed_job(plan.job, Path(plan.parent), schedule, args.mode)
        return replay.run_and_tell(args, job, Path(plan.parent), plan.schedule.content_hash)


def _check(args: argparse.Namespace, plan: PlanFile) -> int:
    stale = plan.stale()
    if args.json:
        print_data(json.dumps({"stale": bool(stale), "changed": stale}, indent=2))
    elif not stale:
        print_data("not stale: trace, orders and model are those that the plan was made from")
    if stale:
        raise UsageError(f"the plan is stale: {'; '.join(stale)}; review the change anew and save another plan")
    return 0
