"""Mass: the attention of one head, scale by scale; where on the picture it looks; and its place among all heads."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

from textual.containers import Horizontal, Vertical
from textual.widget import Widget

from kvscope.tui.actions import bindings
from kvscope.tui.metrics import Cell, volume_of
from kvscope.tui.screens.base import Record, TraceScreen
from kvscope.tui.view import View
from kvscope.tui.widgets.attention import attention_over_picture
from kvscope.tui.widgets.canvas import Canvas
from kvscope.tui.widgets.triangle import (
    heads_grid,
    heads_hit,
    ranked_heads,
    ranked_hit,
    triangle,
    triangle_height,
    triangle_hit,
)

_TRIANGLE = (
    "One head's attention. Each line is a query scale, each cell the share of the head's attention that a source scale "
    "got, as the mean over the queries; the last cell of a line is the scale itself. A line sums up to 100 %: what was "
    "dropped gets nothing, and the rest shares its part. Arrows move query and source scale, h j k l head and layer; u "
    "shows the unconditional rows of guidance."
)
_PICTURE = (
    "Where the head looks: its attention to each token of the source scale, over the picture. Grids of more than "
    "16 × 16 tokens are recorded in 16 × 16 cells. It needs a run with --attention-map."
)
_RANKED = (
    "All heads of all layers at this query and source scale, most attention first; the arrow is the cursor's head. A "
    "column shows the most of its heads where there are more heads than columns. Click to go to a head."
)
_HEADS = (
    "The same heads where they are: layers × heads, a dot where the source scale was dropped. Click to go to a head."
)


class MassScreen(TraceScreen):
    """One head's attention over query and source scales."""

    NAME = "mass"
    BINDINGS: ClassVar = bindings("mass")

    DEFAULT_CSS = """
    MassScreen {
        #sheet { height: 1fr; }
        #numbers { width: 1fr; }
        #triangle { height: auto; max-height: 75%; }
        #ranked { height: 1fr; min-height: 4; }
        #heads { display: none; }
        #attention { display: none; width: 27; height: 100%; margin-left: 1; }
        &.-maps #attention { display: block; }
        &.-normal #attention { width: 42; }
        &.-wide #attention { width: 64; }
        &.-tall #ranked { height: 9; margin-top: 1; }
        &.-tall #heads { display: block; height: 1fr; margin-top: 1; }
    }
    """

    def parts(self) -> Iterable[Widget]:
        with Horizontal(id="sheet", classes="body"):
            with Vertical(id="numbers"):
                yield Canvas(triangle, id="triangle", height=triangle_height, hit=triangle_hit, about=_TRIANGLE)
                yield Canvas(ranked_heads, id="ranked", hit=ranked_hit, about=_RANKED)
                yield Canvas(heads_grid, id="heads", hit=heads_hit, about=_HEADS)
            yield Canvas(attention_over_picture, id="attention", about=_PICTURE)

    def show(self, view: View) -> None:
        self.set_class(view.snapshot is not None and "maps" in view.snapshot.header.tiers, "-maps")
        super().show(view)

    def records(self, view: View) -> list[Record]:
        """One per query and source scale of the cursor's head; a mass of None: dropped, or not measured."""
        snapshot, cursor = view.snapshot, view.cursor
        if snapshot is None:
            return []
        records: list[Record] = []
        for query in range(snapshot.scales_done):
            for source in range(query + 1):
                place = (query, cursor.layer, cursor.head, source)
                values = {}
                for name in ("mass", "mass_uncond"):
                    volume = volume_of(snapshot, name)
                    value = float(volume.values[place])
                    values[name] = value if volume.cells[place] == Cell.VALUE and math.isfinite(value) else None
                records.append(
                    {
                        "layer": cursor.layer,
                        "head": cursor.head,
                        "query_scale": query,
                        "source_scale": source,
                        "read_tokens": int(snapshot.read_tokens[place]),
                        **values,
                    }
                )
        return records
