"""POLICIES: every compression policy by name, and the protocol that planned ones follow.

A new policy is one file in this folder and one line in the table; it is loaded on use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from heatkv.errors import UnknownNameError

if TYPE_CHECKING:
    from heatkv.config import ModelConfig
    from heatkv.scales import ScaleSchedule
    from heatkv.schedule import PruningSchedule

POLICIES: dict[str, str] = {
    "full": "heatkv.policies.full:FullPolicy",
    "heatkv": "heatkv.policies.heatkv:HeatKVPolicy",
}
"""Policy name → "module:Class"."""


class PlannedPolicy(Protocol):
    """Decides before the run what the cache keeps: a frozen dataclass whose fields are its parameters."""

    name: ClassVar[str]
    frees_memory: ClassVar[bool]
    """Whether what it evicts is really gone from memory, not only masked."""
    needs_orders: ClassVar[bool]
    """Whether it has a field `orders: HeadOrders` that a user must supply."""

    def plan(
        self,
        config: ModelConfig,
        scales: ScaleSchedule,
        *,
        budget: float | None = None,
        sink_scales: int | None = None,
    ) -> PruningSchedule:
        """The schedule for one model and its scales; sink_scales None: the policy's or the model's own.

        Raises BudgetError, with the minimum, if no schedule of this policy meets the budget.
        """
        ...


def load_policy(name: str) -> type[Any]:  # Any: planned and online policies have no common base
    """The class of this policy. Raises UnknownNameError listing the known, nearest first."""
    if name not in POLICIES:
        raise UnknownNameError("policy", name, POLICIES)
    module, _, class_name = POLICIES[name].partition(":")
    policy: type[Any] = getattr(importlib.import_module(module), class_name)
    return policy
