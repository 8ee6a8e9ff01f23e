"""PruningSchedule: when each head-scale leaves the cache, what is held then, and its file format.

numpy only; a planner makes it, a cache obeys it, a trace stores it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from heatkv import head_codecs
from heatkv.budget import allowed_tokens, check_sink_scales
from heatkv.codecs import MODEL
from heatkv.config import MODELS
from heatkv.errors import ScheduleError
from heatkv.files import read_json, write_new
from heatkv.scales import ScaleSchedule
from heatkv.steps import after_steps, amount_held, own_steps, tokens_held

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from heatkv.config import ModelConfig

FORMAT = "heatkv.schedule"
VERSION = 2
"""With codecs; a schedule without any is written as version 1, which is the same but for them."""


@dataclass(frozen=True, slots=True, eq=False)
class PruningSchedule:
    """When each head-scale leaves the cache, for one model and one set of scales.

    step = query_scale * num_layers + layer. A head-scale is written at its own step, source_scale * num_layers +
    layer. Attention at step s reads it iff source_scale <= query_scale and drop_step >= s. After step s the cache
    holds it iff it was written and drop_step > s, or drop_step is the last step: kept to the end of the run.

    A drop before its own layer reads it (early activation) is only a smaller drop_step. One that is read as the
    current scale and never kept has its own step. The last source scale is never cached: always its own step.
    Equal by content.
    """

    drop_step: NDArray[np.int16]
    """[layer, head, source_scale], all scales of the run; read-only."""
    model: str
    scales: ScaleSchedule
    sink_scales: int
    """The first scales, never evicted."""
    policy: str
    budget: float | None = None
    """What was asked for; None: no budget, everything is kept."""
    provenance: dict[str, Any] = field(default_factory=dict)  # Any: JSON values
    """Where it came from, such as the content hash of the orders."""
    layer_tokens: NDArray[np.int32] | None = None
    """[query_scale, layer]: head-tokens that each layer holds after its step. Of an online policy, which chooses during
    the run which tokens these are, all in one codec; drop_step then only says what can be there at most. None: all is
    planned."""
    codec: NDArray[np.uint8] | None = None
    """[layer, head, source_scale]: index into `codecs` of how it is stored; None: all in the model's dtype."""
    codecs: tuple[str, ...] = ()
    """Names of CODECS; with them, a budget is a fraction of the history's bytes in the model's dtype."""

    def __post_init__(self) -> None:
        drop_step = _as_steps(self.drop_step)
        if drop_step.ndim != 3 or drop_step.shape[2] != self.scales.num_scales or not drop_step.size:
            expected = f"[layer, head, {self.scales.num_scales} source scales]"
            raise ScheduleError(f"drop_step has shape {list(drop_step.shape)}; expected {expected}")
        check_sink_scales(self.sink_scales, self.scales)
        _check_drop_steps(drop_step, self.sink_scales)
        drop_step.flags.writeable = False
        object.__setattr__(self, "drop_step", drop_step)
        if self.codec is not None:
            object.__setattr__(self, "codec", head_codecs.checked(self.codec, self.codecs, drop_step.shape))
        if self.layer_tokens is not None:
            object.__setattr__(self, "layer_tokens", self._checked_tokens(self.layer_tokens))

    @property
    def online(self) -> bool:
        """Whether tokens are chosen during the run, by an online policy."""
        return self.layer_tokens is not None

    @property
    def num_layers(self) -> int:
        return len(self.drop_step)

    @property
    def num_heads(self) -> int:
        return int(self.drop_step.shape[1])

    @property
    def num_steps(self) -> int:
        return self.scales.num_scales * self.num_layers

    @property
    def history_tokens(self) -> int:
        """Tokens of all scales but the last, over all layers and heads: what a budget of 1.0 means."""
        return self.scales.history_tokens * self.num_layers * self.num_heads

    @property
    def peak_tokens(self) -> int:
        """The most tokens held after any step, over all layers and heads: what the budget bounds."""
        return int(self.tokens_held().max())

    @property
    def resident_scales(self) -> int:
        """How many source scales, from the first on, every head keeps to the end, all in one codec."""
        if self.online:
            return self.sink_scales
        stays = (self.drop_step[:, :, :-1] == self.num_steps - 1).all(axis=(0, 1))
        if self.codec is not None:
            stays &= (self.codec[:, :, :-1] == self.codec[0, 0, 0]).all(axis=(0, 1))
        return int(np.argmin(np.append(stays, False)))

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of what a run can notice: drop_step, scales, sink scales; codecs, if any; an online policy, and
        how many tokens it keeps."""
        head: list[object] = [list(self.drop_step.shape), [list(size) for size in self.scales.sizes], self.sink_scales]
        arrays = self.drop_step.astype("<i2").tobytes()
        if self.layer_tokens is not None:
            head += [self.policy, self.budget, self.provenance]
            arrays += self.layer_tokens.astype("<i4").tobytes()
        if self.codec is not None:
            head.append(list(self.codecs))
            arrays += self.codec[..., :-1].tobytes()
        return hashlib.sha256(json.dumps(head).encode() + arrays).hexdigest()

    @property
    def keeps_everything(self) -> bool:
        """Whether all of the history stays to the end."""
        return not self.online and self.resident_scales >= self.scales.num_scales - 1

    def visible(self, query_scale: int) -> NDArray[np.bool_]:
        """What attention at this query scale reads, the current scale included: bool [layer, head, source_scale]."""
        steps = query_scale * self.num_layers + np.arange(self.num_layers)
        seen: NDArray[np.bool_] = self.drop_step >= steps[:, None, None]
        seen[:, :, query_scale + 1 :] = False
        return seen

    def read_tokens(self) -> NDArray[np.int64]:
        """Tokens that attention reads at each step, current scale too: [query_scale, layer, head, source_scale]."""
        seen = np.stack([self.visible(query_scale) for query_scale in range(self.scales.num_scales)])
        return np.where(seen, np.array(self.scales.tokens), 0)

    def kept_tokens(self) -> NDArray[np.int64]:
        """Tokens that each layer holds after its own step: [query_scale, layer, head, source_scale]."""
        query_scales = np.arange(self.scales.num_scales)[:, None, None, None]
        steps = query_scales * self.num_layers + np.arange(self.num_layers)[:, None, None]
        held = (self.drop_step > steps) | (self.drop_step == self.num_steps - 1)
        held &= np.arange(self.scales.num_scales) <= query_scales
        held[..., -1] = False
        return np.where(held, np.array(self.scales.tokens), 0)

    def tokens_held(self) -> NDArray[np.int64]:
        """Tokens in the cache after each step, over all layers and heads: [num_steps].

        Counts the whole model: layers not yet reached still hold what they had, unless it was dropped early. Exact for
        an online policy too: only which tokens these are is not known before.
        """
        return tokens_held(self.drop_step, self.scales) if self.layer_tokens is None else after_steps(self.layer_tokens)

    def evicted_tokens(self) -> NDArray[np.int64]:
        """Tokens that leave right after each step, over all layers and heads: [num_steps]."""
        evicted: NDArray[np.int64] = self.written_tokens() - np.diff(self.tokens_held(), prepend=0)
        return evicted

    def written_tokens(self) -> NDArray[np.int64]:
        """Tokens that each step adds before any leaves, over all heads: [num_steps]; the last scale is not cached."""
        cached = np.array((*self.scales.tokens[:-1], 0), np.int64)
        return np.repeat(cached * self.num_heads, self.num_layers)

    def tokens_held_by_codec(self) -> dict[str, NDArray[np.int64]]:
        """Codec → tokens held in it after each step, over all layers and heads: [num_steps]."""
        if self.codec is None or self.online:
            return {(*self.codecs, MODEL)[0]: self.tokens_held()}
        tokens = np.array(self.scales.tokens)
        return {
            name: amount_held(self.drop_step, np.where(self.codec == index, tokens, 0))
            for index, name in enumerate(self.codecs)
        }

    def stored_in(self) -> NDArray[np.str_]:
        """Name of the codec of each head-scale: [layer, head, source_scale]."""
        if self.codec is None:
            return np.full(self.drop_step.shape, MODEL)
        return np.array(self.codecs)[self.codec]

    def bytes_per_token(self, head_dim: int, *, rows: int, dtype_bytes: int) -> NDArray[np.int64]:
        """Of a token of each head-scale, key and value in all rows: [layer, head, source_scale]."""
        codec = np.zeros(self.drop_step.shape, np.uint8) if self.codec is None else self.codec
        known = head_codecs.bytes_per_token(self.codecs or (MODEL,), head_dim, rows=rows, dtype_bytes=dtype_bytes)
        per_token: NDArray[np.int64] = known[codec]
        return per_token

    def bytes_held(self, head_dim: int, *, rows: int, dtype_bytes: int) -> NDArray[np.int64]:
        """Bytes of keys and values after each step, over all layers and heads: [num_steps]; as `tokens_held`."""
        per_token = self.bytes_per_token(head_dim, rows=rows, dtype_bytes=dtype_bytes)
        if self.online:
            return self.tokens_held() * int(per_token[0, 0, 0])
        return amount_held(self.drop_step, per_token * np.array(self.scales.tokens))

    def peak_bytes(self, head_dim: int, *, rows: int, dtype_bytes: int) -> int:
        """The most bytes held after any step: what the budget bounds."""
        return int(self.bytes_held(head_dim, rows=rows, dtype_bytes=dtype_bytes).max())

    def capacity_bytes(self, head_dim: int, *, rows: int, dtype_bytes: int) -> int:
        """Of the pools that hold it, one a codec, each as large as its own peak: at least `peak_bytes`."""
        peaks = {name: int(held.max()) for name, held in self.tokens_held_by_codec().items()}
        per_token = head_codecs.bytes_per_token(tuple(peaks), head_dim, rows=rows, dtype_bytes=dtype_bytes)
        return int(per_token @ np.array(list(peaks.values())))

    def in_codec(self, name: str) -> Self:
        """The same with everything but the sinks stored in one codec; `model`: with no codecs at all.

        Where an online policy chooses, the sinks too.
        """
        if name == MODEL:
            return replace(self, codec=None, codecs=())
        if self.online:
            return replace(self, codec=np.zeros_like(self.drop_step, np.uint8), codecs=(name,))
        codec, codecs = head_codecs.all_but_sinks(name, self.drop_step.shape, self.sink_scales)
        return replace(self, codec=codec, codecs=codecs)

    def evictions(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(layers, heads, source_scales) of the head-scales to free right after this step.

        Includes the current scale's that are not kept (their own step is `step`). Never the last scale, which
        is not cached, and nothing at the last step: what is left then is kept to the end of the run.
        """
        due = self.drop_step[:, :, :-1] == step
        if step == self.num_steps - 1:
            due = np.zeros_like(due)
        layers, heads, source_scales = np.nonzero(due)
        return layers, heads, source_scales

    def validate(self, config: ModelConfig, scales: ScaleSchedule) -> None:
        """Raises ScheduleError unless this schedule was made for this model and these scales."""
        made_for = self.model, self.num_layers, self.num_heads
        if made_for != (config.name, config.num_layers, config.num_heads):
            found = f"{self.model} ({self.num_layers} layers, {self.num_heads} heads)"
            expected = f"{config.name} ({config.num_layers} layers, {config.num_heads} heads)"
            raise ScheduleError(f"the schedule is for {found}, the run is {expected}; plan it again for this model")
        if self.scales.sizes != scales.sizes:
            found, expected = self.scales.in_words, scales.in_words
            raise ScheduleError(f"the schedule is for {found}, the run has {expected}; plan it again for these scales")

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        chosen = {} if self.layer_tokens is None else {"layer_tokens": self.layer_tokens.tolist()}
        return {
            "format": FORMAT,
            "version": 1 if self.codec is None else VERSION,
            "model": self.model,
            "scales": self.scales.to_json(),
            "sink_scales": self.sink_scales,
            "policy": self.policy,
            "budget": self.budget,
            "provenance": self.provenance,
            **({} if self.codec is None else {"codecs": list(self.codecs), "codec": head_codecs.to_text(self.codec)}),
            "drop_step": self.drop_step.tolist(),
            **chosen,
        }

    @classmethod
    def from_json(cls, record: Any) -> Self:  # Any: whatever a file held
        """The schedule of a file's JSON object. Raises ScheduleError saying what is wrong with it."""
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ScheduleError(f'not a pruning schedule; expected a JSON object with "format": "{FORMAT}"')
        version = record.get("version")
        if version not in range(1, VERSION + 1):
            raise ScheduleError(
                f"format version {version!r:.40}, this heatkv reads 1 to {VERSION}; upgrade heatkv or plan it again"
            )
        missing = {"model", "scales", "sink_scales", "policy", "budget", "provenance", "drop_step"} - record.keys()
        if missing:
            raise ScheduleError(f"the schedule lacks {', '.join(sorted(missing))}; plan it again")
        return cls(
            drop_step=_as_steps(record["drop_step"]),
            model=_name(record["model"], "model"),
            scales=ScaleSchedule.from_json(record["scales"]),
            sink_scales=_integer(record["sink_scales"], "sink_scales"),
            policy=_name(record["policy"], "policy"),
            budget=_budget_or_none(record["budget"]),
            provenance=dict(record["provenance"]) if isinstance(record["provenance"], dict) else {},
            layer_tokens=_layer_tokens(record.get("layer_tokens")),
            codec=head_codecs.from_text(record["codec"]) if "codec" in record else None,
            codecs=head_codecs.names_of(record.get("codecs", [])),
        )

    def save(self, path: Path | str, *, overwrite: bool = False) -> Path:
        """Write the JSON file and return its path. Raises OutputError if it exists, unless `overwrite`."""
        return write_new(Path(path), json.dumps(self.to_json()).encode() + b"\n", overwrite=overwrite)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a file made by `save`. Raises ScheduleError naming the path and what is wrong: also a false budget."""
        record = read_json(Path(path), expected="a schedule file made by `plan`", error=ScheduleError)
        try:
            schedule = cls.from_json(record)
            schedule._check_budget()
            return schedule
        except ScheduleError as error:
            raise ScheduleError(f"{path}: {error}") from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PruningSchedule):
            return NotImplemented
        return self._labels() == other._labels() and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash((self.content_hash, self.model, self.policy, self.budget))

    def _check_budget(self) -> None:
        if self.budget is None or self.online:
            return
        if self.codec is not None:
            self._check_budget_bytes(self.budget)
            return
        allowed, peak = allowed_tokens(self.budget, self.num_layers, self.num_heads, self.scales), self.peak_tokens
        if peak > allowed:
            raise ScheduleError(
                f"the budget {self.budget:.8g} allows {allowed} tokens, but the peak of drop_step is {peak}; "
                "plan it again, or correct the budget"
            )

    def _check_budget_bytes(self, budget: float) -> None:
        """For a model that is known: only its head_dim tells bytes. As of float32, where a budget allows the most."""
        if self.model not in MODELS:
            return
        head_dim, wide = MODELS[self.model].head_dim, {"rows": 1, "dtype_bytes": 4}
        peak = self.peak_bytes(head_dim, **wide)
        allowed = allowed_tokens(budget, self.num_layers, self.num_heads, self.scales) * 2 * head_dim * 4
        if peak > allowed:
            raise ScheduleError(
                f"the budget {budget:.8g} allows {allowed} bytes a row of float32, but the peak is {peak}; "
                "plan it again, or correct the budget"
            )

    def _labels(self) -> tuple[object, ...]:
        chosen = None if self.layer_tokens is None else self.layer_tokens.tolist()
        return self.model, self.scales, self.sink_scales, self.policy, self.budget, self.provenance, chosen

    def _checked_tokens(self, given: NDArray[np.int32]) -> NDArray[np.int32]:
        tokens = np.array(given, dtype=np.int32)
        expected = self.scales.num_scales, self.num_layers
        if len(self.codecs) > 1:
            raise ScheduleError(f"codecs are {', '.join(self.codecs)}; expected one where an online policy chooses")
        most = self.num_heads * np.cumsum((*self.scales.tokens[:-1], 0))[:, None]
        if tokens.shape != expected or (tokens < 0).any() or (tokens > most).any():
            raise ScheduleError(
                f"layer_tokens of shape {list(tokens.shape)} are no numbers of tokens that {list(expected)} layers at "
                "their scales could hold; run it again"
            )
        tokens.flags.writeable = False
        return tokens


def _check_drop_steps(drop_step: NDArray[np.int16], sink_scales: int) -> None:
    num_layers, _, num_scales = drop_step.shape
    last_step = num_layers * num_scales - 1
    if last_step > np.iinfo(np.int16).max:
        raise ScheduleError(f"{last_step + 1} steps do not fit in 16 bits; use fewer layers or scales")
    written = own_steps(num_layers, num_scales)[:, None]
    wrong = (drop_step < written) | (drop_step > last_step)
    wrong[:, :, :sink_scales] |= drop_step[:, :, :sink_scales] != last_step
    wrong[:, :, -1] |= drop_step[:, :, -1] != written[:, :, -1]
    if wrong.any():
        layer, head, source_scale = (int(index[0]) for index in np.nonzero(wrong))
        place = f"layer {layer}, head {head}, source scale {source_scale}"
        first = int(written[layer, 0, source_scale])
        expected = f"{first} to {last_step}"
        if source_scale == num_scales - 1:
            expected = f"{first}, as the last scale is never cached"
        elif source_scale < sink_scales:
            expected = f"{last_step}, as sink scales are never evicted"
        found = int(drop_step[layer, head, source_scale])
        raise ScheduleError(f"drop_step is {found} at {place}; expected {expected}")


def _as_steps(given: ArrayLike) -> NDArray[np.int16]:
    expected = "drop_step holds something else than 16-bit whole numbers; expected steps"
    try:
        # As objects first: numpy would make long texts, one of which a file may hold, of every number.
        values = given if isinstance(given, np.ndarray) else _whole_numbers(np.array(given, dtype=object))
    except ValueError:
        raise ScheduleError("drop_step is ragged; expected nested lists [layer][head][source_scale]") from None
    except (TypeError, OverflowError):
        raise ScheduleError(expected) from None
    if values.dtype.kind not in "iu" or (values != values.astype(np.int16)).any():
        raise ScheduleError(expected)
    return values.astype(np.int16)


def _layer_tokens(given: Any) -> NDArray[np.int32] | None:  # Any: whatever a file held
    if given is None:
        return None
    try:
        return _whole_numbers(np.array(given, dtype=object)).astype(np.int32)
    except (ValueError, TypeError, OverflowError):
        raise ScheduleError("layer_tokens holds something else than whole numbers; run it again") from None


def _whole_numbers(values: NDArray[np.object_]) -> NDArray[np.int64]:
    if values.size and any(isinstance(value, list | tuple) for value in values.ravel()):
        raise ValueError("ragged")
    if not all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in values.ravel()):
        raise TypeError("not whole numbers")
    return values.astype(np.int64)


def _integer(value: Any, name: str) -> int:  # Any: whatever a file held
    if type(value) is not int:
        raise ScheduleError(f"{name} is {value!r}; expected a whole number")
    return value


def _name(value: Any, name: str) -> str:  # Any: whatever a file held
    if not isinstance(value, str) or not value.isprintable():
        raise ScheduleError(f"{name} is {value!r:.60}; expected a name")
    return value


def _budget_or_none(value: Any) -> float | None:  # Any: whatever a file held
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ScheduleError(f"budget is {value!r}; expected null or a fraction of history from 0 to 1")
    return float(value)
