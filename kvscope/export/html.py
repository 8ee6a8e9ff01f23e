"""Export as one HTML page that needs no network, no script and no other file. Words from `units`, charts from `svg`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvscope.export import svg
from kvscope.export.page import document, note, picture, safe, table
from kvscope.format import LEVELS
from kvscope.units import (
    bytes_text,
    duration_text,
    fraction_text,
    head_tokens_text,
    scales_text,
    seconds_text,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.analysis import StepPlace, Summary
    from kvscope.export.content import Content

_TAGS = {
    "measured": "counted while the run went on",
    "forced": "counted in a run that was fed another run's bits",
    "defined": "follows from the model's shape and the budget alone",
}

_MOST_HEADROOM = 2.5
"""How far above all else the full history may be, to be drawn with it."""
_PREVIEW_PIXELS = 256
"""Previews are shrunk to about this, so that a page of a large image stays small."""


def write(content: Content, part: Path) -> None:
    """Write the page to the new file `part`."""
    summary = content.facts.summary
    title = f"{summary.model} {summary.resolution}, {_policy(summary)}"
    sections = (
        _heading(content, title),
        _cache(summary),
        _pictures(content),
        _memory(content),
        _scales(summary),
        _kept_over_time(content),
        _kept_by_head(content),
        _machine(content),
        _job(content),
        _log(content),
        _notes(content),
    )
    body = "\n".join("\n".join(section) for section in sections)
    part.write_text(document(safe(title), body), encoding="utf-8", errors="backslashreplace")


def _heading(content: Content, title: str) -> Iterator[str]:
    summary = content.facts.summary
    done = scales_text(summary.scales_done, summary.num_scales)
    yield f"<h1>{safe(title)}</h1>"
    because = f": {safe(summary.message)}" if summary.message else ""
    yield f'<p class="status {summary.status}"><strong>{summary.status}</strong>, {done}{because}</p>'
    prompt = content.facts.header["job"]["prompt"]
    yield f'<p class="prompt">Prompt: {safe(prompt)}</p>'


def _cache(summary: Summary) -> Iterator[str]:
    """Bytes of the whole run, each with its share and how it is known."""
    tags = summary.tags
    rows = [
        ("full history", summary.full_history_bytes, 1.0, None, tags["full_history_bytes"], ""),
        ("budget", summary.budget_bytes, summary.budget, None, tags["budget_bytes"], ""),
        ("accounted peak", summary.accounted_peak_bytes, summary.accounted_peak_fraction,
         summary.accounted_peak_of_budget, tags["accounted_peak_bytes"], _place(summary.accounted_peak_step)),
        ("stored peak", summary.storage_peak_bytes, summary.storage_peak_fraction, summary.storage_peak_of_budget,
         tags["storage_peak_bytes"], _place(summary.storage_peak_step)),
    ]  # fmt: skip
    yield "<h2>Cache</h2>"
    yield from table(
        ("", "bytes", "of full history", "of budget", "how it is known"),
        (
            (name, _bytes(value, absent="none" if name == "budget" else "not measured"), _percent(share),
             _percent(of_budget), f"{_tag(tag)}{place}")
            for name, value, share, of_budget, tag, place in rows
        ),
    )  # fmt: skip
    yield note(
        f"100 % is the {safe(summary.denominator)}: {head_tokens_text(summary.denominator_tokens)}. Accounted bytes "
        "are what the budget counts, kept tokens times the bytes of each; stored bytes are what the run allocated for "
        "its cache."
    )


def _pictures(content: Content) -> Iterator[str]:
    """The image, then how it came to be."""
    previews = [(scale, content.preview(scale)) for scale in range(content.scales_done)]
    made = [picture(f"after scale {scale}", _shrunk(rgb)) for scale, rgb in previews if rgb is not None]
    if content.image is not None:
        made.insert(0, picture("the image", content.image, style="final"))
    if made:
        yield '<h2>Pictures</h2>\n<div class="pictures">'
        yield from made
        yield "</div>"


def _shrunk(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with square blocks of pixels averaged, as large as leaves about _PREVIEW_PIXELS to a side."""
    block = max(1, max(rgb.shape[:2]) // _PREVIEW_PIXELS)
    height, width = rgb.shape[0] // block, rgb.shape[1] // block
    blocks = rgb[: height * block, : width * block].reshape(height, block, width, block, 3)
    shrunk: NDArray[np.uint8] = blocks.mean(axis=(1, 3)).astype(np.uint8)
    return shrunk


def _memory(content: Content) -> Iterator[str]:
    """Bytes after each step, with what they are measured against."""
    summary, steps = content.facts.summary, content.rows("steps")
    yield "<h2>Cache over the run</h2>"
    if not steps.size:
        yield "<p>No step is recorded.</p>"
        return
    tag = summary.tags["storage_peak_bytes"]
    lines = [
        svg.Line("stored", steps["storage_bytes"].tolist(), f"stored bytes, {tag}"),
        svg.Line("accounted", steps["accounted_bytes"].tolist(), f"accounted bytes, {tag}"),
    ]
    levels, beyond = _levels(summary, top=max(*lines[0].values, *lines[1].values))
    scales, counts = np.unique(steps["query_scale"], return_counts=True)
    spans = [(int(count), str(scale)) for scale, count in zip(scales, counts, strict=True)]
    drawn: list[svg.Line | svg.Level] = [*lines, *levels]
    keys = [f'<span class="{one.style}">{one.words}</span>' for one in drawn]
    yield f'<p class="key">{" ".join(keys)} {beyond}</p>'
    yield svg.bytes_chart(lines, levels, spans, "Bytes of the cache after each step")


def _levels(summary: Summary, *, top: float) -> tuple[list[svg.Level], str]:
    """The budget, and the full history unless it is far above the rest: then it is told in words."""
    levels = []
    if summary.budget_bytes is not None:
        levels.append(svg.Level("budget", summary.budget_bytes, f"budget {bytes_text(summary.budget_bytes)}, defined"))
        top = max(top, summary.budget_bytes)
    words = f"full history {bytes_text(summary.full_history_bytes)}, defined"
    if summary.full_history_bytes > _MOST_HEADROOM * top:
        return levels, f"{words}, is above the chart"
    return [*levels, svg.Level("full", summary.full_history_bytes, words)], ""


def _scales(summary: Summary) -> Iterator[str]:
    """The finished scales; bytes are the most within each."""
    yield "<h2>Scales</h2>"
    if not summary.scales:
        yield "<p>No scale was finished.</p>"
        return
    longest = max(scale.seconds for scale in summary.scales) or 1
    most = max(summary.full_history_bytes, *(scale.storage_bytes for scale in summary.scales))
    yield from table(
        ("scale", "grid", "tokens", "in layers", "", "accounted peak", "stored peak", ""),
        (
            (str(scale.scale), f"{scale.height}×{scale.width}", f"{scale.tokens:,}", seconds_text(scale.seconds),
             svg.bar(scale.seconds / longest, "time"), _bytes(scale.accounted_bytes), _bytes(scale.storage_bytes),
             svg.bar(scale.storage_bytes / most, "memory"))
            for scale in summary.scales
        ),
    )  # fmt: skip
    tag = _tag(summary.tags["scales"])
    yield note(
        f"{tag}. {seconds_text(summary.layer_seconds)} in layers of {seconds_text(summary.seconds)} from the first "
        "step to the last. The second bar is of the full history."
    )


def _kept_over_time(content: Content) -> Iterator[str]:
    """Shares kept after each scale, [query scale, source scale], as numbers on a ground of their strength."""
    if not content.scales_done:
        return
    yield "<h2>Kept after each scale</h2>"
    sources = range(content.scales.num_scales)
    yield '<table class="shares"><thead><tr><th>after ↓ of →</th>'
    yield "".join(f"<th>scale {source}</th>" for source in sources) + "</tr></thead><tbody>"
    for scale, shares in enumerate(content.kept_shares):
        cells = "".join(_share_cell(shares[source]) if source <= scale else "<td></td>" for source in sources)
        yield f"<tr><th>{scale}</th>{cells}</tr>"
    yield "</tbody></table>"
    yield note(
        f"{_tag(content.facts.summary.tags['scales'])}. Of the tokens that a scale wrote in all layers and heads, the "
        "share that was still in the cache when the scale on the left was done. Nothing reads the last scale again, so "
        f"it is not kept.{_choice(content.facts.summary)}"
    )


def _choice(summary: Summary) -> str:
    """What must be known of shares where tokens were chosen one by one."""
    if not summary.online:
        return ""
    return (
        f" Which tokens stay was chosen during the run by {safe(summary.policy)}; shares are the first row's, other "
        "rows may keep other tokens, as many of each head."
    )


def _share_cell(share: float) -> str:
    return f'<td style="--share:{share:.3f}">{fraction_text(float(share))}</td>'


def _kept_by_head(content: Content) -> Iterator[str]:
    """Layers × heads, one map per source scale, after the last finished scale."""
    if not content.scales_done:
        return
    last = content.scales_done - 1
    kept, tokens = content.head_scales("kept_tokens")[last], content.scales.tokens
    yield f'<h2>Kept by each head, after scale {last}</h2>\n<div class="maps">'
    for source in range(min(last + 1, len(tokens) - 1) or 1):
        shares = kept[:, :, source] / tokens[source]
        holding = int((shares > 0).sum())
        what = "some of it" if content.facts.summary.online else "it"
        words = f"source {source}: {holding:,} of {shares.size:,} heads keep {what}"
        yield f"<figure>{svg.cells(shares, words)}<figcaption>{words}</figcaption></figure>"
    yield "</div>"
    yield note(
        f"{_tag(content.facts.summary.tags['scales'])}. Rows are layers, columns heads, both from 0 at the top left. A "
        "square is kept, a smaller one kept in part, a dot dropped."
    )


def _machine(content: Content) -> Iterator[str]:
    summary = content.facts.summary
    tags, cost = summary.tags, summary.recorder
    rows = [
        ("device", safe(f"{summary.device}, {summary.dtype}, {summary.rows} rows of K and V"), ""),
        _peak_row("GPU memory in use, peak (NVML, whole device)", summary.gpu_used_peak_bytes,
                  tags["gpu_used_peak_bytes"], absent=summary.gpu_unavailable or "not measured"),
        _peak_row("torch's CUDA allocator, peak", summary.allocator_peak_bytes, tags["allocator_peak_bytes"],
                  absent="not measured: no CUDA"),
        _peak_row("process memory (RSS), peak of samples", summary.process_rss_peak_bytes,
                  tags["process_rss_peak_bytes"], absent="not measured"),
    ]  # fmt: skip
    if cost is not None:
        tag = _tag(tags["recorder"])
        taken = f"{seconds_text(cost.run_seconds)} of the run ({fraction_text(cost.run_fraction)})"
        rows += [
            ("recording took", taken, tag),
            ("of which previews", seconds_text(cost.preview_seconds), tag),
            ("samples dropped", f"{cost.dropped_rows:,}", tag),
        ]
    yield "<h2>Machine</h2>"
    yield from table(("", "", "how it is known"), rows)
    if summary.perturbed:
        by = content.facts.header["perturbed_by"]
        because = f" ({safe(by)})" if by else ""
        yield note(f"Recording changed this run{because}: compare its time and memory with no unperturbed run's.")


def _peak_row(name: str, num_bytes: int | None, tag: str, *, absent: str) -> tuple[str, str, str]:
    return (name, safe(absent), "") if num_bytes is None else (name, _bytes(num_bytes), _tag(tag))


def _job(content: Content) -> Iterator[str]:
    facts = content.facts
    names = ("run_id", "parent_run_id", "format_version", "attention", "tiers", "perturbed_by", "gpu_name", "versions")
    record = facts.header["job"] | {name: facts.header[name] for name in names}
    rows = [(safe(name.replace("_", " ")), safe(_words(value))) for name, value in record.items() if value is not None]
    yield "<details><summary>Job and versions</summary>"
    yield from table(("", ""), rows)
    yield "</details>"


def _log(content: Content) -> Iterator[str]:
    lines = content.facts.log
    if not lines:
        return
    begin_ns = content.begin_ns
    yield f"<details><summary>Log: {len(lines)}</summary>"
    yield from table(
        ("since the start", "level", "text"),
        (
            (
                duration_text(line.t_ns - begin_ns),
                LEVELS[line.level] if line.level < len(LEVELS) else "",
                safe(line.text),
            )
            for line in lines
        ),
    )
    yield "</details>"


def _notes(content: Content) -> Iterator[str]:
    removed = content.facts.removed
    tags = "; ".join(f"{_tag(tag)}: {meaning}" for tag, meaning in _TAGS.items())
    yield f"<footer>{note(f'{tags}.')}"
    yield note(f"Redacted: {safe(', '.join(removed)) or 'nothing'}. Made by {safe(content.made_by)}.") + "</footer>"


def _bytes(num_bytes: int | None, *, absent: str = "not measured") -> str:
    text = bytes_text(num_bytes, absent=absent)
    return text if num_bytes is None else f'<span title="{num_bytes:,} bytes">{text}</span>'


def _percent(fraction: float | None) -> str:
    return fraction_text(fraction, absent="")


def _tag(tag: str) -> str:
    return f'<span class="tag {tag}">{tag}</span>'


def _place(place: StepPlace | None) -> str:
    return "" if place is None else f", at scale {place.query_scale} layer {place.layer}"


def _policy(summary: Summary) -> str:
    return summary.policy if summary.budget is None else f"{summary.policy} at {fraction_text(summary.budget)}"


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
