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
                    yield Canvas(ledger, id="ledger", height=ledger_height)
                    yield Canvas(step_chart, id="chart")
                    yield Canvas(scale_table, id="scales")
                with Vertical(id="rail"):
                    yield Canvas(picture, id="picture")
                    yield Canvas(gpu_strip, id="gpu", height=gpu_height)
                    yield Canvas(recorder_cost, id="recorder")
            yield Canvas(head_strip, id="heads", height=strip_height, hit=strip_hit)
            yield Canvas(log_tail, id="log")
