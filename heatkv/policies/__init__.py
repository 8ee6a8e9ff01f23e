"""POLICIES: every compression policy by name, the two protocols that they follow, and how one is made from text.

A new policy is one file in this folder and one line in the table; it is loaded on use. Planned policies decide before
the run, online ones during it. Both plan without torch.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args, get_type_hints

from heatkv.errors import OptionError, UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor

    from heatkv.config import ModelConfig
    from heatkv.online import OnlinePlan
    from heatkv.scales import ScaleSchedule
    from heatkv.schedule import PruningSchedule
    from heatkv.seen import Seen

POLICIES: dict[str, str] = {
    "adakv": "heatkv.policies.adakv:AdaKVPolicy",
    "amskv": "heatkv.policies.amskv:AMSKVPolicy",
    "forcing": "heatkv.policies.forcing:ForcingPolicy",
    "full": "heatkv.policies.full:FullPolicy",
    "h2o": "heatkv.policies.h2o:H2OPolicy",
    "hack": "heatkv.policies.hack:HACKPolicy",
    "hackpp": "heatkv.policies.hackpp:HACKPPPolicy",
    "heatkv": "heatkv.policies.heatkv:HeatKVPolicy",
    "knapsack": "heatkv.policies.knapsack:KnapsackPolicy",
    "pyramidkv": "heatkv.policies.pyramidkv:PyramidKVPolicy",
    "random": "heatkv.policies.random:RandomPolicy",
    "scalekv": "heatkv.policies.scalekv:ScaleKVPolicy",
    "sinks-only": "heatkv.policies.sinks:SinksOnlyPolicy",
    "snapkv": "heatkv.policies.snapkv:SnapKVPolicy",
    "streaming": "heatkv.policies.streaming:StreamingPolicy",
    "window": "heatkv.policies.window:WindowPolicy",
}
"""Policy name → "module:Class"."""

GIVEN = ("orders", "measurements")
"""Fields of a policy that are not parameters: what calibration found, supplied by whoever makes the policy."""

MOST_QUERIES = 65_536
"""That a policy may observe: more than a map has."""
WIDEST_POOLING = 4_095

Rows = Literal["each", "run"]
"""Whose decision it is: every batch row's own (so guidance rows may keep other tokens), or one for the whole run."""


class PlannedPolicy(Protocol):
    """Decides before the run what the cache keeps: a frozen dataclass whose fields are its parameters."""

    name: ClassVar[str]
    frees_memory: ClassVar[bool]
    """Whether what it evicts is really gone from memory, not only masked."""
    needs: ClassVar[tuple[str, ...]]
    """What must be supplied: `orders` (a field `orders: HeadOrders`), or names of fields of Measurements (then it has
    a field `measurements: Measurements`). A class variable `needs_with` says what is needed instead where a parameter
    (`name`, or `name=value`) is given."""

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


class OnlinePolicy(Protocol):
    """Plans how many tokens each head may keep, and scores them during the run: the highest stay.

    A frozen dataclass whose fields are its parameters.
    """

    name: ClassVar[str]
    frees_memory: ClassVar[bool]
    needs: ClassVar[tuple[str, ...]]
    rows: ClassVar[Rows]
    shares_layer: ClassVar[bool]
    """Whether the heads of a layer compete for its capacity; else each head has its own."""
    floor: ClassVar[float]
    """Where heads compete: the share of an equal part of which every head is sure."""
    carries: ClassVar[bool]
    """Whether a number travels with every token from step to step."""

    def parameters(self) -> dict[str, Any]:  # Any: numbers and texts
        """Its parameters by name."""
        ...

    def plan(
        self,
        config: ModelConfig,
        scales: ScaleSchedule,
        *,
        budget: float | None = None,
        sink_scales: int | None = None,
    ) -> OnlinePlan:
        """As PlannedPolicy.plan, for how many tokens stay."""
        ...

    def carry(self, seen: Seen) -> Tensor:
        """What travels on with every candidate, [R, G, T] float32, from what it had; asked before `scores`."""
        ...

    def scores(self, seen: Seen) -> Tensor:
        """Of every candidate, [R, G, T] float: the highest stay, ties go to the lower position."""
        ...


def load_policy(name: str) -> type[Any]:  # Any: planned and online policies have no common base
    """The class of this policy. Raises UnknownNameError listing the known, nearest first."""
    if name not in POLICIES:
        raise UnknownNameError("policy", name, POLICIES)
    module, _, class_name = POLICIES[name].partition(":")
    policy: type[Any] = getattr(importlib.import_module(module), class_name)
    return policy


def needs_of(text: str) -> tuple[str, ...]:
    """What must be supplied to make the policy of this text: its `needs`, unless a parameter needs something else."""
    name, given = split_policy(text)
    kind = load_policy(name)
    needs_with: Mapping[str, tuple[str, ...]] = getattr(kind, "needs_with", {})
    others = [needs_with[one] for key, value in given.items() for one in (key, f"{key}={value}") if one in needs_with]
    needs: tuple[str, ...] = others[0] if others else kind.needs
    return needs


def split_policy(text: str) -> tuple[str, dict[str, str]]:
    """Name and parameters of a text such as `scalekv:window=16,kernel=5`. Raises OptionError for another form."""
    name, colon, rest = text.partition(":")
    if colon and not rest:
        raise OptionError(f"policy {text!r}: nothing behind the colon; write {name}, or name=value behind it")
    given: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if equals and key in given:
            raise OptionError(f"policy {text!r}: {key} is given twice, as {given[key]} and {value}; leave one out")
        if not equals or not key:
            raise OptionError(f"policy {text!r}: {part!r} is not name=value; write it as in scalekv:window=16,kernel=5")
        given[key] = value
    return name, given


def make_policy(text: str, supplied: Mapping[str, Any]) -> Any:  # Any: as load_policy
    """The policy of this text, with what it needs out of `supplied` (by field name: GIVEN).

    Raises UnknownNameError for its name or a parameter, listing the valid ones; OptionError for a value.
    """
    name, given = split_policy(text)
    kind = load_policy(name)
    fields = {field.name for field in dataclasses.fields(kind)}
    valid = sorted(fields - set(GIVEN))
    unknown = [key for key in given if key not in valid]
    if unknown and not valid:
        raise OptionError(f"policy {name} has no parameters; leave {unknown[0]!r} out")
    if unknown:
        raise UnknownNameError(f"parameter of policy {name}", unknown[0], valid)
    kinds = get_type_hints(kind, localns=dict.fromkeys(("HeadOrders", "Measurements"), Any))
    values = {key: _value(name, key, value, kinds[key]) for key, value in given.items()}
    return kind(**values, **{key: one for key, one in supplied.items() if key in fields})


def check_parameter(policy: Any, name: str, *, least: float, most: float) -> None:  # Any: any policy
    """Raises OptionError, with the range, unless this parameter is a number from `least` to `most`."""
    value = getattr(policy, name)
    if not least <= value <= most:  # so that NaN is refused too
        raise OptionError(f"policy {policy.name}: {name}={value}; expected {_range_end(least)} to {_range_end(most)}")


def parameters(policy: Any) -> dict[str, Any]:  # Any: any policy, and its numbers and texts
    """The parameters of a policy by name: its fields but for what calibration supplied."""
    names = [field.name for field in dataclasses.fields(policy) if field.name not in GIVEN]
    return {name: getattr(policy, name) for name in names}


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _range_end(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}"


def _value(policy: str, key: str, text: str, kind: Any) -> Any:  # Any: as annotations give types; numbers and texts
    """A parameter's value from text, by its annotation: int, float, bool, a Literal, or one of those or None."""
    kinds = get_args(kind) or (kind,)
    if type(None) in kinds and text == "none":
        return None
    words = [one for one in kinds if isinstance(one, str)]
    if text in words:
        return text
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                continue
    if str in kinds:
        return text
    expected = " or ".join([*words, *(_KINDS.get(one, "none") for one in kinds if isinstance(one, type))])
    raise OptionError(f"policy {policy}: {key}={text!r}; expected {expected}")
