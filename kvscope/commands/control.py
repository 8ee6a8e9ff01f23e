"""`kvscope control`: what a viewer can ask of a running run, from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvscope import options
from kvscope.arguments import Verb, add_verbs
from kvscope.narration import print_data
from kvscope.units import printable, scales_text

if TYPE_CHECKING:
    from kvscope.control.client import Found
    from kvscope.control.protocol import Progress
    from kvscope.job import Job

TARGET_HELP = "a live trace, the number of its process, or a socket (default: the only run there is)"

_JOB_FILES = ("weights", "orders", "schedule", "parent")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_verbs(parser, VERBS)


def run(args: argparse.Namespace) -> int:
    """Run one verb; returns the exit code."""
    return VERBS[args.verb].run(args)


def target_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", metavar="TARGET", help=TARGET_HELP)
    options.json_option(parser)


def submit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", metavar="TARGET", help=TARGET_HELP)
    options.job_options(parser)
    options.made_options(parser)


def run_list(args: argparse.Namespace) -> int:
    """Print a line for every run of this user that lives."""
    # Deferred, here and below: --help needs no sockets.
    from kvscope.control.client import live_runs
    from kvscope.control.targets import run_record

    runs = live_runs()
    if args.json:
        _print_json({"runs": [run_record(one) for one in runs]})
    elif runs:
        _print_lines([_line(one) for one in runs])
    else:
        print_data("no run of yours can be controlled now")
    return 0


def run_status(args: argparse.Namespace) -> int:
    """Print how a run stands."""
    from kvscope.control.targets import find_target

    answer = find_target(args.target).ask()
    if args.json:
        record = answer.progress.to_json() | {"pid": answer.welcome.pid, "commands": list(answer.welcome.commands)}
        del record["kind"]
        _print_json(record)
    else:
        _print_lines([f"{answer.welcome.pid:>7}  {_state_text(answer.progress)}"])
    return 0


def run_request(args: argparse.Namespace) -> int:
    """Pause, resume, step or stop a run."""
    return _ask(args, args.verb)


def revise_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", metavar="TARGET", help=TARGET_HELP)
    parser.add_argument("--schedule", type=Path, required=True, metavar="FILE", help="the schedule to go on with")
    options.json_option(parser)


def run_revise(args: argparse.Namespace) -> int:
    """Let a run go on with another schedule."""
    # Deferred: numpy.
    from heatkv.schedule import PruningSchedule

    sha256 = PruningSchedule.load(args.schedule).content_hash
    return _ask(args, "revise", schedule=os.path.abspath(args.schedule), sha256=sha256)  # noqa: PTH100 - a link stays


def run_submit(args: argparse.Namespace) -> int:
    """Hand a job to a process that stays."""
    job = options.job_of(args)
    out = args.output or options.default_output(job.model, job.policy)
    return _ask(
        args,
        "submit",
        job=_with_whole_paths(job).to_json(),
        trace=os.path.abspath(out),  # noqa: PTH100 - a link stays a link
        overwrite=args.overwrite,
        image=None if args.image is None else os.path.abspath(args.image),  # noqa: PTH100
        trace_filter=args.trace_filter,
    )


VERBS: dict[str, Verb] = {
    "list": Verb(run_list, options.json_option, "list your runs that live", "kvscope control list"),
    "status": Verb(run_status, target_options, "print how a run stands", "kvscope control status run.h5 --json"),
    "pause": Verb(run_request, target_options, "hold a run after the current scale", "kvscope control pause run.h5"),
    "resume": Verb(run_request, target_options, "let a held run go on", "kvscope control resume run.h5"),
    "step": Verb(
        run_request,
        target_options,
        "hold a run after the next scale; one that is held computes one scale",
        "kvscope control step 4711",
    ),
    "stop": Verb(
        run_request,
        target_options,
        "end a run after the current scale, without a picture; a process that waits for a job ends",
        "kvscope control stop run.h5",
    ),
    "revise": Verb(
        run_revise,
        revise_options,
        "go on with another schedule from the next scale on; what has left the cache cannot come back",
        "kvscope control revise run.h5 --schedule edited.json",
    ),
    "submit": Verb(
        run_submit,
        submit_options,
        "hand a job to a process of `kvscope run --keep`; its trace is the output",
        "kvscope control submit 4711 --budget 0.1 -o next.h5",
    ),
}
"""Every verb by name."""


def _ask(args: argparse.Namespace, kind: str, **fields: Any) -> int:  # Any: JSON values
    """Send one request; raises ControlError if it is refused."""
    from kvscope.control.protocol import Refused
    from kvscope.control.targets import find_target
    from kvscope.errors import ControlError

    answer = find_target(args.target).ask(kind, **fields)
    reply = answer.reply
    if reply is None or isinstance(reply, Refused):
        raise ControlError(
            f"process {answer.welcome.pid} refused: {'no reason given' if reply is None else reply.reason}"
        )
    trace = fields.get("trace", answer.progress.trace)
    if args.json:
        _print_json({"request": kind, "pid": answer.welcome.pid, "message": reply.message, "trace": trace})
    else:
        _print_lines([f"process {answer.welcome.pid}: {reply.message}"])
    return 0


def _with_whole_paths(job: Job) -> Job:
    """The job with paths that mean the same in another folder."""
    named = {name: getattr(job, name) for name in _JOB_FILES}
    whole = {name: os.path.abspath(path) for name, path in named.items() if path is not None}  # noqa: PTH100
    return dataclasses.replace(job, **whole)


def _line(run: Found) -> str:
    if run.answer is None:
        return f"{run.pid:>7}  silent    {run.problem}"
    return f"{run.pid:>7}  {_state_text(run.answer.progress)}"


def _state_text(progress: Progress) -> str:
    scales = scales_text(progress.scales_done, progress.num_scales) if progress.num_scales else "no scale yet"
    if progress.state == "idle":
        scales = f"{progress.waiting} jobs wait"
    words = f" ({progress.message})" if progress.message else ""
    return f"{progress.state:<8}  {scales:<15}  {progress.trace}{words}"


def _print_lines(lines: list[str]) -> None:
    print_data("\n".join(map(printable, lines)))


def _print_json(record: dict[str, Any]) -> None:  # Any: a JSON object
    print_data(json.dumps(record, indent=2, allow_nan=False))


def trace_of(named: str | None) -> tuple[Path, int, bool]:
    """(the trace that a run is at, its process, whether the trace is there yet). Raises ControlError."""
    from kvscope.control.targets import find_target
    from kvscope.errors import ControlError

    answer = find_target(named).ask()
    if not answer.progress.trace:
        raise ControlError(f"process {answer.welcome.pid} has no trace yet; try again in a moment")
    path = Path(answer.progress.trace)
    return path, answer.welcome.pid, path.exists()
