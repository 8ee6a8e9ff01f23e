"""Summaries as plain text for stdout. Numbers come from `analysis` and `plan`, their wording from `units`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from kvscope.units import bytes_text, fraction_text, head_tokens_text, printable, scales_text, seconds_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvscope.analysis import StepPlace, Summary
    from kvscope.plan import PlanSummary


_WIDTH = 80


def summary_text(summary: Summary) -> str:
    """A trace in about twenty lines; every number says how it came to be."""
    took = ""
    if summary.seconds is not None:
        took = f"; {seconds_text(summary.layer_seconds)} in layers of {seconds_text(summary.seconds)} in all"
    lines = [
        f"{summary.trace}: {summary.status}, {scales_text(summary.scales_done, summary.num_scales)}"
        + (f" ({summary.message})" if summary.message else ""),
        f"{summary.model} {summary.resolution}, policy {summary.policy}{_parameters(summary)}, "
        f"{summary.dtype} on {summary.device}, {summary.rows} rows{took}",
        *([f"stored in {' and '.join(summary.codecs)}"] if summary.codecs else []),
        *(f"revised: the plan of {policy} is obeyed from scale {scale} on" for scale, policy in summary.revised),
        *_choice_lines(summary),
        "",
        *_table(_cache_rows(summary)),
        f"  100 % = {summary.denominator}: {head_tokens_text(summary.denominator_tokens)}",
        "",
        *_table(_scale_rows(summary)),
        "",
        *_machine_lines(summary),
    ]
    return _lines_text(lines)


def _parameters(summary: Summary) -> str:
    # What is stored in which codec has a line of its own.
    said = ", ".join(f"{name}={value}" for name, value in summary.parameters.items() if name != "codecs")
    return f" ({said})" if said else ""


def _cache_rows(summary: Summary) -> list[tuple[str, ...]]:
    """(name, bytes, share, how it is known) of the whole run."""
    rows: list[tuple[str, ...]] = [
        ("full history", bytes_text(summary.full_history_bytes), "100 %", "defined"),
        ("budget", bytes_text(summary.budget_bytes, absent="none"), _percent(summary.budget), "defined"),
    ]
    if summary.accounted_peak_bytes is None:
        return rows
    tag = summary.tags["storage_peak_bytes"]
    accounted, stored = _at(summary.accounted_peak_step), _at(summary.storage_peak_step)
    return [
        *rows,
        ("accounted peak", bytes_text(summary.accounted_peak_bytes), _percent(summary.accounted_peak_fraction),
         f"{tag}{accounted}"),
        ("stored peak", bytes_text(summary.storage_peak_bytes), _percent(summary.storage_peak_fraction),
         f"{tag}{stored}"),
    ]  # fmt: skip


def _choice_lines(summary: Summary) -> Iterable[str]:
    """What must be known where tokens were chosen one by one."""
    if summary.online:
        yield (
            f"{summary.policy} chose single tokens during the run; kept and read tokens are counted in the first row, "
            "other rows may keep other tokens, as many of each head"
        )


def _scale_rows(summary: Summary) -> Sequence[tuple[str, ...]]:
    """The finished scales under their titles; bytes are the most within each."""
    if not summary.scales:
        return [("no scale was finished",)]
    titles = ("scale", "grid", "tokens", "in layers", "accounted peak", "stored peak")
    return [titles] + [
        (str(scale.scale), f"{scale.height}x{scale.width}", f"{scale.tokens:,}", seconds_text(scale.seconds),
         bytes_text(scale.accounted_bytes), bytes_text(scale.storage_bytes))
        for scale in summary.scales
    ]  # fmt: skip


def plan_text(summary: PlanSummary) -> str:
    """A plan in a few lines."""
    dropped = f"; {summary.head_scales_dropped} of {summary.head_scales} prunable head-scales leave before the end"
    if summary.online:
        dropped = ""
    return _lines_text(
        [
            f"{summary.model} {summary.resolution} aspect {summary.aspect:g}, policy {summary.policy}, "
            f"{summary.sink_scales} sink scales, {summary.dtype}, {summary.rows} rows",
            "",
            *_table(
                [
                    ("full history", head_tokens_text(summary.history_tokens),
                     bytes_text(summary.full_history_bytes), "100 %"),
                    ("budget", head_tokens_text(summary.budget_tokens, absent="none"),
                     bytes_text(summary.budget_bytes, absent="none"), _percent(summary.budget)),
                    ("planned peak", head_tokens_text(summary.planned_peak_tokens),
                     bytes_text(summary.planned_peak_bytes),
                     _percent(summary.planned_peak_bytes / summary.full_history_bytes)),
                ]
            ),
            f"  100 % = {summary.denominator}; bytes are {summary.tag}: tokens × bytes per token",
            *_codec_lines(summary),
            f"  peak after scale {summary.peak_query_scale}, layer {summary.peak_layer}{dropped}",
            *_capacity_lines(summary),
            f"  least feasible budget: {fraction_text(summary.minimum_budget)} ({_what_must_stay(summary)})",
            f"  schedule {summary.schedule_sha256[:12]}",
        ]
    )  # fmt: skip


def _what_must_stay(summary: PlanSummary) -> str:
    return "the sink scales" if summary.sink_scales else "there are no sink scales"


def _capacity_lines(summary: PlanSummary) -> Iterable[str]:
    """How many tokens an online policy may keep; none of a planned policy."""
    if summary.capacity_tokens is None:
        return
    yield f"  which tokens stay is chosen during the run by {summary.policy}; how many is planned:"
    for scale, layers in enumerate(summary.capacity_tokens):
        least, most = min(layers), max(layers)
        each = head_tokens_text(most) if least == most else f"{least:,} to {head_tokens_text(most)}"
        yield f"    after scale {scale}: {each} a layer, {head_tokens_text(sum(layers))} in all"


def _codec_lines(summary: PlanSummary) -> Iterable[str]:
    if len(summary.codec_bytes) > 1:
        each = ", ".join(f"{name} {bytes_text(size)}" for name, size in summary.codec_bytes.items())
        yield f"  bytes per token: {each}; 100 % is the history's bytes in {summary.dtype}, whatever is stored"


def _machine_lines(summary: Summary) -> Iterable[str]:
    if summary.recorder is not None:
        cost = summary.recorder
        previews = f", previews {seconds_text(cost.preview_seconds)} of it" if cost.preview_seconds else ""
        share = "" if cost.run_fraction is None else f" ({fraction_text(cost.run_fraction)})"
        yield (
            f"recorder: {seconds_text(cost.run_seconds)} of the run{share}{previews}; "
            f"file {bytes_text(cost.file_bytes)}; {cost.dropped_rows} samples dropped"
        )
    if summary.gpu_unavailable is not None:
        yield f"GPU: {summary.gpu_unavailable}"
    else:
        scales, whole = summary.gpu_used_scales_peak_bytes, summary.gpu_used_peak_bytes
        decoding = f", {bytes_text(scales)} until the image was decoded" if scales not in (None, whole) else ""
        yield f"GPU memory in use, peak: {bytes_text(whole)} (NVML, whole device){decoding}"
    if summary.process_rss_peak_bytes is not None:
        yield f"process memory, peak of samples: {bytes_text(summary.process_rss_peak_bytes)}"
    if summary.perturbed:
        yield f"recording changed the run, but no byte of its cache: {summary.perturbed_by or 'it took time'}"


def _lines_text(lines: Iterable[str]) -> str:
    """The lines as one text, sentences wrapped; what is foreign in them cannot begin lines of its own."""
    return "\n".join(part for line in lines for part in wrapped(printable(line)))


def wrapped(line: str) -> list[str]:
    """A line of words as lines that fit a terminal; a row of a table, whose columns are two spaces apart, as it is."""
    indent = line[: len(line) - len(line.lstrip())]
    if "  " in line.strip() or not line.strip():
        return [line]
    return textwrap.wrap(line, _WIDTH, subsequent_indent=f"{indent}  ", break_long_words=False, break_on_hyphens=False)


def _at(place: StepPlace | None) -> str:
    return "" if place is None else f", at scale {place.query_scale} layer {place.layer}"


def _percent(fraction: float | None) -> str:
    return fraction_text(fraction, absent="")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned columns, two spaces apart and indented by two; the first column to the left."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if index in (0, len(widths) - 1) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
