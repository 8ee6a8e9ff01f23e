"""Redaction: what of a trace may be told to others, and in what words it is said what was taken out.

Works by what may stay, not by what must go: a text that is not known to be harmless (a name, a version, a hash, words
of our own) is replaced, so whatever a later version records is kept back until somebody lists it here. Pictures and
sampled bits are no text; whether an export holds them is asked separately.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from kvscope.format import RECORDING_STOPPED, Reason, decode_text
from kvscope.trace import CRASHED_MESSAGE

if TYPE_CHECKING:
    from kvscope.analysis import Summary
    from kvscope.header import Header
    from kvscope.trace import Trace

REDACTED = "[redacted]"
"""What stands where a text was."""

_KEPT_HEADER = frozenset(
    (
        "format_version", "run_id", "parent_run_id", "created_ns", "created_monotonic_ns", "liveness", "model",
        "scales", "num_layers", "num_heads", "head_dim", "rows", "dtype", "dtype_bytes", "bits_per_token", "device",
        "versions", "attention", "capacity_tokens", "pools", "tiers", "perturbed", "perturbed_by", "gpu_name",
    )
)  # fmt: skip
"""Header keys that tell nothing of who ran it, where, and what was asked for."""

_KEPT_JOB = frozenset(
    (
        "model", "policy", "seed", "random_weights", "resolution", "aspect", "budget", "sink_scales", "kv_codec", "cfg",
        "tau", "top_k", "top_p", "dtype", "device", "attention_mass", "attention_mass_uncond", "attention_map",
        "bit_exact", "mode",
    )
)  # fmt: skip
"""The same of a job."""

_KEPT_MESSAGES = ("", "stopped by the user", CRASHED_MESSAGE)
_NO_SAMPLER = "this run had no GPU sampler"

Json = Any  # Any: a JSON value


@dataclass(frozen=True, slots=True)
class LogLine:
    """One row of `log`."""

    t_ns: int
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a trace says in words or names, as an export may repeat it."""

    header: dict[str, Json]
    """JSON values by header key; absent ones are None."""
    schedule: dict[str, Json]
    """The plan in force, without its drop_step."""
    summary: Summary
    log: tuple[LogLine, ...]
    removed: tuple[str, ...]
    """What was taken out, in words; empty: nothing."""


def facts_of(trace: Trace, summary: Summary, *, redact: bool) -> Facts:
    """What the trace says, as it is or redacted."""
    schedule = trace.schedule.to_json()
    del schedule["drop_step"]
    log = tuple(LogLine(int(row["t_ns"]), int(row["level"]), decode_text(row["text"])) for row in trace.log)
    facts = Facts(_header_json(trace.header), schedule, summary, log, ())
    return _redacted(facts) if redact else facts


def _header_json(header: Header) -> dict[str, Json]:
    record = {field.name: getattr(header, field.name) for field in fields(header)}
    return record | {
        "format_version": ".".join(map(str, header.format_version)),
        "job": header.job.to_json(),
        "scales": header.scales.to_json(),
        "tiers": list(header.tiers),
        "pools": [asdict(pool) for pool in header.pools] or None,
    }


def _redacted(facts: Facts) -> Facts:
    removed: list[str] = []
    job = _keeping(facts.header["job"], _KEPT_JOB, removed)
    header = {**facts.header, "job": None, "gpu_unavailable": None}
    header = _keeping(header, _KEPT_HEADER, removed) | {"job": job}
    header["gpu_unavailable"] = _gpu_words(facts.header["gpu_unavailable"], removed)
    provenance = facts.schedule["provenance"]
    schedule = facts.schedule | {"provenance": _without_texts(provenance)}
    if schedule["provenance"] != provenance:
        removed.append("where the schedule came from")
    summary = replace(
        facts.summary,
        trace=REDACTED,
        message=_message(facts.summary.message),
        gpu_unavailable=_gpu_words(facts.summary.gpu_unavailable, []),
    )
    removed.append("file name")
    if summary.message != facts.summary.message:
        removed.append("message")
    log = tuple(replace(line, text=REDACTED) for line in facts.log)
    if log:
        removed.append("1 log line" if len(log) == 1 else f"{len(log)} log lines")
    return Facts(header, schedule, summary, log, tuple(removed))


def _keeping(record: dict[str, Json], kept: frozenset[str], removed: list[str]) -> dict[str, Json]:
    """The record with REDACTED for what is there and not `kept`; adds the names of those to `removed`."""
    gone = [name for name, value in record.items() if value is not None and name not in kept]
    removed += [name.replace("_", " ") for name in gone]
    return record | dict.fromkeys(gone, REDACTED)


def _without_texts(value: Json, *, name: str = "") -> Json:
    """A JSON value without its texts, but for hashes."""
    if isinstance(value, dict):
        return {key: _without_texts(part, name=key) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_texts(part, name=name) for part in value]
    return REDACTED if isinstance(value, str) and not _is_hash(name, value) else value


def _is_hash(name: str, value: str) -> bool:
    return name.endswith("_sha256") and all(character in "0123456789abcdef" for character in value)


def _message(message: str) -> str:
    """Why a run ended: our own words, or else the name of the error, without what it says."""
    if message in _KEPT_MESSAGES:
        return message
    if message.startswith(RECORDING_STOPPED):
        return RECORDING_STOPPED + REDACTED
    kind, found, _ = message.partition(": ")
    return f"{kind}: {REDACTED}" if found and kind.isidentifier() and kind.endswith("Error") else REDACTED


def _gpu_words(text: str | None, removed: list[str]) -> str | None:
    """Why there are no GPU samples, without the library's own words, which may name files."""
    if text is None or text == _NO_SAMPLER:
        return text
    known = next((reason.text for reason in Reason if text.startswith(reason.text)), REDACTED)
    if known != text:
        removed.append("details of why there are no GPU samples")
    return known
