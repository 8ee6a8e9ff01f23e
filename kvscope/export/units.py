"""Units of numbers in exports: what a field of `analysis.Summary` or the like is measured in, told by its name."""

from __future__ import annotations

_UNITS = (
    ("bytes", "bytes"),
    ("seconds", "s"),
    ("tokens", "tokens"),
    ("_ns", "ns"),
)
"""(ending of a name, unit)."""

_EXACTLY = {"height": "tokens", "width": "tokens"}


def unit_of(name: str) -> str:
    """The unit of a number of this name; `1`: it has none, as a count, a fraction or an index."""
    return _EXACTLY.get(name) or next((unit for ending, unit in _UNITS if name.endswith(ending)), "1")
