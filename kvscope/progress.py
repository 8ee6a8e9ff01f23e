"""Progress of a run on stderr: one rewritten line on a terminal, one line per scale elsewhere. A Probe."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, TextIO

from heatkv.probe import Capture
from kvscope.units import seconds_text

if TYPE_CHECKING:
    from heatkv.probe import RunStart, ScaleInfo, StepInfo

_BAR_WIDTH, _SHORTEST_BAR = 24, 6
_REDRAW_S = 0.1
_TELLING_SHARE = 0.02
"""Below this share done, what start-up cost would make the rest look far too long."""

_ALL_DONE = "all scales done"


class ProgressProbe:
    """Says which scale and layer a run is at, and about how many seconds are left.

    The share done is counted in multiply-adds: a token's matrices cost the same at every scale, its attention grows
    with the keys it reads.
    """

    capture = Capture()

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._half_drawn = False
        self._begin = self._drawn = time.monotonic()
        self._scale_work: list[float] = []
        self._sizes: tuple[tuple[int, int], ...] = ()
        self._num_layers = 1

    def run_started(self, start: RunStart) -> None:
        width = start.num_heads * start.head_dim
        self._scale_work = [
            tokens * (28 * width**2 + 4 * width * keys)
            for tokens, keys in zip(start.scales.tokens, start.scales.offsets[1:], strict=True)
        ]
        self._sizes, self._num_layers = start.scales.sizes, start.num_layers
        self._begin = time.monotonic()

    def step_done(self, step: StepInfo) -> None:
        now = time.monotonic()
        if self._live and now - self._drawn >= _REDRAW_S:
            self._half_drawn = True
            self._drawn = now
            line = self._line(step.query_scale, step.layer + 1, now, room=_columns(self._stream) - 1)
            self._stream.write("\r\x1b[K" + line)
            self._stream.flush()

    def scale_done(self, scale: ScaleInfo) -> None:
        is_last = scale.query_scale == len(self._scale_work) - 1
        now = time.monotonic()
        if not self._live:
            self._stream.write(self._line(scale.query_scale, self._num_layers, now) + "\n")
        elif is_last:
            line = self._line(scale.query_scale, self._num_layers, now, room=_columns(self._stream) - 1)
            self._stream.write("\r\x1b[K" + line + "\n")
            self._half_drawn = False
        self._stream.flush()

    def abandon(self) -> None:
        """End a half-drawn line, so that what is printed next begins on its own."""
        if self._half_drawn:
            self._stream.write("\n")

    def _line(self, query_scale: int, layers_done: int, now: float, *, room: int | None = None) -> str:
        """Where the run is, a bar, and the times; the bar is as long as `room` columns allow, None: as it likes."""
        done = sum(self._scale_work[:query_scale])
        done += self._scale_work[query_scale] * layers_done / self._num_layers
        share, elapsed = done / sum(self._scale_work), now - self._begin
        place = self._place(query_scale, layers_done)
        times = f"{share:4.0%}  {seconds_text(elapsed)} gone"
        if place == _ALL_DONE:
            times += "; making the picture"
        elif share >= _TELLING_SHARE:
            times += f", about {seconds_text(elapsed * (1 - share) / share)} left"
        width = _BAR_WIDTH if room is None else min(_BAR_WIDTH, room - len(f"{place}  [] {times}"))
        bar = f"[{'#' * round(width * share):<{width}}] " if width >= _SHORTEST_BAR else ""
        return f"{place}  {bar}{times}"[:room]

    def _place(self, query_scale: int, layers_done: int) -> str:
        """Scales are numbered from 0, as in files and on the screens; what is counted is what is done."""
        height, width = self._sizes[query_scale]
        if layers_done < self._num_layers:
            return f"scale {query_scale} ({height}x{width}), {layers_done}/{self._num_layers} layers"
        if query_scale < len(self._sizes) - 1:
            return f"scale {query_scale} ({height}x{width}), {query_scale + 1} of {len(self._sizes)} scales done"
        return _ALL_DONE


def _columns(stream: TextIO) -> int:
    """The width of the terminal that a stream goes to."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except OSError:
        columns = 0
    # Some terminals give 0 for "not known"; shutil knows COLUMNS, and 80.
    return columns or shutil.get_terminal_size().columns
