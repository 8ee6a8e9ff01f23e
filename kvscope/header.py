"""The header of a trace: attributes of the file, made when a run starts and read when the trace is opened.

Knows no HDF5 library: the writer takes what `header_of` gives, the reader hands over the file's attributes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from heatkv.scales import ScaleSchedule
from kvscope.format import FORMAT, HEADER, VERSION
from kvscope.job import Job
from kvscope.schema import schema_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from heatkv.probe import PoolStart, RunStart
    from heatkv.schedule import PruningSchedule

_CHANGES = {
    "mass": "attention mass: time and scratch memory",
    "mass_uncond": "attention mass of unconditional rows: time and scratch memory",
    "maps": "attention maps: time and memory",
}
"""Tier → what recording it changes of a run."""

_MOST_COUNT, _MOST_INTEGER = 1 << 24, 1 << 62
"""No trace has more: what says so is damaged."""

Attributes = Mapping[str, Any]  # Any: what an HDF5 attribute may be


@dataclass(frozen=True, slots=True)
class Header:
    """Fixed facts of a trace."""

    format_version: tuple[int, int]
    run_id: str
    parent_run_id: str | None
    created_ns: int
    """Wall clock at the start, ns since 1970."""
    created_monotonic_ns: int
    """The clock of all other times, at that moment."""
    pid: int
    liveness: str
    control_socket: str | None
    job: Job
    model: str
    scales: ScaleSchedule
    num_layers: int
    num_heads: int
    head_dim: int
    rows: int
    """Batch rows that hold K and V."""
    dtype: str
    dtype_bytes: int
    bits_per_token: int
    device: str
    versions: dict[str, str]
    attention: str | None
    """How self attention was computed; None: the trace does not say."""
    capacity_tokens: int | None
    """Head-tokens that the cache has room for; None: the trace does not say."""
    pools: tuple[PoolStart, ...]
    """Room and bytes per token of each codec; empty: all tokens are in the model's dtype."""
    tiers: tuple[str, ...]
    """What is recorded of attention: `occupancy`, and perhaps `mass`, `mass_uncond`, `maps`."""
    perturbed: bool
    """Recording changed the run's memory or speed."""
    perturbed_by: str | None
    """What of the recording did, and what it changed; None: nothing, or the trace does not say."""
    gpu_name: str | None
    gpu_unavailable: str | None

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token's K and V take in one head of one layer, for all rows, in the model's dtype."""
        return 2 * self.head_dim * self.dtype_bytes * self.rows

    @property
    def capacity_bytes(self) -> int | None:
        """Of what the cache has room for; None: the trace does not say."""
        if self.pools:
            return sum(pool.capacity_tokens * pool.bytes_per_token for pool in self.pools)
        return None if self.capacity_tokens is None else self.capacity_tokens * self.bytes_per_token

    def bytes_of(self, schedule: PruningSchedule) -> NDArray[np.int64]:
        """What a token of each head-scale takes, as `bytes_per_token`, in its codec: [layer, head, source_scale]."""
        return schedule.bytes_per_token(self.head_dim, rows=self.rows, dtype_bytes=self.dtype_bytes)

    def bytes_held(self, schedule: PruningSchedule) -> NDArray[np.int64]:
        """Bytes of the tokens in the cache after each step if a schedule is obeyed: [num_steps]."""
        return schedule.bytes_held(self.head_dim, rows=self.rows, dtype_bytes=self.dtype_bytes)

    def wall_ns(self, t_ns: int) -> int:
        """The wall clock, ns since 1970, at a time of this trace."""
        return self.created_ns + t_ns - self.created_monotonic_ns


def header_of(
    job: Job, start: RunStart, known: Mapping[str, str | None], *, has_previews: bool
) -> dict[str, str | int]:
    """The header of a run that starts now, but for `liveness`, which the writer adds.

    `known`: what the caller knows of it (`run_id`, `versions`, and optional keys, where None means absent).
    """
    schedule = start.schedule.to_json()
    del schedule["drop_step"]
    changes = _changes(job, has_previews=has_previews)
    texts = {**known, "perturbed_by": "; ".join(changes) or None}
    return {
        "format": FORMAT,
        "format_version": ".".join(map(str, VERSION)),
        "Conventions": "CF-1.11",
        "schema": schema_text(),
        "created_ns": time.time_ns(),
        "created_monotonic_ns": time.monotonic_ns(),
        "pid": os.getpid(),
        "job": json.dumps(job.to_json()),
        "model": start.model,
        "scales": json.dumps(start.scales.to_json()),
        "schedule": json.dumps(schedule),
        "num_layers": start.num_layers,
        "num_heads": start.num_heads,
        "head_dim": start.head_dim,
        "rows": start.rows,
        "dtype": start.dtype,
        "dtype_bytes": start.dtype_bytes,
        "bits_per_token": start.bits_per_token,
        "device": start.device,
        "attention": start.attention,
        "capacity_tokens": start.capacity_tokens,
        **({"pools": json.dumps([asdict(pool) for pool in start.pools])} if start.pools else {}),
        "tiers": ", ".join(job.tiers),
        "perturbed": int(bool(changes)),
        **{key: text for key, text in texts.items() if text is not None},
    }


def read_header(attributes: Attributes) -> Header:
    """The header of a trace's attributes. Raises KeyError, ValueError or UsageError if it is none."""
    missing = [key.name for key in HEADER if not key.optional and key.name not in attributes]
    if missing:
        raise ValueError(f"header key {missing[0]} is missing")
    scales = ScaleSchedule.from_json(json.loads(text_of(attributes, "scales")))
    cells = _count(attributes, "num_layers") * _count(attributes, "num_heads") * scales.num_scales**2
    if cells > _MOST_COUNT or scales.total_tokens > _MOST_COUNT:
        raise ValueError(f"a trace of {scales.total_tokens} tokens, and of {cells} cells in its kept_tokens")
    major, minor = text_of(attributes, "format_version").split(".")
    job = Job.from_json(json.loads(text_of(attributes, "job")))
    tiers = optional_text(attributes, "tiers")
    capacity = attributes.get("capacity_tokens")
    return Header(
        format_version=(int(major), int(minor)),
        run_id=text_of(attributes, "run_id"),
        parent_run_id=optional_text(attributes, "parent_run_id"),
        created_ns=_integer(attributes, "created_ns"),
        created_monotonic_ns=_integer(attributes, "created_monotonic_ns"),
        pid=int(attributes["pid"]),
        liveness=text_of(attributes, "liveness"),
        control_socket=optional_text(attributes, "control_socket"),
        job=job,
        model=text_of(attributes, "model"),
        scales=scales,
        num_layers=_count(attributes, "num_layers"),
        num_heads=_count(attributes, "num_heads"),
        head_dim=_count(attributes, "head_dim"),
        rows=_count(attributes, "rows"),
        dtype=text_of(attributes, "dtype"),
        dtype_bytes=_count(attributes, "dtype_bytes"),
        bits_per_token=_count(attributes, "bits_per_token"),
        device=text_of(attributes, "device"),
        versions=_versions(attributes),
        attention=optional_text(attributes, "attention"),
        capacity_tokens=None if capacity is None else _integer(attributes, "capacity_tokens"),
        pools=_pools(attributes),
        tiers=job.tiers if tiers is None else tuple(tiers.split(", ")),
        perturbed=bool(attributes["perturbed"]),
        perturbed_by=optional_text(attributes, "perturbed_by"),
        gpu_name=optional_text(attributes, "gpu_name"),
        gpu_unavailable=optional_text(attributes, "gpu_unavailable"),
    )


def text_of(attributes: Attributes, key: str) -> str:
    """A text of the header. Raises KeyError if it is absent."""
    value = attributes[key]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def optional_text(attributes: Attributes, key: str) -> str | None:
    """A text of the header; None: it is absent."""
    return text_of(attributes, key) if key in attributes else None


def _integer(attributes: Attributes, key: str) -> int:
    value = int(attributes[key])
    if abs(value) > _MOST_INTEGER:
        raise ValueError(f"header key {key} is {value}")
    return value


def _count(attributes: Attributes, key: str) -> int:
    """A number of something that there is at least one of, and not more than could be."""
    value = int(attributes[key])
    if not 1 <= value <= _MOST_COUNT:
        raise ValueError(f"header key {key} is {value}")
    return value


def _pools(attributes: Attributes) -> tuple[PoolStart, ...]:
    record = json.loads(optional_text(attributes, "pools") or "[]")
    if record == []:
        return ()
    # Deferred: only runs that store in codecs have pools.
    from heatkv.probe import PoolStart

    try:
        pools = tuple(PoolStart(str(one["codec"]), one["bytes_per_token"], one["capacity_tokens"]) for one in record)
    except (TypeError, KeyError):
        raise ValueError("header key pools is no list of codecs, bytes and tokens") from None
    for pool in pools:
        for value in (pool.bytes_per_token, pool.capacity_tokens):
            if type(value) is not int or not 0 <= value <= _MOST_INTEGER:
                raise ValueError(f"header key pools holds {value!r:.40}")
    return pools


def _versions(attributes: Attributes) -> dict[str, str]:
    record = json.loads(text_of(attributes, "versions"))
    if not isinstance(record, dict):
        raise ValueError("header key versions is no JSON object")
    return {str(package): str(version) for package, version in record.items()}


def _changes(job: Job, *, has_previews: bool) -> list[str]:
    """What recording changes of the run, in words; nothing if it only listens."""
    changes = [words for tier, words in _CHANGES.items() if tier in job.tiers]
    if has_previews:
        changes.append("previews: time and memory")
    if job.capture.any and not job.bit_exact:
        changes.append("fast capture: rounding of the image")
    return changes
