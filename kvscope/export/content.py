"""Content: what one export may tell of a trace. It stands between the trace and every exporter."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

import kvscope
from kvscope.analysis import summarize
from kvscope.format import TABLES, text_field
from kvscope.redact import Facts, facts_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.scales import ScaleSchedule
    from kvscope.trace import Trace

ROW_TABLES = ("steps", "gpu", "allocator", "log", "cost")
HEAD_SCALE_TABLES = ("kept_tokens", "read_tokens", "attention_mass", "attention_mass_uncond")
"""Arrays [query_scale, layer, head, source_scale]."""


class Content:
    """One moment of a trace: words redacted if asked, pictures left out if asked."""

    def __init__(self, trace: Trace, *, redact: bool = True, images: bool = True, arrays: bool = False) -> None:
        self._trace = trace
        self.redact = redact
        self.images = images
        """Whether pictures, and the bits that they can be decoded from, are told."""
        self.arrays = arrays
        """Whether a format of text holds the large arrays too."""

    @cached_property
    def facts(self) -> Facts:
        return facts_of(self._trace, summarize(self._trace), redact=self.redact)

    @property
    def made_by(self) -> str:
        return f"kvscope {kvscope.__version__}"

    @property
    def scales(self) -> ScaleSchedule:
        return self._trace.header.scales

    @property
    def scales_done(self) -> int:
        return self._trace.scales_done

    @property
    def num_layers(self) -> int:
        return self._trace.schedule.num_layers

    @property
    def num_heads(self) -> int:
        return self._trace.schedule.num_heads

    @property
    def tiers(self) -> tuple[str, ...]:
        return self._trace.header.tiers

    def is_chosen(self, source_scale: int) -> bool:
        """Whether an online policy chooses which tokens of a source scale stay: no plan says when they leave."""
        schedule = self._trace.schedule
        return schedule.online and schedule.sink_scales <= source_scale < schedule.scales.num_scales - 1

    @property
    def drop_step(self) -> NDArray[np.int16]:
        """[layer, head, source_scale]"""
        return self._trace.schedule.drop_step

    @property
    def begin_ns(self) -> int:
        """The earliest time of the trace, on its clock: no other is before it."""
        times = [self._trace.header.created_monotonic_ns]
        for name in ROW_TABLES:
            column = "begin_ns" if name == "steps" else "t_ns"
            times += self.rows(name)[column].tolist()
        return int(min(times))

    def rows(self, name: str) -> NDArray[np.void]:
        """A table of rows; see format.TABLES. Texts of `log` are those of `facts`."""
        rows: NDArray[np.void] = getattr(self._trace, name)
        if name != "log" or not self.redact:
            return rows
        rows = rows.copy()
        for row, line in zip(rows, self.facts.log, strict=True):
            row["text"] = text_field(line.text)
        return rows

    def head_scales(self, name: str) -> NDArray[Any]:  # Any: counts or fractions
        """One of HEAD_SCALE_TABLES, [scales_done, layer, head, source_scale]."""
        values: NDArray[Any] = getattr(self._trace, name)
        if values.ndim == len(TABLES[name].axes) and values.shape[1:] == self.drop_step.shape:
            return values
        # A trace of an older minor version has no such table: nothing was measured.
        return np.full((self.scales_done, *self.drop_step.shape), TABLES[name].fill, TABLES[name].stored_dtype)

    @property
    def kept_shares(self) -> NDArray[np.float64]:
        """[scales_done, source_scale]: tokens kept after each scale by all layers and heads, of those there were."""
        kept = self.head_scales("kept_tokens").sum(axis=(1, 2), dtype=np.int64)
        shares: NDArray[np.float64] = kept / (np.array(self.scales.tokens) * self.num_layers * self.num_heads)
        return shares

    def attention_map(self, query_scale: int, layer: int, head: int) -> NDArray[np.float32]:
        """[source_scale, map_y, map_x]: attention of each cell; NaN: not measured."""
        return self._trace.attention_map(query_scale, layer, head)

    def bits(self, scale: int) -> NDArray[np.uint8] | None:
        """[batch, tokens, bit]; None: left out."""
        return self._trace.bits(scale) if self.images else None

    def preview(self, scale: int) -> NDArray[np.uint8] | None:
        """[height, width, 3]; None: none was made, or it is left out."""
        return self._trace.preview(scale) if self.images else None

    @property
    def image(self) -> NDArray[np.uint8] | None:
        """[height, width, 3]; None: there is none, or it is left out."""
        return self._trace.image if self.images else None
