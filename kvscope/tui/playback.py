"""Playback: where the cursor is while a recorded run is played: a function of the time since it began.

Steps follow each other at a rate of their own, or as far apart as they were. Knows no widget and no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kvscope.tui.feed import Snapshot

STEPS_PER_S = 8.0
"""Steps a second at 1×."""
FRAME_S = 1 / 20
"""The time between two moves of the cursor; faster than this, steps are passed over."""

SPEEDS: dict[str, float | None] = {"1×": 1.0, "4×": 4.0, "16×": 16.0, "real time": None}
"""Name → times STEPS_PER_S; None: as the steps began in the run."""


@dataclass(frozen=True, slots=True)
class Playback:
    """A run that is being played."""

    speed: str
    begun_s: float
    """When it began, on the caller's clock."""
    first_step: int
    """Where it began."""

    def step_at(self, now_s: float, snapshot: Snapshot) -> int:
        """The step that is shown now; the last recorded one when all were."""
        elapsed_s, last = max(0.0, now_s - self.begun_s), last_step(snapshot)
        factor = SPEEDS[self.speed]
        if factor is not None:
            return min(last, self.first_step + int(elapsed_s * STEPS_PER_S * factor))
        begins = snapshot.steps["begin_ns"][: last + 1].astype(np.int64)
        if self.first_step >= len(begins):
            return last
        passed = int(np.searchsorted(begins, begins[self.first_step] + elapsed_s * 1e9, side="right")) - 1
        return max(self.first_step, min(last, passed))


def last_step(snapshot: Snapshot) -> int:
    """The last step of the last finished query scale; 0 where none is."""
    return max(0, snapshot.scales_done * snapshot.schedule.num_layers - 1)


def next_speed(speed: str, by: int) -> str:
    """The speed after this one, or before."""
    names = list(SPEEDS)
    return names[(names.index(speed) + by) % len(names)]
