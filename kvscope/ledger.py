"""The ledger: from the tokens that a budget counts to the memory that a process holds, with nothing left out.

`predict` makes it from a schedule alone, before a run; `measure` from a trace, beside what was predicted for it.
Pure numpy; text is made elsewhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.budget import budget_bytes
from heatkv.config import MODELS, ModelConfig, VAEConfig
from kvscope import forecast
from kvscope.analysis import revised_of
from kvscope.format import Reason
from kvscope.job import DTYPE_BYTES
from kvscope.ledger_lines import BUDGET, FULL, device_kind
from kvscope.ledger_sheet import Amount, Answer, Known, Line, Sheet, answer_of, sheet_of, unavailable
from kvscope.units import duration_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.schedule import PruningSchedule
    from kvscope.header import Header
    from kvscope.trace import Trace

_ON_CPU = "the run was on the CPU; its memory is the process's"
_GPU_COLUMNS = {
    "process": "process_bytes",
    "used": "used_bytes",
    "driver_reserved": "reserved_bytes",
    "total": "total_bytes",
}
"""Line → column of `gpu`."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The whole run, and each scale of it."""

    trace: str | None
    status: str
    """Of the trace, or `planned`."""
    model: str
    resolution: str
    policy: str
    budget: float | None
    device: str
    dtype: str
    rows: int
    defined: tuple[Line, ...]
    """The full history, and what the budget allows of it."""
    run: Sheet
    scales: tuple[Sheet, ...]
    revised: tuple[tuple[int, str], ...] = ()
    """(scale, policy) from which scale on another plan was obeyed, and whose."""

    @property
    def answer(self) -> Answer | None:
        """Where memory went that a smaller cache did not save; None: no total is known."""
        full_bytes = self.defined[0].predicted.num_bytes or 0
        return answer_of(self.run, full_bytes, "measured") or answer_of(self.run, full_bytes, "predicted")

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        facts = ("trace", "status", "model", "resolution", "policy", "budget", "device", "dtype", "rows", "revised")
        return {
            **{name: getattr(self, name) for name in facts},
            "answer": None if self.answer is None else asdict(self.answer),
            "defined": [line.to_json() for line in self.defined],
            "run": self.run.to_json(),
            "scales": [sheet.to_json() for sheet in self.scales],
        }


def predict(
    schedule: PruningSchedule,
    config: ModelConfig,
    rows: int,
    dtype_bytes: int,
    *,
    device: str = "cpu",
    attention: str | None = None,
) -> Ledger:
    """The ledger of a run that has not happened. `attention`: one of heatkv.attention.PATHS; None: the device's own."""
    job = _Job(config, rows, dtype_bytes, device, attention or _usual_way(device))
    predicted = _predictions(schedule, job, schedule.scales.num_scales)
    return Ledger(
        trace=None,
        status="planned",
        model=config.name,
        resolution=schedule.scales.resolution,
        policy=schedule.policy,
        budget=schedule.budget,
        device=device,
        dtype=next(name for name, num_bytes in DTYPE_BYTES.items() if num_bytes == dtype_bytes),
        rows=rows,
        defined=_defined(schedule, job),
        run=sheet_of(None, device, predicted[None], None),
        scales=tuple(sheet_of(scale, device, predicted[scale], None) for scale in range(schedule.scales.num_scales)),
    )


def measure(trace: Trace) -> Ledger:
    """The ledger of a trace's finished scales, beside what its schedule predicts."""
    header, schedule, done = trace.header, trace.schedule, trace.scales_done
    config = MODELS.get(header.model)
    is_known = config is not None and _shape(config) == _shape(header)
    way = header.attention.partition(" ")[0].strip(":") if header.attention else _usual_way(header.device)
    job = _Job(
        config if config is not None and is_known else _stand_in(header),
        header.rows,
        header.dtype_bytes,
        header.device,
        way,
        is_known=is_known,
    )
    predicted = _predictions(schedule, job, done)
    return Ledger(
        trace=str(trace.path),
        status=trace.status,
        model=header.model,
        resolution=header.scales.resolution,
        policy=schedule.policy,
        budget=schedule.budget,
        device=header.device,
        dtype=header.dtype,
        rows=header.rows,
        defined=_defined(schedule, job),
        run=sheet_of(None, header.device, predicted[None], _measured_run(trace) if done else None),
        scales=tuple(
            sheet_of(
                scale, header.device, predicted[scale], _measured(trace, scale, scale + 1) if scale < done else None
            )
            for scale in range(header.scales.num_scales)
        ),
        revised=revised_of(trace),
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """What a prediction needs beside the schedule."""

    config: ModelConfig
    rows: int
    dtype_bytes: int
    device: str
    attention: str
    is_known: bool = True
    """False: of the model's shape only its heads are known."""

    @property
    def token_bytes(self) -> int:
        return self.config.kv_bytes_per_token(dtype_bytes=self.dtype_bytes, rows=self.rows)


def _usual_way(device: str) -> str:
    return {"cpu": "grouped", "cuda": "triton"}[device_kind(device)]


def _shape(model: ModelConfig | Header) -> tuple[int, int, int]:
    return model.num_layers, model.num_heads, model.head_dim


def _stand_in(header: Header) -> ModelConfig:
    """A model with the recorded heads; nothing else of it may be asked."""
    width = header.num_heads * header.head_dim
    return ModelConfig(header.model, header.num_layers, width, header.num_heads, 1, VAEConfig(header.bits_per_token, 1))


def _defined(schedule: PruningSchedule, job: _Job) -> tuple[Line, ...]:
    allowed = unavailable("no budget")
    if schedule.budget is not None:
        num_bytes = budget_bytes(
            schedule.budget, job.config, schedule.scales, dtype_bytes=job.dtype_bytes, rows=job.rows
        )
        allowed = Amount(num_bytes, "defined")
    full = Amount(schedule.history_tokens * job.token_bytes, "defined")
    return Line(FULL, full, full), Line(BUDGET, allowed, allowed)


@lru_cache(maxsize=4)
def _predictions(schedule: PruningSchedule, job: _Job, done: int) -> dict[int | None, Known]:
    """Per scale, and under None for the run's first `done` scales, as of a run that stopped then."""
    num_scales = schedule.scales.num_scales
    head_dim, sizes = job.config.head_dim, {"rows": job.rows, "dtype_bytes": job.dtype_bytes}
    kept = schedule.bytes_held(head_dim, **sizes).reshape(num_scales, -1).max(axis=1)
    stored = forecast.stored_bytes(schedule, head_dim, **sizes).reshape(num_scales, -1).max(axis=1)
    said = schedule.tokens_held().reshape(num_scales, -1).max(axis=1) * forecast.said_bytes(schedule, job.rows)
    capacity = schedule.capacity_bytes(head_dim, **sizes)
    layers = [_layer_bytes(schedule, job, scale) for scale in range(num_scales)]
    so_far = slice(done or num_scales)
    whole = _Cache(int(kept[so_far].max()), capacity, int(stored[so_far].max()), int(said[so_far].max()))
    found: dict[int | None, Known] = {None: _predicted(job, whole, max(layers[so_far]))}
    for scale in range(num_scales):
        cache = _Cache(int(kept[scale]), capacity, int(stored[scale]), int(said[scale]))
        found[scale] = _predicted(job, cache, layers[scale])
    return found


def _layer_bytes(schedule: PruningSchedule, job: _Job, scale: int) -> int:
    sizes = {"rows": job.rows, "dtype_bytes": job.dtype_bytes}
    return forecast.transients(schedule, job.config, scale, **sizes, attention=job.attention).total_bytes


@dataclass(frozen=True, slots=True)
class _Cache:
    """The most that a cache takes, in bytes."""

    kept: int
    capacity: int
    stored: int
    said: int
    """Of the index, what lies with the keys and values, on their device."""


def _predicted(job: _Job, cache: _Cache, layer_bytes: int) -> Known:
    """The cache, exact; and estimates of what is known of the rest."""
    found = {
        "kept": Amount(cache.kept, "predicted"),
        "capacity": Amount(cache.capacity, "predicted"),
        "stored": Amount(cache.stored, "predicted"),
    }
    if not job.is_known:
        return found | dict.fromkeys(("weights", "rss_added", "allocated"), unavailable("a model unknown here"))
    weight_bytes = forecast.weight_bytes(job.config, job.dtype_bytes)
    weight_bytes += forecast.vae_weight_bytes(job.config.vae, job.dtype_bytes)
    found["weights"] = Amount(weight_bytes, "predicted")
    if device_kind(job.device) == "cuda":
        found["index_on_host"] = Amount(cache.capacity + cache.said - cache.stored, "predicted")
        found["allocated"] = Amount(cache.capacity + cache.said + weight_bytes + layer_bytes, "predicted")
    else:
        found["rss_added"] = Amount(cache.stored + layer_bytes, "predicted")
    return found


def _measured_run(trace: Trace) -> Known:
    """The most during all finished scales, and what the GPU's driver saw afterwards."""
    found = _measured(trace, 0, trace.scales_done)
    if trace.scales_done < trace.header.scales.num_scales or not trace.allocator.size:
        return found | {"decoding": unavailable("the run did not get so far")}
    after = trace.gpu[trace.gpu["t_ns"] > trace.allocator["t_ns"][-1]]
    if trace.gpu.size and not after.size:
        return found | {"decoding": unavailable("no sample was taken then")}
    return found | {"decoding": _gpu_amount(trace, (after, f"the most of {after.size} samples"), "process_bytes")}


def _measured(trace: Trace, begin: int, end: int) -> Known:
    """The most during scales `begin` to `end` - 1, which are finished."""
    steps = trace.steps
    steps = steps[(steps["query_scale"] >= begin) & (steps["query_scale"] < end)]
    start, memory = trace.allocator[:1], trace.allocator[begin + 1 : end + 1]
    if not steps.size or not memory.size:
        return {}
    found = _measured_cache(trace.header, steps) | {"decoding": unavailable("of the whole run only")}
    samples = _samples(trace.gpu, int(steps["begin_ns"].min()), int(memory["t_ns"][-1]))
    for line, column in _GPU_COLUMNS.items():
        found[line] = _gpu_amount(trace, samples, column)
    found["rss"] = _most(memory, "process_rss_bytes", begin)
    if device_kind(trace.header.device) == "cuda":
        said = _said_bytes(trace, found["kept"].num_bytes or 0)
        return found | _measured_cuda(found, start, trace.allocator[begin], memory, begin, said_bytes=said)
    before = float(start["process_rss_bytes"][0])
    found["weights"] = unavailable("the system does not tell what memory is used for")
    found["rss_added"] = found["rss"]
    if found["rss"].num_bytes is not None and np.isfinite(before):
        found["rss_added"] = Amount(found["rss"].num_bytes - int(before), "measured", found["rss"].note)
    return found | dict.fromkeys(("allocated", "reserved", *_GPU_COLUMNS), unavailable(_ON_CPU))


def _measured_cache(header: Header, steps: NDArray[np.void]) -> Known:
    capacity = unavailable("the trace does not say")
    if header.capacity_bytes is not None:
        capacity = Amount(header.capacity_bytes, "measured", "the same all the time")
    return {
        "kept": _most_step(steps, "accounted_bytes"),
        "capacity": capacity,
        "stored": _most_step(steps, "storage_bytes"),
    }


def _said_bytes(trace: Trace, kept_bytes: int) -> int:
    """As _Cache.said; an online policy's tokens are all in one codec."""
    token_bytes = int(trace.header.bytes_of(trace.schedule)[0, 0, 0])
    return kept_bytes // token_bytes * forecast.said_bytes(trace.schedule, trace.header.rows)


def _measured_cuda(
    found: Known, start: NDArray[np.void], before: np.void, memory: NDArray[np.void], begin: int, *, said_bytes: int
) -> Known:
    """`start`: before the first scale; `before`: before the first of these scales; `said_bytes`: as _Cache.said."""
    capacity, stored = found["capacity"].num_bytes, found["stored"].num_bytes
    at_start, peak = float(start["allocated_bytes"][0]), float(memory["peak_bytes"][-1])
    found["reserved"] = _most(memory, "reserved_bytes", begin)
    found["allocated"] = _most(memory, "allocated_bytes", begin)
    if before["peak_bytes"] < peak < np.inf:
        found["allocated"] = Amount(int(peak), "measured", "the true peak")
    elif found["allocated"].num_bytes is not None:
        found["allocated"] = found["allocated"].noted("the process's peak was earlier")
    if capacity is None or stored is None or not np.isfinite(at_start):
        return found | {"weights": unavailable("torch's allocator, or the pool's capacity, was not recorded")}
    found["weights"] = Amount(int(at_start) - capacity, "measured", "before the first scale")
    found["index_on_host"] = Amount(capacity + said_bytes - stored, "measured")
    return found


def _most_step(steps: NDArray[np.void], column: str) -> Amount:
    """The first step that has the most."""
    row = steps[int(np.argmax(steps[column]))]
    return Amount(int(row[column]), "measured", f"at scale {int(row['query_scale'])}, layer {int(row['layer'])}")


def _most(memory: NDArray[np.void], column: str, begin: int) -> Amount:
    """Of rows that were read at the ends of scale `begin` and those after it."""
    values = _finite(memory[column])
    if np.isnan(values).all():
        return unavailable("the system, or torch, did not tell")
    scale = int(np.nanargmax(values))
    return Amount(int(values[scale]), "measured", f"at the end of scale {begin + scale}")


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN for whatever is no number of bytes."""
    return np.where(np.isfinite(values), values, np.nan)


def _samples(gpu: NDArray[np.void], begin_ns: int, end_ns: int) -> tuple[NDArray[np.void], str]:
    """GPU samples of a time, or else the one nearest to its end; and which they are, in words."""
    within = gpu[(gpu["t_ns"] >= begin_ns) & (gpu["t_ns"] <= end_ns)]
    if within.size or not gpu.size:
        return within, f"the most of {within.size} samples"
    away_ns = np.abs(gpu["t_ns"] - end_ns)
    nearest = int(np.argmin(away_ns))
    return gpu[nearest : nearest + 1], f"a sample {duration_text(float(away_ns[nearest]))} from its end"


def _gpu_amount(trace: Trace, samples: tuple[NDArray[np.void], str], column: str) -> Amount:
    rows, which = samples
    if not rows.size:
        return unavailable(trace.gpu_unavailable or "no sample was taken")
    values = _finite(rows[column])
    if np.isnan(values).all():
        code = int(rows[f"{column}_reason"][-1])
        return unavailable(Reason(code).text if code in set(Reason) else f"reason {code}, of a newer kvscope")
    amount = Amount(int(np.nanmax(values)), "measured", which)
    is_version_1 = column == "used_bytes" and int(rows["memory_version"][-1]) == 1
    return amount.noted("an old driver: with what it reserves") if is_version_1 else amount
