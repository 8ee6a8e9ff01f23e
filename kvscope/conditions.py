"""Conditions on a comparison, as `--fail-if` takes them: `storage_peak_bytes>+2%`, `layer_seconds>0.5`, `psnr<30`.

FIELD (> | <) [+ | -] NUMBER [% | unit of bytes]. Of a total it means the difference B − A, with `%` as a fraction of A;
of a likeness it means the value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvscope import units
from kvscope.compare import TOTALS
from kvscope.compare_report import amount_text, change_text, psnr_text, signed_text, ssim_text
from kvscope.errors import UsageError

if TYPE_CHECKING:
    from kvscope.compare import Comparison, Likeness

LIKENESSES = ("psnr", "ssim", "bit_agreement")

_CONDITION = re.compile(r"\s*(\w+)\s*([<>])\s*([+-]?)\s*(\d{1,18}(?:\.\d{1,18})?)\s*(%|[kKMGT]?i?B)?\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Condition:
    """What must not be; its text is as it was given."""

    text: str
    field: str
    above: bool
    limit: float
    """Bytes, seconds, dB, or a fraction."""
    relative: bool
    """The limit is a fraction of A."""

    def holds(self, comparison: Comparison) -> bool:
        """Whether it is so. Raises UsageError where that cannot be told: what is not known passes no check."""
        value = self._value(comparison)
        if value is None:
            raise UsageError(f"--fail-if {self.text!r}: {self.field} is not known of {self._where(comparison)}")
        return value > self.limit if self.above else value < self.limit

    def found(self, comparison: Comparison) -> str:
        """What the field is, in words."""
        if self.field in LIKENESSES:
            value = getattr(comparison.likeness, self.field)
            text_of = {"psnr": psnr_text, "ssim": ssim_text}.get(self.field, units.fraction_text)
            return units.NOT_MEASURED if value is None else text_of(value)
        pair = comparison.total(self.field)
        difference = signed_text(pair.difference, lambda value: amount_text(pair, value))
        return f"{difference}, {change_text(pair.change)}"

    def _value(self, comparison: Comparison) -> float | None:
        if self.field in LIKENESSES:
            value: float | None = getattr(comparison.likeness, self.field)
            return value
        pair = comparison.total(self.field)
        return pair.change if self.relative else pair.difference

    def _where(self, comparison: Comparison) -> str:
        likeness: Likeness = comparison.likeness
        reason = f" ({likeness.reason})" if self.field in LIKENESSES and likeness.reason else ""
        return f"{comparison.a.trace} and {comparison.b.trace}{reason}; leave the condition out"


def parse_condition(text: str) -> Condition:
    """The condition that a text says. Raises UsageError for any other text."""
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise UsageError(
            f"--fail-if {text!r}; expected a field, > or <, and a number, as 'storage_peak_bytes>+2%' or 'psnr<30'"
        )
    field, sign, sense, number, unit = found.groups()
    if field not in TOTALS and field not in LIKENESSES:
        raise UsageError(f"--fail-if {text!r}: no field {field}; there are {', '.join((*TOTALS, *LIKENESSES))}")
    if unit not in (None, "%") and not field.endswith("_bytes"):
        raise UsageError(f"--fail-if {text!r}: {field} is not in bytes; leave {unit} out")
    if field in LIKENESSES and (sense or unit):
        raise UsageError(f"--fail-if {text!r}: {field} is of both runs together; give a plain number, as {field}<0.9")
    value = _number(number, unit)
    return Condition(text, field, sign == ">", -value if sense == "-" else value, unit == "%")


def _number(number: str, unit: str | None) -> float:
    if unit == "%":
        return float(number) / 100
    return float(number) if unit is None else float(units.parse_bytes(number + unit))
