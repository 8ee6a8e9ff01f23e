"""Ranking: the attention of one head as a triangle of query × source scales, and all heads of one cell in order.

Pure numpy over a Snapshot; conditional or unconditional rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from kvscope.tui.metrics import Cell, Volume, volume_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot

Guidance = Literal["conditional", "unconditional"]

MASS_METRICS: dict[str, str] = {"conditional": "mass", "unconditional": "mass_uncond"}
"""Which rows are looked at → the metric of their attention."""

_TIERS = {"conditional": "mass", "unconditional": "mass_uncond"}
_FLAGS = {
    "conditional": "attention mass was not recorded: run without --no-attention-mass",
    "unconditional": "not recorded: run with --attention-uncond",
}


@dataclass(frozen=True, slots=True, eq=False)
class HeadMass:
    """One head's attention: [query_scale, source_scale], finished query scales only."""

    mass: NDArray[np.float64]
    """Share of the head's attention; NaN where there is none."""
    cells: NDArray[np.uint8]

    @property
    def sums(self) -> NDArray[np.float64]:
        """Of what was measured at each query scale; NaN where nothing was."""
        known = self.cells == Cell.VALUE
        sums = np.where(known, self.mass, 0.0).sum(axis=1)
        return np.where(known.any(axis=1), sums, np.nan)


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """All heads that read one source scale at one query scale, most attention first."""

    layers: NDArray[np.int64]
    heads: NDArray[np.int64]
    mass: NDArray[np.float64]
    num_heads: int
    """Of all layers, those included that did not read it."""
    unmeasured: int
    """Heads that read it without being measured."""

    @property
    def median(self) -> float:
        return float(np.median(self.mass)) if self.mass.size else float("nan")

    @property
    def dropped(self) -> int:
        """Heads that did not read it."""
        return self.num_heads - self.mass.size - self.unmeasured

    def place_of(self, cursor: Cursor) -> int | None:
        """The index of the cursor's head; None: it is not among them."""
        found = np.flatnonzero((self.layers == cursor.layer) & (self.heads == cursor.head))
        return int(found[0]) if found.size else None


def absence_of_mass(snapshot: Snapshot, guidance: str) -> str:
    """Why there is no attention mass to look at; empty: there is."""
    if _TIERS[guidance] not in snapshot.header.tiers:
        return _FLAGS[guidance]
    if not snapshot.scales_done:
        return "no scale yet" if snapshot.status == "live" else "no scale was recorded"
    return ""


def head_mass(snapshot: Snapshot, guidance: str, cursor: Cursor) -> HeadMass:
    """The attention of the cursor's head."""
    volume = volume_of(snapshot, MASS_METRICS[guidance])
    place = (slice(None), cursor.layer, cursor.head)
    return HeadMass(np.where(volume.cells[place] == Cell.VALUE, volume.values[place], np.nan), volume.cells[place])


def ranking_at(snapshot: Snapshot, guidance: str, cursor: Cursor) -> Ranking:
    """All heads at the cursor's query and source scale; ties go to the lower layer, then to the lower head."""
    return _ranking(volume_of(snapshot, MASS_METRICS[guidance]), cursor.query_scale, cursor.source_scale)


@lru_cache(maxsize=64)
def _ranking(volume: Volume, query_scale: int, source_scale: int) -> Ranking:
    cells = volume.cells[query_scale, :, :, source_scale].ravel()
    mass = volume.values[query_scale, :, :, source_scale].ravel()
    measured = np.flatnonzero(cells == Cell.VALUE)
    order = measured[np.argsort(-mass[measured], kind="stable")]
    layers, heads = np.divmod(order, volume.values.shape[2])
    return Ranking(layers, heads, mass[order], cells.size, int((cells == Cell.UNKNOWN).sum()))
