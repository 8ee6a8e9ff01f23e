"""One line per query scale: its grid, its peak bytes, what it freed, its time. Scales to come show their plan, dim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.strip import Strip

from kvscope import units
from kvscope.tui.figures import freed_tokens, planned_peaks
from kvscope.tui.widgets.canvas import Part, View, row, rule

if TYPE_CHECKING:
    from kvscope.tui.feed import Snapshot

_COLUMNS = (
    ("scale", 7),
    ("grid", 9),
    ("tokens", 8),
    ("accounted", 11),
    ("stored", 11),
    ("freed head-tokens", 19),
    ("in layers", 11),
)


def scale_table(view: View, width: int, height: int) -> list[Strip]:
    """A rule, the titles, and as many scales round the cursor's as fit."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None:
        return [rule("scales", width, ink)]
    titles = "".join(f"{name:>{columns}}" for name, columns in _fitting(width))
    count, room = snapshot.schedule.scales.num_scales, max(1, height - 2)
    first = max(0, min(view.cursor.query_scale - room // 2, count - room))
    lines = [_scale_line(view, snapshot, scale, width) for scale in range(count)[first : first + room]]
    title = (
        "scales, peak bytes of each"
        if count <= room
        else f"scales {first}–{first + len(lines) - 1} of 0–{count - 1}, peak bytes of each"
    )
    return [rule(title, width, ink, tag=snapshot.summary.tags["scales"]), row([(titles, ink.muted)]), *lines]


def _scale_line(view: View, snapshot: Snapshot, scale: int, width: int) -> Strip:
    ink = view.ink
    chosen = scale == view.cursor.query_scale
    style = ink.strong if chosen else ink.text if scale < snapshot.scales_done else ink.muted
    pairs = zip(_texts(snapshot, scale), _fitting(width), strict=False)
    texts = "".join(f"{text:>{columns}}" for text, (_, columns) in pairs)
    mark: Part = (" ▸" if chosen else "  ", ink.accent)
    return row([mark, (texts[2:], style)])


def _texts(snapshot: Snapshot, scale: int) -> list[str]:
    """The cells of a finished scale; of one to come, what is planned."""
    scales = snapshot.schedule.scales
    height, width = scales.sizes[scale]
    place = [str(scale), f"{height}×{width}", f"{scales.tokens[scale]:,}"]
    if scale >= snapshot.scales_done:
        return [*place, units.bytes_text(int(planned_peaks(snapshot)[scale])), "planned"]
    summary = snapshot.summary.scales[scale]
    return [
        *place,
        units.bytes_text(summary.accounted_bytes),
        units.bytes_text(summary.storage_bytes),
        f"{int(freed_tokens(snapshot)[scale]):,}",
        units.seconds_text(summary.seconds),
    ]


def _fitting(width: int) -> list[tuple[str, int]]:
    """The columns that fit, in order."""
    fitting, used = [], 0
    for name, columns in _COLUMNS:
        used += columns
        if used <= width:
            fitting.append((name, columns))
    return fitting
