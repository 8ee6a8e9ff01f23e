"""Validation: whether a trace keeps the rules of its format and of its own plan. Every broken one is a Finding.

What cannot be opened is no finding but a TraceError. A table that is not laid out as it should be is told once, and
what is in it is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from heatkv.codecs import CODECS
from heatkv.config import MODELS
from heatkv.errors import ScheduleError
from heatkv.revision import check_room, revised
from heatkv.schedule import PruningSchedule
from kvscope import chosen, layout, maps
from kvscope.analysis import summarize
from kvscope.errors import TraceError
from kvscope.findings import Finding, more_text, unequal
from kvscope.format import COUNTED, GPU_FIELDS, LEVELS, TABLES, Reason, Status
from kvscope.in_force import by_scale, bytes_held, evicted_tokens, plan_at, tokens_held
from kvscope.opening import DAMAGE, first_line
from kvscope.rows import summary_row
from kvscope.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

MASS_TOLERANCE = 1e-3
"""The attention of one head may sum up to this much more or less than 1: it was computed in 16 or 32 bits."""


def validate(path: Path | str) -> list[Finding]:
    """Everything that is wrong with a trace; empty: nothing is. Raises TraceError if it cannot be read at all."""
    with Trace.open(path) as trace:
        return list(findings_of(trace))


def findings_of(trace: Trace) -> Iterator[Finding]:
    """What is wrong with an open trace, as far as its last commit reaches."""
    schema = list(_layout(trace))
    yield from schema
    # "table steps, column layer" → steps
    told = {finding.where.partition(",")[0].removeprefix("table ") for finding in schema}
    for check in _CHECKS:
        if told.isdisjoint(check.tables):
            yield from _checked(trace, check)


def _layout(trace: Trace) -> Iterator[Finding]:
    try:
        yield from layout.findings(trace.file, trace.header, scales_done=trace.scales_done)
    except DAMAGE as error:
        yield Finding("the file's structure", first_line(error), "one that HDF5 can follow")


@dataclass(frozen=True, slots=True)
class _Check:
    """One family of rules, and the tables that must be laid out well to look for them."""

    find: Callable[[Trace], Iterator[Finding]]
    tables: tuple[str, ...]


def _checked(trace: Trace, check: _Check) -> Iterator[Finding]:
    try:
        yield from check.find(trace)
    except (TraceError, *DAMAGE) as error:
        reason = first_line(error).removeprefix(f"{trace.path}: ")
        yield Finding(", ".join(check.tables), reason, "a table that can be read")


# The header against the plan and the job.


def _header(trace: Trace) -> Iterator[Finding]:
    header, schedule = trace.header, trace.schedule
    sizes = np.array(header.scales.sizes)
    why = "the header's scales"
    yield from unequal("scale_height", trace.file["scale_height"][...], sizes[:, 0], why=why)
    yield from unequal("scale_width", trace.file["scale_width"][...], sizes[:, 1], why=why)
    if schedule.scales.sizes != header.scales.sizes:
        yield Finding("header key schedule", "a plan for other scales", why)
    if (schedule.num_layers, schedule.num_heads) != (header.num_layers, header.num_heads):
        found = f"{schedule.num_layers} layers of {schedule.num_heads} heads"
        yield Finding("drop_step", found, f"{header.num_layers} layers of {header.num_heads} heads")
    if header.tiers != header.job.tiers:
        yield Finding("header key tiers", ", ".join(header.tiers), f"{', '.join(header.job.tiers)}: the job's")
    if header.perturbed_by and not header.perturbed:
        yield Finding("header key perturbed", "0", f"1: perturbed_by says {header.perturbed_by!r}")
    if header.liveness not in ("lock", "heartbeat"):
        yield Finding("header key liveness", repr(header.liveness), "lock or heartbeat")


# Steps and bytes.


def _steps(trace: Trace) -> Iterator[Finding]:
    steps, layers = trace.steps, trace.header.num_layers
    order = np.arange(trace.scales_done * layers)
    if len(steps) != len(order):
        yield Finding("steps", f"{len(steps)} rows", f"{len(order)}: {trace.scales_done} scales of {layers} layers")
    places = steps["query_scale"].astype(np.int64) * layers + steps["layer"]
    wrong = np.flatnonzero(places[: len(order)] != order[: len(places)])
    if len(wrong):
        row = int(wrong[0])
        found = f"scale {steps['query_scale'][row]} layer {steps['layer'][row]}{more_text(len(wrong))}"
        yield Finding(f"steps[{row}]", found, f"scale {row // layers} layer {row % layers}: steps in order")


def _tokens(trace: Trace) -> Iterator[Finding]:
    if trace.schedule.online:
        yield from chosen.token_findings(trace)
        return
    done, why = trace.scales_done, "as the schedule says"
    kept = by_scale(trace.plans, PruningSchedule.kept_tokens, num_scales=done)
    read = by_scale(trace.plans, PruningSchedule.read_tokens, num_scales=done)
    yield from unequal("kept_tokens", trace.kept_tokens, kept, why=why)
    yield from unequal("read_tokens", trace.read_tokens, read, why=why)


def _revisions(trace: Trace) -> Iterator[Finding]:
    for before, after in zip(trace.plans, trace.plans[1:], strict=False):
        where = f"revised_drop_step[{after.query_scale}]"
        try:
            expected = revised(before.schedule, after.schedule, after.query_scale)
            check_room(after.schedule, after.query_scale, trace.header.pools)
        except ScheduleError as error:
            yield Finding(where, str(error), "a plan that goes on with what the run still held")
            continue
        yield from unequal(where, after.schedule.drop_step, expected.drop_step, why="what had left keeps its step")
        if expected.codec is not None and after.schedule.codec is not None:
            where = f"revised_codec[{after.query_scale}]"
            yield from unequal(where, after.schedule.codec, expected.codec, why="what is stored keeps its codec")


def _bytes(trace: Trace) -> Iterator[Finding]:
    header, steps = trace.header, trace.steps
    held = bytes_held(trace.plans, header)[: len(steps)]
    yield from unequal("steps.accounted_bytes", steps["accounted_bytes"][: len(held)], held, why="tokens held × bytes")
    evicted = evicted_tokens(trace.plans, len(held))
    yield from unequal("steps.evicted_tokens", steps["evicted_tokens"][: len(held)], evicted, why="the plan")
    if header.capacity_tokens is not None:
        yield from _stored(trace, header.capacity_tokens)


def _stored(trace: Trace, capacity_tokens: int) -> Iterator[Finding]:
    stored = trace.steps["storage_bytes"]
    peak, least = int(tokens_held(trace.plans).max()), trace.header.capacity_bytes or 0
    if capacity_tokens < peak:
        yield Finding("header key capacity_tokens", f"{capacity_tokens:,}", f"{peak:,} or more: the plan's peak")
    yield from _pools(trace)
    short = np.flatnonzero(stored < least)
    if len(short):
        found = f"{stored[short[0]]:,}{more_text(len(short))}"
        expected = f"{least:,} bytes or more: room for {capacity_tokens:,} head-tokens"
        yield Finding(f"steps.storage_bytes[{short[0]}]", found, expected)


def _pools(trace: Trace) -> Iterator[Finding]:
    """What the header says of each codec, against the plan."""
    header, schedule = trace.header, trace.plans[0].schedule
    if schedule.codec is None and not header.pools:
        return
    found = [(pool.codec, pool.bytes_per_token, pool.capacity_tokens) for pool in header.pools]
    sizes = {"rows": header.rows, "dtype_bytes": header.dtype_bytes}
    planned = [
        (
            name,
            CODECS[name].bytes_per_token(header.head_dim, **sizes),
            header.capacity_tokens if schedule.online else int(held.max()),
        )
        for name, held in schedule.tokens_held_by_codec().items()
    ]
    if found != planned:
        yield Finding("header key pools", f"{found}", f"{planned}: codecs, bytes per token and peaks of the plan")


def _summaries(trace: Trace) -> Iterator[Finding]:
    steps, layers, stored = trace.steps, trace.header.num_layers, trace.scale_summary
    for scale in range(min(trace.scales_done, len(steps) // layers)):
        own = steps[scale * layers : (scale + 1) * layers]
        expected = summary_row(own, trace.kept_tokens[scale], trace.read_tokens[scale])
        for name in expected.dtype.names or ():
            if stored[name][scale] != expected[name]:
                yield Finding(
                    f"scale_summary.{name}[{scale}]", f"{stored[name][scale]}", f"{expected[name]}: what its steps say"
                )


def _budget(trace: Trace) -> Iterator[Finding]:
    job, schedule = trace.header.job, trace.plans[0].schedule
    if job.budget is not None and job.schedule is None and schedule.budget != job.budget:
        yield Finding("header key schedule", f"budget {schedule.budget}", f"{job.budget}: the job's")
    if not len(trace.steps):
        return
    summary = summarize(trace)
    allowed, peak = summary.budget_bytes, summary.accounted_peak_bytes
    if allowed is not None and peak is not None and peak > allowed:
        place = summary.accounted_peak_step
        where = "" if place is None else f" at scale {place.query_scale} layer {place.layer}"
        yield Finding("steps.accounted_bytes", f"{peak:,} bytes{where}", f"{allowed:,} at most: the budget")


# Clocks.


def _step_clocks(trace: Trace) -> Iterator[Finding]:
    steps = trace.steps
    yield from _clock(trace, "steps.begin_ns", steps["begin_ns"])
    yield from _clock(trace, "steps.end_ns", steps["end_ns"])
    backwards = np.flatnonzero(steps["end_ns"] < steps["begin_ns"])
    if len(backwards):
        row = int(backwards[0])
        found = f"{steps['end_ns'][row]}{more_text(len(backwards))}"
        yield Finding(f"steps.end_ns[{row}]", found, f"{steps['begin_ns'][row]} or later: the step's begin")
    known = steps["device_ns"][~np.isnan(steps["device_ns"])]
    if (known < 0).any():
        yield Finding("steps.device_ns", f"{known.min():g}", "a time of 0 or more, or NaN")


def _row_clocks(trace: Trace) -> Iterator[Finding]:
    for name in ("allocator", "log", "cost", "commits"):
        yield from _clock(trace, f"{name.removesuffix('s')}.t_ns", getattr(trace, name)["t_ns"])


def _gpu_clock(trace: Trace) -> Iterator[Finding]:
    # The sampler starts before the clock's first moment is written down.
    yield from _clock(trace, "gpu.t_ns", trace.gpu["t_ns"], first_ns=0)


def _clock(trace: Trace, name: str, times: NDArray[np.int64], *, first_ns: int | None = None) -> Iterator[Finding]:
    """Times that go backwards, or lie before the trace was begun or after its last commit."""
    first_ns = trace.header.created_monotonic_ns if first_ns is None else first_ns
    backwards = np.flatnonzero(np.diff(times) < 0)
    if len(backwards):
        row = int(backwards[0]) + 1
        yield Finding(f"{name}[{row}]", f"{times[row]}{more_text(len(backwards))}", f"{times[row - 1]} or later")
    elif len(times) and times[0] < first_ns:
        yield Finding(f"{name}[0]", f"{times[0]}", f"{first_ns} or later: the trace's begin")
    elif len(times) and times[-1] > trace.committed_ns:
        yield Finding(f"{name}[{len(times) - 1}]", f"{times[-1]}", f"{trace.committed_ns} or earlier: the last commit")


# Attention.


def _mass(trace: Trace) -> Iterator[Finding]:
    for name, tier in (("attention_mass", "mass"), ("attention_mass_uncond", "mass_uncond")):
        mass = getattr(trace, name)
        if mass.size:
            visible = _visible(trace, is_measured=tier in trace.header.tiers)
            if trace.schedule.online and tier == "mass_uncond" and visible.any():
                visible = chosen.may_be_measured(~np.isnan(mass))
            yield from _one_mass(name, mass, visible)


def _visible(trace: Trace, *, is_measured: bool) -> NDArray[np.bool_]:
    """[scales_done, layer, head, source_scale]: where a measured value is due."""
    done = range(trace.scales_done)
    shape = (len(done), *trace.schedule.drop_step.shape)
    if not is_measured or not done:
        return np.zeros(shape, np.bool_)
    if trace.schedule.online:
        return chosen.seen(trace)
    return np.stack([plan_at(trace.plans, scale).visible(scale) for scale in done])


def _one_mass(name: str, mass: NDArray[np.float32], visible: NDArray[np.bool_]) -> Iterator[Finding]:
    why = "measured where the head could see it, NaN elsewhere"
    yield from unequal(f"{name} is measured", ~np.isnan(mass), visible, why=why)
    if (mass < 0).any():
        yield Finding(name, f"{np.nanmin(mass):g}", "a fraction, 0 to 1")
    sums: NDArray[np.float64] = np.nansum(mass.astype(np.float64), axis=-1)
    wrong = np.argwhere((np.abs(sums - 1) > MASS_TOLERANCE) & ~np.isnan(mass).all(axis=-1))
    if len(wrong):
        place = tuple(int(index) for index in wrong[0])
        found = f"sums up to {sums[place]:.6g}{more_text(len(wrong))}"
        yield Finding(f"{name}[{', '.join(map(str, place))}]", found, f"1 within {MASS_TOLERANCE:g}")


def _maps(trace: Trace) -> Iterator[Finding]:
    """One head at a time, so that maps of any size are checked in little memory."""
    is_measured = "maps" in trace.header.tiers
    visible = _visible(trace, is_measured=is_measured)
    for query_scale, layer, head in np.ndindex(visible.shape[:3]):
        finding = _map_finding(trace, visible[query_scale, layer, head], query_scale, layer, head)
        if finding is not None:
            yield finding
            return


def _map_finding(trace: Trace, visible: NDArray[np.bool_], query_scale: int, layer: int, head: int) -> Finding | None:
    where = f"attention_map[{query_scale}, {layer}, {head}]"
    cells = trace.attention_map(query_scale, layer, head)
    if trace.schedule.online and visible.any():
        is_whole = chosen.is_map_whole(trace, cells, visible, query_scale, layer, head)
    else:
        is_whole = np.array_equal(~np.isnan(cells), visible[:, None, None] & _grid_cells(trace))
    if not is_whole:
        return Finding(where, "NaN in other cells", "NaN past the grid and where the head could not see, only there")
    total = float(np.nansum(cells, dtype=np.float64))
    if visible.any() and abs(total - 1) > maps.MAP_ERROR + MASS_TOLERANCE:
        return Finding(where, f"sums up to {total:.4g}", f"1 within {maps.MAP_ERROR:g}")
    return None


def _grid_cells(trace: Trace) -> NDArray[np.bool_]:
    """[source_scale, map_y, map_x]: cells that are within the grid of their scale."""
    sizes, cells = np.array(trace.header.scales.sizes), np.arange(maps.MAP_CELLS)
    within: NDArray[np.bool_] = (cells[:, None] < sizes[:, 0, None, None]) & (cells < sizes[:, 1, None, None])
    return within


# Bits, pictures, samples, log.


def _bits(trace: Trace) -> Iterator[Finding]:
    expected = trace.header.scales.offsets[trace.scales_done]
    found = int(trace.commits["bits_rows"][-1])
    if found != expected:
        yield Finding("commit.bits_rows", f"{found}", f"{expected}: tokens of {trace.scales_done} scales")
        return
    for scale in range(trace.scales_done):
        bits = trace.bits(scale)
        if bits.size and bits.max() > 1:
            yield Finding(f"bits of scale {scale}", f"{bits.max()}", "0 or 1")


def _pictures(trace: Trace) -> Iterator[Finding]:
    config, image = MODELS.get(trace.header.model), trace.image
    if image is not None and config is not None:
        height, width = config.image_size(trace.header.scales)
        if image.shape[:2] != (height, width):
            found = f"{image.shape[0]}x{image.shape[1]} pixels"
            yield Finding("image", found, f"{height}x{width}: {trace.header.model} of these scales")
    for scale in range(trace.scales_done):
        preview = trace.preview(scale)
        if preview is not None and not preview.size:
            yield Finding(f"preview of scale {scale}", "empty", "a picture, as the last commit says")


def _samples(trace: Trace) -> Iterator[Finding]:
    gpu, known = trace.gpu, [reason.value for reason in Reason]
    if trace.header.gpu_unavailable is not None and len(gpu):
        yield Finding("gpu", f"{len(gpu)} rows", "none: gpu_unavailable says why")
    for name, _, _ in GPU_FIELDS:
        reasons = gpu[f"{name}_reason"]
        if not np.isin(reasons, known).all():
            yield Finding(f"gpu.{name}_reason", f"{reasons.max()}", f"0 to {max(known)}")
        yield from unequal(f"gpu.{name} is measured", ~np.isnan(gpu[name]), reasons == 0, why=f"as {name}_reason says")
    for name in ("run_ns", "preview_ns", "writer_ns", "file_bytes", "dropped_rows"):
        if (trace.cost[name] < 0).any():
            yield Finding(f"cost.{name}", f"{trace.cost[name].min()}", "0 or more")


def _log(trace: Trace) -> Iterator[Finding]:
    for table, column in (("log", "text"), ("commits", "message")):
        for row, characters in enumerate(getattr(trace, table)[column]):
            try:
                characters.tobytes().rstrip(b"\0").decode()
            except UnicodeDecodeError:
                yield Finding(f"{table.removesuffix('s')}.{column}[{row}]", "other bytes", "UTF-8, padded with zeros")
                break
    if (trace.log["level"] >= len(LEVELS)).any():
        yield Finding("log.level", f"{trace.log['level'].max()}", f"0 to {len(LEVELS) - 1}")


# Commits.


def _commits(trace: Trace) -> Iterator[Finding]:
    commits, last = trace.commits, trace.commits[-1]
    yield from unequal("commit.epoch", commits["epoch"].astype(np.int64), np.arange(len(commits)), why="in order")
    ended = np.flatnonzero(commits["status"][:-1] != Status.RUNNING)
    if len(ended):
        found = f"status {commits['status'][ended[0]]}"
        yield Finding(f"commit[{ended[0]}]", found, "0: only the last commit ends a trace")
    for name in ("scales_done", *(f"{counted}_rows" for counted in COUNTED)):
        shrunk = np.flatnonzero(np.diff(commits[name].astype(np.int64)) < 0)
        if len(shrunk):
            row = int(shrunk[0]) + 1
            yield Finding(f"commit.{name}[{row}]", f"{commits[name][row]}", f"{commits[name][row - 1]} or more")
    if last["status"] == Status.DONE and trace.scales_done != trace.header.scales.num_scales:
        expected = f"{trace.header.scales.num_scales}: the run is done"
        yield Finding("commit.scales_done", f"{trace.scales_done}", expected)


def _lengths(trace: Trace) -> Iterator[Finding]:
    last, layouts = trace.commits[-1], trace.layouts()
    for name, table in TABLES.items():
        if table.fixed or name in ("commit", "preview") or name not in layouts:
            continue
        axis = table.axes.index("token") if name == "bits" else 0
        count, length = int(last[table.count_name]), layouts[name].shape[axis]
        if count > length:
            yield Finding(f"commit.{table.count_name}", f"{count}", f"{length} at most: the length of {name}")


_CHECKS = (
    _Check(_header, ("scale_height", "scale_width", "drop_step")),
    _Check(_commits, ("commit",)),
    _Check(_lengths, ("commit",)),
    _Check(_revisions, ("revisions", "revised_drop_step", "revised_codec")),
    _Check(_steps, ("steps",)),
    _Check(_tokens, ("kept_tokens", "read_tokens")),
    _Check(_bytes, ("steps",)),
    _Check(_summaries, ("scale_summary", "steps", "kept_tokens", "read_tokens")),
    _Check(_budget, ("steps", "allocator", "gpu", "cost")),
    _Check(_step_clocks, ("steps",)),
    _Check(_row_clocks, ("allocator", "log", "cost", "commit")),
    _Check(_gpu_clock, ("gpu",)),
    _Check(_mass, ("attention_mass", "attention_mass_uncond")),
    _Check(_maps, ("attention_map",)),
    _Check(_bits, ("bits", "commit")),
    _Check(_pictures, ("image", "preview")),
    _Check(_samples, ("gpu", "cost")),
    _Check(_log, ("log", "commit")),
)
