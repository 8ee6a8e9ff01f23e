"""Numbers about a trace, each from one function: `run --json`, `stats --json` and the screens take theirs here.

Pure numpy over what a trace says; text is made elsewhere.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from heatkv.budget import budget_bytes
from heatkv.config import ModelConfig, VAEConfig
from kvscope.errors import TraceFormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.header import Header
    from kvscope.trace import Trace

Tag = Literal["measured", "forced", "defined"]
"""Where a number comes from: a free run, a run that was fed another's bits, or the shapes and the budget alone."""

DENOMINATOR = "history tokens over all layers and heads, last scale excluded"
"""What a fraction is a fraction of, in every place that prints one."""


@dataclass(frozen=True, slots=True)
class ScaleSummary:
    """One finished scale. Bytes are the most within the scale; seconds are those inside its layers."""

    scale: int
    height: int
    width: int
    tokens: int
    seconds: float
    accounted_bytes: int
    storage_bytes: int


@dataclass(frozen=True, slots=True)
class RecorderCost:
    """What recording itself took."""

    run_seconds: float
    """Time taken from the run, previews included."""
    preview_seconds: float
    writer_seconds: float
    """Time the writer thread worked, beside the run."""
    file_bytes: int
    dropped_rows: int
    run_fraction: float | None
    """run_seconds over the run's seconds."""


@dataclass(frozen=True, slots=True)
class StepPlace:
    """Where in the run something was."""

    query_scale: int
    layer: int


@dataclass(frozen=True, slots=True)
class Summary:
    """One trace in numbers; None: not known. Fractions are of `denominator`."""

    trace: str
    run_id: str
    status: str
    message: str
    model: str
    resolution: str
    aspect: float
    policy: str
    mode: str
    device: str
    dtype: str
    rows: int
    perturbed: bool
    perturbed_by: str | None
    """What recording changed, in words; None: nothing, or not said."""
    scales_done: int
    num_scales: int
    seconds: float | None
    """From the first step's begin to the last one's end: layers, sampling between scales, and recording."""
    layer_seconds: float | None
    """Of which inside layers: their attention, feed-forward, cache writes and evictions."""
    denominator: str
    denominator_tokens: int
    full_history_bytes: int
    """The denominator in bytes, for the recorded dtype and rows."""
    budget: float | None
    budget_bytes: int | None
    accounted_peak_bytes: int | None
    """The most that the budget's way of counting gave after any step."""
    accounted_peak_step: StepPlace | None
    accounted_peak_fraction: float | None
    accounted_peak_of_budget: float | None
    """The same, over budget_bytes: at most 1 if the budget was kept."""
    storage_peak_bytes: int | None
    """The most that the cache really held after any step."""
    storage_peak_step: StepPlace | None
    storage_peak_fraction: float | None
    storage_peak_of_budget: float | None
    allocator_peak_bytes: int | None
    """The most that torch's CUDA allocator held."""
    process_rss_peak_bytes: int | None
    gpu_used_peak_bytes: int | None
    """Of the whole GPU, the decoding of the image included."""
    gpu_used_scales_peak_bytes: int | None
    """The same until the last scale ended."""
    gpu_unavailable: str | None
    recorder: RecorderCost | None
    scales: tuple[ScaleSummary, ...]
    tags: dict[str, Tag]
    """Field → where its number comes from."""
    online: bool = False
    """Its policy chose single tokens during the run; kept and read tokens are then the first row's."""
    codecs: tuple[str, ...] = ()
    """What tokens are stored in, finest first; empty: all in the dtype."""
    revised: tuple[tuple[int, str], ...] = ()
    """(scale, policy) from which scale on another plan was obeyed, and whose; the policy above is the last one's."""
    parameters: dict[str, Any] = field(default_factory=dict)  # Any: JSON values
    """Of the policy, by name; empty where it has none, or the plan does not say."""

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """The same; a field without a number has no tag."""
        record = dataclasses.asdict(self)
        return record | {"tags": {name: tag for name, tag in self.tags.items() if record[name] is not None}}


_MEASURED = (
    "seconds",
    "layer_seconds",
    "accounted_peak_bytes",
    "accounted_peak_fraction",
    "accounted_peak_of_budget",
    "storage_peak_bytes",
    "storage_peak_fraction",
    "storage_peak_of_budget",
    "allocator_peak_bytes",
    "process_rss_peak_bytes",
    "gpu_used_peak_bytes",
    "gpu_used_scales_peak_bytes",
    "recorder",
    "scales",
)
_DEFINED = ("denominator_tokens", "full_history_bytes", "budget", "budget_bytes")


def summarize(trace: Trace) -> Summary:
    """The trace's last commit in numbers."""
    header, schedule, steps = trace.header, trace.schedule, trace.steps
    full_bytes = schedule.history_tokens * header.bytes_per_token
    allowed_bytes = _budget_bytes(schedule.budget, header)
    accounted_peak, accounted_step = _peak(steps, "accounted_bytes")
    storage_peak, storage_step = _peak(steps, "storage_bytes")
    seconds = _seconds(steps)
    return Summary(
        trace=str(trace.path),
        run_id=header.run_id,
        status=trace.status,
        message=trace.message,
        model=header.model,
        resolution=header.scales.resolution,
        aspect=header.scales.aspect,
        policy=schedule.policy,
        mode=header.job.mode,
        device=header.device,
        dtype=header.dtype,
        rows=header.rows,
        perturbed=header.perturbed,
        perturbed_by=header.perturbed_by,
        scales_done=trace.scales_done,
        num_scales=header.scales.num_scales,
        seconds=seconds,
        layer_seconds=_layer_seconds(steps),
        denominator=DENOMINATOR,
        denominator_tokens=schedule.history_tokens,
        full_history_bytes=full_bytes,
        budget=schedule.budget,
        budget_bytes=allowed_bytes,
        accounted_peak_bytes=accounted_peak,
        accounted_peak_step=accounted_step,
        accounted_peak_fraction=_over(accounted_peak, full_bytes),
        accounted_peak_of_budget=_over(accounted_peak, allowed_bytes),
        storage_peak_bytes=storage_peak,
        storage_peak_step=storage_step,
        storage_peak_fraction=_over(storage_peak, full_bytes),
        storage_peak_of_budget=_over(storage_peak, allowed_bytes),
        allocator_peak_bytes=_largest(trace.allocator["peak_bytes"]),
        process_rss_peak_bytes=_largest(trace.allocator["process_rss_bytes"]),
        gpu_used_peak_bytes=_largest(trace.gpu["used_bytes"]),
        gpu_used_scales_peak_bytes=_largest(_until_the_scales_ended(trace)["used_bytes"]),
        gpu_unavailable=trace.gpu_unavailable,
        recorder=_recorder_cost(trace, seconds),
        scales=tuple(_scale_summary(trace, scale) for scale in range(trace.scales_done)),
        tags=_tags(header),
        online=schedule.online,
        codecs=schedule.codecs,
        revised=revised_of(trace),
        parameters=_parameters(trace),
    )


def revised_of(trace: Trace) -> tuple[tuple[int, str], ...]:
    """(scale, policy) from which scale on another plan was obeyed, and whose."""
    return tuple((one.query_scale, one.schedule.policy) for one in trace.plans[1:])


def _parameters(trace: Trace) -> dict[str, Any]:  # Any: JSON values
    said = trace.schedule.provenance.get("parameters")
    return dict(said) if isinstance(said, dict) else {}


def _tags(header: Header) -> dict[str, Tag]:
    ran: Tag = "forced" if header.job.mode == "forced" else "measured"
    return dict.fromkeys(_MEASURED, ran) | dict.fromkeys(_DEFINED, "defined")


def _budget_bytes(budget: float | None, header: Header) -> int | None:
    if budget is None:
        return None
    # Only the shape counts for a budget; a trace's model need not be one that this version knows.
    config = ModelConfig(
        name=header.model,
        num_layers=header.num_layers,
        width=header.num_heads * header.head_dim,
        num_heads=header.num_heads,
        num_chunks=1,
        vae=VAEConfig(code_channels=header.bits_per_token, patch_size=1),
    )
    return budget_bytes(budget, config, header.scales, dtype_bytes=header.dtype_bytes, rows=header.rows)


def _peak(steps: NDArray[np.void], column: str) -> tuple[int | None, StepPlace | None]:
    """The true maximum over steps, and the first step that has it."""
    if not steps.size:
        return None, None
    row = steps[int(np.argmax(steps[column]))]
    return int(row[column]), StepPlace(int(row["query_scale"]), int(row["layer"]))


def _seconds(steps: NDArray[np.void]) -> float | None:
    return float(steps["end_ns"].max() - steps["begin_ns"].min()) / 1e9 if steps.size else None


def _layer_seconds(steps: NDArray[np.void]) -> float | None:
    return float((steps["end_ns"] - steps["begin_ns"]).sum()) / 1e9 if steps.size else None


def _over(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else part / whole


def _until_the_scales_ended(trace: Trace) -> NDArray[np.void]:
    """GPU samples."""
    ended_ns = trace.allocator["t_ns"][-1:]
    gpu: NDArray[np.void] = trace.gpu
    return gpu[gpu["t_ns"] <= ended_ns] if ended_ns.size else gpu


def _largest(values: NDArray[np.float64]) -> int | None:
    known = values[np.isfinite(values)]
    return int(known.max()) if known.size else None


def _recorder_cost(trace: Trace, seconds: float | None) -> RecorderCost | None:
    cost = trace.cost
    if not cost.size:
        return None
    run_seconds = float(cost["run_ns"].sum()) / 1e9
    return RecorderCost(
        run_seconds=run_seconds,
        preview_seconds=float(cost["preview_ns"].sum()) / 1e9,
        writer_seconds=float(cost["writer_ns"].sum()) / 1e9,
        file_bytes=trace.file_bytes,
        dropped_rows=int(cost["dropped_rows"].sum()),
        run_fraction=run_seconds / seconds if seconds else None,
    )


def _scale_summary(trace: Trace, scale: int) -> ScaleSummary:
    steps = trace.steps[trace.steps["query_scale"] == scale]
    if not steps.size:
        raise TraceFormatError(f"{trace.path}: damaged: scale {scale} is done, but has no steps; record it again")
    height, width = trace.header.scales.sizes[scale]
    return ScaleSummary(
        scale=scale,
        height=height,
        width=width,
        tokens=height * width,
        seconds=_layer_seconds(steps) or 0.0,
        accounted_bytes=int(steps["accounted_bytes"].max()),
        storage_bytes=int(steps["storage_bytes"].max()),
    )
