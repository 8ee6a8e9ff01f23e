"""Ledger: where every byte went, from the tokens that a budget counts to what the process holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

import numpy as np
from textual.containers import Container, Vertical
from textual.widget import Widget

from kvscope.tui.actions import bindings
from kvscope.tui.cursor import Cursor
from kvscope.tui.ledger_rows import ledger_rows, num_rows
from kvscope.tui.screens.base import Record, TraceScreen
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Canvas
from kvscope.tui.widgets.ledger_table import (
    ABOUT_ANSWER,
    ABOUT_LINE,
    ABOUT_SCALES,
    ABOUT_TABLE,
    answer,
    answer_height,
    line_height,
    line_words,
    scale_hit,
    scale_sums,
    table,
    table_height,
    table_hit,
    wordy_answer_height,
)

_STEP_COLUMNS = {"kept": "accounted_bytes", "stored": "storage_bytes"}
"""Lines whose peak is at one step → their column of `steps`."""


class LedgerScreen(TraceScreen):
    """The reconciled ledger of the run."""

    NAME = "ledger"
    BINDINGS: ClassVar = bindings("ledger")

    DEFAULT_CSS = """
    LedgerScreen {
        #answer, #answer-tall { height: auto; }
        #sheet { height: 1fr; layout: vertical; }
        #lines { height: 1fr; }
        #table { height: 1fr; min-height: 8; }
        #sums { display: none; margin-top: 1; }
        #line { height: auto; max-height: 9; }
        &.-short #answer-tall { display: none; }
        &.-tall #answer { display: none; }
        &.-tall #lines { height: auto; max-height: 65%; }
        &.-tall #table { height: auto; }
        &.-tall #line { height: 1fr; max-height: 100%; }
        &.-wide #sheet { layout: horizontal; }
        &.-wide #lines { height: 1fr; max-height: 100%; }
        &.-wide #line { width: 60; height: 1fr; max-height: 100%; margin-left: 1; }
        &.-wide.-tall #sums { display: block; height: 1fr; }
    }
    """

    def parts(self) -> Iterable[Widget]:
        with Vertical(classes="body"):
            yield Canvas(answer, id="answer", height=answer_height, about=ABOUT_ANSWER)
            yield Canvas(answer, id="answer-tall", height=wordy_answer_height, about=ABOUT_ANSWER)
            with Container(id="sheet"):
                with Vertical(id="lines"):
                    yield Canvas(table, id="table", height=table_height, hit=table_hit, about=ABOUT_TABLE)
                    yield Canvas(scale_sums, id="sums", hit=scale_hit, about=ABOUT_SCALES)
                yield Canvas(line_words, id="line", height=line_height, about=ABOUT_LINE)

    def records(self, view: View) -> list[Record]:
        """One per line: predicted, measured and their difference, for the run and for the cursor's scale."""
        if view.snapshot is None or view.snapshot.ledger is None:
            return []
        records: list[Record] = []
        for one in ledger_rows(view.snapshot.ledger, view.cursor.query_scale):
            entry, scale = one.run.entry, one.scale
            records.append(
                {
                    "line": entry.key,
                    "name": entry.name,
                    "group": one.group,
                    "kind": entry.kind,
                    "run_predicted_bytes": one.run.predicted.num_bytes,
                    "run_measured_bytes": None if one.group == "defined" else one.run.measured.num_bytes,
                    "run_difference_bytes": None if one.group == "defined" else one.run.difference,
                    "run_note": one.run.measured.note,
                    "query_scale": view.cursor.query_scale,
                    "scale_predicted_bytes": scale.predicted.num_bytes if scale else None,
                    "scale_measured_bytes": scale.measured.num_bytes if scale else None,
                    "scale_difference_bytes": scale.difference if scale else None,
                }
            )
        return records

    def rows(self, view: View) -> int:
        return 0 if view.snapshot is None or view.snapshot.ledger is None else num_rows(view.snapshot.ledger)

    def entered(self, view: View) -> Cursor | None:
        """The step at which the cache was largest; other lines have no step of their own."""
        snapshot, count = view.snapshot, self.rows(view)
        if snapshot is None or snapshot.ledger is None:
            return None
        line = ledger_rows(snapshot.ledger, view.cursor.query_scale)[max(0, min(view.row, count - 1))].run
        column = _STEP_COLUMNS.get(line.key)
        steps = snapshot.steps[snapshot.steps["query_scale"] < snapshot.scales_done]
        if column is None or not steps.size:
            return view.cursor
        most = steps[int(np.argmax(steps[column]))]
        return replace(view.cursor, query_scale=int(most["query_scale"]), layer=int(most["layer"]))
