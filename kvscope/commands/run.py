"""`kvscope run`: generate one image under a policy and record it; alone, beside the viewer, or waiting for more."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kvscope import options
from kvscope.commands.stats import report
from kvscope.errors import NoTerminalError, OutputError, UsageError
from kvscope.narration import has_terminal, narrate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvscope.control.gate import Gate
    from kvscope.live import Launched
    from kvscope.resident import Task
    from kvscope.runner import Load, Made


def add_options(parser: argparse.ArgumentParser) -> None:
    options.job_options(parser)
    options.threads_option(parser)
    options.made_options(parser)
    add = parser.add_argument
    add("--open", action="store_true", help="watch the run on the screen, from its first moment")
    add("--keep", action="store_true", help="stay when the job has ended, and take others (kvscope control submit)")
    options.keymap_option(parser)


def run(args: argparse.Namespace) -> int:
    """Generate one image under a cache policy and record it."""
    from kvscope.resident import Task

    if args.keymap is not None and not args.open:
        raise UsageError("--keymap is of the viewer; give --open too")
    job = options.job_of(args)
    out = args.output or options.default_output(job.model, job.policy)
    task = Task(job, out, args.overwrite, args.image, args.trace_filter)
    task.check_image()
    if args.open:
        return _run_and_open(args, task)
    if args.keep:
        return _stay(args, task)
    return report_made(run_alone(args, task), as_json=args.json)


def run_alone(args: argparse.Namespace, task: Task) -> Made:
    """Run one task in a process that ends with it."""
    from kvscope.control.gate import Gate
    from kvscope.control.server import served

    gate = Gate()
    with served(gate, narrate) as socket:
        return _run_task(args, task, gate, socket)


def report_made(made: Made, *, as_json: bool) -> int:
    """The summary of a run's own trace; an error where that is gone, or ends before the run did."""
    problem = made.problem()
    if problem is not None and not made.is_ours():
        raise OutputError(problem)
    code = report(made.trace, as_json=as_json)
    if problem is not None:
        narrate(f"error: {problem}")
        return OutputError.exit_code
    return code


def check_keymap(args: argparse.Namespace) -> None:
    """Raises UsageError now for a keymap that the viewer would refuse after the run."""
    from kvscope.tui.keymap import read_keymap

    read_keymap(args.keymap)


def _run_and_open(args: argparse.Namespace, task: Task) -> int:
    from kvscope.live import run_and_open
    from kvscope.tui.app import run_app

    if not has_terminal():
        raise NoTerminalError("there is no terminal to draw on; run without --open")
    if args.json:
        raise UsageError("--open draws on the terminal and --json prints on it; give one or the other")
    # What can be refused is refused here, where it is seen, before a second process starts.
    check_keymap(args)
    task.check()
    if args.overwrite:
        task.trace.unlink(missing_ok=True)
    arguments = [argument for argument in args.arguments if argument != "--open"]
    if args.output is None:
        arguments += ["--output", str(task.trace)]

    def show(path: Path, launched: Launched) -> int:
        return run_app(path, launched=launched, keymap=args.keymap)

    return run_and_open(arguments, task.trace, narrate=narrate, show=show)


def _stay(args: argparse.Namespace, task: Task) -> int:
    """Run this task and those that are submitted, until the process is ended."""
    from kvscope.control.gate import Gate
    from kvscope.control.server import served
    from kvscope.resident import check_submitted, stay
    from kvscope.runner import KeptWeights

    task.check()
    gate, weights = Gate(check=check_submitted), KeptWeights()
    with served(gate, narrate) as socket:

        def run(one: Task) -> int:
            return report_made(_run_task(args, one, gate, socket, load=weights.load), as_json=args.json)

        if socket is None:  # nobody could ever ask for more
            return run(task)
        stay(task, run, gate, narrate)
    return 0


def _run_task(
    args: argparse.Namespace, task: Task, gate: Gate, socket: str | None, *, load: Load | None = None
) -> Made:
    """The run itself, told of on stderr; and its picture, if that is wanted."""
    from kvscope.progress import ProgressProbe
    from kvscope.runner import run_job

    progress = ProgressProbe()

    def say(text: str) -> None:
        progress.abandon()
        narrate(text)

    try:
        made = run_job(
            task.job,
            task.trace,
            overwrite=task.overwrite,
            threads=args.threads,
            narrate=say,
            progress=progress,
            trace_filter=task.trace_filter,
            gate=gate,
            control_socket=socket,
            load=load,
        )
    except BaseException:
        progress.abandon()
        raise
    if task.image is not None:
        _write_image(task.image, made.image, overwrite=task.overwrite)
    return made


def _write_image(path: Path, rgb: NDArray[np.uint8], *, overwrite: bool) -> None:
    from heatkv.files import write_new
    from kvscope.png import png_bytes

    narrate(f"picture written to {write_new(path, png_bytes(rgb), overwrite=overwrite)}")
