"""Progress of a run on stderr: one rewritten line on a terminal, one line per scale elsewhere. A Probe."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

from kvscope.units import seconds_text

if TYPE_CHECKING:
    from heatkv.probe import RunStart, ScaleInfo, StepInfo

_BAR_WIDTH = 24
_REDRAW_S = 0.1
_TELLING_SHARE = 0.02
"""Below this share done, what start-up cost would make the rest look far too long."""


class ProgressProbe:
    """Says which scale and layer a run is at, and about how many seconds are left.

    The share done is counted in multiply-adds: a token's matrices cost the same at every scale, its attention grows
    with the keys it reads.
    """

    wants_attention_mass = False

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._begin = self._drawn = time.monotonic()
        self._scale_work: list[float] = []
        self._num_layers = 1

    def run_started(self, start: RunStart) -> None:
        width = start.num_heads * start.head_dim
        self._scale_work = [
            tokens * (28 * width**2 + 4 * width * keys)
            for tokens, keys in zip(start.scales.tokens, start.scales.offsets[1:], strict=True)
        ]
        self._num_layers = start.num_layers
        self._begin = time.monotonic()

    def step_done(self, step: StepInfo) -> None:
        now = time.monotonic()
        if self._live and now - self._drawn >= _REDRAW_S:
            self._drawn = now
            self._stream.write("\r\x1b[K" + self._line(step.query_scale, step.layer + 1, now))
            self._stream.flush()

    def scale_done(self, scale: ScaleInfo) -> None:
        is_last = scale.query_scale == len(self._scale_work) - 1
        line = self._line(scale.query_scale, self._num_layers, time.monotonic())
        if not self._live:
            self._stream.write(line + "\n")
        elif is_last:
            self._stream.write("\r\x1b[K" + line + "\n")
        self._stream.flush()

    def abandon(self) -> None:
        """End a half-drawn line, so that what is printed next begins on its own."""
        if self._live:
            self._stream.write("\n")

    def _line(self, query_scale: int, layers_done: int, now: float) -> str:
        done = sum(self._scale_work[:query_scale])
        done += self._scale_work[query_scale] * layers_done / self._num_layers
        share = done / sum(self._scale_work)
        elapsed = now - self._begin
        bar = "#" * round(_BAR_WIDTH * share)
        left = f", about {seconds_text(elapsed * (1 - share) / share)} left" if share >= _TELLING_SHARE else ""
        return (
            f"scale {query_scale + 1:>2}/{len(self._scale_work)}  layer {layers_done:>2}/{self._num_layers}  "
            f"[{bar:<{_BAR_WIDTH}}] {share:4.0%}  {seconds_text(elapsed)} gone{left}"
        )
