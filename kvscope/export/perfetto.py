"""Export as Chrome Trace Event JSON, for ui.perfetto.dev: scales and layers as spans, memory as counters.

Times are microseconds from the earliest time of the trace, as that format wants; nanoseconds are kept in the fraction.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kvscope.export.values import json_text
from kvscope.format import LEVELS, decode_text

if TYPE_CHECKING:
    from kvscope.export.content import Content

Event = dict[str, Any]  # Any: JSON values

_PROCESS, _THREAD = 1, 1
"""Numbers of our own: the real ones belong to the machine, and say nothing here."""

_COUNTERS = (
    ("steps", "end_ns", "accounted_bytes", "accounted bytes (what the budget counts)"),
    ("steps", "end_ns", "storage_bytes", "stored bytes (the cache's pool)"),
    ("gpu", "t_ns", "used_bytes", "GPU memory in use, bytes (NVML, whole device)"),
    ("gpu", "t_ns", "process_bytes", "GPU memory of the process, bytes (NVML)"),
    ("gpu", "t_ns", "util_pct", "GPU utilisation, % (window average)"),
    ("gpu", "t_ns", "power_w", "GPU power, W"),
    ("allocator", "t_ns", "allocated_bytes", "torch allocator: allocated bytes"),
    ("allocator", "t_ns", "reserved_bytes", "torch allocator: reserved bytes"),
    ("allocator", "t_ns", "process_rss_bytes", "process memory (RSS), bytes"),
)
"""(table, column of the time, column, name of the counter)."""


def write(content: Content, part: Path) -> None:
    """Write the object to the new file `part`, one event a line."""
    head = {"displayTimeUnit": "ms", "otherData": _other(content)}
    with part.open("x", encoding="utf-8") as file:
        file.write(json_text(head)[:-1] + ', "traceEvents": [')
        for index, event in enumerate(_events(content)):
            file.write(f"{',' * bool(index)}\n{json_text(event)}")
        file.write("\n]}\n")


def _other(content: Content) -> dict[str, str]:
    """What Perfetto shows as metadata of the trace; it takes texts only."""
    facts = content.facts
    record = {
        "made_by": content.made_by,
        "redacted": list(facts.removed),
        "begin_ns": content.begin_ns,
        "summary": facts.summary.to_json(),
        "header": facts.header,
        "schedule": facts.schedule,
    }
    return {name: value if isinstance(value, str) else json_text(value) for name, value in record.items()}


def _events(content: Content) -> Iterator[Event]:
    summary, begin_ns = content.facts.summary, content.begin_ns
    yield _name("process_name", f"{summary.model} {summary.resolution}, policy {summary.policy}")
    yield _name("thread_name", "scales and layers")
    yield from _scale_spans(content, begin_ns)
    yield from _step_spans(content, begin_ns)
    for counter in _COUNTERS:
        yield from _counter(content, *counter, begin_ns)
    for row in content.rows("log"):
        level = LEVELS[row["level"]] if row["level"] < len(LEVELS) else "log"
        yield _event("i", f"{level}: {decode_text(row['text'])}", int(row["t_ns"]) - begin_ns, s="p")


def _scale_spans(content: Content, begin_ns: int) -> Iterator[Event]:
    """One span per finished scale, from its first layer's begin to its last one's end."""
    steps = content.rows("steps")
    for scale in content.facts.summary.scales:
        rows = steps[steps["query_scale"] == scale.scale]
        name = f"scale {scale.scale} ({scale.height}x{scale.width})"
        args = {"tokens": scale.tokens, "seconds in layers": scale.seconds, "accounted bytes": scale.accounted_bytes,
                "stored bytes": scale.storage_bytes}  # fmt: skip
        yield _span(name, int(rows["begin_ns"].min()), int(rows["end_ns"].max()), begin_ns, "scale", args)


def _step_spans(content: Content, begin_ns: int) -> Iterator[Event]:
    for row in content.rows("steps"):
        args = {name: row[name].item() for name in ("query_scale", "layer", "accounted_bytes", "storage_bytes",
                                                    "evicted_tokens")}  # fmt: skip
        if not np.isnan(row["device_ns"]):
            args["device_ns"] = row["device_ns"].item()
        yield _span(f"layer {row['layer']}", int(row["begin_ns"]), int(row["end_ns"]), begin_ns, "step", args)


def _counter(content: Content, table: str, time: str, column: str, name: str, begin_ns: int) -> Iterator[Event]:
    """The values that were measured; a counter without any is no track."""
    for row in content.rows(table):
        if not np.isnan(row[column]):
            yield _event("C", name, int(row[time]) - begin_ns, args={"value": row[column].item()})


def _span(name: str, begin_ns: int, end_ns: int, origin_ns: int, kind: str, args: dict[str, float]) -> Event:
    return _event("X", name, begin_ns - origin_ns, dur=(end_ns - begin_ns) / 1000, cat=kind, args=args)


def _name(kind: str, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": _PROCESS, "tid": _THREAD, "args": {"name": name}}


def _event(phase: str, name: str, since_ns: int, **more: Any) -> Event:  # Any: JSON values
    return {"ph": phase, "name": name, "pid": _PROCESS, "tid": _THREAD, "ts": since_ns / 1000, **more}
