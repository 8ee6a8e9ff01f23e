"""Capacity: what is planned where an online policy chooses tokens during the run: how many each layer holds, and when.

And what of each source scale was kept: measured, as no plan says it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kvscope import units
from kvscope.tui.widgets.canvas import Part, paragraph, row, rule

if TYPE_CHECKING:
    from textual.strip import Strip

    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot
    from kvscope.tui.view import View

_LABEL = 9
_WIDEST = 10


def capacity_table(view: View, snapshot: Snapshot, width: int, height: int) -> list[Strip]:
    """A rule, who chooses, the layers × query scales in head-tokens, and what was kept of each source scale."""
    ink, schedule = view.ink, snapshot.schedule
    assert schedule.layer_tokens is not None  # of an online policy
    words = _words(snapshot)
    said = paragraph(words, ink.text, width)
    first, count = _page(view, snapshot, height, lines_above=len(said))
    title = "head-tokens that each layer holds after its step"
    if count < schedule.num_layers:
        title += f", L{first}–L{first + count - 1} of {schedule.num_layers}"
    scales = [str(scale) for scale in range(schedule.scales.num_scales)]
    cells = [[f"{tokens:,}" for tokens in layers] for layers in schedule.layer_tokens.T.tolist()]
    return [
        rule(title, width, ink, tag="planned"),
        *said,
        _line(view, snapshot, width, "query", scales, marked=view.cursor.query_scale),
        *(
            _line(view, snapshot, width, f"L{layer}", cells[layer], here=layer == view.cursor.layer)
            for layer in range(first, first + count)
        ),
        *_kept(view, snapshot, width),
    ][:height]


def capacity_hit(view: View, snapshot: Snapshot, width: int, height: int, x: int, y: int) -> Cursor | None:
    """The layer and query scale at a place of `capacity_table`, if it ran."""
    above = len(paragraph(_words(snapshot), view.ink.text, width))
    first, count = _page(view, snapshot, height, lines_above=above)
    layer, scale = first + y - above - 2, (x - _LABEL) // _cell(snapshot, width)
    if not first <= layer < first + count or x < _LABEL or scale >= snapshot.scales_done:
        return None
    return replace(view.cursor, layer=layer, query_scale=scale)


def _words(snapshot: Snapshot) -> str:
    policy, heads = units.printable(snapshot.schedule.policy), snapshot.schedule.num_heads
    rows = "each row its own" if snapshot.schedule.provenance.get("rows") != "run" else "the same for all rows"
    return (
        f"Which tokens stay is chosen during the run by {policy}, {rows}; no plan says when a head-scale leaves. How "
        f"many a layer holds, over its {heads} heads, was known before the run:"
    )


def _page(view: View, snapshot: Snapshot, height: int, *, lines_above: int) -> tuple[int, int]:
    """The first layer that is shown, and how many are: the page with the cursor's."""
    room = max(1, height - lines_above - 2 - _KEPT_LINES)
    layers = snapshot.schedule.num_layers
    if layers <= room:
        return 0, layers
    first = view.cursor.layer // room * room
    return first, min(room, layers - first)


_KEPT_LINES = 3


def _kept(view: View, snapshot: Snapshot, width: int) -> list[Strip]:
    """Of each source scale the share that is kept after the cursor's query scale, over all heads of all layers."""
    ink, scale = view.ink, view.cursor.query_scale
    title = f"kept after query scale {scale}, % of each source scale"
    if scale >= snapshot.scales_done:
        return [rule(title, width, ink), *paragraph("not reached yet", ink.muted, width)]
    tokens = np.array(snapshot.schedule.scales.tokens) * snapshot.schedule.num_layers * snapshot.schedule.num_heads
    shares = snapshot.kept_tokens[scale].sum(axis=(0, 1), dtype=np.int64) / tokens
    cached = shares[:-1][: scale + 1]
    texts = [units.fraction_text(float(share)).removesuffix(" %") for share in cached]
    sources = [str(source) for source in range(len(tokens))]
    return [
        rule(title, width, ink, tag=f"{snapshot.summary.tags['scales']}, first row"),
        _line(view, snapshot, width, "source", sources, marked=view.cursor.source_scale),
        _line(view, snapshot, width, "kept %", texts),
    ]


def _cell(snapshot: Snapshot, width: int) -> int:
    return max(3, min(_WIDEST, (width - _LABEL - 1) // snapshot.schedule.scales.num_scales))


def _line(
    view: View,
    snapshot: Snapshot,
    width: int,
    name: str,
    texts: list[str],
    *,
    marked: int | None = None,
    here: bool = False,
) -> Strip:
    ink, cell = view.ink, _cell(snapshot, width)
    parts: list[Part] = [(f"{'▸' if here else ' '}{name:<{_LABEL - 1}}", ink.strong if here else ink.muted)]
    for index, text in enumerate(texts):
        style = ink.accent if index == marked else ink.muted if marked is not None else ink.text
        shown = text if len(text) < cell else "…"
        parts.append((f"{shown:>{cell}}", style))
    return row(parts, width)
