"""Edits of a schedule as lines of text: what a person types, what a journal holds, what `plan --script` replays.

    budget 10% | budget 642t | budget 321MiB | budget none
    sinks 3
    policy heatkv | policy knapsack:codecs=int4+k4v2 | policy none
    drop l12 h3 s5-7 [after q8]
    pin l12 h* s5
    codec int4 l12 s5-7
    clear l* s5

A target names layers, heads and source scales, one index, a range, or `*`; what is not named is all of it. Text after
`#` is a remark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kvscope.errors import UsageError
from kvscope.units import parse_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_AXES = ("layer", "head", "source_scale")
_LETTERS = {"l": "layer", "h": "head", "s": "source_scale"}
_RANGE = re.compile(r"([lhs])(?:(\d{1,5})(?:-(\d{1,5}))?|\*)")
_SCALE = re.compile(r"q(\d{1,5})")

Range = tuple[int, int]
"""First and last index."""


@dataclass(frozen=True, slots=True)
class Target:
    """Head-scales: ranges of layers, heads and source scales; None: all of that axis."""

    layer: Range | None = None
    head: Range | None = None
    source_scale: Range | None = None

    def mask(self, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
        """Which head-scales of [layer, head, source_scale] are meant. Raises UsageError for an index there is not."""
        chosen = np.zeros(shape, dtype=np.bool_)
        chosen[tuple(self._slice(axis, length) for axis, length in zip(_AXES, shape, strict=True))] = True
        return chosen

    def _slice(self, axis: str, length: int) -> slice:
        span: Range | None = getattr(self, axis)
        if span is None:
            return slice(None)
        if span[1] >= length:
            raise UsageError(f"there is no {axis.replace('_', ' ')} {span[1]}; there are {length}, from 0")
        return slice(span[0], span[1] + 1)

    @property
    def text(self) -> str:
        parts = []
        for letter, axis in _LETTERS.items():
            span: Range | None = getattr(self, axis)
            if span is not None:
                parts.append(f"{letter}{span[0]}" if span[0] == span[1] else f"{letter}{span[0]}-{span[1]}")
        return " ".join(parts) or "l*"


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be kept at peak, in the unit that the user gave; None: as much as there is."""

    verb: ClassVar[str] = "budget"

    fraction: float | None = None
    """Of the history."""
    tokens: int | None = None
    """Per head, as papers count."""
    num_bytes: int | None = None
    """For the dtype and rows of the run."""

    @property
    def text(self) -> str:
        if self.tokens is not None:
            return f"budget {self.tokens}t"
        if self.num_bytes is not None:
            return f"budget {self.num_bytes}B"
        return "budget none" if self.fraction is None else f"budget {self.fraction * 100:.17g}%"


@dataclass(frozen=True, slots=True)
class Sinks:
    """The first scales, never evicted."""

    verb: ClassVar[str] = "sinks"

    count: int

    @property
    def text(self) -> str:
        return f"sinks {self.count}"


@dataclass(frozen=True, slots=True)
class Policy:
    """What decides of head-scales that are not pinned; None: nothing does, they stay as they were at the start."""

    verb: ClassVar[str] = "policy"

    name: str | None

    @property
    def text(self) -> str:
        return f"policy {self.name or 'none'}"


@dataclass(frozen=True, slots=True)
class Drop:
    """Free head-scales after their layer of a query scale; None: read at their own step only."""

    verb: ClassVar[str] = "drop"

    target: Target
    after: int | None = None

    @property
    def text(self) -> str:
        return f"drop {self.target.text}" + ("" if self.after is None else f" after q{self.after}")


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep head-scales to the end."""

    verb: ClassVar[str] = "pin"

    target: Target

    @property
    def text(self) -> str:
        return f"pin {self.target.text}"


@dataclass(frozen=True, slots=True)
class Store:
    """Store head-scales in a codec."""

    verb: ClassVar[str] = "codec"

    codec: str
    target: Target

    @property
    def text(self) -> str:
        return f"codec {self.codec} {self.target.text}"


@dataclass(frozen=True, slots=True)
class Clear:
    """Decide nothing of head-scales any more; they are stored as they were at the start."""

    verb: ClassVar[str] = "clear"

    target: Target

    @property
    def text(self) -> str:
        return f"clear {self.target.text}"


Edit = Budget | Sinks | Policy | Drop | Pin | Store | Clear
EXAMPLES = (
    "budget 10%",
    "budget 321MiB",
    "sinks 3",
    "policy heatkv",
    "drop l12 h3 s5 after q8",
    "pin l12 h0-3",
    "codec int4 s5-7",
    "clear s5",
)


def parse_edit(line: str) -> Edit | None:
    """The edit of a line; None: it is empty, or only a remark. Raises UsageError saying what was found."""
    words = line.split("#", 1)[0].split()
    if not words:
        return None
    verb, rest = words[0].lower(), [word.lower() for word in words[1:]]
    try:
        match verb, rest:
            case "budget", [amount]:
                return _budget(amount)
            case "sinks", [count] if count.isdecimal():
                return Sinks(int(count))
            case "policy", [name]:
                return Policy(None if name == "none" else name)
            case "drop", [*target, "after", scale] if _SCALE.fullmatch(scale):
                return Drop(_target(target), int(scale[1:]))
            case "drop", target:
                return Drop(_target(target))
            case "pin", target:
                return Pin(_target(target))
            case "codec", [name, *target]:
                return Store(name, _target(target))
            case "clear", target:
                return Clear(_target(target))
    except ValueError:
        pass
    raise UsageError(f"{line.strip()!r} is no edit; expected one like {', '.join(EXAMPLES)}")


def _budget(amount: str) -> Budget:
    if amount == "none":
        return Budget()
    if amount.endswith("%"):
        return Budget(fraction=_fraction(float(amount[:-1]) / 100))
    if amount.endswith("t") and amount[:-1].isdecimal():
        return Budget(tokens=int(amount[:-1]))
    if amount[-1].isalpha():
        return Budget(num_bytes=parse_bytes(amount))
    return Budget(fraction=_fraction(float(amount)))


def _fraction(value: float) -> float:
    if not 0 <= value <= 1:
        raise UsageError(f"a budget of {value:.6g} is no part of the history; give 0 to 1, or 0% to 100%")
    return value


def _target(words: list[str]) -> Target:
    spans: dict[str, Range | None] = {}
    for word in words:
        found = _RANGE.fullmatch(word)
        if found is None or _LETTERS[found[1]] in spans:
            raise ValueError(word)
        first = found[2]
        span = None if first is None else (int(first), int(found[3] or first))
        if span is not None and span[0] > span[1]:
            raise ValueError(word)
        spans[_LETTERS[found[1]]] = span
    if not words:
        raise ValueError("no target")
    return Target(**spans)
