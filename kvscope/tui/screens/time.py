"""Timeline: bytes and time, step by step or along the clock, from the first step to the last."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

from textual.containers import Vertical
from textual.widget import Widget

from kvscope.tui.actions import bindings
from kvscope.tui.screens.base import Record, TraceScreen
from kvscope.tui.timeline import across, sampled_in_steps, series_of
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Canvas
from kvscope.tui.widgets.readout import readout, readout_height
from kvscope.tui.widgets.timeline import by_of, bytes_chart, machine_chart, timeline_hit, work_chart

_BYTES = (
    "Bytes of keys and values after each step, a layer of a scale. Filled: accounted, what the budget counts, as the "
    "run measured it. Dotted: the plan of steps that have not run. The solid line is what the cache stored, the dashed "
    "one the budget, the sparse one the full history where it fits. ▲ is the peak. Every column shows the most of its "
    "steps, so no peak is lost. By time, an outline is what the cache held between two steps: sampling of the scale's "
    "bits, decoding of previews and recording."
)
_MACHINE = (
    "Memory as torch's CUDA allocator, or without CUDA the process, and the GPU's driver count it, from the least to "
    "the most of what was sampled: this axis does not begin at 0. Dots stand for the last sample until there is a "
    "newer one; the allocator is sampled after every scale, and what was sampled after the last step is at its end."
)
_WORK = (
    "Above, how long each step took: on the device where that was measured, else by the host's clock. Below, the "
    "head-tokens that each step freed, over all layers and heads. Every column shows the most of its steps."
)
_READOUT = (
    "The cursor's step in numbers. The share is of the budget, or without one of the full history. With a range "
    "selected: its peak, the head-tokens it freed, and its time from the first step's begin to the last one's end."
)


class TimeScreen(TraceScreen):
    """Bytes and time, step by step."""

    NAME = "time"
    BINDINGS: ClassVar = bindings("time")

    DEFAULT_CSS = """
    TimeScreen {
        #bytes { height: 3fr; min-height: 8; }
        #machine { height: 1fr; min-height: 3; max-height: 8; }
        #work { height: 2fr; min-height: 5; max-height: 13; }
        #readout { height: auto; }
    }
    """

    def parts(self) -> Iterable[Widget]:
        with Vertical(classes="body"):
            yield Canvas(bytes_chart, id="bytes", hit=timeline_hit, about=_BYTES)
            yield Canvas(machine_chart, id="machine", hit=timeline_hit, about=_MACHINE)
            yield Canvas(work_chart, id="work", hit=timeline_hit, about=_WORK)
            yield Canvas(readout, id="readout", height=readout_height, about=_READOUT)

    def records(self, view: View) -> list[Record]:
        """One per step shown; by time, only those that ran."""
        snapshot = view.snapshot
        if snapshot is None:
            return []
        series = series_of(snapshot)
        columns = {
            "accounted_bytes": series.accounted_bytes,
            "storage_bytes": series.storage_bytes,
            "planned_bytes": series.planned_bytes,
            "freed_head_tokens": series.freed_tokens,
            "begin_ns": series.begin_ns,
            "end_ns": series.end_ns,
            "device_ns": series.device_ns,
            **{
                name: sampled_in_steps(snapshot, table["t_ns"], table[column])
                for name, table, column in (
                    ("cuda_allocated_bytes", snapshot.allocator, "allocated_bytes"),
                    ("process_rss_bytes", snapshot.allocator, "process_rss_bytes"),
                    ("gpu_used_bytes", snapshot.gpu, "used_bytes"),
                )
            },
        }
        records: list[Record] = []
        for step in across(snapshot, 1, view.window, by_of(view)).shown:
            scale, layer = divmod(step, snapshot.schedule.num_layers)
            values = {name: _whole(float(column[step])) for name, column in columns.items()}
            records.append({"step": step, "query_scale": scale, "layer": layer, **values})
        return records


def _whole(value: float) -> int | None:
    return None if math.isnan(value) else round(value)
