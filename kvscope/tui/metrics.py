"""METRICS: what the map can show of a head-scale, and the words for one cell. Pure numpy over a Snapshot.

Values are float64 [query_scale, layer, head, source_scale] with a Cell beside each, because a number alone cannot
say whether a head-scale is gone, was never measured, or is not written yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from heatkv.codecs import MODEL
from kvscope import units

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.schedule import PruningSchedule
    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot


class Cell(IntEnum):
    """What stands where a value may be."""

    VALUE = 0
    DROPPED = 1
    UNKNOWN = 2
    UNWRITTEN = 3


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """One metric of a whole trace, [query_scale, layer, head, source_scale]."""

    values: NDArray[np.float64]
    cells: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Metric:
    """One way to look at a head-scale."""

    name: str
    title: str
    label: str
    """The title in a word or two, where there is little room."""
    amount: bool
    """Tokens held or read: drawn as how much of the whole, in the colour of memory. Else drawn as heat."""
    measured: bool
    """Recorded by the run; else read from its plan."""
    volume: Callable[[Snapshot], Volume]
    bounds: Callable[[Snapshot, Volume, Cursor], tuple[float, float]]
    """The values of the lowest and highest colour, for the cursor's query and source scale."""
    text: Callable[[Snapshot, float], str]
    brief_text: Callable[[Snapshot, float], str] | None = None
    """The same in fewer words, where there is little room; None: there are none."""
    unit: str = ""
    """What follows its name where numbers alone are written: `kept_tokens`; empty: a fraction, or a count."""

    @property
    def column(self) -> str:
        """Its name in records of raw numbers."""
        return f"{self.name}_{self.unit}" if self.unit else self.name

    def words(self, snapshot: Snapshot, value: float, *, brief: bool = False) -> str:
        """The value with its unit."""
        return (self.brief_text if brief and self.brief_text else self.text)(snapshot, value)


NEVER_CACHED = "never cached"
"""Of the last scale: nothing reads it after its own step."""

CHOSEN = "chosen during the run"
"""Of when a head-scale is dropped, where an online policy chooses token by token."""


LOG_DECADES = 3
"""How far below the highest value the lowest colour of logarithmic heat is."""


@lru_cache(maxsize=32)
def volume_of(snapshot: Snapshot, name: str) -> Volume:
    """The volume of a metric, computed once for a snapshot."""
    return METRICS[name].volume(snapshot)


def log_floor(low: float, high: float) -> float:
    """The value of the lowest colour where heat is logarithmic; smaller ones have it too."""
    return max(low, high / 10.0**LOG_DECADES)


def in_log(values: NDArray[np.float64], low: float, high: float) -> tuple[NDArray[np.float64], float, float]:
    """Values and both ends of their colours so that equal steps of colour are equal factors; NaN stays."""
    if high <= 0:
        return values, low, high
    floor = log_floor(low, high)
    return np.log10(np.maximum(values, floor)), float(np.log10(floor)), float(np.log10(high))


def recorded(snapshot: Snapshot, name: str) -> bool:
    """Whether the run recorded what a metric is made of."""
    tier = _TIERS.get(name)
    return tier is None or tier in snapshot.header.tiers


def cell_text(snapshot: Snapshot, name: str, cursor: Cursor, *, brief: bool = False) -> str:
    """The value of one cell in words and units; `brief`: in few words, where there is little room."""
    volume = volume_of(snapshot, name)
    place = _place(cursor)
    if cursor.query_scale >= len(volume.values):
        return "not reached"
    cell = Cell(int(volume.cells[place]))
    if name == "drop_step" and cell is Cell.UNKNOWN:
        return CHOSEN
    if cell is Cell.VALUE and name in ("kept", "read") and snapshot.schedule.online:
        return _part_text(snapshot, name, cursor, round(float(volume.values[place])), brief=brief)
    if cell is Cell.VALUE:
        return METRICS[name].words(snapshot, float(volume.values[place]), brief=brief)
    if cell is Cell.DROPPED and cursor.source_scale == snapshot.schedule.scales.num_scales - 1:
        return NEVER_CACHED
    return {Cell.DROPPED: "dropped", Cell.UNKNOWN: units.NOT_MEASURED, Cell.UNWRITTEN: "comes later"}[cell]


@lru_cache(maxsize=8)
def scas_of(snapshot: Snapshot) -> NDArray[np.float64]:
    """The run's own S-CAS, [layer, head, source_scale]: mean mass over later query scales that read it; else NaN.

    From the paper (arXiv 2605.14877), which takes it from runs that drop nothing, over several prompts, and not for
    sink scales. Here it is of one run, and where a head-scale was dropped, of the query scales before that.
    """
    mass = np.asarray(snapshot.attention_mass, np.float64)
    later = np.arange(mass.shape[3]) < np.arange(len(mass))[:, None]
    known = np.isfinite(mass) & (snapshot.read_tokens > 0) & later[:, None, None, :]
    counts = known.sum(axis=0)
    scores = np.full(mass.shape[1:], np.nan)
    np.divide(np.where(known, mass, 0.0).sum(axis=0), counts, out=scores, where=counts > 0)
    return scores


@lru_cache(maxsize=8)
def ranks_of(snapshot: Snapshot) -> NDArray[np.float64]:
    """[layer, head, source_scale]: 1 for the head with the most S-CAS of its source scale; NaN where there is none.

    Ties go to the lower layer, then to the lower head.
    """
    scores = scas_of(snapshot)
    by_source = scores.reshape(-1, scores.shape[2])
    # Stable, and NaN last: among equals the order of [layer, head] stays.
    order = np.argsort(-by_source, axis=0, kind="stable")
    ranks = np.empty_like(by_source)
    np.put_along_axis(ranks, order, np.arange(1.0, len(by_source) + 1)[:, None], axis=0)
    ranks[np.isnan(by_source)] = np.nan
    return ranks.reshape(scores.shape)


def why(snapshot: Snapshot, cursor: Cursor) -> str:
    """Why the head-scale under the cursor is in the cache or not, from the plan in force, and in which codec: one
    sentence."""
    codec = stored_codec(snapshot.schedule, cursor.layer, cursor.head, cursor.source_scale)
    sentence = _why(snapshot, cursor)
    return sentence if codec == MODEL or "never kept" in sentence else f"{sentence}; stored in {codec}"


def stored_codec(schedule: PruningSchedule, layer: int, head: int, source_scale: int) -> str:
    """The codec of a head-scale; the model's own for what is never stored."""
    if schedule.codec is None or source_scale == schedule.scales.num_scales - 1:
        return MODEL
    return schedule.codecs[int(schedule.codec[layer, head, source_scale])]


def _why(snapshot: Snapshot, cursor: Cursor) -> str:
    schedule, source = snapshot.schedule, cursor.source_scale
    drop_step = int(schedule.drop_step[cursor.layer, cursor.head, source])
    now = cursor.query_scale * schedule.num_layers + cursor.layer
    reached = source <= cursor.query_scale < snapshot.scales_done
    if source == schedule.scales.num_scales - 1:
        return "the last scale is never cached: only its own step reads it"
    if source < schedule.sink_scales:
        return f"sink scale: the first {schedule.sink_scales} are never evicted"
    if schedule.online:
        return _chosen(snapshot, cursor, reached=reached)
    if drop_step == schedule.num_steps - 1:
        return "kept to the end of the run" if reached else "planned to be kept to the end of the run"
    if drop_step == source * schedule.num_layers + cursor.layer:
        return f"read at its own step only, never kept: saves {_freed(snapshot, cursor)}"
    after = f"after scale {drop_step // schedule.num_layers}, layer {drop_step % schedule.num_layers}"
    if reached and drop_step <= now:
        return f"dropped {after}: freed {_freed(snapshot, cursor)}"
    return f"will be dropped {after}: frees {_freed(snapshot, cursor)}"


def _chosen(snapshot: Snapshot, cursor: Cursor, *, reached: bool) -> str:
    """What an online policy has chosen of a head-scale by the cursor's query scale."""
    policy = units.printable(snapshot.schedule.policy)
    if not reached:
        return f"{policy} will choose during the run which of its tokens stay"
    kept, tokens = int(snapshot.kept_tokens[_place(cursor)]), snapshot.schedule.scales.tokens[cursor.source_scale]
    return f"chosen during the run by {policy}: {kept_words(kept, tokens)} kept after scale {cursor.query_scale}"


def kept_words(kept: int, tokens: int) -> str:
    """How many of a head-scale's tokens: `5 of 16 tokens`, `all 16 tokens`, `none of 16 tokens`."""
    how_many = {0: "none of", tokens: "all"}.get(kept, f"{kept:,} of")
    return f"{how_many} {units.tokens_text(tokens)}"


def _part_text(snapshot: Snapshot, name: str, cursor: Cursor, count: int, *, brief: bool) -> str:
    """Tokens of a head-scale that may be there in part; bytes too where there is room."""
    tokens = snapshot.schedule.scales.tokens[cursor.source_scale]
    words = units.tokens_text(tokens) if count == tokens else f"{count:,} of {units.tokens_text(tokens)}"
    if brief or name == "read":
        return words
    return f"{words} = {units.bytes_text(count * _token_bytes(snapshot, cursor))}"


def _freed(snapshot: Snapshot, cursor: Cursor) -> str:
    tokens = snapshot.schedule.scales.tokens[cursor.source_scale]
    return f"{units.tokens_text(tokens)} = {units.bytes_text(tokens * _token_bytes(snapshot, cursor))}"


def _token_bytes(snapshot: Snapshot, cursor: Cursor) -> int:
    return int(snapshot.header.bytes_of(snapshot.schedule)[cursor.layer, cursor.head, cursor.source_scale])


def _place(cursor: Cursor) -> tuple[int, int, int, int]:
    return cursor.query_scale, cursor.layer, cursor.head, cursor.source_scale


def _cells(present: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """VALUE where present, else DROPPED; UNWRITTEN for source scales after the query scale."""
    later = np.arange(present.shape[3]) > np.arange(len(present))[:, None]
    # A maximum of bytes takes a tenth of the time of a choice; of a Cell's numbers VALUE is 0, and UNWRITTEN the most.
    return np.maximum(np.uint8(Cell.DROPPED) * ~present, np.uint8(Cell.UNWRITTEN) * later[:, None, None, :])


def _kept(snapshot: Snapshot) -> Volume:
    return Volume(snapshot.kept_tokens.astype(np.float64), _cells(snapshot.kept_tokens > 0))


def _read(snapshot: Snapshot) -> Volume:
    return Volume(snapshot.read_tokens.astype(np.float64), _cells(snapshot.read_tokens > 0))


def _measured(snapshot: Snapshot, mass: NDArray[np.floating]) -> Volume:
    """What was measured of what each head read."""
    values = mass.astype(np.float64)
    cells = _cells(snapshot.read_tokens > 0)
    cells[(cells == Cell.VALUE) & np.isnan(values)] = Cell.UNKNOWN
    return Volume(values, cells)


def _mass(snapshot: Snapshot) -> Volume:
    return _measured(snapshot, snapshot.attention_mass)


def _mass_uncond(snapshot: Snapshot) -> Volume:
    return _measured(snapshot, snapshot.attention_mass_uncond)


def _mass_per_token(snapshot: Snapshot) -> Volume:
    mass = volume_of(snapshot, "mass")
    return Volume(mass.values / np.maximum(snapshot.read_tokens, 1), mass.cells)


def _mass_per_mib(snapshot: Snapshot) -> Volume:
    """Mass over what the keys and values that were read take, for all rows."""
    per_token = volume_of(snapshot, "mass_per_token")
    return Volume(per_token.values * (_MIB / snapshot.header.bytes_of(snapshot.schedule)), per_token.cells)


def _scas(snapshot: Snapshot) -> Volume:
    """Each head-scale's S-CAS beside every query scale that could know of it."""
    shape = snapshot.kept_tokens.shape
    scores = np.broadcast_to(scas_of(snapshot), shape)
    cells = _cells(np.ones(shape, dtype=np.bool_))
    cells[(cells == Cell.VALUE) & np.isnan(scores)] = Cell.UNKNOWN
    return Volume(scores, cells)


def _rank(snapshot: Snapshot) -> Volume:
    return Volume(np.broadcast_to(ranks_of(snapshot), snapshot.kept_tokens.shape), volume_of(snapshot, "scas").cells)


def _entropy(snapshot: Snapshot) -> Volume:
    """Of each head at each query scale; the same beside all source scales that it read."""
    mass = volume_of(snapshot, "mass")
    known = np.where(mass.cells == Cell.VALUE, mass.values, 0.0)
    total = known.sum(axis=-1, keepdims=True)
    shares = np.divide(known, total, out=np.zeros_like(known), where=total > 0)
    # 0 · log 0 is 0: a source scale without attention adds nothing.
    bits = -(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(axis=-1, keepdims=True)
    bits = np.where(total > 0, np.abs(bits), np.nan)
    cells = mass.cells.copy()
    cells[(cells == Cell.VALUE) & np.isnan(bits)] = Cell.UNKNOWN
    return Volume(np.broadcast_to(bits, known.shape), cells)


def _drop_step(snapshot: Snapshot) -> Volume:
    """By plan; unknown of what an online policy chooses."""
    schedule = snapshot.schedule
    values = np.broadcast_to(schedule.drop_step.astype(np.float64), snapshot.kept_tokens.shape)
    cells = _cells(np.ones(values.shape, dtype=np.bool_))
    if schedule.online:
        planned = np.arange(schedule.scales.num_scales) < schedule.sink_scales
        planned[-1] = True
        cells[(cells == Cell.VALUE) & ~planned] = Cell.UNKNOWN
    return Volume(values, cells)


def _source_tokens(snapshot: Snapshot, _volume: Volume, cursor: Cursor) -> tuple[float, float]:
    return 0.0, float(snapshot.schedule.scales.tokens[cursor.source_scale])


def _largest(_snapshot: Snapshot, volume: Volume, cursor: Cursor) -> tuple[float, float]:
    grid = volume.values[cursor.query_scale, :, :, cursor.source_scale]
    known = grid[volume.cells[cursor.query_scale, :, :, cursor.source_scale] == Cell.VALUE]
    return 0.0, float(known.max()) if known.size else 0.0


def _lifetime(snapshot: Snapshot, _volume: Volume, cursor: Cursor) -> tuple[float, float]:
    return float(cursor.source_scale * snapshot.schedule.num_layers), float(snapshot.schedule.num_steps - 1)


def _all_ranks(_snapshot: Snapshot, volume: Volume, cursor: Cursor) -> tuple[float, float]:
    return 1.0, max(1.0, _largest(_snapshot, volume, cursor)[1])


def _most_even(_snapshot: Snapshot, _volume: Volume, cursor: Cursor) -> tuple[float, float]:
    """From all attention on one source scale to the same on all that there are."""
    return 0.0, float(np.log2(cursor.query_scale + 1))


def _tokens_text(_snapshot: Snapshot, value: float) -> str:
    return units.tokens_text(round(value))


def _kept_text(snapshot: Snapshot, value: float) -> str:
    """Tokens alone where what one takes depends on its codec."""
    if snapshot.schedule.codec is not None:
        return units.tokens_text(round(value))
    return f"{units.tokens_text(round(value))} = {units.bytes_text(value * snapshot.header.bytes_per_token)}"


def _fraction_text(_snapshot: Snapshot, value: float) -> str:
    return units.fraction_text(value)


def _per_token_text(_snapshot: Snapshot, value: float) -> str:
    return f"{units.fraction_text(value)} per token"


def _per_mib_text(_snapshot: Snapshot, value: float) -> str:
    """More than all of it per MiB, as in a small model, is told per KiB."""
    size, per = (value, "MiB") if value < 1 else (value / 1024, "KiB")
    return f"{units.fraction_text(size)} per {per}"


def _rank_text(_snapshot: Snapshot, value: float) -> str:
    return f"rank {value:.0f}"


def _bits_text(_snapshot: Snapshot, value: float) -> str:
    return f"{value:.2f} bits"


def _step_text(snapshot: Snapshot, value: float) -> str:
    scale, layer = divmod(round(value), snapshot.schedule.num_layers)
    return "never" if value == snapshot.schedule.num_steps - 1 else f"after scale {scale} layer {layer}"


def _brief_step_text(snapshot: Snapshot, value: float) -> str:
    scale, layer = divmod(round(value), snapshot.schedule.num_layers)
    return "never" if value == snapshot.schedule.num_steps - 1 else f"scale {scale} L{layer}"


_MIB = 1 << 20
_TIERS = {
    "mass": "mass",
    "mass_uncond": "mass_uncond",
    **dict.fromkeys(("mass_per_token", "mass_per_mib", "scas", "rank", "entropy"), "mass"),
}
"""Metric → what a trace has to record for it."""


def _heat(
    name: str,
    title: str,
    label: str,
    volume: Callable[[Snapshot], Volume],
    text: Callable[[Snapshot, float], str],
    *,
    bounds: Callable[[Snapshot, Volume, Cursor], tuple[float, float]] = _largest,
    brief_text: Callable[[Snapshot, float], str] | None = None,
    unit: str = "",
) -> Metric:
    """A metric that was measured and is drawn as heat."""
    return Metric(name, title, label, False, True, volume, bounds, text, brief_text, unit)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "kept",
            "kept after the step",
            "kept",
            True,
            True,
            _kept,
            _source_tokens,
            _kept_text,
            _tokens_text,
            unit="tokens",
        ),
        Metric("read", "read at the step", "read", True, True, _read, _source_tokens, _tokens_text, unit="tokens"),
        _heat("mass", "attention mass", "mass", _mass, _fraction_text),
        _heat("mass_uncond", "unconditional mass", "uncond", _mass_uncond, _fraction_text),
        _heat(
            "mass_per_token",
            "attention mass per token",
            "mass/token",
            _mass_per_token,
            _per_token_text,
            brief_text=_fraction_text,
        ),
        _heat(
            "mass_per_mib",
            "attention mass per byte",
            "mass/MiB",
            _mass_per_mib,
            _per_mib_text,
            brief_text=_fraction_text,
        ),
        _heat("scas", "S-CAS of this run", "S-CAS", _scas, _fraction_text),
        _heat("rank", "rank by S-CAS", "rank", _rank, _rank_text, bounds=_all_ranks),
        _heat("entropy", "entropy over scales", "entropy", _entropy, _bits_text, bounds=_most_even, unit="bits"),
        Metric(
            "drop_step", "dropped when", "dropped", False, False, _drop_step, _lifetime, _step_text, _brief_step_text
        ),
    )
}
"""In the order that `m` goes through."""
