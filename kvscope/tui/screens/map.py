"""Map: layers × heads at the cursor's query and source scale; beside it the cell's value, why, and its history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.containers import Container, Horizontal, Vertical
from textual.strip import Strip
from textual.widget import Widget

from kvscope.tui.actions import bindings
from kvscope.tui.metrics import METRICS
from kvscope.tui.screens.base import TraceScreen
from kvscope.tui.widgets.canvas import Canvas, View, rule
from kvscope.tui.widgets.cell import bars_height, cell_words, over_queries, over_sources, words_height
from kvscope.tui.widgets.heat import grid_hit, grid_width, heat_grid, legend


class MapScreen(TraceScreen):
    """Layers × heads, one cell each."""

    NAME = "map"
    BINDINGS: ClassVar = bindings("map")

    DEFAULT_CSS = """
    MapScreen {
        #title { height: 1; }
        #legend { height: 1; }
        #grid { width: auto; }
        #cell { width: 1fr; margin-left: 1; }
        #words { height: auto; margin-bottom: 1; }
        &.-short #words { margin-bottom: 0; }
        #history { height: 1fr; layout: vertical; }
        #sources, #queries { height: auto; max-height: 50%; }
        &.-wide #sources, &.-wide #queries { max-height: 100%; }
        &.-wide #history { layout: horizontal; }
    }
    """

    def parts(self) -> Iterable[Widget]:
        with Vertical(classes="body"):
            yield Canvas(_title, id="title")
            yield Canvas(legend, id="legend")
            with Horizontal(id="main"):
                yield Canvas(heat_grid, id="grid", width=grid_width, hit=grid_hit)
                with Vertical(id="cell"):
                    yield Canvas(cell_words, id="words", height=words_height)
                    with Container(id="history"):
                        yield Canvas(over_sources, id="sources", height=bars_height)
                        yield Canvas(over_queries, id="queries", height=bars_height)


def _title(view: View, width: int, _height: int) -> list[Strip]:
    """What is drawn: the metric, and the query and source scale."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None:
        return [rule("map", width, ink)]
    cursor, sizes = view.cursor, snapshot.schedule.scales.sizes
    metric = METRICS[view.metric]
    how = snapshot.summary.tags["scales"] if metric.measured else "plan"
    query, source = _named(cursor.query_scale, sizes), _named(cursor.source_scale, sizes)
    title = f"{metric.title} · query scale {query} ← source scale {source}"
    return [rule(title, width, ink, tag=how)]


def _named(scale: int, sizes: tuple[tuple[int, int], ...]) -> str:
    height, width = sizes[scale]
    return f"{scale} ({height}×{width})"
