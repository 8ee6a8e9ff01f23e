"""Export as one JSON object: facts, numbers and rows; large arrays only if asked for. Not measured is null."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from kvscope.export.content import HEAD_SCALE_TABLES, ROW_TABLES
from kvscope.export.values import json_text
from kvscope.format import LEVELS, TABLES, decode_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.export.content import Content

FORMAT, VERSION = "kvscope.export", 1


def write(content: Content, part: Path) -> None:
    """Write the object to the new file `part`."""
    with part.open("x", encoding="utf-8") as file:
        file.write(
            "{\n" + ",\n".join(f"  {json_text(name)}: {_lines(value)}" for name, value in _record(content).items())
        )
        if content.arrays:
            _write_arrays(content, file)
        file.write("\n}\n")


def _record(content: Content) -> dict[str, Any]:  # Any: JSON values
    facts = content.facts
    record = {
        "format": FORMAT,
        "version": VERSION,
        "made_by": content.made_by,
        "redacted": list(facts.removed),
        "summary": facts.summary.to_json(),
        "header": facts.header,
        "schedule": facts.schedule | {"drop_step": content.drop_step.tolist()},
        "units": {
            name: {column.name: column.unit for column in TABLES[name].columns if column.unit != "1"}
            for name in ROW_TABLES
        },
    }
    return record | {name: _rows(content.rows(name)) for name in ROW_TABLES}


def _rows(rows: NDArray[np.void]) -> list[dict[str, Any]]:  # Any: numbers and texts
    return [{name: _value(name, row[name]) for name in rows.dtype.names or ()} for row in rows]


def _value(name: str, value: Any) -> float | str:  # Any: what a column holds
    if name == "text":
        return decode_text(value)
    if name == "level":
        return LEVELS[value] if value < len(LEVELS) else str(value)
    number: float = value.item()
    return number


def _write_arrays(content: Content, file: IO[str]) -> None:
    """Append `"arrays": {name: {axes, unit, values}}`, one query scale at a time: all at once may not fit in memory."""
    file.write(',\n  "arrays": {')
    names = [*HEAD_SCALE_TABLES, *(["attention_map"] if "maps" in content.tiers else [])]
    for index, name in enumerate(names):
        table = TABLES[name]
        title = {"axes": list(table.axes), "unit": table.unit}
        file.write(f'{"," * bool(index)}\n    "{name}": {json_text(title)[:-1]}, "values": [')
        for scale in range(content.scales_done):
            file.write(f"{',' * bool(scale)}\n      {json_text(_of_scale(content, name, scale).tolist())}")
        file.write("]}")
    file.write("}")


def _of_scale(content: Content, name: str, scale: int) -> NDArray[np.generic]:
    if name != "attention_map":
        of_scale: NDArray[np.generic] = content.head_scales(name)[scale]
        return of_scale
    heads = range(content.num_heads)
    return np.stack(
        [[content.attention_map(scale, layer, head) for head in heads] for layer in range(content.num_layers)]
    )


def _lines(value: Any) -> str:  # Any: a JSON value
    """Rows one a line, so that a long table can be read by eye and by `grep`; all else on one."""
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return json_text(value)
    return "[\n" + ",\n".join(f"    {json_text(row)}" for row in value) + "\n  ]"
