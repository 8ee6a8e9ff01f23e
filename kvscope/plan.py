"""From a Job to its schedule, and what that schedule comes to in tokens and bytes. No model is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatkv.budget import budget_bytes, budget_tokens, codec_budget, full_history_tokens, minimum_budget
from heatkv.bundled import bundled_calibration, bundled_orders
from heatkv.codecs import CODECS, MODEL
from heatkv.config import ModelConfig, model_config
from heatkv.measurements import Measurements
from heatkv.online import OnlinePlan, plan_in_codec
from heatkv.orders import HeadOrders
from heatkv.policies import make_policy, needs_of
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from kvscope.analysis import DENOMINATOR
from kvscope.calibration import Calibration, is_calibration
from kvscope.errors import UsageError
from kvscope.job import DTYPE_BYTES, Job


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job comes down to before anything heavy is loaded."""

    config: ModelConfig
    scales: ScaleSchedule
    schedule: PruningSchedule
    """The plan; of an online policy what can be there at most, and how many tokens that is."""
    online: OnlinePlan | None = None
    """How many tokens an online policy may keep; None: everything is planned."""

    def tokens_held(self) -> NDArray[np.int64]:
        """Head-tokens of all layers after each step, [num_steps]: exact, for planned and online policies alike."""
        return self.schedule.tokens_held()

    @property
    def peak_tokens(self) -> int:
        return int(self.tokens_held().max())

    def bytes_held(self, *, rows: int, dtype_bytes: int) -> NDArray[np.int64]:
        """Bytes of keys and values after each step, over all layers and heads: [num_steps]; as `tokens_held`."""
        return self.schedule.bytes_held(self.config.head_dim, rows=rows, dtype_bytes=dtype_bytes)

    def capacity_bytes(self, *, rows: int, dtype_bytes: int) -> int:
        """Keys and values that the run's pools have room for: its peak, in every codec its own."""
        return self.schedule.capacity_bytes(self.config.head_dim, rows=rows, dtype_bytes=dtype_bytes)


def plan_job(job: Job) -> Plan:
    """The job's model, scales and schedule. Raises HeatKVError for what no run could do."""
    config = model_config(job.model)
    scales = config.schedule_for(job.resolution, aspect=job.aspect)
    if job.schedule is not None:
        schedule = PruningSchedule.load(Path(job.schedule))
        schedule.validate(config, scales)
        if schedule.online:
            found = f"{job.schedule}: of policy {schedule.policy}, which chooses during the run"
            raise UsageError(f"{found}, so there is no schedule to obey; give --policy {schedule.policy}")
        return Plan(config, scales, _all_in_codec(schedule, config, job, job.schedule))
    policy = policy_of(job, config, scales)
    sinks = config.sink_scales if job.sink_scales is None and "orders" in policy.needs else job.sink_scales
    if not hasattr(policy, "scores"):
        planned = policy.plan(config, scales, budget=job.budget, sink_scales=sinks)
        return Plan(config, scales, _in_codec(planned, policy, config, job))
    online = plan_in_codec(
        policy,
        job.kv_codec,
        config,
        scales,
        budget=job.budget,
        sink_scales=sinks,
        dtype_bytes=DTYPE_BYTES[job.dtype],
    )
    return Plan(config, scales, online.bound(), online)


def _in_codec(planned: PruningSchedule, policy: Any, config: ModelConfig, job: Job) -> PruningSchedule:
    """The plan with what the same bytes buy in the job's codec. `policy`: Any, as load_policy."""
    if job.kv_codec == MODEL:
        return planned
    if job.budget is not None and planned.policy != "full":
        bought = codec_budget(
            job.budget,
            job.kv_codec,
            config,
            planned.scales,
            sink_scales=planned.sink_scales,
            dtype_bytes=DTYPE_BYTES[job.dtype],
        )
        again = policy.plan(config, planned.scales, budget=bought, sink_scales=planned.sink_scales)
        planned = replace(again, budget=job.budget)
    return _all_in_codec(planned, config, job, f"policy {job.policy}")


def _all_in_codec(schedule: PruningSchedule, config: ModelConfig, job: Job, source: str) -> PruningSchedule:
    """The schedule in the job's codec. Raises UsageError where it has codecs of its own and would exceed its budget."""
    if job.kv_codec == MODEL:
        return schedule
    coded = schedule.in_codec(job.kv_codec)
    if schedule.codec is not None and schedule.budget is not None:
        sizes = {"rows": 1, "dtype_bytes": DTYPE_BYTES[job.dtype]}
        allowed = budget_bytes(schedule.budget, config, schedule.scales, **sizes)
        if coded.peak_bytes(config.head_dim, **sizes) > allowed:
            stored = ", ".join(schedule.codecs)
            raise UsageError(
                f"{source} says itself what is stored how ({stored}), and in {job.kv_codec} it would exceed "
                "its budget; leave --kv-codec out"
            )
    return coded


def policy_of(job: Job, config: ModelConfig, scales: ScaleSchedule) -> Any:  # Any: as load_policy
    """The job's policy, with the parameters that it gives and the measurements that the policy needs."""
    needs = needs_of(job.policy)
    supplied: dict[str, Any] = {}  # Any: what a policy's fields hold
    if needs:
        measured = set(needs) - {"orders"}
        bundled = bundled_calibration(config) if measured else bundled_orders(config)
        path = bundled if job.orders is None else Path(job.orders)
        if path is None:
            what = "a calibration" if measured else "head orders"
            raise UsageError(f"policy {job.policy} needs {what}; give --orders FILE (kvscope calibrate makes one)")
        if "orders" in needs:
            supplied["orders"] = load_orders(path, config, sinks=job.sink_scales)
        if measured:
            supplied["measurements"] = load_measurements(path)
            supplied["measurements"].require(needs, config, scales)
    return make_policy(job.policy, supplied)


def load_measurements(path: Path) -> Measurements:
    """What a calibration measured. Raises UsageError for a file of head orders alone."""
    if not path.exists():
        raise UsageError(f"{path}: no such file; expected a calibration (kvscope calibrate makes one)")
    if not is_calibration(path):
        raise UsageError(f"{path}: no calibration; this policy needs one (kvscope calibrate makes it)")
    return Calibration.load(path).measurements()


def load_orders(path: Path, config: ModelConfig, *, sinks: int | None = None) -> HeadOrders:
    """Head orders from an official file, or from a calibration's scores; these for fewer sink scales too."""
    if not is_calibration(path):
        return HeadOrders.load(path, config=config)
    calibration = Calibration.load(path)
    own = calibration.settings.sink_scales
    scores = calibration.scores(sink_scales=own if sinks is None else min(own, sinks))
    orders = replace(scores.orders(), source=str(path))
    orders.check_model(config)
    return orders


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """A plan in numbers. Every byte count is estimated: tokens × bytes per token for this dtype and these rows."""

    model: str
    resolution: str
    aspect: float
    policy: str
    budget: float | None
    denominator: str
    minimum_budget: float
    sink_scales: int
    dtype: str
    rows: int
    codec_bytes: dict[str, int]
    """Codec in use → bytes of one token's key and value in one head."""
    history_tokens: int
    budget_tokens: int | None
    planned_peak_tokens: int
    full_history_bytes: int
    budget_bytes: int | None
    planned_peak_bytes: int
    peak_query_scale: int
    peak_layer: int
    head_scales: int | None
    """Those that may be dropped; None, as the next, where single tokens are chosen during the run."""
    head_scales_dropped: int | None
    online: bool
    """Whether the policy chooses during the run."""
    capacity_tokens: tuple[tuple[int, ...], ...] | None
    """Head-tokens that each layer holds after its step, by query scale; None: of a planned policy."""
    schedule_sha256: str
    provenance: dict[str, Any]  # Any: JSON values
    tag: str = "estimated"

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return asdict(self)


def summarize_plan(plan: Plan, *, dtype: str = "bfloat16", rows: int = 2) -> PlanSummary:
    """The plan in tokens, and in bytes for `rows` batch rows (2 with guidance) of `dtype`."""
    config, scales, schedule = plan.config, plan.scales, plan.schedule
    bytes_per_token = config.kv_bytes_per_token(dtype_bytes=DTYPE_BYTES[dtype], rows=rows)
    sizes = {"rows": rows, "dtype_bytes": DTYPE_BYTES[dtype]}
    held = plan.tokens_held()
    held_bytes = plan.bytes_held(**sizes)
    peak = int(held_bytes.argmax())
    codecs = schedule.codecs or (MODEL,)
    prunable = schedule.drop_step[:, :, schedule.sink_scales : scales.num_scales - 1]
    tokens = None if schedule.budget is None else budget_tokens(schedule.budget, config, scales)
    return PlanSummary(
        model=config.name,
        resolution=scales.resolution,
        aspect=scales.aspect,
        policy=schedule.policy,
        budget=schedule.budget,
        denominator=DENOMINATOR,
        minimum_budget=minimum_budget(scales, schedule.sink_scales),
        sink_scales=schedule.sink_scales,
        dtype=dtype,
        rows=rows,
        codec_bytes={name: CODECS[name].bytes_per_token(config.head_dim, **sizes) for name in codecs},
        history_tokens=full_history_tokens(config, scales),
        budget_tokens=tokens,
        planned_peak_tokens=int(held.max()),
        full_history_bytes=full_history_tokens(config, scales) * bytes_per_token,
        budget_bytes=None if tokens is None else tokens * bytes_per_token,
        planned_peak_bytes=int(held_bytes[peak]),
        peak_query_scale=peak // schedule.num_layers,
        peak_layer=peak % schedule.num_layers,
        head_scales=None if schedule.online else prunable.size,
        head_scales_dropped=None if schedule.online else int(np.count_nonzero(prunable < schedule.num_steps - 1)),
        online=schedule.online,
        capacity_tokens=None
        if schedule.layer_tokens is None
        else tuple(tuple(layers) for layers in schedule.layer_tokens.tolist()),
        schedule_sha256=schedule.content_hash,
        provenance=schedule.provenance,
    )
