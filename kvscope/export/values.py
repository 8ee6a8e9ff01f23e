"""Numbers as exports hold them: their units, told by their names, and as JSON, where not measured is null."""

from __future__ import annotations

import json
import math
from typing import Any

Cell = str | int | float | None
"""What a cell of a CSV file holds; None: nothing was measured."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a text begins that a spreadsheet would run."""

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


def harmless(cell: Cell) -> Cell:
    """A text that a spreadsheet shows and does not run: a trace may come from anybody."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def json_text(value: Any) -> str:  # Any: a JSON value, or one with numbers that JSON lacks
    """The value on one line."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:  # Any: as above
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
