"""The child of bench_tui: an app that paints one kind of frame again and again, and says what that took.

`python -m tests.benchmarks.frames KIND FRAMES PER_SECOND OUT [TRACE]`, in a terminal. It imports no torch.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.app import App, ComposeResult
from textual.strip import Strip

from kvscope.tui.cursor import Cursor
from kvscope.tui.palette import DARK, HEAT, NUM_LEVELS, ink
from kvscope.tui.pixels import levels_of, looks_of
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Canvas, Painter
from kvscope.tui.widgets.heat import heat_grid
from kvscope.tui.widgets.panorama import panorama

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.tui.feed import Snapshot

ROWS, COLUMNS, PATCH = 128, 256, 8
WARM_UP = 10
"""Frames before those that count."""
_SEED = 7

Values = Callable[[int], "NDArray[np.float64]"]


class Frames(App[None]):
    """One canvas, and a view of its own for every frame."""

    def __init__(self, paint: Painter, view_at: Callable[[int], View], frames: int, per_second: float) -> None:
        super().__init__()
        self.found: dict[str, float] = {}
        self._paint, self._view_at, self._frames, self._per_second = paint, view_at, frames, per_second

    def compose(self) -> ComposeResult:
        yield Canvas(self._paint)

    def on_mount(self) -> None:
        self.register_theme(DARK)
        self.theme = DARK.name
        self.run_worker(self._drive())

    async def _drive(self) -> None:
        await self._show(range(WARM_UP))
        begin, cpu = time.perf_counter(), _cpu_s()
        await self._show(range(WARM_UP, WARM_UP + self._frames))
        self.found = {
            "per_second": self._frames / (time.perf_counter() - begin),
            "cpu_share": (_cpu_s() - cpu) / (time.perf_counter() - begin),
            "cpu_s": (_cpu_s() - cpu) / self._frames,
        }
        self.exit()

    async def _show(self, frames: range) -> None:
        """Paint these frames, each as soon as the one before is on the terminal and its time has come."""
        canvas, begin = self.query_one(Canvas), time.perf_counter()
        for count, frame in enumerate(frames):
            await asyncio.sleep(max(0.0, begin + count / self._per_second - time.perf_counter()))
            painted = asyncio.Event()
            canvas.show(self._view_at(frame))
            self.call_after_refresh(painted.set)
            await painted.wait()


def random_values(frame: int) -> NDArray[np.float64]:
    """[row, column] between 0 and 1; no two neighbours, and no two frames, have to do with each other."""
    return np.random.default_rng(_SEED + frame).random((ROWS, COLUMNS))


def smooth_values(frame: int) -> NDArray[np.float64]:
    """[row, column]: patches of 8 × 8, each a wave in time, so that every patch changes its level now and then."""
    phases = np.random.default_rng(_SEED).random((ROWS // PATCH, COLUMNS // PATCH)) * 2 * np.pi
    waves = (1 + np.sin(phases + frame / 8)) / 2
    return waves.repeat(PATCH, axis=0).repeat(PATCH, axis=1)


def by_runs(values_at: Values) -> Painter:
    """What pixels does: few levels, styles and lines made once, runs merged."""
    return lambda view, _width, _height: looks_of(view.ink).half_blocks(levels_of(values_at(view.row), 0.0, 1.0))


def by_cells(values_at: Values) -> Painter:
    """Without any of that: a style and a segment for every character, of colours between those of the palette."""
    stops = np.array([Color.parse(colour).get_truecolor() for colour in HEAT], dtype=np.float64)

    def paint(view: View, _width: int, _height: int) -> list[Strip]:
        places = values_at(view.row) * (NUM_LEVELS - 1)
        lower = np.minimum(places.astype(int), NUM_LEVELS - 2)
        share = (places - lower)[..., None]
        colours = (stops[lower] * (1 - share) + stops[lower + 1] * share).astype(int).tolist()
        return [
            Strip(_cell(top, bottom) for top, bottom in zip(above, below, strict=True))
            for above, below in zip(colours[0::2], colours[1::2], strict=True)
        ]

    return paint


def _cell(top: list[int], bottom: list[int]) -> Segment:
    return Segment("▀", Style(color=Color.from_rgb(*top), bgcolor=Color.from_rgb(*bottom)))


PAINTERS: dict[str, Painter] = {
    "overview": heat_grid,
    "panorama": panorama,
    "smooth": by_runs(smooth_values),
    "random": by_runs(random_values),
    "smooth by cells": by_cells(smooth_values),
    "random by cells": by_cells(random_values),
}


def main(kind: str, frames: str, per_second: str, out: str, trace: str | None = None) -> None:
    colours = ink(DARK)
    snapshot = None if trace is None else _snapshot(Path(trace))

    def view_at(frame: int) -> View:
        if snapshot is None:
            return View(colours, row=frame)
        query = 1 + frame % (snapshot.scales_done - 1)
        layer, head = frame % snapshot.schedule.num_layers, frame % snapshot.schedule.num_heads
        cursor = Cursor(query, layer, head, frame % query)
        return View(colours, snapshot, cursor, "mass")

    app = Frames(PAINTERS[kind], view_at, int(frames), float(per_second))
    app.run()
    Path(out).write_text(json.dumps(app.found), encoding="utf-8")


def _snapshot(path: Path) -> Snapshot:
    from kvscope.trace import Trace
    from kvscope.tui.feed import take_snapshot

    with Trace.open(path) as trace:
        return take_snapshot(path, trace, None)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(*sys.argv[1:])
