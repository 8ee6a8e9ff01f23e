"""Sinks only: the sink scales stay, nothing else does. The other end from full: the least that any policy keeps.

Ours; no source. The schedule's peak is what the sinks take, whatever larger budget is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from heatkv.budget import check_budget, check_sink_scales
from heatkv.policies.full import keep_everything
from heatkv.schedule import PruningSchedule
from heatkv.steps import own_steps

if TYPE_CHECKING:
    from heatkv.config import ModelConfig
    from heatkv.scales import ScaleSchedule


@dataclass(frozen=True, slots=True)
class SinksOnlyPolicy:
    """Keeps the sink scales; every other scale is read at its own step only."""

    name: ClassVar[str] = "sinks-only"
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
        """The schedule that keeps the least. Raises BudgetError, with the minimum, for a budget below that."""
        sinks = min(config.sink_scales, scales.num_scales - 1) if sink_scales is None else sink_scales
        check_sink_scales(sinks, scales)
        if budget is not None:
            check_budget(budget, scales, sinks)
        drop_step = keep_everything(config, scales)
        drop_step[:, :, sinks:] = own_steps(config.num_layers, scales.num_scales)[:, None, sinks:]
        return PruningSchedule(drop_step, config.name, scales, sinks, self.name, budget)
