"""Opening traces: how long until the first screen, how much memory, and one attention map of a large one, cold."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from kvscope.trace import Trace
from kvscope.tui.feed import Snapshot, take_snapshot
from tests.benchmarks.harness import Goal, Result, Row, take_turns
from tests.benchmarks.memory import held_bytes, in_fresh_process
from tests.benchmarks.traces import Shape, write_trace
from tests.benchmarks.workload import SEED

_LARGE = Shape(layers=40, heads=24, scales=49, maps="float32")
"""2.3 GB of maps."""
_SMALL = Shape.of_model("infinity-2b", "uint8")
"""23 MB of maps."""
_MAPS = 100


def run(*, quick: bool = False, large: Shape | None = None, small: Shape = _SMALL) -> Result:
    """Rows for the first look (header and summaries), for the whole first screen, for memory, and for one map."""
    large = large or (Shape(16, 16, 16, "float32") if quick else _LARGE)
    repeats = 3 if quick else 15
    with tempfile.TemporaryDirectory() as folder:
        traces = {name: Path(folder) / f"{name}.h5" for name in ("large", "small", "no maps")}
        shapes = {"large": large, "small": small, "no maps": Shape(large.layers, large.heads, large.scales)}
        room = shutil.disk_usage(folder).free
        if room < 3 * 4 * large.scales * int(np.prod(large.map_shape)):
            raise SystemExit(f"{folder}: {room >> 20} MiB are free, too few for the trace to measure with")
        for name, path in traces.items():
            write_trace(path, shapes[name])
        rows = (*_open_rows(traces, repeats), _memory_row(traces["large"]), *_map_rows(traces, large, small))
    return Result("opening traces", "the smaller trace", repeats, SEED, rows)


def first_look(path: Path) -> int:
    """What a list of runs needs: header, status and summaries."""
    with Trace.open(path) as trace:
        return int(trace.scale_summary["storage_peak_bytes"].max()) + len(trace.status)


def first_screen(path: Path) -> Snapshot:
    """What the viewer reads before it draws anything."""
    with Trace.open(path) as trace:
        return take_snapshot(path, trace, None)


def grown_bytes(path: Path) -> float:
    """Resident bytes that a first screen takes in a process that has all modules loaded."""
    before = held_bytes("cpu")
    screen = first_screen(path)
    return held_bytes("cpu") - before if screen.scales_done else float("nan")


def _open_rows(traces: dict[str, Path], repeats: int) -> list[Row]:
    looks = {name: lambda path=path: first_look(path) for name, path in traces.items()}  # type: ignore[misc]
    screens = {name: lambda path=path: first_screen(path) for name, path in traces.items()}  # type: ignore[misc]
    look = take_turns(looks, repeats=repeats, least_s=0.05)
    screen = take_turns(screens, repeats=repeats, least_s=0.1)
    large, small, plain = (_size_text(traces[name]) for name in ("large", "small", "no maps"))
    goal = Goal("at most", 1.5)
    return [
        look.row(f"header and summaries: {large} beside {small}", "large", "small", goal=goal),
        screen.row(f"first screen: {large} beside the same run without maps, {plain}", "large", "no maps", goal=goal),
        screen.row(f"first screen: {large} beside a smaller run, {small}", "large", "small", goal=goal),
    ]


def _memory_row(large: Path) -> Row:
    grown = in_fresh_process(grown_bytes, large)
    return Row("memory of a first screen", grown, "bytes", goal=Goal("at most", 150e6, of_value=True))


def _map_rows(traces: dict[str, Path], large: Shape, small: Shape) -> list[Row]:
    rows = []
    for name, shape in (("large", large), ("small", small)):
        times = _map_times(traces[name], shape)
        note = f"p95 {np.percentile(times, 95) * 1e3:.2f} ms, of {_MAPS}"
        goal = Goal("at most", 1e-3, of_value=True)
        title = f"one map of {_size_text(traces[name])}, not in the page cache"
        rows.append(Row(title, float(np.median(times)), "s", goal=goal, note=note))
    return rows


def _map_times(path: Path, shape: Shape) -> list[float]:
    random, times = np.random.default_rng(SEED), []
    with Trace.open(path) as trace:
        for _ in range(_MAPS):
            place = [int(random.integers(0, length)) for length in (shape.scales, shape.layers, shape.heads)]
            _drop_from_page_cache(path)
            begin = time.perf_counter()
            trace.attention_map(*place)
            times.append(time.perf_counter() - begin)
    return times


def _drop_from_page_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fdatasync(descriptor)  # what is not on the disk yet stays
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _size_text(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.0f} MB"
