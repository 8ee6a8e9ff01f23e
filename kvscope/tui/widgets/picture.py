"""The image so far in half blocks: two pixels a character, upper as foreground and lower as background."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from rich.color import Color
from rich.style import Style
from textual.strip import Strip

from kvscope.tui.widgets.canvas import Part, View, centred, row, rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.tui.feed import Snapshot

_SHADES = " .:-=+*#%@"


def picture(view: View, width: int, height: int) -> list[Strip]:
    """The preview of the cursor's query scale, or the final image at the last one; or that there is none."""
    ink, snapshot = view.ink, view.snapshot
    pixels, title = (None, "image so far") if snapshot is None else picture_of(snapshot, view.cursor.query_scale)
    head = rule(title, width, ink)
    if height < 3:
        return [head]
    if pixels is None:
        words = _absence(snapshot)
        return [head, *centred([[(words, ink.muted)]], width, height - 1)]
    small = _fitted(pixels, width - 2, 2 * (height - 1))
    lines = _shaded(small, view) if ink.plain or not ink.colour else _half_blocks(small)
    left = max(0, (width - small.shape[1]) // 2)
    return [head, *(row([(" " * left, ink.text), *line]) for line in lines)]


def _absence(snapshot: Snapshot | None) -> str:
    """Why there is no picture."""
    if snapshot is not None and snapshot.awaits_image:
        return "making the picture"
    return "no picture yet" if snapshot is None or snapshot.status == "live" else "no picture in this trace"


def picture_of(snapshot: Snapshot, query_scale: int) -> tuple[NDArray[np.uint8] | None, str]:
    """What to show for a query scale, and its name."""
    if query_scale >= snapshot.schedule.scales.num_scales - 1 and snapshot.image is not None:
        return snapshot.image, "image"
    if query_scale < len(snapshot.previews) and snapshot.previews[query_scale] is not None:
        return snapshot.previews[query_scale], f"image after scale {query_scale}"
    return snapshot.image, "image" if snapshot.image is not None else "image so far"


def _fitted(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The picture averaged, or repeated, to the largest size of its shape within the room; an even height."""
    rows, columns = pixels.shape[:2]
    scale = min(width / columns, height / rows)
    to_rows, to_columns = max(2, int(rows * scale) // 2 * 2), max(1, int(columns * scale))
    down = _averaged(pixels.astype(np.float64), to_rows, axis=0)
    return _averaged(down, to_columns, axis=1).round().astype(np.uint8)


def _averaged(pixels: NDArray[np.float64], size: int, *, axis: int) -> NDArray[np.float64]:
    edges = np.arange(size) * pixels.shape[axis] // size
    ends = np.append(edges[1:], pixels.shape[axis])
    sums = np.add.reduceat(pixels, edges, axis=axis)
    shape = [1, 1, 1]
    shape[axis] = size
    mean: NDArray[np.float64] = sums / np.maximum(ends - edges, 1).reshape(shape)
    return mean


def _half_blocks(pixels: NDArray[np.uint8]) -> list[list[Part]]:
    upper, lower = _quantised(pixels[0::2]), _quantised(pixels[1::2])
    return [
        [("▀", _pair(tuple(top), tuple(bottom))) for top, bottom in zip(above.tolist(), below.tolist(), strict=True)]
        for above, below in zip(upper, lower, strict=True)
    ]


def _quantised(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """32 steps a channel: neighbours merge into runs and styles are few."""
    steps: NDArray[np.int64] = (pixels.astype(np.int64) // 8) * 8 + 4
    return steps


@lru_cache(maxsize=16384)
def _pair(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Style:
    return Style(color=Color.from_rgb(*top), bgcolor=Color.from_rgb(*bottom))


def _shaded(pixels: NDArray[np.uint8], view: View) -> list[list[Part]]:
    """The picture in characters of growing weight, one per two pixels, for terminals without Unicode or colour."""
    brightness = pixels.astype(np.float64).mean(axis=2).reshape(-1, 2, pixels.shape[1]).mean(axis=1)
    indices = (brightness / 256 * len(_SHADES)).astype(int)
    return [[("".join(_SHADES[index] for index in line), view.ink.text)] for line in indices.tolist()]
