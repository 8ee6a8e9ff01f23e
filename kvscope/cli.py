"""The command line: a table of commands, and how one is chosen, run and ended. stdout is data, stderr is narration.

`--help` and `--version` import neither numpy nor textual nor torch, so every command imports what it needs itself.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol, cast

from heatkv.errors import HeatKVError
from kvscope import shortage
from kvscope.arguments import check_outputs
from kvscope.errors import KVScopeError, RunStopped, UsageError
from kvscope.loading import loading
from kvscope.narration import Narration, drop_stdout, has_terminal, narrate
from kvscope.stops import Stops, forget_interrupt

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
    11: "memory, of the machine or its GPU, that was too small",
    130: "stopped by Ctrl-C, SIGTERM or SIGHUP, or by a viewer",
}

_CANCELLED = 130


@dataclass(frozen=True, slots=True)
class Command:
    """One row of COMMANDS."""

    help: str
    example: str


class CommandModule(Protocol):
    """What a module of kvscope.commands has."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Say what it takes."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        return _welcome()
    args = _parser(arguments).parse_args(arguments)
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
        with shortage.told():
            return load_command(args.command).run(args)
    except RunStopped as stop:  # the gate has said so
        return stop.exit_code
    except (KVScopeError, HeatKVError) as error:
        narrate(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone, as in `kvscope stats FILE | head`: it has what it wanted.
        drop_stdout()
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        narrate(f"error: {error.filename}: {error.strerror}")
        return KVScopeError.exit_code
    finally:
        stops.end()


def _welcome() -> int:
    """Without a command: the viewer, with traces to choose from; without a terminal, how to give one."""
    if not has_terminal():
        _parser([]).print_help(sys.stderr)
        return UsageError.exit_code
    # Deferred: --help must not load textual.
    with loading():
        from kvscope.tui.app import run_app

    try:
        return run_app(None)
    except KVScopeError as error:
        narrate(f"error: {error}")
        return error.exit_code


COMMANDS: dict[str, Command] = {
    "demo": Command("record a HeatKV run of the bundled model and open it", "kvscope demo"),
    "run": Command(
        "generate one image under a cache policy and record it",
        "kvscope run --model infinity-2b --weights DIR --resolution 0.06M --orders 2b.json --budget 0.1 -o run.h5",
    ),
    "open": Command("open a trace, finished or still growing", "kvscope open run.h5"),
    "attach": Command("open the trace of a run that lives", "kvscope attach 4711"),
    "control": Command("list, pause, step or end runs that live, or hand them jobs", "kvscope control pause run.h5"),
    "stats": Command("print a trace's numbers", "kvscope stats run.h5 --json"),
    "compare": Command(
        "compare traces with the first of them, in numbers",
        "kvscope compare full.h5 run.h5 --fail-if 'storage_peak_bytes>+2%' --fail-if 'psnr<25'",
    ),
    "ledger": Command("account for memory, from the budget to the process", "kvscope ledger run.h5"),
    "league": Command(
        "measure policies against each other at equal true bytes", "kvscope league show league.h5 --against heatkv"
    ),
    "capacity": Command(
        "say which batch fits in a memory, at every resolution and budget",
        "kvscope capacity --memory 24GiB --model infinity-2b",
    ),
    "screen": Command(
        "draw one screen without a terminal: text, svg, csv or json",
        "kvscope screen run.h5 --goto 'map q3 s1 mass' --size 120x40 --format svg -o map.svg",
    ),
    "keys": Command("list what every key of the screens does", "kvscope keys --json"),
    "export": Command("write a trace in another form, redacted", "kvscope export run.h5 --format html -o run.html"),
    "runs": Command("list the traces of a folder, newest first", "kvscope runs traces"),
    "trace": Command("check, recover, copy or describe a trace file", "kvscope trace validate run.h5"),
    "calibrate": Command(
        "measure over prompts what policies go by, and rank the heads",
        "kvscope calibrate --model infinity-2b --weights DIR --prompts prompts.txt --samples 10 -o scas.h5",
    ),
    "plan": Command(
        "plan a schedule without running it, or edit one",
        "kvscope plan --from run.h5 --script edits.kvs --save-plan plan.json",
    ),
    "policies": Command("list the cache policies, with their parameters", "kvscope policies"),
    "apply": Command("run a reviewed plan", "kvscope apply plan.json -o after.h5"),
    "replay": Command(
        "run a recorded job again under another schedule",
        "kvscope replay run.h5 --schedule schedule.json --mode forced",
    ),
    "tune": Command(
        "search a schedule for a target of bytes or of loss",
        "kvscope tune full.h5 --target-bytes 40MB -o schedule.json",
    ),
    "fidelity": Command(
        "learn how attention lost turns into wrong bits", "kvscope fidelity full-1.h5 full-2.h5 -o fidelity.json"
    ),
}
"""Every command by name; what it does is kvscope.commands.NAME, loaded when it is chosen."""


def load_command(name: str) -> CommandModule:
    """The module of a command of the table."""
    return cast(CommandModule, importlib.import_module(f"kvscope.commands.{name}"))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += "; one that begins with a minus is written --option=-value"
        self.exit(2, f"kvscope: error: {message}; see `{self.prog} --help`\n")


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """What parses these arguments: for the command that they begin with and no other; for all, if they do with none."""
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = _Parser(
        prog="kvscope",
        description="See, record and tune the KV cache of visual autoregressive models.",
        epilog=f"exit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    chosen = arguments[0] if arguments and arguments[0] in COMMANDS else None
    for name in COMMANDS if chosen is None else [chosen]:
        command = COMMANDS[name]
        one = commands.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        load_command(name).add_options(one)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        import kvscope

        parser.exit(0, f"kvscope {kvscope.__version__}\n")


if __name__ == "__main__":
    sys.exit(main())
