"""PlanFile: a reviewed change of a run's schedule, with all that it was made from, so that a stale one is refused.

It holds the edits and the schedule they lead to, totals before and after, and hashes of the parent trace, its schedule,
the head orders and the model's shape. Applying runs exactly this schedule.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from heatkv.errors import HeatKVError
from heatkv.files import read_json, write_new
from heatkv.schedule import PruningSchedule
from kvscope.errors import KVScopeError, UsageError
from kvscope.fidelity import COARSE, Fidelity
from kvscope.job import Job

if TYPE_CHECKING:
    from kvscope.draft import Draft
    from kvscope.estimate import Estimate
    from kvscope.trace import Trace

FORMAT, VERSION = "kvscope.plan", 1
_EXPECTED = "a plan file made by `kvscope plan --save-plan`"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Totals:
    """A schedule in numbers; all but tokens and bytes estimated, None: unknown."""

    schedule_sha256: str
    policy: str
    budget: float | None
    sink_scales: int
    peak_tokens: int
    peak_bytes: int
    peak_query_scale: int
    peak_layer: int
    lost: float | None
    """Share of attention mass."""
    kl: tuple[float, float, float] | None
    """Forced KL in nats per bit: low, middle and high of what is predicted."""
    flips: tuple[float, float, float] | None
    coarse_share: float = 0.0
    """Of what is lost, what coarser codecs lose; more than COARSE of it, and no error is predicted."""

    @property
    def is_coarse(self) -> bool:
        """Whether too much of the loss is codecs' noise for an error to be predicted."""
        return self.coarse_share > COARSE


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A change, reviewable."""

    created_ns: int
    parent: str
    """The trace that is changed."""
    parent_run_id: str
    parent_sha256: str
    """Of the trace file."""
    orders: str | None
    """The file of head orders that a policy used; None: none, or the model's own."""
    orders_sha256: str | None
    model: str
    shape: tuple[int, int, int]
    """Layers, heads, scales."""
    bytes_per_token: int
    edits: tuple[str, ...]
    before: Totals
    after: Totals
    changed_head_scales: int
    unknown_cells: int
    """Head-scales at query scales that the parent never attended to: nothing is known of what they give."""
    job: Job
    """What will run."""
    schedule: PruningSchedule

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        facts = {name: getattr(self, name) for name in _FACTS}
        record = {
            "format": FORMAT,
            "version": VERSION,
            **facts,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "job": self.job.to_json(),
            "schedule": self.schedule.to_json(),
        }
        return record | {"content_sha256": _content_sha256(record)}

    def save(self, path: Path, *, overwrite: bool = False) -> Path:
        """Write the JSON file. Raises OutputError if it exists, unless `overwrite`."""
        return write_new(path, json.dumps(self.to_json()).encode() + b"\n", overwrite=overwrite)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file made by `save`. Raises UsageError saying what is wrong with it."""
        record = read_json(path, expected=_EXPECTED, error=UsageError)
        if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
            raise UsageError(f"{path}: not a plan of version {VERSION}; expected {_EXPECTED}")
        try:
            plan = cls(
                **{name: _typed(name, record[name]) for name in _FACTS},
                before=_totals(record["before"]),
                after=_totals(record["after"]),
                job=Job.from_json(record["job"]),
                schedule=PruningSchedule.from_json(record["schedule"]),
            )
        except (KeyError, TypeError, ValueError, HeatKVError, KVScopeError) as error:
            raise UsageError(f"{path}: damaged ({error}); expected {_EXPECTED}") from None
        if plan.schedule.content_hash != plan.after.schedule_sha256:
            raise UsageError(f"{path}: its schedule is not the one that was reviewed; make the plan again")
        if record.get("content_sha256") not in (None, _content_sha256(record)):
            raise UsageError(f"{path}: not what was reviewed: something in it was changed since; make the plan again")
        return plan

    def schedule_path(self, path: Path) -> Path:
        """Where `schedule_beside` puts it; the name tells the schedules of one plan file apart."""
        return path.with_suffix(f".schedule-{self.schedule.content_hash[:12]}.json")

    def schedule_beside(self, path: Path) -> Path:
        """The schedule as a file of its own beside the plan's, written unless it is there already.

        Raises OutputError if another file has its name.
        """
        schedule = self.schedule_path(path)
        if not (schedule.exists() and PruningSchedule.load(schedule) == self.schedule):
            self.schedule.save(schedule)
        return schedule

    def stale(self) -> list[str]:
        """What has changed since the plan was made, a line each; empty: nothing."""
        changes = []
        parent = Path(self.parent)
        if not parent.exists():
            place = "" if parent.is_absolute() else f", seen from {Path.cwd()}"
            changes.append(f"the parent trace {self.parent} is gone{place}")
        elif file_sha256(parent) != self.parent_sha256:
            changes.append(f"the parent trace {self.parent} has another content than when the plan was made")
        if self.orders is not None and self.orders_sha256 is not None:
            orders = Path(self.orders)
            if not orders.exists():
                changes.append(f"the head orders {self.orders} are gone")
            elif file_sha256(orders) != self.orders_sha256:
                changes.append(f"the head orders {self.orders} have another content than when the plan was made")
        changes += self._changed_model()
        return changes

    def check(self) -> None:
        """Raises UsageError naming everything that has changed since the plan was made."""
        changes = self.stale()
        if changes:
            raise UsageError(f"the plan is stale: {'; '.join(changes)}; review the change anew and save another plan")

    def check_revision(self, trace: Trace) -> None:
        """Raises UsageError unless the run still obeys the schedule that was reviewed; its trace may have grown."""
        changes = self._changed_model()
        if trace.header.run_id != self.parent_run_id:
            changes.append(f"{self.parent} is of another run")
        elif trace.schedule.content_hash != self.before.schedule_sha256:
            changes.append("the run obeys another schedule by now")
        if changes:
            raise UsageError(f"the plan is stale: {'; '.join(changes)}; review the change anew and save another plan")

    def _changed_model(self) -> list[str]:
        # Deferred to where it is asked: a plan can be read without knowing its model.
        from heatkv.config import MODELS

        config = MODELS.get(self.model)
        if config is None:
            return [f"there is no model {self.model} any more"]
        shape = config.num_layers, config.num_heads, self.schedule.scales.num_scales
        return [] if shape == self.shape else [f"{self.model} has shape {shape}, it had {self.shape}"]


_FACTS = (
    "created_ns", "parent", "parent_run_id", "parent_sha256", "orders", "orders_sha256", "model", "shape",
    "bytes_per_token", "edits", "changed_head_scales", "unknown_cells",
)  # fmt: skip
"""Fields that are JSON as they are."""
_TEXTS = (
    "parent", "parent_run_id", "parent_sha256", "orders", "orders_sha256", "model", "edits",
    "schedule_sha256", "policy",
)  # fmt: skip
"""Fields, of the plan or its totals, that hold text; all others hold numbers."""


def plan_file(
    trace: Trace,
    draft: Draft,
    edits: Sequence[str],
    *,
    after: Estimate,
    before: Estimate,
    job: Job,
    orders: Path | None = None,
    fidelity: Fidelity | None = None,
) -> PlanFile:
    """The plan that turns a recorded run into what the draft says; errors are predicted only from one that kept
    everything. Raises UsageError if the draft has a problem."""
    if draft.problem is not None:
        raise UsageError(f"the last edit cannot be met: {draft.problem.text}")
    if not draft.start.keeps_everything:
        fidelity = None  # it was learnt on runs that kept everything, and predicts how far from such a run one is
    return PlanFile(
        created_ns=time.time_ns(),
        parent=str(trace.path),
        parent_run_id=trace.header.run_id,
        parent_sha256=file_sha256(trace.path),
        orders=None if orders is None else str(orders),
        orders_sha256=None if orders is None else file_sha256(orders),
        model=trace.header.model,
        shape=draft.ground.shape,
        bytes_per_token=draft.ground.bytes_per_token,
        edits=tuple(edits),
        before=totals(draft.start, before, fidelity),
        after=totals(draft.schedule, after, fidelity),
        changed_head_scales=_num_changed(draft.schedule, draft.start),
        unknown_cells=after.unknown_cells,
        job=job,
        schedule=draft.schedule,
    )


def _num_changed(now: PruningSchedule, before: PruningSchedule) -> int:
    """Head-scales that leave at another step, or are stored in another codec; the last scale is never stored."""
    changed = (now.drop_step != before.drop_step) | (now.stored_in() != before.stored_in())
    return int(np.count_nonzero(changed[..., :-1]))


def totals(schedule: PruningSchedule, estimated: Estimate, fidelity: Fidelity | None) -> Totals:
    """A schedule's numbers, the predicted ones where there is something to predict from: nothing unknown is read."""
    lost = None if math.isnan(estimated.lost) else estimated.lost
    if estimated.unknown_cells:
        fidelity = None
    return Totals(
        schedule_sha256=schedule.content_hash,
        policy=schedule.policy,
        budget=schedule.budget,
        sink_scales=schedule.sink_scales,
        peak_tokens=schedule.peak_tokens,
        peak_bytes=estimated.peak_bytes,
        peak_query_scale=estimated.peak_step // schedule.num_layers,
        peak_layer=estimated.peak_step % schedule.num_layers,
        lost=lost,
        kl=_predicted(fidelity, schedule, "kl", lost, estimated.coarse_share),
        flips=_predicted(fidelity, schedule, "flips", lost, estimated.coarse_share),
        coarse_share=estimated.coarse_share,
    )


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file. Raises UsageError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    return digest.hexdigest()


def _predicted(
    fidelity: Fidelity | None, schedule: PruningSchedule, measure: str, lost: float | None, coarse_share: float
) -> tuple[float, float, float] | None:
    if fidelity is None or lost is None or not fidelity.fits(schedule.model, schedule.scales.sizes):
        return None
    band = fidelity.predict(measure, lost, coarse_share=coarse_share)
    return None if band is None else (band.low, band.middle, band.high)


def _totals(record: Mapping[str, Any]) -> Totals:  # Any: JSON values
    return Totals(**{name: _typed(name, value) for name, value in record.items()})


def _content_sha256(record: Mapping[str, Any]) -> str:  # Any: JSON values
    """Of all that a plan file says but this."""
    said = {name: value for name, value in record.items() if name != "content_sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _typed(name: str, value: Any) -> Any:  # Any: JSON values
    """A text, a number, None or a tuple of them. Raises TypeError for another kind than the field of this name has."""
    kind = str if name in _TEXTS else int | float
    values = tuple(value) if isinstance(value, list) else (value,)
    for one in values:
        is_odd = (
            isinstance(one, bool) or not isinstance(one, kind) or (isinstance(one, float) and not math.isfinite(one))
        )
        if one is not None and is_odd:
            raise TypeError(f"{name} is {value!r:.60}")
    return values if isinstance(value, list) else value
