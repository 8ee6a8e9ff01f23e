"""Spending: the head-scales that a budget of bytes keeps, and how finely, so that as little as possible is lost.

It goes through the run step by step. Whenever more is held than the limit, what costs least per byte freed happens:
a head-scale is dropped, which loses what every later read of it pays (what earlier scales paid is past); or, where
there are coarser codecs, it is stored coarser, which loses a share (NOISE) of what every read of it pays. Coarseness
is decided when a head-scale is stored, so that choosing it later frees bytes at earlier steps too: the whole is gone
through again with the codecs found, until they stay.

numpy only; it knows bytes and losses, not what they are measured by. Axes [layer, head, source_scale] throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from heatkv.codecs import CODECS, MODEL
from heatkv.errors import BudgetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.scales import ScaleSchedule
    from heatkv.schedule import PruningSchedule

NOISE: dict[str, float] = {MODEL: 0.0, "int8": 1e-5, "fp8": 1e-4, "int4": 0.003, "k4v2": 0.015, "int2": 0.08}
"""What storing a head-scale in a codec loses, as a share of what dropping it loses. From forced KL of infinity-tiny
(24 prompts) with everything in one codec beside that of dropping: docs/beyond.md."""

_MOST_PASSES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What is at stake: losses and bytes."""

    paid: NDArray[np.float64]
    """[query_scale, layer, head, source_scale]: what is lost where a query scale cannot read a head-scale."""
    bytes_per_token: NDArray[np.int64]
    """[codec], finest first."""
    noise: NDArray[np.float64]
    """[codec]: share of `paid` that is lost where it is read in that codec; 0 for the finest or more."""
    sink_bytes_per_token: int
    exponent: float
    """Of the bytes that a loss is divided by: 1 is loss per byte, more prefers to free large pieces."""


@dataclass(frozen=True, slots=True, eq=False)
class Spent:
    """What is kept."""

    drop_step: NDArray[np.int16]
    codec: NDArray[np.uint8]
    """Index into Costs.bytes_per_token; of sinks it means nothing."""
    loss: float
    """By Costs: what the drops and the codecs lose."""


def noise_of(codecs: tuple[str, ...]) -> NDArray[np.float64]:
    """NOISE of these, by index."""
    return np.array([NOISE[name] for name in codecs])


def noise_in(schedule: PruningSchedule) -> NDArray[np.float64]:
    """NOISE of each head-scale, as a schedule stores it: [layer, head, source_scale]."""
    if schedule.codec is None:
        return np.zeros(schedule.drop_step.shape)
    return noise_of(schedule.codecs)[schedule.codec]


def bytes_of(codecs: tuple[str, ...], head_dim: int, *, dtype_bytes: int) -> NDArray[np.int64]:
    """Bytes of one token's key and value in one row, by index."""
    return np.array([CODECS[name].bytes_per_token(head_dim, rows=1, dtype_bytes=dtype_bytes) for name in codecs])


def spend(
    costs: Costs, start: NDArray[np.int16], able: NDArray[np.bool_], scales: ScaleSchedule, *, limit: int, sinks: int
) -> Spent:
    """What is kept within `limit` bytes after every step.

    `start`: drop_step with all that is decided already (pins) and everything else kept; `able`: what may be dropped or
    stored coarser. Raises BudgetError, with the least fraction of the history, if what may not exceeds the limit.
    """
    codec = np.zeros(start.shape, np.uint8)
    for _ in range(_MOST_PASSES):
        run = _Pass(costs, start, codec, able, scales, limit, sinks)
        run.whole()
        if (run.codec == codec).all():
            break
        codec = run.codec
    noise = costs.noise[run.codec]
    noise[:, :, :sinks] = 0
    return Spent(run.drop_step, run.codec, loss_of(costs.paid, run.drop_step, noise))


def loss_of(paid: NDArray[np.float64], drop_step: NDArray[np.int16], noise: NDArray[np.float64]) -> float:
    """What drops and codecs lose; `paid` as in Costs, `noise`: of each head-scale, the share lost where it is read."""
    num_layers = len(drop_step)
    total = 0.0
    for query_scale, each in enumerate(paid):
        steps = query_scale * num_layers + np.arange(num_layers)[:, None, None]
        older = np.arange(drop_step.shape[2]) < query_scale
        total += float((np.where(drop_step >= steps, noise, 1.0) * each * older).sum())
    return total


class _Pass:
    """Once through the run, from codecs that are never made finer."""

    def __init__(
        self,
        costs: Costs,
        start: NDArray[np.int16],
        codec: NDArray[np.uint8],
        able: NDArray[np.bool_],
        scales: ScaleSchedule,
        limit: int,
        sinks: int,
    ) -> None:
        self.costs, self.able, self.scales, self.limit, self.sinks = costs, able, scales, limit, sinks
        self.drop_step, self.codec = start.copy(), codec.copy()
        self.num_layers = len(start)
        self.held = np.zeros(start.shape, np.bool_)
        self.tokens = np.array(scales.tokens)
        # [query_scale, ...]: what all query scales after it pay.
        self.later = np.flip(np.cumsum(np.flip(costs.paid, axis=0), axis=0), axis=0) - costs.paid
        own = np.arange(scales.num_scales)
        self.all_reads = np.moveaxis(self.later[own, :, :, own], 0, -1)

    def whole(self) -> None:
        """Every step; afterwards drop_step and codec hold the limit."""
        last = self.num_layers * self.scales.num_scales - 1
        for query_scale in range(self.scales.num_scales - 1):
            for layer in range(self.num_layers):
                step = query_scale * self.num_layers + layer
                self.held[layer, :, query_scale] = True
                self.held &= (self.drop_step > step) | (self.drop_step == last)
                while (excess := int(self._bytes()[self.held].sum()) - self.limit) > 0:
                    self._free(excess, query_scale, layer)

    def _bytes(self) -> NDArray[np.int64]:
        """Of each head-scale."""
        each: NDArray[np.int64] = self.costs.bytes_per_token[self.codec] * self.tokens
        each[:, :, : self.sinks] = self.costs.sink_bytes_per_token * self.tokens[: self.sinks]
        return each

    def _free(self, excess: int, query_scale: int, layer: int) -> None:
        """Do what costs least per byte, just enough to free `excess` bytes; or some of it, to be asked again."""
        density, freed, target = self._best_actions(query_scale, layer)
        places = np.flatnonzero(np.isfinite(density))
        order = places[np.argsort(density.ravel()[places], kind="stable")]
        sizes = freed.ravel()[order]
        total = np.cumsum(sizes)
        if not len(total) or (total[-1] < excess and (target.ravel()[order] < 0).all()):
            raise self._too_little(query_scale, layer, excess - (int(total[-1]) if len(total) else 0))
        count = min(int(np.searchsorted(total, excess)) + 1, len(order))
        taken = _without_spare(order[:count].tolist(), sizes, int(total[count - 1]) - excess)
        step = query_scale * self.num_layers + layer
        for place in taken:
            if target.ravel()[place] < 0:
                self.drop_step.reshape(-1)[place] = step
                self.held.reshape(-1)[place] = False
            else:
                self.codec.reshape(-1)[place] = target.ravel()[place]

    def _best_actions(
        self, query_scale: int, layer: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Of each head-scale the action that costs least per byte: loss / bytes^exponent (inf: none), bytes freed, and
        the codec it goes to (-1: it is dropped)."""
        ok, each, costs = self.held & self.able, self._bytes(), self.costs
        worth = self.later[query_scale].copy()
        worth[layer + 1 :] += costs.paid[query_scale, layer + 1 :]
        loss = worth * (1 - costs.noise[self.codec])
        density = np.where(ok, loss / each.astype(np.float64) ** costs.exponent, np.inf)
        freed, target = each.copy(), np.full(each.shape, -1)
        for codec in range(1, len(costs.noise)):
            can = ok & (self.codec < codec)
            saved = (costs.bytes_per_token[self.codec] - costs.bytes_per_token[codec]) * self.tokens
            loss = self.all_reads * (costs.noise[codec] - costs.noise[self.codec])
            other = np.where(can, loss / np.maximum(saved, 1).astype(np.float64) ** costs.exponent, np.inf)
            better = other < density
            density, freed = np.where(better, other, density), np.where(better, saved, freed)
            target[better] = codec
        return density, freed, target

    def _too_little(self, query_scale: int, layer: int, missing: int) -> BudgetError:
        slots = self.drop_step.shape[0] * self.drop_step.shape[1]
        needed = (self.limit + missing) / (self.costs.sink_bytes_per_token * self.scales.history_tokens * slots)
        return BudgetError(
            f"the budget allows {self.limit:,} bytes a row, sinks and pins alone need about "
            f"{self.limit + missing:,} after scale {query_scale}, layer {layer}; "
            "clear pins, lower the sink scales, or raise the budget",
            minimum=needed,
        )


def _without_spare(taken: list[int], sizes: NDArray[np.int64], spare: int) -> list[int]:
    """What was chosen, without what is not needed because something larger came after it: the most worthy first."""
    kept = set()
    for index in range(len(taken) - 2, -1, -1):
        if sizes[index] <= spare:
            spare -= int(sizes[index])
            kept.add(index)
    return [place for index, place in enumerate(taken) if index not in kept]
