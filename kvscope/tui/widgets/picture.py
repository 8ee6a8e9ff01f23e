"""The image so far, in half blocks or in characters; a picture is drawn once for a size and kept."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from rich.style import Style
from textual.strip import Strip

from kvscope.tui.pixels import fitted_size, halves_fit, resized, rgb_lines, shaded_lines
from kvscope.tui.widgets.canvas import View, centred, row, rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.tui.feed import Snapshot

_ROOM_FOR_CAPTION = 10


def picture(view: View, width: int, height: int) -> list[Strip]:
    """The preview of the cursor's query scale, or the final image at the last one; or that there is none."""
    ink, snapshot = view.ink, view.snapshot
    pixels, title = (None, "image so far") if snapshot is None else picture_of(snapshot, view.cursor.query_scale)
    head = rule(title, width, ink)
    if height < 3:
        return [head]
    if pixels is None or snapshot is None:
        words = _absence(snapshot)
        return [head, *centred([[(words, ink.muted)]], width, height - 1)]
    caption = _caption(snapshot, pixels, view.cursor.query_scale)
    captioned = height >= _ROOM_FOR_CAPTION and len(caption) <= width
    style = None if halves_fit(ink) else ink.text
    lines = _drawn(_Same(pixels), width, height - 1 - captioned, style)
    return [head, *lines, *([row([(f"{caption:^{width}}", ink.muted)])] if captioned else [])]


def picture_of(snapshot: Snapshot, query_scale: int) -> tuple[NDArray[np.uint8] | None, str]:
    """What to show for a query scale, and its name."""
    if query_scale >= snapshot.schedule.scales.num_scales - 1 and snapshot.image is not None:
        return snapshot.image, "image"
    if query_scale < len(snapshot.previews) and snapshot.previews[query_scale] is not None:
        return snapshot.previews[query_scale], f"image after scale {query_scale}"
    return snapshot.image, "image" if snapshot.image is not None else "image so far"


def _absence(snapshot: Snapshot | None) -> str:
    """Why there is no picture."""
    if snapshot is not None and snapshot.awaits_image:
        return "making the picture"
    return "no picture yet" if snapshot is None or snapshot.status == "live" else "no picture in this trace"


def _caption(snapshot: Snapshot, pixels: NDArray[np.uint8], query_scale: int) -> str:
    """The picture's size, and the grid of the scale that it was made after."""
    height, width = pixels.shape[:2]
    size = f"{height}×{width} pixels"
    if pixels is snapshot.image:
        return size
    rows, columns = snapshot.schedule.scales.sizes[query_scale]
    return f"{size} · after scale {query_scale} ({rows}×{columns})"


class _Same:
    """A picture as a key: equal if it is the same array."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __hash__(self) -> int:
        return id(self.pixels)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.pixels is self.pixels


@lru_cache(maxsize=32)
def _drawn(picture: _Same, width: int, height: int, style: Style | None) -> tuple[Strip, ...]:
    """The picture in the middle of the room's width; with a style in characters of it, else in half blocks."""
    pixels = picture.pixels
    rows, columns = fitted_size((pixels.shape[0], pixels.shape[1]), (2 * height, width - 2))
    small = resized(pixels, rows, columns).round().astype(np.uint8)
    lines = rgb_lines(small) if style is None else shaded_lines(small, style)
    margin = row([(" " * max(0, (width - columns) // 2), style or Style())])
    return tuple(Strip.join([margin, line]) for line in lines)
