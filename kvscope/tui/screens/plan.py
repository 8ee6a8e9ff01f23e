"""Plan: everything that was edited, reviewed before it is run: what changes, what it costs, what became of its run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.containers import Vertical
from textual.widget import Widget

from kvscope.tui.actions import bindings
from kvscope.tui.screens.base import Record, TraceScreen
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Canvas
from kvscope.tui.widgets.plan_lines import (
    plan_edits,
    plan_run,
    plan_run_height,
    plan_sources,
    plan_sources_height,
    plan_totals,
    plan_totals_height,
)

_TOTALS = (
    "The recorded plan beside the staged one. Tokens and bytes of the staged plan are exact if it is obeyed. What is "
    "lost is the share of the run's measured attention that goes to what would be dropped: an estimate, since dropping "
    "changes what later steps attend to. KL and flips are predicted from it where a fidelity was learnt; in brackets, "
    "between what they fall in eight cases of ten. Equal hashes drop alike."
)
_SOURCES = "Of each source scale, how many heads drop it at another step than the recorded plan does."
_EDITS = "The edits in force, oldest first, as lines that `kvscope plan --script` takes too."
_RUN = (
    "The plan file that was written, and whether it is of what is staged now. It is stale when the trace, the head "
    "orders or the model have changed since. A run's schedule is read back from its trace and compared with the plan's."
)


class PlanScreen(TraceScreen):
    """What is staged, before and after."""

    NAME = "plan"
    BINDINGS: ClassVar = bindings("plan")

    DEFAULT_CSS = """
    PlanScreen {
        #totals { height: auto; }
        #sources { height: auto; }
        #edits { height: 1fr; min-height: 2; }
        #run { height: auto; }
    }
    """

    def parts(self) -> Iterable[Widget]:
        with Vertical(classes="body"):
            yield Canvas(plan_totals, id="totals", height=plan_totals_height, about=_TOTALS)
            yield Canvas(plan_sources, id="sources", height=plan_sources_height, about=_SOURCES)
            yield Canvas(plan_edits, id="edits", about=_EDITS)
            yield Canvas(plan_run, id="run", height=plan_run_height, about=_RUN)

    def rows(self, view: View) -> int:
        return 0 if view.edit is None else len(view.edit.edits)

    def records(self, view: View) -> list[Record]:
        """The recorded plan and the staged one, a line each; None: unknown."""
        if view.edit is None:
            return []
        records: list[Record] = []
        for name, one in (("recorded", view.edit.before), ("staged", view.edit.after)):
            kl, flips = one.kl or (None,) * 3, one.flips or (None,) * 3
            records.append(
                {
                    "plan": name,
                    "schedule_sha256": one.schedule_sha256,
                    "policy": one.policy,
                    "budget_fraction": one.budget,
                    "sink_scales": one.sink_scales,
                    "peak_head_tokens": one.peak_tokens,
                    "peak_bytes_est": one.peak_bytes,
                    "peak_query_scale": one.peak_query_scale,
                    "peak_layer": one.peak_layer,
                    "lost_fraction_est": one.lost,
                    **{f"kl_nats_est_{place}": value for place, value in zip(_PLACES, kl, strict=True)},
                    **{f"flips_fraction_est_{place}": value for place, value in zip(_PLACES, flips, strict=True)},
                    "changed_head_scales": view.edit.num_changed if name == "staged" else 0,
                    "unknown_cells": view.edit.estimate.unknown_cells if name == "staged" else 0,
                }
            )
        return records


_PLACES = ("low", "middle", "high")
