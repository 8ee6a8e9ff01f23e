"""What every benchmark here shares: timing in turns, goals, rows, and how a result is printed and written as JSON.

A benchmark is a file bench_*.py with `run(*, quick, ...) -> Result`. It knows what it compares; this file does not.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from kvscope.units import bytes_text, seconds_text

_PACKAGES = ("torch", "triton", "numpy", "h5py", "textual")
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Those that decide how fast matrix products are."""
_COLUMNS = ["what", "value", "other", "ratio", "goal", "note"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a row's ratio should be; with `of_value`, its value."""

    sense: Literal["at most", "at least"]
    number: float
    of_value: bool = False

    def reached(self, figure: float) -> bool:
        """False for NaN too."""
        return figure <= self.number if self.sense == "at most" else figure >= self.number


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a benchmark, and what it is compared with."""

    name: str
    value: float
    """NaN: could not be measured."""
    unit: Literal["s", "bytes", "GFLOP/s", ""]
    other: float | None = None
    """What it is compared with, in the same unit."""
    ratio: float | None = None
    """value / other, unless the name says otherwise."""
    spread: tuple[float, float] | None = None
    """The least and the most ratio of a round."""
    goal: Goal | None = None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """None without a goal."""
        if self.goal is None:
            return None
        figure = self.value if self.goal.of_value else self.ratio
        return self.goal.reached(math.nan if figure is None else figure)

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        known = {key: None if _is_nan(item) else item for key, item in asdict(self).items()}
        return known | {"reached": self.reached}


@dataclass(frozen=True, slots=True)
class Result:
    """What one benchmark found."""

    title: str
    other: str
    """What the rows' `other` is."""
    repeats: int
    """Rounds, in each of which every variant had its turn."""
    seed: int
    rows: tuple[Row, ...]
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        head = {key: getattr(self, key) for key in ("title", "other", "repeats", "seed", "device")}
        return head | {"rows": [row.to_json() for row in self.rows]}

    @property
    def heading(self) -> str:
        """Title, device, rounds, and what the figures are compared with, in one line."""
        rounds = f"median of {self.repeats}" if self.repeats > 1 else "one round"
        return f"{self.title} ({self.device}; {rounds}; other: {self.other})"

    def table(self) -> str:
        """Lines for a terminal: name, value, other, ratio with its spread, goal and whether it is reached, note."""
        cells = [_cells(row) for row in self.rows]
        widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        return "\n".join([self.heading, *(f"  {line}" for line in lines)])

    def markdown(self) -> str:
        """The same for a page."""
        lines = [_COLUMNS, ["---"] * len(_COLUMNS), *(_cells(row) for row in self.rows)]
        return "\n".join([f"### {self.heading}", "", *(f"| {' | '.join(line)} |" for line in lines)])


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of every variant in every round."""

    rounds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.rounds[name])

    def ratios(self, name: str, other: str) -> list[float]:
        """Round by round: what both variants had to suffer at about the same time cancels out."""
        return [a / b for a, b in zip(self.rounds[name], self.rounds[other], strict=False)]

    def row(self, label: str, name: str, other: str, *, goal: Goal | None = None, note: str = "") -> Row:
        """The time of `name` over that of `other`: the median of the rounds' ratios."""
        ratios = self.ratios(name, other)
        spread = (min(ratios), max(ratios))
        ratio = statistics.median(ratios)
        return Row(label, self.median(name), "s", self.median(other), ratio, spread, goal, note)


def take_turns(
    variants: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warm_up: bool = True,
    least_s: float = 0.0,
    only_first: Collection[str] = (),
    device: str = "cpu",
) -> Times:
    """Time the variants in turns: each round runs all, and starts with another one.

    A turn is one call, or as many as take `least_s` (judged by the warm-up); times are per call. Variants in
    `only_first` have a turn in the first round only. On CUDA the device has finished when a clock is read.
    """
    names = list(variants)
    calls = {name: _calls(variants[name], least_s, device) if warm_up else 1 for name in names}
    rounds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        gc.collect()
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if turn == 0 or name not in only_first:
                rounds[name].append(_seconds(variants[name], calls[name], device))
    return Times(rounds)


def machine() -> dict[str, Any]:  # Any: JSON values
    """Hardware, versions, and how busy it is before the benchmarks start."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_facts("model name") or platform.processor() or platform.machine(),
        "cpu_features": [flag for flag in _CPU_FEATURES if flag in _cpu_facts("flags").split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": gpu,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def commit() -> str:
    """The commit measured, marked `-dirty` if files differ from it; `unknown` outside a repository."""
    asked = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def _calls(call: Callable[[], object], least_s: float, device: str) -> int:
    if _seconds(call, 1, device) >= least_s:
        return 1
    return math.ceil(least_s / _seconds(call, 1, device))  # a second look: the first call may compile or load code


def _seconds(call: Callable[[], object], calls: int, device: str) -> float:
    _wait(device)
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    _wait(device)
    return (time.perf_counter() - begin) / calls


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _cells(row: Row) -> list[str]:
    """The texts of _COLUMNS."""
    other = "" if row.other is None else _text(row.other, row.unit)
    ratio = "" if row.ratio is None else _ratio_text(row.ratio)
    if row.spread is not None and row.spread[0] != row.spread[1]:
        ratio += f" ({_ratio_text(row.spread[0])} to {_ratio_text(row.spread[1])})"
    return [row.name.strip(), _text(row.value, row.unit), other, ratio, _goal_text(row), row.note]


def _goal_text(row: Row) -> str:
    if row.goal is None:
        return ""
    number = _text(row.goal.number, row.unit) if row.goal.of_value else f"{row.goal.number:g}"
    return f"{'≤' if row.goal.sense == 'at most' else '≥'} {number} {'reached' if row.reached else 'MISSED'}"


def _text(value: float, unit: str) -> str:
    if math.isnan(value):
        return "not measured"
    if unit == "s":
        return seconds_text(value)
    if unit == "bytes":
        return bytes_text(value)
    return f"{value:.0f} {unit}" if unit else f"{value:.3g}"


def _ratio_text(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 10 else f"{ratio:.0f}"


def _is_nan(item: object) -> bool:
    return isinstance(item, float) and math.isnan(item)


def _cpu_facts(name: str) -> str:
    """What /proc/cpuinfo says of the first core; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
