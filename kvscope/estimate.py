"""Estimate: what another schedule would do to a recorded run, from its trace alone, without a model.

Tokens and bytes follow from the schedule exactly. What is lost is told in attention mass: of the attention that a head
paid at a step of the recorded run, the share that went to source scales which the new schedule would have dropped. The
recorded run's attention is taken as it was; that dropping changes what later steps attend to is not modelled. Where the
new schedule keeps what the recorded run had dropped, nothing was measured and the loss is unknown: NaN. What is
stored in a coarser codec than it was loses the share of its attention that heatkv.spending's NOISE says, an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from heatkv.spending import noise_in
from kvscope.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.schedule import PruningSchedule
    from kvscope.header import Header


class Recorded(Protocol):
    """What an estimate needs of a trace: kvscope.trace.Trace has it, and a viewer's snapshot."""

    @property
    def header(self) -> Header: ...

    @property
    def schedule(self) -> PruningSchedule: ...

    @property
    def read_tokens(self) -> NDArray[np.integer]: ...

    @property
    def attention_mass(self) -> NDArray[np.floating]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """What a schedule would do. Estimated, but for tokens and bytes, which are exact if the schedule is obeyed."""

    held_tokens: NDArray[np.int64]
    """After each step, over all layers and heads: [num_steps]."""
    held_bytes: NDArray[np.int64]
    """The same in bytes."""
    bytes_per_token: int
    """In the model's dtype: what a token of the budget is worth."""
    limit_tokens: int | None
    """What the budget allows; None: there is no budget."""
    lost_mass: NDArray[np.float64]
    """[query_scale, layer, head]: share of a head's attention that is lost; NaN: unknown. Recorded scales only."""
    coarse_mass: NDArray[np.float64]
    """[query_scale, layer, head]: of `lost_mass`, what coarser codecs lose."""
    unknown_cells: int
    """Head-scales at a query scale which the new schedule reads, and the recorded run did not."""
    weights: NDArray[np.float64]
    """[query_scale]: queries of each recorded scale, as a fraction of them all."""

    @property
    def peak_step(self) -> int:
        return int(self.held_bytes.argmax())

    @property
    def peak_bytes(self) -> int:
        return int(self.held_bytes.max())

    @property
    def headroom_bytes(self) -> int | None:
        """Of the budget, at the peak; negative: it is exceeded. None: no budget."""
        return None if self.limit_tokens is None else self.limit_tokens * self.bytes_per_token - self.peak_bytes

    @property
    def lost_by_scale(self) -> NDArray[np.float64]:
        """Mean over layers and heads where it is known: [query_scale]."""
        return _mean(self.lost_mass, (1, 2))

    @property
    def lost_by_layer(self) -> NDArray[np.float64]:
        """Mean over heads and over queries: [layer]."""
        return _mean(self._weighted, (0, 2)) * len(self.weights)

    @property
    def lost_by_head(self) -> NDArray[np.float64]:
        """Mean over queries: [layer, head]."""
        return _mean(self._weighted, (0,)) * len(self.weights)

    @property
    def lost(self) -> float:
        """Mean over queries, layers and heads: one number for the whole run; NaN: nothing is known."""
        return float(_mean(self._weighted, (0, 1, 2)) * len(self.weights))

    @property
    def coarse_share(self) -> float:
        """How much of `lost` is what coarser codecs lose, as a fraction; 0: nothing is lost."""
        known = np.isfinite(self.lost_mass) & np.isfinite(self.coarse_mass)
        lost, coarse = (
            float((np.where(known, mass, 0.0) * self.weights[:, None, None]).sum())
            for mass in (self.lost_mass, self.coarse_mass)
        )
        return coarse / lost if lost > 0 else 0.0

    @property
    def known_fraction(self) -> float:
        """How many of the cells of `lost_mass` are known."""
        return float(np.isfinite(self.lost_mass).mean()) if self.lost_mass.size else 0.0

    @property
    def _weighted(self) -> NDArray[np.float64]:
        weighted: NDArray[np.float64] = self.lost_mass * self.weights[:, None, None]
        return weighted


def estimate(recorded: Recorded, schedule: PruningSchedule, *, limit_tokens: int | None = None) -> Estimate:
    """What `schedule` would do to the recorded run.

    Raises UsageError if it is for another model or other scales, or if either is of an online policy.
    """
    _check(recorded, schedule)
    mass = np.asarray(recorded.attention_mass, np.float64)
    done = len(mass)
    reads = schedule.read_tokens()[:done] > 0
    was_read = np.asarray(recorded.read_tokens[:done]) > 0
    queries = np.array(schedule.scales.tokens[:done], np.float64)
    coarse = _coarse(mass, _coarser(recorded.schedule, schedule), reads & was_read)
    return Estimate(
        held_tokens=schedule.tokens_held(),
        held_bytes=recorded.header.bytes_held(schedule),
        bytes_per_token=recorded.header.bytes_per_token,
        limit_tokens=limit_tokens,
        lost_mass=_lost(mass, reads=reads, was_read=was_read) + coarse,
        coarse_mass=coarse,
        unknown_cells=int((reads & ~was_read).sum()),
        weights=queries / queries.sum() if done else queries,
    )


def check_planned(schedule: PruningSchedule) -> None:
    """Raises UsageError for an online policy's: which tokens it let go cannot be told, edited or estimated."""
    if schedule.online:
        raise UsageError(chosen_words(schedule))


def chosen_words(schedule: PruningSchedule) -> str:
    """Why nothing can be edited or estimated where an online policy chose, and what to do."""
    return (
        f"policy {schedule.policy} chooses single tokens during the run: no plan says which ones leave, and nothing "
        "measures what they would have got; record a run with --policy full, and start from that"
    )


def _coarser(base: PruningSchedule, schedule: PruningSchedule) -> NDArray[np.float64]:
    """Share of its attention that each stored head-scale loses in its codec, beside the recorded one."""
    share = np.maximum(noise_in(schedule) - noise_in(base), 0)
    share[..., -1] = 0
    return share


def _coarse(
    mass: NDArray[np.float64], coarser: NDArray[np.float64], still_read: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """[query_scale, layer, head]: the share of its mass that what is read from the cache loses in a coarser codec."""
    query_scales = np.arange(len(mass))[:, None, None, None]
    stored = still_read & (np.arange(mass.shape[-1]) < query_scales) & (coarser > 0)
    return np.asarray(np.where(stored, mass * coarser, 0.0).sum(axis=-1))


def _lost(mass: NDArray[np.float64], *, reads: NDArray[np.bool_], was_read: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[query_scale, layer, head]: mass on what is read no more; NaN where something new is, or nothing was measured."""
    gone = was_read & ~reads
    lost = np.where(gone, mass, 0.0).sum(axis=-1)  # NaN of what was not measured carries over
    lost[(reads & ~was_read).any(axis=-1)] = np.nan
    lost[np.isnan(np.where(was_read, mass, np.nan)).all(axis=-1)] = np.nan
    return np.asarray(lost)


def _mean(values: NDArray[np.float64], axes: tuple[int, ...]) -> NDArray[np.float64]:
    """The mean of what is known along axes; NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis=axes)
    total = np.where(known, values, 0.0).sum(axis=axes)
    mean = np.full(np.shape(total), np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean


def _check(recorded: Recorded, schedule: PruningSchedule) -> None:
    base = recorded.schedule
    for one in (base, schedule):
        check_planned(one)
    pairs = (
        ("model", base.model, schedule.model),
        ("layers", base.num_layers, schedule.num_layers),
        ("heads", base.num_heads, schedule.num_heads),
        ("scales", base.scales.sizes, schedule.scales.sizes),
    )
    for name, found, given in pairs:
        if found != given:
            raise UsageError(f"the trace has {name} {found}, the schedule has {given}; plan a schedule for this trace")
