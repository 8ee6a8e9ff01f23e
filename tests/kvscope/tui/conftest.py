"""Driving the viewer without a terminal: open a trace, press keys, read what is on the screen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from textual.pilot import Pilot

from heatkv.config import model_config
from heatkv.policies.full import keep_everything
from heatkv.probe import RunStart, ScaleInfo, StepInfo
from heatkv.schedule import PruningSchedule
from kvscope.job import Job
from kvscope.recorder import Recorder
from kvscope.trace import Trace
from kvscope.tui.app import KVScopeApp
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.goto import parse
from kvscope.tui.widgets.canvas import Canvas

TINY_SIZE = (80, 24)


class Viewer:
    """A running app with its pilot."""

    def __init__(self, app: KVScopeApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    async def until(self, condition: Callable[[], bool], *, seconds: float = 120.0) -> None:
        """Return once the condition holds and everything is drawn; fails after `seconds`."""
        for _ in range(int(seconds / 0.02)):
            if condition():
                await self.pilot.pause()
                await self.pilot.pause()
                return
            await self.pilot.pause(0.02)
        raise AssertionError("waited too long")

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()
        await self.pilot.pause()

    def canvas(self, name: str) -> Canvas:
        return self.app.screen.query_one(f"#{name}", Canvas)

    def lines(self, name: str) -> list[str]:
        canvas = self.canvas(name)
        return [canvas.render_line(y).text for y in range(canvas.size.height)]

    def text(self, name: str | None = None) -> str:
        """What one part says, or all parts that are displayed."""
        if name is not None:
            return "\n".join(self.lines(name))
        parts = [canvas for canvas in self.app.screen.query(Canvas) if canvas.size.height and canvas.display]
        return "\n".join(canvas.render_line(y).text for canvas in parts for y in range(canvas.size.height))


Script = Callable[[Viewer], Awaitable[None]]
Drive = Callable[..., None]


@pytest.fixture
def drive() -> Drive:
    """drive(path, script, size=…, **options of KVScopeApp): run the script once the trace is shown."""

    def run(path: Path, script: Script, *, size: tuple[int, int] = TINY_SIZE, **options: object) -> KVScopeApp:
        app = KVScopeApp(path, **options)

        async def main() -> None:
            async with app.run_test(size=size, notifications=True) as pilot:
                viewer = Viewer(app, pilot)
                await viewer.until(lambda: app.view.snapshot is not None)
                # The viewer begins at the head that attends most; tests begin at the first.
                app.go_to(parse("l0 h0"))
                await script(viewer)

        asyncio.run(main())
        return app

    return run


@pytest.fixture
def tiny_snapshot(tiny_trace: Path) -> Snapshot:
    with Trace.open(tiny_trace) as trace:
        return take_snapshot(tiny_trace, trace, None)


@pytest.fixture
def live_snapshot(live_trace: Path) -> Snapshot:
    with Trace.open(live_trace) as trace:
        return take_snapshot(live_trace, trace, None)


@pytest.fixture
def empty_trace(tmp_path: Path, fake_run: ModuleType) -> Path:
    """A trace whose run failed before its first scale was done."""
    recorder = Recorder(tmp_path / "empty.h5", fake_run.fake_job())
    fake_run.run(recorder, scales=0)
    recorder.finish("failed", "out of memory")
    return recorder.path


@pytest.fixture
def cancelled_trace(tmp_path: Path, fake_run: ModuleType) -> Path:
    recorder = Recorder(tmp_path / "cancelled.h5", fake_run.fake_job())
    fake_run.run(recorder, scales=2)
    recorder.finish("cancelled", "stopped by the user")
    return recorder.path


HOSTILE = "AAA\x1b]0;PWNED\x07BBB\none\rtwo\u202egnp"


@pytest.fixture
def hostile_trace(tmp_path: Path, fake_run: ModuleType) -> Path:
    """A trace from somebody else: its name, prompt, log and message would steer a terminal."""
    schedule = fake_run.fake_schedule()
    recorder = Recorder(tmp_path / "evil\x1b[31m\n.h5", replace(fake_run.fake_job(), prompt=HOSTILE))
    recorder.run_started(fake_run.fake_start(schedule))
    recorder.log("info", HOSTILE)
    for query_scale in range(2):
        fake_run.run_scale(recorder, schedule, query_scale)
    recorder.finish("failed", HOSTILE)
    return recorder.path


@pytest.fixture(scope="session")
def wide_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished trace in the shape of infinity-2b at 0.06M, without a model: 32 layers, 16 heads, 7 scales."""
    config = model_config("infinity-2b")
    scales = config.schedule_for("0.06M")
    drop_step = keep_everything(config, scales)
    gone = np.random.default_rng(0).random(drop_step.shape) < 0.5
    gone[:, :, [0, 1, 2, -1]] = False
    own = np.arange(scales.num_scales) * config.num_layers + np.arange(config.num_layers)[:, None]
    drop_step = np.where(gone, own[:, None] + config.num_layers, drop_step)
    schedule = PruningSchedule(drop_step, config.name, scales, 3, "heatkv", 0.6)
    path = tmp_path_factory.mktemp("wide") / "wide.h5"
    job = Job("a red car — ünïcode", config.name, "heatkv", budget=0.6, attention_mass=True, resolution="0.06M")
    start = RunStart(config.name, scales, 32, 16, 128, 32, 2, "bfloat16", 2, "cpu", "plain", 0, schedule)
    with Recorder(path, job) as recorder:
        recorder.run_started(start)
        for query_scale in range(scales.num_scales):
            for step in _steps(schedule, query_scale, config.kv_bytes_per_token()):
                recorder.step_done(step)
            bits = np.zeros((1, scales.tokens[query_scale], 32), np.uint8)
            recorder.scale_done(ScaleInfo(query_scale, bits, bits, bits))  # type: ignore[arg-type]
    return path


def _steps(schedule: PruningSchedule, query_scale: int, token_bytes: int) -> list[StepInfo]:
    kept, read, held = schedule.kept_tokens(), schedule.read_tokens(), schedule.tokens_held()
    weights = np.random.default_rng(query_scale).random(read[query_scale].shape) * (read[query_scale] > 0)
    mass = weights / weights.sum(axis=-1, keepdims=True)
    steps = []
    for layer in range(schedule.num_layers):
        step = query_scale * schedule.num_layers + layer
        accounted = int(held[step]) * token_bytes
        freed = sum(schedule.scales.tokens[source] for source in schedule.evictions(step)[2])
        arrays = kept[query_scale, layer], read[query_scale, layer], mass[layer].astype(np.float32)
        begin_ns = step * 1_000_000
        steps.append(
            StepInfo(query_scale, layer, begin_ns, begin_ns + 900_000, None, accounted, accounted, freed, *arrays)
        )
    return steps
