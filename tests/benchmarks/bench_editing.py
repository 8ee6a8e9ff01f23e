"""Editing a schedule of infinity-2b at 1M: how soon an edit's numbers, and the drawn screen, follow a key.

From the line of an edit to a new draft, its estimate and its totals; with the line on the disk; and with the Schedule
screen painted for 160 × 48.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from heatkv.config import model_config
from heatkv.orders import HeadOrders
from kvscope.draft import Draft, Ground
from kvscope.journal import History, Journal
from kvscope.trace import Trace
from kvscope.tui.editing import Editor
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.palette import DARK, ink
from kvscope.tui.view import View
from kvscope.tui.widgets.lanes import cell_line, lanes, plan_head, totals
from tests.benchmarks.harness import Goal, Result, Row
from tests.benchmarks.traces import Shape, write_trace
from tests.benchmarks.workload import SEED

_SIZES = ((plan_head, 160, 7), (lanes, 160, 30), (cell_line, 160, 1), (totals, 160, 8))
"""The painters of Schedule, with the room that each has in 160 × 48."""
_BYTES_PER_TOKEN = 1024
_WARM_UP = 3


def run(*, quick: bool = False) -> Result:
    """Rows for an edit alone, with its journal, and drawn; each at most 50 ms."""
    count = 20 if quick else 200
    with tempfile.TemporaryDirectory() as folder:
        snapshot = _snapshot(Path(folder) / "run.h5")
        draft = Draft.of(snapshot.schedule, _ground(snapshot))
        alone = Editor(snapshot, History.of(draft))
        filled = Editor(snapshot, History.of(draft))
        for line in ("budget 10%", "policy heatkv"):
            filled.write(line)
        journal = Journal(Path(folder) / "edits.kvs", draft)
        kept = Editor(snapshot, journal.history, journal=journal)
        rows = (
            _row("an edit to its numbers", alone, count),
            _row("an edit to its numbers, heatkv filling in at 10 %", filled, count, late=False),
            _row("an edit on the disk to its numbers", kept, count),
            _row("an edit on the disk to its drawn screen", kept, count, then=lambda: _draw(snapshot, kept)),
        )
        kept.close()
    return Result("editing a schedule of infinity-2b at 1M", "32 layers × 16 heads × 13 scales", count, SEED, rows)


def _row(name: str, editor: Editor, count: int, *, late: bool = True, then: Callable[[], None] = lambda: None) -> Row:
    """Times of edits that can be met, each on the same draft; they drop some scales later, or, not `late`, at once.

    Raises RuntimeError for one that cannot be met.
    """
    times = []
    for index in range(count + _WARM_UP):
        line = f"drop l{index % 32} h0-{index % 16} s{3 + index % 8}" + (f" after q{4 + index % 8}" if late else "")
        begin = time.perf_counter()
        state = editor.write(line)
        then()
        times.append(time.perf_counter() - begin)
        if state.is_refused or state.draft.problem is not None:
            raise RuntimeError(f"{line}: {state.draft.problem or state.words}")
        editor.write("undo")
    times = sorted(times[_WARM_UP:])
    note = f"95 of 100 within {times[int(len(times) * 0.95) - 1] * 1e3:.1f} ms"
    return Row(name, statistics.median(times), "s", goal=Goal("at most", 0.05, of_value=True), note=note)


def _draw(snapshot: Snapshot, editor: Editor) -> None:
    view = View(ink(DARK), snapshot=snapshot, edit=editor.state)
    for paint, width, height in _SIZES:
        paint(view, width, height)


def _ground(snapshot: Snapshot) -> Ground:
    """The model's, with head orders that rank by chance."""
    config, schedule = model_config("infinity-2b"), snapshot.schedule
    ranked, slots = schedule.scales.num_scales - 1 - schedule.sink_scales, config.num_layers * config.num_heads
    generator = np.random.default_rng(SEED)
    orders = np.array([generator.permutation(slots) for _ in range(ranked)], np.int32)
    made = HeadOrders(orders, schedule.sink_scales, config.num_layers, config.num_heads)
    return Ground(config, schedule.scales, _BYTES_PER_TOKEN, made)


def _snapshot(path: Path) -> Snapshot:
    """A finished run that kept everything."""
    write_trace(path, Shape.of_model("infinity-2b"))
    with Trace.open(path) as trace:
        return take_snapshot(path, trace, None)
