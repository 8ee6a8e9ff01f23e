"""The policy that keeps everything: the baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from heatkv.budget import check_sink_scales
from heatkv.errors import BudgetError
from heatkv.schedule import PruningSchedule
from heatkv.steps import own_steps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig
    from heatkv.scales import ScaleSchedule


@dataclass(frozen=True, slots=True)
class FullPolicy:
    """Keeps every head-scale of the history to the end of the run."""

    name: ClassVar[str] = "full"
    frees_memory: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    def plan(
        self,
        config: ModelConfig,
        scales: ScaleSchedule,
        *,
        budget: float | None = None,
        sink_scales: int | None = None,
    ) -> PruningSchedule:
        """A schedule that evicts nothing. Raises BudgetError for a budget other than None or 1."""
        if budget not in (None, 1):
            message = f"budget {budget} cannot be met by policy full, which keeps everything; leave it out, or give 1.0"
            raise BudgetError(message, minimum=1.0)
        sinks = min(config.sink_scales, scales.num_scales - 1) if sink_scales is None else sink_scales
        check_sink_scales(sinks, scales)
        return PruningSchedule(keep_everything(config, scales), config.name, scales, sinks, self.name, budget)


def keep_everything(config: ModelConfig, scales: ScaleSchedule) -> NDArray[np.int16]:
    """drop_step [layer, head, source_scale] that evicts nothing; a new array, for a planner to lower."""
    num_steps = config.num_layers * scales.num_scales
    drop_step = np.full((config.num_layers, config.num_heads, scales.num_scales), num_steps - 1, dtype=np.int16)
    drop_step[:, :, -1] = own_steps(config.num_layers, scales.num_scales)[:, None, -1]
    return drop_step
