"""What the machine said: the GPU's memory or the reason it is absent, what recording cost, and the run's log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.strip import Strip

from kvscope import units
from kvscope.format import LEVELS, Reason, decode_text
from kvscope.tui.widgets.canvas import View, field, fit, paragraph, row, rule

if TYPE_CHECKING:
    import numpy as np

    from kvscope.tui.feed import Snapshot


def gpu_strip(view: View, width: int, _height: int) -> list[Strip]:
    """The newest NVML sample, with its age; or why there is none, and that all else works."""
    ink, snapshot = view.ink, view.snapshot
    title = rule("gpu", width, ink, tag="NVML")
    if snapshot is None:
        return [title]
    reason = gpu_reason(snapshot)
    if reason is not None:
        rest = paragraph("Everything else works without it.", ink.muted, width) if width >= 40 else []
        return [title, *paragraph(reason, ink.text, width), *rest]
    sample = snapshot.gpu[-1]
    age = units.duration_text(max(0, snapshot.committed_ns - int(sample["t_ns"])))
    values = [_gpu_value(view, sample, name, width) for name in ("used", "total", "process")]
    return [title, *values, field("sampled", (age, ink.text), "before the last commit", width, ink)]


def gpu_height(view: View, width: int) -> int:
    return max(2, len(gpu_strip(view, width, 0)))


def gpu_reason(snapshot: Snapshot) -> str | None:
    """Why there is no GPU sample to show; None: there is one."""
    if snapshot.gpu_unavailable:
        return snapshot.gpu_unavailable
    return "no sample yet" if not len(snapshot.gpu) else None


def recorder_cost(view: View, width: int, _height: int) -> list[Strip]:
    """What recording itself cost the run, and what it lost."""
    ink, snapshot = view.ink, view.snapshot
    title = rule("recorder", width, ink, tag="measured")
    if snapshot is None:
        return [title]
    cost = snapshot.summary.recorder
    if cost is None:
        return [title, row([(" no cost recorded yet", ink.muted)])]
    lost = f"{cost.dropped_rows:,} samples lost" if cost.dropped_rows else "nothing lost"
    time = units.seconds_text(cost.run_seconds)
    share = f"{units.fraction_text(cost.run_fraction)} of the run" if cost.run_fraction is not None else ""
    return [
        title,
        field("time", (time, ink.text), share, width, ink),
        field("file", (units.bytes_text(cost.file_bytes), ink.text), lost, width, ink),
    ]


def log_tail(view: View, width: int, height: int) -> list[Strip]:
    """The newest lines of the run's log, each with the time since the run began."""
    ink, snapshot = view.ink, view.snapshot
    title = rule("log", width, ink)
    if snapshot is None:
        said = view.said[-max(1, height - 1) :]
        return [title, *(row(fit([(f"  {units.printable(line)}", ink.text)], width, ink.muted)) for line in said)]
    if not len(snapshot.log):
        return [title, row([(" nothing logged yet", ink.muted)])]
    return [title, *(_log_line(view, snapshot, index, width) for index in _newest(len(snapshot.log), height - 1))]


def _newest(count: int, room: int) -> range:
    return range(max(0, count - max(0, room)), count)


def _log_line(view: View, snapshot: Snapshot, index: int, width: int) -> Strip:
    ink, line = view.ink, snapshot.log[index]
    since = units.duration_text(max(0, int(line["t_ns"]) - snapshot.header.created_monotonic_ns))
    level = LEVELS[min(int(line["level"]), len(LEVELS) - 1)]
    style = {"warning": ink.warn, "error": ink.bad}.get(level, ink.text)
    word = "" if level == "info" else f"{level}: "
    text = word + units.printable(decode_text(line["text"]))
    return row(fit([(f" {since:>10}  ", ink.muted), (text, style)], width, ink.muted))


def _gpu_value(view: View, sample: np.void, name: str, width: int) -> Strip:
    """One memory value of a sample, or `?` and why there is none."""
    reason = Reason(int(sample[f"{name}_bytes_reason"]))
    text = f"? {reason.text}" if reason else units.bytes_text(float(sample[f"{name}_bytes"]))
    return field(name, (text, view.ink.muted if reason else view.ink.text), "", width, view.ink)
