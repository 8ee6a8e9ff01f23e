"""Text that is almost JSON of ours: values exchanged for hostile ones, keys lost, bytes changed, cut short."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1 << 40,
    -(1 << 70),
    1e308,
    float("nan"),
    float("inf"),
    0.5,
    "",
    "x" * 5000,
    "\x1b[2J\x1b]0;owned\x07\n\u202e",
    "\ud800",
    "../../etc/passwd",
    [],
    {},
    [[]],
    [1, "2", None],
    {"format": "other"},
    [[[[[[[[[[[]]]]]]]]]]],
)
"""Values that no reader should be surprised by. Any: JSON values."""


def mutated_json(record: Any, chance: random.Random) -> bytes:  # Any: a JSON value
    """The text of the record after one to three changes."""
    changed = copy.deepcopy(record)
    for _ in range(chance.randint(1, 3)):
        changed = _changed(changed, chance)
    text = json.dumps(changed).encode()
    if chance.random() < 0.3:
        text = mutated_bytes(text, chance)
    if chance.random() < 0.02:
        text = b"[" * 100_000
    return text


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """The content with some bytes changed, lost, doubled or exchanged."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5, 50))):
        if not data:
            break
        place = chance.randrange(len(data))
        match chance.randrange(5):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                data[place] = chance.choice((0, 0xFF, 0x7F, chance.randrange(256)))
            case 2:
                del data[place : place + chance.choice((1, 8, 512))]
            case 3:
                data[place:place] = data[place : place + chance.choice((1, 8, 512))]
            case 4:
                del data[place:]
    return bytes(data)


def _changed(record: Any, chance: random.Random) -> Any:  # Any: a JSON value
    """One place of the record exchanged, removed or doubled."""
    if isinstance(record, dict) and record and chance.random() < 0.9:
        key = chance.choice(list(record))
        if chance.random() < 0.15:
            return {name: value for name, value in record.items() if name != key}
        return record | {key: _changed(record[key], chance)}
    if isinstance(record, list) and record and chance.random() < 0.8:
        index = chance.randrange(len(record))
        if chance.random() < 0.15:
            return record[:index] + record[index + 1 :] * chance.choice((1, 2))
        return [*record[:index], _changed(record[index], chance), *record[index + 1 :]]
    return chance.choice(HOSTILE)
