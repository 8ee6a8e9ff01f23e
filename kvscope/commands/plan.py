"""`kvscope plan`: a schedule for a budget; or a script of edits on a recorded run's schedule, or on a schedule file."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvscope import options
from kvscope.errors import UsageError
from kvscope.narration import narrate, print_data, print_json
from kvscope.units import bytes_text, fraction_text, head_tokens_text, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from heatkv.schedule import PruningSchedule
    from kvscope.draft import Draft, Ground
    from kvscope.estimate import Estimate
    from kvscope.fidelity import Fidelity
    from kvscope.journal import History
    from kvscope.planfile import PlanFile, Totals
    from kvscope.trace import Trace


def add_options(parser: argparse.ArgumentParser) -> None:
    options.model_options(parser)
    options.policy_options(parser)
    options.output_options(parser)
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="FILE", help="write the schedule here (JSON)")
    add(
        "--from", dest="start", type=Path, metavar="FILE", help="edit the schedule of this trace, or this schedule file"
    )
    add("--script", type=Path, metavar="FILE", help="a file of edits, one a line (see docs/tuning.md)")
    add("--edit", action="append", default=[], metavar="LINE", help="an edit, as 'drop l12 h3 s5'; may be repeated")
    add("--fidelity", type=Path, metavar="FILE", help="predict errors with what `kvscope fidelity` learnt")
    add("--official", type=Path, metavar="DIR", help="also write the schedule as the reference's orders, if it can be")
    add("--save-plan", type=Path, metavar="FILE", help="write the change for review, and for `kvscope apply`")


def run(args: argparse.Namespace) -> int:
    """Plan a schedule, or edit one; loads no model."""
    is_edit = args.start is not None or args.script is not None or args.edit
    return _edit(args) if is_edit else _plan(args)


def _plan(args: argparse.Namespace) -> int:
    # Deferred, here and below: --help must load neither numpy nor h5py.
    from kvscope.plan import plan_job, summarize_plan
    from kvscope.report import plan_text

    if args.save_plan is not None:
        raise UsageError("--save-plan is of a change to a recorded run; give --from TRACE, and --script or --edit")
    job = options.job_of(args)
    planned = plan_job(job)
    summary = summarize_plan(planned, dtype=job.dtype, rows=1 if job.cfg == 1 else 2)
    _check_outputs(args)
    _save_official(args, planned.schedule)
    if args.output is not None:
        planned.schedule.save(args.output, overwrite=args.overwrite)
    if args.json:
        print_json(summary.to_json() | {"schedule": None if args.output is None else str(args.output)})
    else:
        print_data(plan_text(summary))
    if args.output is not None:
        narrate(f"schedule written to {args.output}")
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Raises OutputError if a file that is asked for could not be written; nothing is written yet."""
    from heatkv.files import check_new
    from kvscope.official import check_official_schedule

    for path in (args.output, args.save_plan):
        if path is not None:
            check_new(path, overwrite=args.overwrite)
    if args.official is not None:
        check_official_schedule(args.official, overwrite=args.overwrite)


def _save_official(args: argparse.Namespace, schedule: PruningSchedule) -> None:
    """Write --official, if it is asked for, and say how to plan from it. Raises ScheduleError if it cannot hold it."""
    if args.official is None:
        return
    from kvscope.official import save_official_schedule

    path, budget = save_official_schedule(schedule, args.official, overwrite=args.overwrite)
    scales = schedule.scales
    size = "" if scales.resolution == "native" else f" --resolution {scales.resolution} --aspect {scales.aspect:g}"
    again = f"--model {schedule.model}{size} --orders {path} --sink-scales {schedule.sink_scales} --budget {budget!r}"
    narrate(f"orders written to {path}; `kvscope plan {again}` gives the same schedule")


@dataclass(frozen=True, slots=True)
class _Start:
    """What is edited."""

    draft: Draft
    trace: Trace | None


def _edit(args: argparse.Namespace) -> int:
    """Edit a schedule; print what it comes to; write what was asked for."""
    from kvscope.journal import replayed

    if args.start is None:
        raise UsageError("--script and --edit change a schedule; say which one: --from TRACE, or --from SCHEDULE")
    if not args.script and not args.edit:
        raise UsageError("--from is read for edits only; give --script FILE or --edit LINE")
    _check_outputs(args)
    lines = [*_script(args.script), *args.edit]
    start = _start(args)
    try:
        history = replayed(start.draft, lines, source=str(args.script or "--edit"))
        return _finish(args, start, history)
    finally:
        if start.trace is not None:
            start.trace.close()


def _finish(args: argparse.Namespace, start: _Start, history: History) -> int:
    draft = history.draft
    if draft.problem is None:
        _save_official(args, draft.schedule)
    if args.output is not None and draft.problem is None:
        draft.schedule.save(args.output, overwrite=args.overwrite)
        narrate(f"schedule written to {args.output}")
    plan = None
    if start.trace is not None and draft.problem is None:
        plan = _plan_file(args, start.trace, history)
    if args.save_plan is not None:
        if plan is None:
            why = draft.problem.text if draft.problem else "a plan changes a recorded run; give --from TRACE"
            raise UsageError(f"no plan to save: {why}")
        plan.save(args.save_plan, overwrite=args.overwrite)
        narrate(f"plan written to {args.save_plan}; `kvscope apply {args.save_plan}` runs it")
    if args.json:
        print_data(json.dumps(_record(draft, plan), indent=2, allow_nan=False))
    else:
        print_data(plan_text(plan) if plan is not None else draft_text(draft))
    if draft.problem is not None:
        raise UsageError(f"the edits leave a problem: {draft.problem.text}")
    return 0


def _script(path: Path | None) -> list[str]:
    if path is None:
        return []
    from heatkv.files import read_text

    return read_text(path, expected="a file of edits", error=UsageError).splitlines()


def _start(args: argparse.Namespace) -> _Start:
    from heatkv.schedule import PruningSchedule
    from kvscope.draft import Draft, ground_of, measured_by
    from kvscope.trace import Trace

    if args.start.suffix == ".json":
        schedule = PruningSchedule.load(args.start)
        return _Start(Draft.of(schedule, _ground(schedule, args)), None)
    trace = Trace.open(args.start)
    ground = ground_of(trace.header, trace.attention_mass)
    if args.orders is not None:
        measured = measured_by(args.orders, ground.config, ground.scales, trace.attention_mass)
        ground = replace(ground, orders=_orders(args.orders, ground), measurements=measured)
    return _Start(Draft.of(trace.schedule, ground), trace)


def _ground(schedule: Any, args: argparse.Namespace) -> Ground:  # Any: PruningSchedule, not known before it is needed
    from heatkv.bundled import bundled_orders
    from heatkv.config import model_config
    from kvscope.draft import Ground
    from kvscope.job import DTYPE_BYTES

    config = model_config(schedule.model)
    rows = 1 if args.cfg == 1 else 2
    dtype_bytes = DTYPE_BYTES[args.dtype]
    per_token = config.kv_bytes_per_token(dtype_bytes=dtype_bytes, rows=rows)
    ground = Ground(config, schedule.scales, per_token, dtype_bytes=dtype_bytes)
    orders = args.orders or bundled_orders(config)
    return ground if orders is None else replace(ground, orders=_orders(orders, ground))


def _orders(path: Path, ground: Ground) -> Any:  # Any: HeadOrders
    from kvscope.plan import load_orders

    return load_orders(path, ground.config)


def _fidelity(args: argparse.Namespace) -> Fidelity | None:
    from kvscope.fidelity import Fidelity

    return None if args.fidelity is None else Fidelity.load(args.fidelity)


def _plan_file(args: argparse.Namespace, trace: Trace, history: History) -> PlanFile:
    from kvscope.estimate import estimate
    from kvscope.planfile import plan_file

    draft = history.draft
    before = estimate(trace, draft.start)
    after: Estimate = estimate(trace, draft.schedule, limit_tokens=draft.limit_tokens)
    job = replace(trace.header.job, parent=str(args.start), mode="free", schedule=None, policy=draft.schedule.policy)
    edits = [edit.text for edit in history.edits[: history.at]]
    return plan_file(
        trace, draft, edits, after=after, before=before, job=job, orders=args.orders, fidelity=_fidelity(args)
    )


def plan_text(plan: PlanFile) -> str:
    """A plan for a person to review: totals before and after, and the edits."""
    known = " of what is known" if plan.unknown_cells else ""
    rows = [
        ("", "before", "after (est.)"),
        ("policy", plan.before.policy, plan.after.policy),
        ("budget", fraction_text(plan.before.budget, absent="none"), fraction_text(plan.after.budget, absent="none")),
        ("peak", bytes_text(plan.before.peak_bytes), bytes_text(plan.after.peak_bytes)),
        ("", head_tokens_text(plan.before.peak_tokens), head_tokens_text(plan.after.peak_tokens)),
        ("at", _place(plan.before), _place(plan.after)),
        ("attention lost", _share(plan.before.lost), _share(plan.after.lost) + known),
        ("KL, nats per bit", _band(plan.before.kl), _band(plan.after.kl)),
        ("bits that flip", _band(plan.before.flips, fraction_text), _band(plan.after.flips, fraction_text)),
        ("schedule", plan.before.schedule_sha256[:12], plan.after.schedule_sha256[:12]),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.append(f"{plan.changed_head_scales:,} head-scales change")
    if plan.unknown_cells:
        lines.append(f"estimate only: the parent never attended to {plan.unknown_cells:,} of what is now read")
    if plan.after.is_coarse:
        share = fraction_text(plan.after.coarse_share)
        lines.append(f"no error is predicted: {share} of the loss is what coarser codecs lose; replay it, forced")
    return "\n".join([*lines, *(f"  {printable(edit)}" for edit in plan.edits)])


def draft_text(draft: Draft) -> str:
    """A schedule that no recorded run stands behind."""
    schedule = draft.schedule
    peak = schedule.peak_tokens
    return "\n".join(
        [
            f"policy          {schedule.policy}",
            f"budget          {fraction_text(draft.budget, absent='none')}",
            f"peak (est.)     {bytes_text(draft.ground.peak_bytes(schedule))}, {head_tokens_text(peak)}",
            f"by hand         {draft.num_pins:,}",
            f"schedule        {schedule.content_hash[:12]}",
        ]
    )


def _place(totals: Totals) -> str:
    return f"scale {totals.peak_query_scale}, layer {totals.peak_layer}"


def _share(lost: float | None) -> str:
    return fraction_text(lost, absent="unknown")


def _band(band: tuple[float, float, float] | None, text: Callable[[float], str] = "{:.3g}".format) -> str:
    return "unknown" if band is None else f"{text(band[1])} ({text(band[0])} to {text(band[2])})"


def _record(draft: Draft, plan: PlanFile | None) -> dict[str, Any]:  # Any: JSON values
    problem = None if draft.problem is None else {"text": draft.problem.text, "minimum_budget": draft.problem.minimum}
    record: dict[str, Any] = {
        "problem": problem,
        "schedule_sha256": draft.schedule.content_hash,
        "policy": draft.schedule.policy,
        "budget": draft.budget,
        "pins": draft.num_pins,
        "peak_tokens": draft.schedule.peak_tokens,
        "peak_bytes": draft.ground.peak_bytes(draft.schedule),
        "tag": "estimated",
    }
    if plan is not None:
        facts = plan.to_json()
        record |= {name: facts[name] for name in ("before", "after", "changed_head_scales", "unknown_cells", "edits")}
    return record
