"""Runs: the traces of a folder and those opened before; and, where nothing is open, the welcome."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from textual.containers import Vertical
from textual.widget import Widget

from kvscope.tui.actions import bindings
from kvscope.tui.run_rows import chosen, is_home, mark_of, marks, row_of, run_rows
from kvscope.tui.screens.base import Record, TraceScreen
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Canvas
from kvscope.tui.widgets.run_list import (
    ABOUT_LIST,
    ABOUT_RUN,
    list_hit,
    run_list,
    run_words,
    welcome,
    welcome_height,
    words_height,
)


class RunsScreen(TraceScreen):
    """Which trace to look at."""

    NAME = "runs"
    BINDINGS: ClassVar = bindings("runs")

    DEFAULT_CSS = """
    RunsScreen {
        #welcome { height: auto; }
        #list { height: 1fr; min-height: 4; }
        #run { height: auto; max-height: 6; }
        &.-home.-short #run { display: none; }
    }
    """

    def parts(self) -> Iterable[Widget]:
        with Vertical(classes="body"):
            yield Canvas(welcome, id="welcome", height=welcome_height)
            yield Canvas(run_list, id="list", hit=list_hit, about=ABOUT_LIST)
            yield Canvas(run_words, id="run", height=words_height, about=ABOUT_RUN)

    def show(self, view: View) -> None:
        self.set_class(is_home(view), "-home")
        super().show(view)

    def records(self, view: View) -> list[Record]:
        """One per line of the list."""
        letters = marks(view)
        return [
            {
                "file": one.name,
                "kind": one.kind,
                "mark": mark_of(one, letters),
                "status": one.run.status if one.run else None,
                "scales_done": one.run.scales_done if one.run else None,
                "num_scales": one.run.num_scales if one.run else None,
                "created_ns": one.run.created_ns if one.run else None,
                "model": one.run.model if one.run else None,
                "resolution": one.run.resolution if one.run else None,
                "policy": one.run.policy if one.run else None,
                "budget_fraction": one.run.budget if one.run else None,
                "storage_peak_bytes": one.run.storage_peak_bytes if one.run else None,
                "file_bytes": one.run.file_bytes if one.run else None,
                "reason": one.reason or None,
            }
            for one in run_rows(view)
        ]

    def rows(self, view: View) -> int:
        return len(run_rows(view))

    def entered(self, view: View) -> Path | None:
        """The chosen file; one that cannot be read says so when it is opened."""
        one = chosen(view, run_rows(view))
        return one.path if one is not None else None

    def chosen_path(self, view: View) -> Path | None:
        """The chosen trace; None: there is none, or it is not readable."""
        one = chosen(view, run_rows(view))
        return one.path if one is not None and one.kind != "unreadable" else None

    def row_of(self, view: View, path: Path | None) -> int:
        """Where a trace stands in this view's list; its first line, if it does not."""
        return row_of(run_rows(view), path) or 0
