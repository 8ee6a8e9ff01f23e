"""Live: how much memory, against which budget, where, and what it cost to know."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import ClassVar

from textual.containers import Horizontal, Vertical
from textual.widget import Widget

from kvscope.tui.actions import bindings
from kvscope.tui.figures import freed_tokens, planned_peaks
from kvscope.tui.screens.base import Record, TraceScreen
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Canvas
from kvscope.tui.widgets.chart import step_chart
from kvscope.tui.widgets.heat import head_strip, strip_height, strip_hit
from kvscope.tui.widgets.ledger import ledger, ledger_height
from kvscope.tui.widgets.machine import gpu_height, gpu_strip, log_tail, recorder_cost
from kvscope.tui.widgets.picture import picture
from kvscope.tui.widgets.scale_table import scale_table

_LEDGER = (
    "The cache at its fullest so far: accounted is the tokens kept, which the budget bounds; stored is every byte "
    "allocated for them, read from the tensors. Screen ledger has the rest of the memory."
)
_CHART = (
    "Bytes of kept tokens after each step, a step being one layer of one query scale, under the line of the budget. "
    "The pool is allocated once and as large as the fullest step, so what is stored does not follow the curve."
)
_SCALES = (
    "The most of each query scale's steps, and the head-tokens that were let go in it. The arrow is the cursor's query "
    "scale; [ and ] move it."
)
_IMAGE = "The picture so far, decoded from the codes of the scales that are done; of a finished run, its image."
_GPU = (
    "The GPU as its driver counts: used is everybody's, process is this run's. Beside a missing value stands the "
    "reason; a run without a GPU says so once."
)
_RECORDER = (
    "What recording took of the run, previews included, how large the file is, and what was lost: samples at most."
)
_HEADS = (
    "Layers × heads at the cursor's query and source scale: how much of the source scale each head keeps; a dot is a "
    "head that let it go. Arrows move over heads and layers; enter says why of the cell in the frame."
)
_LOG = "What the run said, newest last, by the run's own clock."


class LiveScreen(TraceScreen):
    """Memory of the run, scale by scale."""

    NAME = "live"
    BINDINGS: ClassVar = bindings("live")

    DEFAULT_CSS = """
    LiveScreen {
        #memory { width: 1fr; }
        #ledger { height: auto; }
        #chart { height: 1fr; min-height: 6; }
        #scales { height: 1fr; max-height: 15; }
        #rail { width: 25; margin-left: 1; }
        #picture { height: 1fr; }
        #gpu { height: auto; max-height: 7; }
        #recorder { height: 3; }
        #heads { height: auto; max-height: 34%; }
        #log { height: 3; }
        &.-normal #rail { width: 42; }
        &.-wide #rail { width: 64; }
        &.-tall #log { height: 6; }
        &.-short #heads { display: none; }
    }
    """

    def records(self, view: View) -> list[Record]:
        """One per query scale: bytes measured and planned, tokens freed, time."""
        if view.snapshot is None:
            return []
        snapshot, planned = view.snapshot, planned_peaks(view.snapshot)
        freed = freed_tokens(snapshot)
        return [
            {
                "query_scale": scale,
                "height": height,
                "width": width,
                "tokens": height * width,
                "accounted_bytes": done.accounted_bytes if done else None,
                "storage_bytes": done.storage_bytes if done else None,
                "planned_bytes": int(planned[scale]),
                "freed_head_tokens": int(freed[scale]) if done else None,
                "layer_seconds": done.seconds if done else None,
            }
            for scale, ((height, width), done) in enumerate(
                zip_longest(snapshot.schedule.scales.sizes, snapshot.summary.scales)
            )
        ]

    def parts(self) -> Iterable[Widget]:
        with Vertical(classes="body"):
            with Horizontal(id="main"):
                with Vertical(id="memory"):
                    yield Canvas(ledger, id="ledger", height=ledger_height, about=_LEDGER)
                    yield Canvas(step_chart, id="chart", about=_CHART)
                    yield Canvas(scale_table, id="scales", about=_SCALES)
                with Vertical(id="rail"):
                    yield Canvas(picture, id="picture", about=_IMAGE)
                    yield Canvas(gpu_strip, id="gpu", height=gpu_height, about=_GPU)
                    yield Canvas(recorder_cost, id="recorder", about=_RECORDER)
            yield Canvas(head_strip, id="heads", height=strip_height, hit=strip_hit, about=_HEADS)
            yield Canvas(log_tail, id="log", about=_LOG)
