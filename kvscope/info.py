"""What a trace is, in words and sizes: its header, its tables, and what recording it cost. Reads no large table."""

from __future__ import annotations

import dataclasses
import textwrap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvscope.analysis import RecorderCost, summarize
from kvscope.layout import TableLayout, type_text
from kvscope.report import _table, wrapped
from kvscope.units import bytes_text, fraction_text, head_tokens_text, printable, scales_text, seconds_text

if TYPE_CHECKING:
    from kvscope.trace import Trace


@dataclass(frozen=True, slots=True)
class TableInfo:
    """One table as the file holds it."""

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    compression: str
    """Filters by name; empty: none."""
    stored_bytes: int | None
    plain_bytes: int
    """The same uncompressed."""

    @classmethod
    def of(cls, layout: TableLayout) -> TableInfo:
        return cls(
            name=layout.name,
            axes=layout.axes,
            shape=layout.shape,
            dtype=type_text(layout.dtype),
            compression=" + ".join(layout.filters),
            stored_bytes=layout.stored_bytes,
            plain_bytes=layout.plain_bytes,
        )


@dataclass(frozen=True, slots=True)
class TraceInfo:
    """One trace file; None: not known, or none."""

    trace: str
    status: str
    message: str
    scales_done: int
    num_scales: int
    commits: int
    file_bytes: int
    format_version: str
    run_id: str
    parent_run_id: str | None
    created_ns: int
    pid: int
    prompt: str
    seed: int
    model: str
    resolution: str
    num_layers: int
    num_heads: int
    head_dim: int
    rows: int
    dtype: str
    device: str
    attention: str | None
    policy: str
    budget: float | None
    codecs: tuple[str, ...]
    """What tokens are stored in; empty: the dtype alone."""
    revised: tuple[tuple[int, str], ...]
    """(scale, policy) from which scale on another plan was obeyed, and whose."""
    capacity_tokens: int | None
    tiers: tuple[str, ...]
    perturbed_by: str | None
    gpu_name: str | None
    gpu_unavailable: str | None
    versions: dict[str, str]
    recorder: RecorderCost | None
    tables: tuple[TableInfo, ...]

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return dataclasses.asdict(self)


def describe(trace: Trace) -> TraceInfo:
    """What an open trace is."""
    header, summary = trace.header, summarize(trace)
    return TraceInfo(
        trace=str(trace.path),
        status=trace.status,
        message=trace.message,
        scales_done=trace.scales_done,
        num_scales=header.scales.num_scales,
        commits=len(trace.commits),
        file_bytes=trace.file_bytes,
        format_version=".".join(map(str, header.format_version)),
        run_id=header.run_id,
        parent_run_id=header.parent_run_id,
        created_ns=header.created_ns,
        pid=header.pid,
        prompt=header.job.prompt,
        seed=header.job.seed,
        model=header.model,
        resolution=header.scales.resolution,
        num_layers=header.num_layers,
        num_heads=header.num_heads,
        head_dim=header.head_dim,
        rows=header.rows,
        dtype=header.dtype,
        device=header.device,
        attention=header.attention,
        policy=trace.schedule.policy,
        budget=trace.schedule.budget,
        codecs=trace.schedule.codecs,
        revised=summary.revised,
        capacity_tokens=header.capacity_tokens,
        tiers=header.tiers,
        perturbed_by=header.perturbed_by,
        gpu_name=header.gpu_name,
        gpu_unavailable=trace.gpu_unavailable,
        versions=header.versions,
        recorder=summary.recorder,
        tables=tuple(TableInfo.of(layout) for layout in trace.layouts(sizes=True).values()),
    )


def info_text(info: TraceInfo) -> str:
    """The same in about thirty lines."""
    lines = [
        f"{info.trace}: {info.status}, {scales_text(info.scales_done, info.num_scales)}"
        + (f" ({info.message})" if info.message else ""),
        "",
        *(line for name, text in _facts(info) if text for line in _fact_lines(name, text)),
        "",
        *_table([("table", "shape", "of", "in the file", "unpacked"), *map(_row, info.tables)]),
        f"compression: {', '.join(sorted({table.compression or 'none' for table in info.tables}))}",
        "",
        *wrapped(_cost_line(info.recorder)),
    ]
    return "\n".join(map(printable, lines))


def _facts(info: TraceInfo) -> list[tuple[str, str]]:
    budget = "no budget" if info.budget is None else f"budget {fraction_text(info.budget)}"
    room = "" if info.capacity_tokens is None else f", room for {head_tokens_text(info.capacity_tokens)}"
    created = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(info.created_ns / 1e9))
    shape = f"{info.num_layers} layers of {info.num_heads} heads of {info.head_dim}"
    return [
        ("format", f"{info.format_version}, {bytes_text(info.file_bytes)}, {info.commits} commits"),
        ("run", f"{info.run_id}, process {info.pid}"),
        ("repeats", info.parent_run_id or ""),
        ("created", created),
        ("prompt", info.prompt),
        ("seed", str(info.seed)),
        ("model", f"{info.model} {info.resolution}, {shape}, {info.dtype} on {info.device}, {info.rows} rows"),
        ("plan", f"policy {info.policy}, {budget}{room}"),
        ("revised", ", ".join(f"the plan of {policy} from scale {scale} on" for scale, policy in info.revised)),
        ("stored in", " and ".join(info.codecs)),
        ("attention", info.attention or ""),
        ("recorded", ", ".join(info.tiers)),
        ("perturbed by", info.perturbed_by or ""),
        ("GPU", info.gpu_name or info.gpu_unavailable or ""),
        ("made by", ", ".join(f"{package} {version}" for package, version in info.versions.items())),
    ]


def _fact_lines(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        printable(text), 80, initial_indent=f"  {name:12}  ", subsequent_indent=" " * 16, break_on_hyphens=False
    )


def _row(table: TableInfo) -> tuple[str, ...]:
    shape = "×".join(map(str, table.shape))
    return (table.name, shape, table.dtype, bytes_text(table.stored_bytes), bytes_text(table.plain_bytes))


def _cost_line(cost: RecorderCost | None) -> str:
    if cost is None:
        return "what recording cost is not in the trace"
    share = "" if cost.run_fraction is None else f" ({fraction_text(cost.run_fraction)})"
    return (
        f"recording took {seconds_text(cost.run_seconds)} of the run{share}, "
        f"{seconds_text(cost.preview_seconds)} of it for previews; the writer worked "
        f"{seconds_text(cost.writer_seconds)} beside it; {cost.dropped_rows} samples dropped"
    )
