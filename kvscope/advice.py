"""Advice: which of the schedules that were tried is worth having, and why, in words.

Knows kvscope.advisor's candidates, estimated or verified; it makes none and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.codecs import MODEL
from kvscope.advisor import DROPPED, Candidate, Part, error_of
from kvscope.errors import UsageError
from kvscope.units import bytes_text, fraction_text, tokens_text

if TYPE_CHECKING:
    from heatkv.schedule import PruningSchedule


@dataclass(frozen=True, slots=True)
class Advice:
    """What was tried, what is worth having, and what is advised."""

    tried: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    """Those that none beats in both bytes and error, fewest bytes first."""
    chosen: Candidate
    words: tuple[str, ...]
    """Why."""

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return {
            "chosen": self.chosen.to_json(),
            "front": [one.to_json() for one in self.front],
            "tried": [one.to_json() for one in self.tried],
            "why": list(self.words),
        }


def advice(tried: Sequence[Candidate], *, by_bytes: bool) -> Advice:
    """The best of what was tried: verified ones only, if there are any; by error within the bytes, or by bytes among
    those whose loss is known to be within the target."""
    if not tried:
        raise UsageError(
            "no schedule to choose from: none takes so few bytes; allow more"
            if by_bytes
            else "no schedule to choose from: nothing but the full history loses so little; allow more"
        )
    pool = [one for one in tried if one.kl is not None] or list(tried)
    if by_bytes:
        chosen = min(pool, key=lambda one: (error_of(one), one.peak_bytes))
    else:
        known = [one for one in pool if one.lost is not None] or pool
        chosen = min(known, key=lambda one: (one.peak_bytes, error_of(one)))
    return Advice(tuple(tried), pareto(pool), chosen, tuple(_words(chosen, pool, tried)))


def pareto(tried: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Those that none beats in both bytes and error, fewest bytes first."""
    front: list[Candidate] = []
    for one in sorted(tried, key=lambda one: (one.peak_bytes, error_of(one))):
        if not front or error_of(one) < error_of(front[-1]):
            front.append(one)
    return tuple(front)


def _words(chosen: Candidate, pool: Sequence[Candidate], tried: Sequence[Candidate]) -> Iterator[str]:
    """Why it was chosen: what it takes and loses, what it is better than, how it treats what, what HeatKV does else."""
    how = "not verified"
    if chosen.kl is not None:
        how = f"forced KL {chosen.kl:.4g} nats per bit, {fraction_text(chosen.flips)} of bits flip"
    lost = "attention lost unknown, too much of it is codecs' noise"
    if chosen.lost is not None:
        lost = f"{fraction_text(chosen.lost)} of attention lost (est.)"
    yield f"{chosen.name}: {bytes_text(chosen.peak_bytes)} at peak (est.), {lost}, {how}"
    rival = next((one for one in tried if one.name == "heatkv"), None)
    yield from _against("heatkv", chosen, rival)
    plain = min((one for one in pool if not one.schedule.codecs), key=error_of, default=None)
    if chosen.schedule.codecs and plain is not None and plain is not rival:
        yield from _against(f"the best without codecs ({plain.name})", chosen, plain)
    yield from (_part_text(part, chosen.schedule) for part in chosen.parts)
    if rival is not None and rival is not chosen:
        yield from _differences(chosen.schedule, rival.schedule)


def _against(name: str, chosen: Candidate, rival: Candidate | None) -> Iterator[str]:
    if rival is None or rival is chosen or chosen.kl is None or not rival.kl or not rival.peak_bytes:
        return
    change, size = chosen.kl / rival.kl - 1, chosen.peak_bytes / rival.peak_bytes - 1
    yield f"against {name}: KL {change:+.1%} at {size:+.1%} bytes, both forced on the same runs"


def _part_text(part: Part, schedule: PruningSchedule) -> str:
    """What is dropped, what is coarse and what is fine, when the schedule holds the most bytes."""
    count, size = tokens_text(part.head_scales, noun="head-scale"), bytes_text(part.num_bytes)
    if part.name == DROPPED:
        stored = schedule.drop_step[..., :-1]
        by_the_end = f"{np.count_nonzero(stored < schedule.num_steps - 1):,} of {stored.size:,}"
        return f"dropped by its peak: {count}, which would take {size}; by the end: {by_the_end}"
    kind = "fine, in the model's dtype" if part.name == MODEL else f"coarse, in {part.name}"
    return f"{kind}: {count}, {size} at its peak"


def _differences(ours: PruningSchedule, theirs: PruningSchedule) -> Iterator[str]:
    """What is kept to the end of each source scale, ours and theirs, where they differ most."""
    last = ours.num_steps - 1
    kept, rival = ((one.drop_step[..., :-1] == last).sum(axis=(0, 1)) for one in (ours, theirs))
    slots = ours.num_layers * ours.num_heads
    for source in np.argsort(-np.abs(kept - rival), kind="stable")[:3]:
        if kept[source] != rival[source]:
            height, width = ours.scales.sizes[source]
            yield (
                f"of source scale {source} ({height}×{width}) it keeps {kept[source]} of {slots} head-scales "
                f"to the end, heatkv {rival[source]}"
            )
