"""What recording costs a run, how fast a trace is written, and how soon a reader sees what was recorded."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from heatkv.config import model_config
from heatkv.generate import generate
from heatkv.probe import Capture, ScaleInfo, StepInfo
from kvscope.filters import PLUGIN
from kvscope.format import Status
from kvscope.job import Job
from kvscope.recorder import Recorder
from kvscope.trace import Trace
from tests.benchmarks.bench_capture import layer_calls
from tests.benchmarks.harness import Goal, Result, Row, Times, take_turns
from tests.benchmarks.traces import BITS, Shape, arrays_of, new_writer, start_of, step_rows
from tests.benchmarks.workload import MODEL, SEED, Subject, Watch

_PLAIN, _MAPS = 1.01, 1.03
_RATE = 0.35
_VISIBLE_S = 0.010
_POLL_S = 0.002


def run(*, quick: bool = False, model: str = MODEL, resolution: str | None = "0.06M", side: int = 64) -> Result:
    """Rows for whole generations, for maps of one scale of `side` x `side`, for the rate, and for latency."""
    repeats = 1 if quick else 5
    rows = [
        *_generation_rows(model, resolution, repeats),
        *_large_map_rows(model, 16 if quick and side == 64 else side),
        *_rate_rows(Shape.of_model(model, "float32"), 2 if quick else 5),
        _latency_row(model, 3 if quick else 30),
    ]
    return Result(f"recording, {model}", "the same, not recorded", repeats, SEED, tuple(rows))


# Whole generations.


def _generation_rows(model: str, resolution: str | None, repeats: int) -> list[Row]:
    subject = Subject.load(model, resolution, "cpu")
    subject.warm_up()
    maps = Capture(maps=True)
    variants: dict[str, Callable[[], object]] = {
        "plain": lambda: subject.generate(),
        "plain again": lambda: subject.generate(),
        "recorded": lambda: _record(subject, maps=False),
        "maps": lambda: subject.generate(probe=Watch(maps)),
        "maps recorded": lambda: _record(subject, maps=True),
    }
    times = take_turns(variants, repeats=repeats, warm_up=False)
    name = f"generation {subject.scales.resolution}"
    return [
        times.row(f"{name}: noise", "plain again", "plain"),
        times.row(f"{name}, recorded", "recorded", "plain", goal=Goal("at most", _PLAIN)),
        times.row(f"{name} with maps, recorded", "maps recorded", "maps", goal=Goal("at most", _MAPS)),
    ]


def _record(subject: Subject, *, maps: bool) -> None:
    kind = "float32" if maps else None
    job = Job(prompt="bench", model=subject.config.name, policy="full", random_weights=True, attention_map=kind)
    with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder) / "bench.h5", job) as recorder:
        generate(subject.model, subject.texts, subject.scales, seed=SEED, probe=recorder)


# Maps of one large scale.


def _large_map_rows(model: str, side: int) -> list[Row]:
    """What one scale's maps take of the run, and of the writer beside it, over that scale's attention alone."""
    attention = _attention_seconds(model, side)
    run_s, writer_s = _recording_seconds(model, side)
    goal = Goal("at most", _MAPS - 1)
    note = "of attention alone, without the rest of the layers"
    return [
        Row(f"maps of a {side}x{side} scale: taken from the run", run_s, "s", attention, run_s / attention, note=note),
        Row(f"maps of a {side}x{side} scale: with the writer beside it, to its end", run_s + writer_s, "s", attention,
            (run_s + writer_s) / attention, goal=goal, note=note),
    ]  # fmt: skip


def _attention_seconds(model: str, side: int) -> float:
    call = layer_calls(model, side, "cpu")["uncaptured"]
    call()
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * model_config(model).num_layers


def _recording_seconds(model: str, side: int) -> tuple[float, float]:
    """(seconds taken from the run, seconds of the writer's thread) for the maps of one scale, every layer's."""
    shape = Shape.of_model(model, "float32", side=side)
    start, scale = start_of(shape), shape.scales - 1
    maps = np.random.default_rng(SEED).random((shape.heads, start.scales.total_tokens), dtype=np.float32)
    kept, read = start.schedule.kept_tokens()[scale], start.schedule.read_tokens()[scale]
    with tempfile.TemporaryDirectory() as folder:
        job = Job("bench", "made-up", "full", attention_map="float32")
        with Recorder(Path(folder) / "bench.h5", job) as recorder:
            recorder.run_started(start)
            for layer in range(shape.layers):
                now, tokens = time.monotonic_ns(), (kept[layer], read[layer])
                recorder.step_done(StepInfo(scale, layer, now, now, None, 0, 0, 0, *tokens, attention_map=maps))
            bits = np.zeros((1, side**2, BITS), np.uint8)
            recorder.scale_done(ScaleInfo(scale, bits, None, None))  # type: ignore[arg-type]  # what is not recorded
        with Trace.open(recorder.path) as trace:
            run_ns, writer_ns = trace.cost["run_ns"].sum(), trace.cost["writer_ns"].sum()
    return float(run_ns) / 1e9, float(writer_ns) / 1e9


# Rate.


def _rate_rows(shape: Shape, repeats: int) -> list[Row]:
    """How fast maps, masses and occupancy of a whole run are written, over write() of the same bytes to a new file."""
    scales = arrays_of(shape)
    filters = ["gzip", *(["bitshuffle-lz4"] if importlib.util.find_spec(PLUGIN) else [])]
    times = Times({name: [] for name in ("write()", *filters)})
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeats + 1):
            for name in times.rounds:
                path = Path(folder) / "written"
                taken = _raw_seconds(path, scales) if name == "write()" else _trace_seconds(path, shape, scales, name)
                path.unlink()
                if turn:  # the first one warms up
                    times.rounds[name].append(taken)
    return [_rate_row(times, name, sum(values.nbytes for arrays in scales for values in arrays.values()))
            for name in filters]  # fmt: skip


def _rate_row(times: Times, name: str, num_bytes: int) -> Row:
    ratios = times.ratios("write()", name)
    title = f"rate of writing {num_bytes / 1e6:.0f} MB with float32 maps, filter {name}"
    own, other, spread = times.median(name), times.median("write()"), (min(ratios), max(ratios))
    note = "other: write(); ratio of the rates"
    return Row(title, own, "s", other, statistics.median(ratios), spread, Goal("at least", _RATE), note)


def _trace_seconds(path: Path, shape: Shape, scales: list[dict[str, np.ndarray]], filter_name: str) -> float:
    writer = new_writer(path, shape, filter_name=filter_name)
    begin = time.perf_counter()
    for scale, arrays in enumerate(scales):
        writer.append_rows("steps", step_rows(shape, scale))
        writer.append_scale(arrays)
        writer.commit(Status.RUNNING)
    taken = time.perf_counter() - begin
    writer.close()
    return taken


def _raw_seconds(path: Path, scales: list[dict[str, np.ndarray]]) -> float:
    contents = [values.tobytes() for arrays in scales for values in arrays.values() if values.nbytes < 1 << 20]
    large = [values for arrays in scales for values in arrays.values() if values.nbytes >= 1 << 20]
    with path.open("wb", buffering=0) as file:
        begin = time.perf_counter()
        for content in (*contents, *(values.data.cast("B") for values in large)):
            file.write(content)
    return time.perf_counter() - begin


# Latency.


def _latency_row(model: str, runs: int) -> Row:
    """From a commit's end in one process to the moment when a reader in another, that polls, has read what is new."""
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.bench_recorder", folder, model, str(runs)]
        with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for index in range(runs):
                path = Path(folder) / f"{index}.h5"
                while not path.exists():
                    time.sleep(_POLL_S)
                seen = _follow(path)
                flushed = [int(moment) for moment in writer.stdout.readline().split()]
                waits += [(seen[epoch] - flushed[epoch]) / 1e9 for epoch in seen]
    note = f"median {statistics.median(waits) * 1e3:.2f} ms, of {len(waits)} scales; polled every {_POLL_S * 1e3:g} ms"
    goal = Goal("at most", _VISIBLE_S, of_value=True)
    return Row("from flush to a reader's eyes, p95", float(np.percentile(waits, 95)), "s", goal=goal, note=note)


def _follow(path: Path) -> dict[int, int]:
    """Scales done → the clock when the arrays of that many were read here."""
    seen: dict[int, int] = {}
    with Trace.open(path) as trace:
        while trace.status == "live":
            if trace.refresh() and trace.status == "live":
                _ = trace.steps, trace.kept_tokens, trace.read_tokens, trace.attention_mass
                seen[trace.scales_done] = time.monotonic_ns()
            time.sleep(_POLL_S)
    return seen


def _write_for_a_reader(folder: Path, shape: Shape, runs: int) -> None:
    """Commit about 40 scales a second, and say of each run when each of its scales was flushed, after a 0."""
    scales = arrays_of(shape)
    for index in range(runs):
        writer, flushed = new_writer(folder / f"{index}.h5", shape), [0]
        for scale, arrays in enumerate(scales):
            time.sleep(0.025)
            writer.append_rows("steps", step_rows(shape, scale))
            writer.append_scale(arrays)
            writer.commit(Status.RUNNING)
            flushed.append(time.monotonic_ns())
        time.sleep(0.05)
        writer.commit(Status.DONE)
        writer.close()
        sys.stdout.write(" ".join(map(str, flushed)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _write_for_a_reader(Path(sys.argv[1]), Shape.of_model(sys.argv[2]), int(sys.argv[3]))
