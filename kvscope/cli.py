"""The command line: a table of commands, each a thin function. stdout is data, stderr is narration.

`--help` and `--version` import neither numpy nor textual nor torch, so every command imports what it needs itself.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from heatkv.errors import HeatKVError
from kvscope import options
from kvscope.commands import compare, export, keys, ledger, runs, screen, trace
from kvscope.errors import KVScopeError, NoTerminalError, OutputError, UsageError
from kvscope.narration import Narration, drop_stdout, print_data
from kvscope.units import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvscope.job import Job
    from kvscope.runner import Made

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
    130: "stopped by Ctrl-C, SIGTERM or SIGHUP",
}

_CANCELLED = 130
_DEMO_BUDGET = 0.2
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
    args = _parser().parse_args(arguments)
    args.arguments = arguments
    for ended in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ended, _stop)
    stderr, sys.stderr = sys.stderr, Narration(sys.stderr)
    try:
        return COMMANDS[args.command].run(args)
    except (KVScopeError, HeatKVError) as error:
        narrate(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        narrate("stopped")
        return _CANCELLED
    except BrokenPipeError:
        # The reader of our output has gone, as in `kvscope stats FILE | head`: it has what it wanted.
        drop_stdout()
        return 0
    finally:
        sys.stderr = stderr


def narrate(text: str) -> None:
    """One line to stderr."""
    sys.stderr.write(f"kvscope: {printable(text)}\n")
    sys.stderr.flush()


def run_command(args: argparse.Namespace) -> int:
    """Generate one image under a cache policy and record it."""
    job = job_of(args)
    out = args.output or default_output(job.model, job.policy)
    _check_image(args, out)
    if args.open:
        return _run_and_open(args, job, out)
    made = _run_job(args, job, out)
    if args.image is not None:
        _write_image(args.image, made.image, overwrite=args.overwrite)
    return _report_made(made, as_json=args.json)


def open_command(args: argparse.Namespace) -> int:
    """Open a trace, finished or still growing, on the screen."""
    from kvscope.tui.app import run_app

    return run_app(
        args.trace,
        other=args.other,
        screen=options.known_screen(args),
        place=args.goto,
        light=args.light,
        plain=args.ascii or None,
        colours=options.wanted_colours(args),
        keymap=args.keymap,
    )


def stats_command(args: argparse.Namespace) -> int:
    """Print what a trace says, in numbers."""
    return _report(args.trace, as_json=args.json)


def plan_command(args: argparse.Namespace) -> int:
    """Plan a schedule; loads no model."""
    from kvscope.plan import plan_job, summarize_plan
    from kvscope.report import plan_text

    job = job_of(args)
    plan = plan_job(job)
    summary = summarize_plan(plan, dtype=job.dtype, rows=1 if job.cfg == 1 else 2)
    if args.output is not None:
        plan.schedule.save(args.output, overwrite=args.overwrite)
    if args.json:
        _print_json(summary.to_json() | {"schedule": None if args.output is None else str(args.output)})
    else:
        print_data(plan_text(summary))
    if args.output is not None:
        narrate(f"schedule written to {args.output}")
    return 0


def calibrate_command(args: argparse.Namespace) -> int:
    """Measure attention over prompts; rank the heads."""
    from heatkv.prompts import read_prompts
    from kvscope.calibrate import run_calibration
    from kvscope.official import check_official, save_official

    if args.official is not None:
        check_official(args.official, overwrite=args.overwrite)
    prompts = read_prompts(args.prompts)
    if args.samples is not None and not 1 <= args.samples <= len(prompts):
        raise UsageError(f"--samples {args.samples}; {args.prompts} holds {len(prompts)} prompts")
    calibration = run_calibration(
        job_of(args),
        prompts[: args.samples],
        args.output,
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

    job = Job(options.DEFAULT_PROMPT, "infinity-tiny", "heatkv", budget=_DEMO_BUDGET, attention_mass=True)
    out = args.output or default_output("demo", "heatkv")
    made = _run_job(args, job, out)
    if args.json or made.failed or not _has_terminal():
        return _report_made(made, as_json=args.json)
    from kvscope.tui.app import run_app

    return run_app(out)


def job_of(args: argparse.Namespace) -> Job:
    """The job that the options describe; what is not given is the model's own default."""
    from heatkv.config import model_config
    from kvscope.job import Job

    given = {name: value for name, value in vars(args).items() if value is not None}
    config = model_config(args.model)
    policy = given.get("policy", "heatkv" if "budget" in given else "full")
    _refuse_unread(given, policy)
    return Job(
        prompt=given.get("prompt", options.DEFAULT_PROMPT),
        model=config.name,
        policy=policy,
        seed=given.get("seed", 0),
        negative_prompt=given.get("negative_prompt"),
        weights=_text(given.get("weights")),
        random_weights=given.get("random_weights", False),
        resolution=args.resolution,
        aspect=args.aspect,
        budget=given.get("budget"),
        orders=_text(given.get("orders")),
        schedule=_text(given.get("schedule")),
        sink_scales=args.sink_scales,
        cfg=given.get("cfg", config.cfg),
        tau=given.get("tau", config.tau),
        dtype=args.dtype,
        device=given.get("device", "cpu"),
        attention_mass=not given.get("no_attention_mass", False),
        attention_mass_uncond=given.get("attention_uncond", False),
        attention_map=given.get("attention_map"),
        bit_exact=not given.get("fast_capture", False),
    )


def default_output(model: str, policy: str) -> Path:
    """A new trace's name in the current folder; two of one second differ too."""
    return Path(f"{model}-{policy}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}.h5")


def _refuse_unread(given: dict[str, Any], policy: str) -> None:  # Any: parsed options
    """Raises UsageError for options that would be read by nobody: whoever gave them meant something else."""
    if "schedule" in given:
        unread = [
            f"--{name.replace('_', '-')}" for name in ("policy", "budget", "orders", "sink_scales") if name in given
        ]
        if unread:
            raise UsageError(f"--schedule says all that {', '.join(unread)} would; give one or the other")
    elif "orders" in given and policy == "full":
        raise UsageError("--orders is only read under a budget; give --budget, or leave --orders out")
    if given.get("attention_uncond") and given.get("cfg") == 1:
        raise UsageError("--attention-uncond measures rows that --cfg 1 leaves out; give one or the other")
    measured = not given.get("no_attention_mass") or given.get("attention_uncond") or "attention_map" in given
    if given.get("fast_capture") and not measured:
        raise UsageError("--fast-capture measures nothing with --no-attention-mass; give one or the other")
    if given.get("random_weights") and "weights" in given:
        raise UsageError("--random-weights reads no --weights; give one or the other")


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
        "measure attention over prompts, and rank the heads by it",
        "kvscope calibrate --model infinity-2b --weights DIR --prompts prompts.txt --samples 10 -o scas.h5",
    ),
    "plan": Command(
        plan_command,
        options.plan_options,
        "plan a schedule without running it",
        "kvscope plan --model infinity-2b --resolution 1M --orders 2b.json --budget 0.1 -o schedule.json",
    ),
}
"""Every command by name."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
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


def _run_and_open(args: argparse.Namespace, job: Job, out: Path) -> int:
    from kvscope.live import run_and_open
    from kvscope.plan import plan_job
    from kvscope.tui.app import run_app
    from kvscope.writer import check_output

    if not _has_terminal():
        raise NoTerminalError("there is no terminal to draw on; run without --open")
    if args.json:
        raise UsageError("--open draws on the terminal and --json prints on it; give one or the other")
    # What can be refused is refused here, where it is seen, before a second process starts.
    plan_job(job)
    check_output(out, overwrite=args.overwrite)
    if args.overwrite:
        out.unlink(missing_ok=True)
    arguments = [argument for argument in args.arguments if argument != "--open"]
    if args.output is None:
        arguments += ["--output", str(out)]
    return run_and_open(arguments, out, narrate=narrate, show=run_app)


def _check_image(args: argparse.Namespace, trace: Path) -> None:
    """Raises OutputError now for a picture that could not be written after the run."""
    from heatkv.files import check_new

    if args.image is None:
        return
    if args.image.resolve() == trace.resolve():
        raise OutputError(f"{args.image}: named for the picture and for the trace; give two names")
    check_new(args.image, overwrite=args.overwrite)


def _write_image(path: Path, rgb: NDArray[np.uint8], *, overwrite: bool) -> None:
    from heatkv.files import write_new
    from kvscope.png import png_bytes

    narrate(f"picture written to {write_new(path, png_bytes(rgb), overwrite=overwrite)}")


def _run_job(args: argparse.Namespace, job: Job, out: Path) -> Made:
    from kvscope.progress import ProgressProbe
    from kvscope.runner import run_job

    progress = ProgressProbe()
    try:
        return run_job(
            job,
            out,
            overwrite=args.overwrite,
            threads=args.threads,
            narrate=narrate,
            progress=progress,
            trace_filter=getattr(args, "trace_filter", "gzip"),  # demo has no such option
        )
    except BaseException:
        progress.abandon()
        raise


def _has_terminal() -> bool:
    # Textual reads keys from stdin and draws on stderr; with stdout away, numbers are what is wanted.
    return sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _print_json(record: dict[str, Any]) -> None:  # Any: a JSON object
    print_data(json.dumps(record, indent=2, allow_nan=False))


if __name__ == "__main__":
    sys.exit(main())
