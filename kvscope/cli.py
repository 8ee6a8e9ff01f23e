"""The command line: a table of commands, each a thin function. stdout is data, stderr is narration.

`--help` and `--version` import neither numpy nor textual nor torch, so every command imports what it needs itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from heatkv.errors import HeatKVError
from kvscope import options
from kvscope.arguments import check_outputs
from kvscope.commands import (
    apply,
    attach,
    capacity,
    compare,
    control,
    export,
    fidelity,
    keys,
    league,
    ledger,
    plan,
    policies,
    replay,
    runs,
    screen,
    trace,
    tune,
)
from kvscope.errors import KVScopeError, NoTerminalError, OutputError, RunStopped, UsageError
from kvscope.narration import Narration, drop_stdout, narrate, print_data
from kvscope.stops import Stops, forget_interrupt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvscope.control.gate import Gate
    from kvscope.live import Launched
    from kvscope.resident import Task
    from kvscope.runner import Load, Made

EXIT_CODES = {
    0: "done",
    1: "a bug in kvscope, or an error of no other kind",
    2: "options, names, orders or a schedule that make no sense",
    3: "a budget that cannot be met",
    4: "weights that are missing, damaged or of another architecture",
    5: "a file that is not a readable trace",
    6: "an output that exists, cannot be written, or was lost during the run",
    7: "no terminal to draw on",
    8: "a trace that is readable but breaks its own rules",
    9: "a condition of compare's --fail-if holds",
    10: "no such run lives, or it refused what it was asked",
    130: "stopped by Ctrl-C, SIGTERM or SIGHUP, or by a viewer",
}

_CANCELLED = 130
_DEMO_BUDGET = 0.2
_DEMO_SEED = 7
"""That of the recordings in traces/, so that they compare."""
_PLANNED_BY = ("policy", "budget", "orders", "sink_scales")

Run = Callable[[argparse.Namespace], int]


@dataclass(frozen=True, slots=True)
class Command:
    """One row of COMMANDS."""

    run: Run
    add_options: Callable[[argparse.ArgumentParser], None]
    help: str
    example: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        return _welcome()
    args = _parser().parse_args(arguments)
    args.arguments = arguments
    stops = Stops()
    stderr, sys.stderr = sys.stderr, Narration(sys.stderr)
    try:
        stops.listen()
        return _run_one(args, stops)
    except KeyboardInterrupt:
        forget_interrupt()
        narrate("stopped")
        return _CANCELLED
    finally:
        sys.stderr = stderr


def _run_one(args: argparse.Namespace, stops: Stops) -> int:
    """Run the command; returns its exit code. KeyboardInterrupt is passed on, whenever it comes."""
    try:
        check_outputs(args)
        return COMMANDS[args.command].run(args)
    except RunStopped as stop:  # the gate has said so
        return stop.exit_code
    except (KVScopeError, HeatKVError) as error:
        narrate(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone, as in `kvscope stats FILE | head`: it has what it wanted.
        drop_stdout()
        return 0
    finally:
        stops.end()


def _welcome() -> int:
    """Without a command: the viewer, with traces to choose from; without a terminal, how to give one."""
    if not _has_terminal():
        _parser().print_help(sys.stderr)
        return UsageError.exit_code
    # Deferred: --help must not load textual.
    from kvscope.tui.app import run_app

    try:
        return run_app(None)
    except KVScopeError as error:
        narrate(f"error: {error}")
        return error.exit_code


def run_command(args: argparse.Namespace) -> int:
    """Generate one image under a cache policy and record it."""
    from kvscope.resident import Task

    job = options.job_of(args)
    out = args.output or options.default_output(job.model, job.policy)
    task = Task(job, out, args.overwrite, args.image, args.trace_filter)
    task.check_image()
    if args.open:
        return _run_and_open(args, task)
    if args.keep:
        return _stay(args, task)
    return _report_made(_run_alone(args, task), as_json=args.json)


def open_command(args: argparse.Namespace) -> int:
    """Open a trace, or a league, finished or still growing, on the screen."""
    from kvscope.opening import is_league
    from kvscope.tui.app import run_app

    if is_league(args.trace):
        return _open_league(args)

    return run_app(
        args.trace,
        other=args.other,
        edit=options.wanted_edit(args, args.trace),
        screen=options.known_screen(args),
        place=args.goto,
        light=args.light,
        contrast=args.high_contrast,
        plain=args.ascii or None,
        colours=options.wanted_colours(args),
        keymap=args.keymap,
    )


def stats_command(args: argparse.Namespace) -> int:
    """Print what a trace says, in numbers."""
    return _report(args.trace, as_json=args.json)


def plan_command(args: argparse.Namespace) -> int:
    """Plan a schedule, or edit one; loads no model."""
    if plan.is_edit(args):
        return plan.run(args)
    from kvscope.plan import plan_job, summarize_plan
    from kvscope.report import plan_text

    job = options.job_of(args)
    planned = plan_job(job)
    summary = summarize_plan(planned, dtype=job.dtype, rows=1 if job.cfg == 1 else 2)
    plan.check_outputs(args)
    plan.save_official(args, planned.schedule)
    if args.output is not None:
        planned.schedule.save(args.output, overwrite=args.overwrite)
    if args.json:
        _print_json(summary.to_json() | {"schedule": None if args.output is None else str(args.output)})
    else:
        print_data(plan_text(summary))
    if args.output is not None:
        narrate(f"schedule written to {args.output}")
    return 0


def calibrate_command(args: argparse.Namespace) -> int:
    """Measure over prompts what policies go by; rank the heads."""
    from heatkv.prompts import read_prompts
    from kvscope.calibrate import run_calibration
    from kvscope.official import check_official, save_official

    if args.official is not None:
        check_official(args.official, overwrite=args.overwrite)
    prompts = read_prompts(args.prompts)
    if args.samples is not None and not 1 <= args.samples <= len(prompts):
        raise UsageError(f"--samples {args.samples}; {args.prompts} holds {len(prompts)} prompts")
    calibration = run_calibration(
        options.job_of(args),
        prompts[: args.samples],
        args.output,
        only_mass=args.only == "mass",
        overwrite=args.overwrite,
        threads=args.threads,
        narrate=narrate,
    )
    written = [args.output]
    if args.official is not None:
        written += save_official(calibration, args.official, overwrite=args.overwrite)
    if args.json:
        _print_json({"calibration": str(args.output), "prompts": len(calibration.settings.prompts)})
    else:
        print_data("\n".join(map(str, written)))
    return 0


def demo_command(args: argparse.Namespace) -> int:
    """Record a HeatKV run of the bundled model and open it."""
    from kvscope.job import Job
    from kvscope.resident import Task

    opens = not args.json and _has_terminal()
    if opens:
        _check_keymap(args)
    job = Job(
        options.DEFAULT_PROMPT,
        "infinity-tiny",
        "heatkv",
        seed=_DEMO_SEED,
        budget=_DEMO_BUDGET,
        attention_mass=True,
        attention_mass_uncond=True,
        attention_map="uint8",
    )
    out = args.output or options.default_output("demo", "heatkv")
    made = _run_alone(args, Task(job, out, args.overwrite))
    if made.failed or not opens:
        return _report_made(made, as_json=args.json)
    from kvscope.tui.app import run_app

    return run_app(out, keymap=args.keymap)


def _open_league(args: argparse.Namespace) -> int:
    from kvscope.tui.league import run_league_app

    given = {"--with": args.other, "--edit": args.edit, "--screen": args.screen, "--goto": args.goto}
    unread = [name for name, value in given.items() if value]
    if unread:
        raise UsageError(f"{args.trace}: a league; {', '.join(unread)} is of traces; leave it out")
    return run_league_app(args.trace, light=args.light)


def _plan_options(parser: argparse.ArgumentParser) -> None:
    options.plan_options(parser)
    plan.add_options(parser)


COMMANDS: dict[str, Command] = {
    "demo": Command(
        demo_command, options.demo_options, "record a HeatKV run of the bundled model and open it", "kvscope demo"
    ),
    "run": Command(
        run_command,
        options.run_options,
        "generate one image under a cache policy and record it",
        "kvscope run --model infinity-2b --weights DIR --resolution 0.06M --orders 2b.json --budget 0.1 -o run.h5",
    ),
    "open": Command(
        open_command, options.open_options, "open a trace, finished or still growing", "kvscope open run.h5"
    ),
    "attach": Command(attach.run, attach.add_options, "open the trace of a run that lives", "kvscope attach 4711"),
    "control": Command(
        control.run,
        control.add_options,
        "list, pause, step or end runs that live, or hand them jobs",
        "kvscope control pause run.h5",
    ),
    "stats": Command(stats_command, options.stats_options, "print a trace's numbers", "kvscope stats run.h5 --json"),
    "compare": Command(
        compare.run,
        compare.add_options,
        "compare traces with the first of them, in numbers",
        "kvscope compare full.h5 run.h5 --fail-if 'storage_peak_bytes>+2%' --fail-if 'psnr<25'",
    ),
    "ledger": Command(
        ledger.run,
        ledger.add_options,
        "account for memory, from the budget to the process",
        "kvscope ledger run.h5",
    ),
    "league": Command(
        league.run,
        league.add_options,
        "measure policies against each other at equal true bytes",
        "kvscope league show league.h5 --against heatkv",
    ),
    "capacity": Command(
        capacity.run,
        capacity.add_options,
        "say which batch fits in a memory, at every resolution and budget",
        "kvscope capacity --memory 24GiB --model infinity-2b",
    ),
    "screen": Command(
        screen.run,
        screen.add_options,
        "draw one screen without a terminal: text, svg, csv or json",
        "kvscope screen run.h5 --goto 'map q3 s1 mass' --size 120x40 --format svg -o map.svg",
    ),
    "keys": Command(keys.run, keys.add_options, "list what every key of the screens does", "kvscope keys --json"),
    "export": Command(
        export.run,
        export.add_options,
        "write a trace in another form, redacted",
        "kvscope export run.h5 --format html -o run.html",
    ),
    "runs": Command(runs.run, runs.add_options, "list the traces of a folder, newest first", "kvscope runs traces"),
    "trace": Command(
        trace.run,
        trace.add_options,
        "check, recover, copy or describe a trace file",
        "kvscope trace validate run.h5",
    ),
    "calibrate": Command(
        calibrate_command,
        options.calibrate_options,
        "measure over prompts what policies go by, and rank the heads",
        "kvscope calibrate --model infinity-2b --weights DIR --prompts prompts.txt --samples 10 -o scas.h5",
    ),
    "plan": Command(
        plan_command,
        _plan_options,
        "plan a schedule without running it, or edit one",
        "kvscope plan --from run.h5 --script edits.kvs --save-plan plan.json",
    ),
    "policies": Command(
        policies.run,
        policies.add_options,
        "list the cache policies, with their parameters",
        "kvscope policies",
    ),
    "apply": Command(apply.run, apply.add_options, "run a reviewed plan", "kvscope apply plan.json -o after.h5"),
    "replay": Command(
        replay.run,
        replay.add_options,
        "run a recorded job again under another schedule",
        "kvscope replay run.h5 --schedule schedule.json --mode forced",
    ),
    "tune": Command(
        tune.run,
        tune.add_options,
        "search a schedule for a target of bytes or of loss",
        "kvscope tune full.h5 --target-bytes 40MB -o schedule.json",
    ),
    "fidelity": Command(
        fidelity.run,
        fidelity.add_options,
        "learn how attention lost turns into wrong bits",
        "kvscope fidelity full-1.h5 full-2.h5 -o fidelity.json",
    ),
}
"""Every command by name."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += "; one that begins with a minus is written --option=-value"
        self.exit(2, f"kvscope: error: {message}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = _Parser(
        prog="kvscope",
        description="See, record and tune the KV cache of visual autoregressive models.",
        epilog=f"exit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_options(one)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        import kvscope

        parser.exit(0, f"kvscope {kvscope.__version__}\n")


def _report_made(made: Made, *, as_json: bool) -> int:
    """The summary of a run's own trace; an error where that is gone, or ends before the run did."""
    problem = made.problem()
    if problem is not None and not made.is_ours():
        raise OutputError(problem)
    code = _report(made.trace, as_json=as_json)
    if problem is not None:
        narrate(f"error: {problem}")
        return OutputError.exit_code
    return code


def _report(trace_path: Path, *, as_json: bool) -> int:
    from kvscope.analysis import summarize
    from kvscope.report import summary_text
    from kvscope.trace import Trace

    with Trace.open(trace_path) as trace:
        summary = summarize(trace)
    if as_json:
        _print_json(summary.to_json())
    else:
        print_data(summary_text(summary))
    return 0


def _run_and_open(args: argparse.Namespace, task: Task) -> int:
    from kvscope.live import run_and_open
    from kvscope.tui.app import run_app

    if not _has_terminal():
        raise NoTerminalError("there is no terminal to draw on; run without --open")
    if args.json:
        raise UsageError("--open draws on the terminal and --json prints on it; give one or the other")
    # What can be refused is refused here, where it is seen, before a second process starts.
    _check_keymap(args)
    task.check()
    if args.overwrite:
        task.trace.unlink(missing_ok=True)
    arguments = [argument for argument in args.arguments if argument != "--open"]
    if args.output is None:
        arguments += ["--output", str(task.trace)]

    def show(path: Path, launched: Launched) -> int:
        return run_app(path, launched=launched, keymap=args.keymap)

    return run_and_open(arguments, task.trace, narrate=narrate, show=show)


def _check_keymap(args: argparse.Namespace) -> None:
    """Raises UsageError now for a keymap that the viewer would refuse after the run."""
    from kvscope.tui.keymap import read_keymap

    read_keymap(args.keymap)


def _write_image(path: Path, rgb: NDArray[np.uint8], *, overwrite: bool) -> None:
    from heatkv.files import write_new
    from kvscope.png import png_bytes

    narrate(f"picture written to {write_new(path, png_bytes(rgb), overwrite=overwrite)}")


def _run_alone(args: argparse.Namespace, task: Task) -> Made:
    """Run one task in a process that ends with it."""
    from kvscope.control.gate import Gate
    from kvscope.control.server import served

    gate = Gate()
    with served(gate, narrate) as socket:
        return _run_task(args, task, gate, socket)


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
            return _report_made(_run_task(args, one, gate, socket, load=weights.load), as_json=args.json)

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


def _has_terminal() -> bool:
    # Textual reads keys from stdin and draws on stderr; with stdout away, numbers are what is wanted.
    return sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()


def _print_json(record: dict[str, Any]) -> None:  # Any: a JSON object
    print_data(json.dumps(record, indent=2, allow_nan=False))


if __name__ == "__main__":
    sys.exit(main())
