"""Compare: the trace shown, A, and another, B: layers × heads of both and their difference, totals, pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import ClassVar

from textual.containers import Container, Vertical
from textual.widget import Widget

from kvscope.tui.actions import bindings
from kvscope.tui.beside import Mark, beside, largest_differences
from kvscope.tui.cursor import Cursor
from kvscope.tui.screens.base import Record, TraceScreen
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Canvas
from kvscope.tui.widgets.compare import (
    ABOUT_HEAD,
    ABOUT_LIST,
    ABOUT_PICTURES,
    ABOUT_TOTALS,
    comparison_of,
    differences_hit,
    differences_list,
    head,
    head_height,
    pictures,
    totals,
    totals_height,
)
from kvscope.tui.widgets.panels import ABOUT_PANELS, panels, panels_height, panels_hit


class CompareScreen(TraceScreen):
    """Two runs beside each other."""

    NAME = "compare"
    BINDINGS: ClassVar = bindings("compare")

    DEFAULT_CSS = """
    CompareScreen {
        #head { height: auto; max-height: 7; }
        #sheet { height: 1fr; layout: vertical; }
        #panels { height: auto; max-height: 60%; }
        #lower { height: 1fr; layout: horizontal; }
        #numbers { width: 1fr; }
        #totals { height: auto; max-height: 70%; }
        #differences { height: 1fr; min-height: 4; }
        #pictures { width: 1fr; margin-left: 1; }
        &.-short #sheet { layout: horizontal; }
        &.-short #panels { height: 1fr; max-height: 100%; }
        &.-short #lower { width: 43; height: 1fr; margin-left: 1; }
        &.-short.-normal #lower, &.-short.-wide #lower { width: 60; }
        &.-short #totals { max-height: 50%; }
        &.-short #pictures { display: none; }
        &.-nothing #lower { display: none; }
        &.-nothing #panels { height: 1fr; max-height: 100%; }
        &.-wide #numbers { width: 66; }
    }
    """

    def parts(self) -> Iterable[Widget]:
        with Vertical(classes="body"):
            yield Canvas(head, id="head", height=head_height, about=ABOUT_HEAD)
            with Container(id="sheet"):
                yield Canvas(panels, id="panels", height=panels_height, hit=panels_hit, about=ABOUT_PANELS)
                with Container(id="lower"):
                    with Vertical(id="numbers"):
                        yield Canvas(totals, id="totals", height=totals_height, about=ABOUT_TOTALS)
                        yield Canvas(differences_list, id="differences", hit=differences_hit, about=ABOUT_LIST)
                    yield Canvas(pictures, id="pictures", about=ABOUT_PICTURES)

    def show(self, view: View) -> None:
        # Where there is nothing to compare, the words have the whole screen.
        self.set_class(comparison_of(view) is None, "-nothing")
        super().show(view)

    def records(self, view: View) -> list[Record]:
        """Totals, the cells of the cursor's query and source scale, then the largest differences; `part` says which."""
        return [*_total_records(view), *_cell_records(view), *_difference_records(view)]

    def rows(self, view: View) -> int:
        found = comparison_of(view)
        return 0 if found is None else len(largest_differences(found[0], found[1], view.metric))

    def entered(self, view: View) -> Cursor | None:
        """The cell of the chosen difference."""
        found, count = comparison_of(view), self.rows(view)
        if found is None or not count:
            return None
        cell = largest_differences(found[0], found[1], view.metric)[min(view.row, count - 1)]
        return Cursor(cell.query_scale, cell.layer, cell.head, cell.source_scale)


def _total_records(view: View) -> Iterator[Record]:
    found = comparison_of(view)
    if found is None:
        return
    comparison, scale = found[2], view.cursor.query_scale
    for pair in comparison.totals:
        yield {"part": "total", "name": pair.name, **pair.to_json()}
    for name, value in (("psnr_db", comparison.likeness.finite_psnr), ("ssim", comparison.likeness.ssim)):
        yield {"part": "total", "name": name, "value": value}
    if scale < comparison.scales_shared:
        for pair in comparison.scales[scale].numbers:
            yield {"part": "scale", "query_scale": scale, "name": pair.name, **pair.to_json()}


def _cell_records(view: View) -> Iterator[Record]:
    found, cursor = comparison_of(view), view.cursor
    if found is None or cursor.query_scale >= found[2].scales_shared:
        return
    both = beside(found[0], found[1], view.metric)
    for layer in range(found[0].schedule.num_layers):
        for head_index in range(found[0].schedule.num_heads):
            place = cursor.query_scale, layer, head_index, cursor.source_scale
            mark = Mark(int(both.marks[place]))
            numbers = zip(("a", "b", "difference"), (both.a, both.b, both.difference), strict=True)
            yield {
                "part": "cell",
                "query_scale": cursor.query_scale,
                "layer": layer,
                "head": head_index,
                "source_scale": cursor.source_scale,
                "name": view.metric,
                "state": mark.name.lower(),
                **{name: _known(float(values[place])) for name, values in numbers},
            }


def _difference_records(view: View) -> Iterator[Record]:
    found = comparison_of(view)
    if found is None:
        return
    for rank, cell in enumerate(largest_differences(found[0], found[1], view.metric), 1):
        yield {"part": "largest", "rank": rank, "name": view.metric, **cell.to_json()}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
