"""Map: layers × heads at the cursor's query and source scale; beside it the cell's value, why, and its history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.containers import Container, Horizontal, Vertical
from textual.strip import Strip
from textual.widget import Widget

from kvscope.tui.actions import bindings
from kvscope.tui.metrics import METRICS, Cell, Metric, volume_of
from kvscope.tui.pixels import halves_fit
from kvscope.tui.screens.base import Record, TraceScreen
from kvscope.tui.widgets.attention import attention_over_picture
from kvscope.tui.widgets.canvas import Canvas, View, rule
from kvscope.tui.widgets.cell import (
    bars_height,
    cell_words,
    over_queries,
    over_sources,
    range_height,
    range_words,
    words_height,
)
from kvscope.tui.widgets.heat import grid_hit, grid_width, heat_grid, legend
from kvscope.tui.widgets.panorama import panorama, panorama_fits, panorama_hit

if TYPE_CHECKING:
    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot

_MOST_WHOLE_LINES = 16
"""More layers than these take half a line each in the panorama."""


_GRID = (
    "Layers × heads, a cell each, for the cursor's query and source scale. Heat shows the metric that m chooses, L "
    "makes it logarithmic; tokens are drawn as bars. Absent signs are absent head-scales: a dot is dropped, ? not "
    "measured. v begins a range that is summed above."
)
_PANORAMA = (
    "Every source scale beside the next, a block of layers × heads each, for the cursor's query scale. Fractions have "
    "the same colours in all blocks, tokens are shares of their own source scale."
)
_WORDS = (
    "The cell under the cursor: every metric's value and why it is in the cache or not. enter tells its whole story. "
    "S-CAS is the mean attention that the later query scales of this run paid to it, rank 1 has most of its source "
    "scale; entropy is how evenly a head spreads its attention over source scales."
)
_SOURCES = "The cursor's head at its query scale: the metric for each source scale."
_QUERIES = "The cursor's head and source scale: the metric at each query scale."
_PICTURE = "Where the head looks: its attention to each token of the source scale, over the picture."

_ROOM_FOR_PANORAMA = (160, 34)
_ROWS_BESIDE = 17
"""What the panorama leaves of the screen: what frames it, and the cell's words and bars."""


class MapScreen(TraceScreen):
    """Layers × heads, one cell each; all source scales at once where there is room."""

    NAME = "map"
    BINDINGS: ClassVar = bindings("map")

    DEFAULT_CSS = """
    MapScreen {
        #title { height: 1; }
        #legend { height: 1; }
        #range { height: auto; }
        #panorama { display: none; height: auto; }
        #grid { width: auto; }
        #cell { width: 1fr; margin-left: 1; }
        #words { height: auto; margin-bottom: 1; }
        &.-short #words { margin-bottom: 0; max-height: 60%; }
        #history { height: 1fr; layout: vertical; }
        #sources, #queries { height: auto; max-height: 50%; }
        &.-wide #sources, &.-wide #queries { max-height: 100%; }
        &.-wide #history { layout: horizontal; }
        #attention { display: none; width: 44; height: 100%; margin-left: 1; }
        &.-wide.-maps #attention { display: block; }
        &.-panorama #panorama { display: block; }
        &.-panorama #grid, &.-panorama #legend { display: none; }
        &.-panorama #cell { layout: horizontal; margin: 1 0 0 0; }
        &.-panorama #words { width: 1fr; max-width: 46; height: 100%; margin: 0 1 0 0; }
        &.-panorama #history { width: 2fr; height: 100%; layout: horizontal; }
        &.-panorama #sources, &.-panorama #queries { height: 100%; max-height: 100%; }
    }
    """

    def parts(self) -> Iterable[Widget]:
        with Vertical(classes="body"):
            yield Canvas(_title, id="title")
            yield Canvas(legend, id="legend")
            yield Canvas(range_words, id="range", height=range_height)
            yield Canvas(panorama, id="panorama", height=_panorama_height, hit=panorama_hit, about=_PANORAMA)
            with Horizontal(id="main"):
                yield Canvas(heat_grid, id="grid", width=grid_width, hit=grid_hit, about=_GRID)
                with Vertical(id="cell"):
                    yield Canvas(cell_words, id="words", height=words_height, about=_WORDS)
                    with Container(id="history"):
                        yield Canvas(over_sources, id="sources", height=bars_height, about=_SOURCES)
                        yield Canvas(over_queries, id="queries", height=bars_height, about=_QUERIES)
                yield Canvas(attention_over_picture, id="attention", about=_PICTURE)

    def __init__(self) -> None:
        super().__init__()
        self._latest: View | None = None

    def show(self, view: View) -> None:
        self._latest = view
        self._arrange(view)
        super().show(view)

    def records(self, view: View) -> list[Record]:
        """One per layer and head: every metric at the cursor's query and source scale; None where it has no value."""
        snapshot, cursor = view.snapshot, view.cursor
        if snapshot is None or cursor.query_scale >= snapshot.scales_done:
            return []
        columns = {metric.column: _column(snapshot, metric, cursor) for metric in METRICS.values()}
        records: list[Record] = []
        for layer in range(snapshot.schedule.num_layers):
            for head in range(snapshot.schedule.num_heads):
                place: Record = {
                    "query_scale": cursor.query_scale,
                    "source_scale": cursor.source_scale,
                    "layer": layer,
                    "head": head,
                }
                records.append(place | {name: column[layer][head] for name, column in columns.items()})
        return records

    def on_resize(self) -> None:
        super().on_resize()
        if self._latest is not None:
            self._arrange(self._latest)

    def _arrange(self, view: View) -> None:
        """All source scales where they fit, else one; and the picture where there are maps."""
        width, height = self.size
        least_width, least_height = _ROOM_FOR_PANORAMA
        is_roomy = width >= least_width and height >= least_height
        # One block may be missing: nothing reads the last source scale but its own query scale.
        spare = 0 if view.snapshot is None else view.snapshot.schedule.num_heads + 2
        self.set_class(is_roomy and panorama_fits(view, width + spare, height - _ROWS_BESIDE), "-panorama")
        self.set_class(view.snapshot is not None and "maps" in view.snapshot.header.tiers, "-maps")


def _panorama_height(view: View, _width: int) -> int:
    """A line for each layer where there are few, else a line for two; its titles, and what the colours mean."""
    if view.snapshot is None:
        return 0
    layers = view.snapshot.schedule.num_layers
    halved = layers > _MOST_WHOLE_LINES and halves_fit(view.ink)
    return 2 + (-(-layers // 2) if halved else layers)


def _column(snapshot: Snapshot, metric: Metric, cursor: Cursor) -> list[list[float | int | None]]:
    """[layer][head] of one metric: whole numbers for tokens, 0 for those that are gone."""
    volume = volume_of(snapshot, metric.name)
    place = (cursor.query_scale, slice(None), slice(None), cursor.source_scale)
    values, cells = volume.values[place].tolist(), volume.cells[place].tolist()
    return [
        [_raw(metric, value, Cell(cell)) for value, cell in zip(*line, strict=True)]
        for line in zip(values, cells, strict=True)
    ]


def _raw(metric: Metric, value: float, cell: Cell) -> float | int | None:
    if metric.amount:
        return None if cell is Cell.UNWRITTEN else round(value)
    return None if cell is not Cell.VALUE else round(value) if metric.name in ("rank", "drop_step") else value


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
