"""`make bench`, or `python -m tests.benchmarks [NAME ...]`: benchmarks by name, as text, as JSON and as Markdown.

stdout has the table: value, what it is compared with, their ratio with its spread, the goal and whether it is reached.
The JSON file has the same numbers with machine, versions, commit and date, and a Markdown file beside it the same
tables for docs/benchmarks.md; both are rewritten after each benchmark.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.harness import Result, commit, machine


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A row of BENCHMARKS."""

    what: str
    minutes: float
    """On two CPU cores."""
    by_default: bool = True
    on_cuda: bool = False
    """Whether it takes a device."""


BENCHMARKS = {
    "planner": Benchmark("planning a schedule, beside a construction from sets", 0.1),
    "attention": Benchmark("ragged attention beside dense attention, all budgets", 5, on_cuda=True),
    "stack": Benchmark("operations per second of all layers, beside a plain product", 4, on_cuda=True),
    "bytes": Benchmark("what the cache allocates and a process takes, beside the budget", 2, on_cuda=True),
    "run": Benchmark("whole generations at 0.06M: pruned, measured, recorded", 5),
    "generation": Benchmark("whole generations at 0.25M: pruned beside full", 7, on_cuda=True),
    "codecs": Benchmark("coarser codecs: a generation of infinity-tiny and 2B beside HeatKV at equal bytes", 5),
    "policies": Benchmark("what each policy costs: a generation of infinity-tiny beside the full cache", 1),
    "capture": Benchmark("measuring attention: time, memory, exactness; generations up to 0.25M", 16, on_cuda=True),
    "recorder": Benchmark("recording a run: its cost, its rate, and how soon a reader sees it", 6),
    "trace": Benchmark("opening a trace of 2 GB beside smaller ones, and one map of it", 1),
    "tuning": Benchmark("the advisor's schedules beside HeatKV's at equal bytes, on held-out prompts", 15),
    "estimates": Benchmark("what is estimated of plans, in codecs too, beside their forced KL", 5),
    "tui": Benchmark("the viewer in a terminal: its start, and its frames", 4),
    "editing": Benchmark("editing a schedule at 1M: from a key to numbers, and to the screen", 0.2),
    "1m": Benchmark("one image at 1M, full and pruned", 14, by_default=False, on_cuda=True),
}
"""Name → what it is; NAME is the file bench_NAME.py."""


def main(arguments: Sequence[str] | None = None) -> None:
    asked = _parser().parse_args(arguments)
    names = asked.names or [name for name, benchmark in BENCHMARKS.items() if benchmark.by_default]
    minutes = sum(BENCHMARKS[name].minutes for name in names)
    report = {"machine": machine(), "commit": commit(), "date": time.strftime("%Y-%m-%d"), "quick": asked.quick}
    _print(json.dumps(report))
    if not asked.quick:
        _print(f"{', '.join(names)}: about {minutes:.0f} minutes on two cores\n")
    results: list[Result] = []
    for result in _results(names, _devices(asked.device), quick=asked.quick):
        results.append(result)
        _print(result.table() + "\n")
        _write(asked.out, report, results)
    _print(f"{_summary(results)}\nwritten to {asked.out}")


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(_described(name, benchmark) for name, benchmark in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks",
        description="Measure, compare and say which goals are reached.",
        epilog=f"benchmarks, with minutes on two cores:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", choices=[[], *BENCHMARKS], metavar="NAME", help="default: all but those marked"
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds and smaller images: for looking, not for quoting"
    )
    parser.add_argument("--device", choices=("cpu", "cuda", "all"), default="all", help="default: all that are there")
    parser.add_argument("--out", type=Path, default=Path("out/bench.json"), help="the JSON file (default: %(default)s)")
    return parser


def _described(name: str, benchmark: Benchmark) -> str:
    return f"  {name:12}{benchmark.minutes:5g}  {benchmark.what}{'' if benchmark.by_default else ' (only if named)'}"


def _devices(asked: str) -> tuple[str, ...]:
    there = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    if asked not in (*there, "all"):
        raise SystemExit("no CUDA device is there; use --device cpu")
    return there if asked == "all" else (asked,)


def _results(names: Sequence[str], devices: Sequence[str], *, quick: bool) -> Iterator[Result]:
    for name in names:
        run = importlib.import_module(f"tests.benchmarks.bench_{name}").run
        if "cpu" in devices:
            yield run(quick=quick)
        if "cuda" in devices and BENCHMARKS[name].on_cuda:
            yield run(quick=quick, device="cuda")


def _summary(results: Sequence[Result]) -> str:
    judged = [(result, row) for result in results for row in result.rows if row.goal is not None]
    missed = [f"  {result.title}: {row.name}" for result, row in judged if not row.reached]
    return "\n".join(
        [f"{len(judged) - len(missed)} of {len(judged)} goals reached", *(["missed:", *missed] if missed else [])]
    )


def _write(path: Path, report: dict[str, Any], results: Sequence[Result]) -> None:  # Any: JSON values
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = report | {"results": [result.to_json() for result in results]}
    path.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    pages = [f"```json\n{json.dumps(report)}\n```", *(result.markdown() for result in results)]
    path.with_suffix(".md").write_text("\n\n".join(pages) + "\n", encoding="utf-8")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
