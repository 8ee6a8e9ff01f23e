"""History: the life of one head-scale in numbers and sentences: by which rule it went, what it held, what was lost.

Pure numpy over a Snapshot; knows nothing of screens. What is planned and what was observed are kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from kvscope import units
from kvscope.in_force import plan_at
from kvscope.tui.metrics import kept_words, ranks_of, scas_of

if TYPE_CHECKING:
    from heatkv.schedule import PruningSchedule
    from kvscope.tui.feed import Snapshot

NOBODY_LOOKED = "unknown since: nothing looked"
"""Of attention to what is gone."""


class Fate(Enum):
    """What the plan does with a head-scale."""

    SINK = "sink"
    LAST = "last"
    UNKEPT = "unkept"
    """Read at its own step only."""
    KEPT = "kept"
    """To the end of the run."""
    DROPPED = "dropped"
    CHOSEN = "chosen"
    """Token by token, by an online policy during the run."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A head-scale at one finished query scale; NaN: not measured."""

    query_scale: int
    kept_tokens: int
    """After the layer's step."""
    kept_bytes: int
    read_tokens: int
    mass: float
    """Share of the head's attention."""
    mass_uncond: float
    of_cache: float
    """Share of the attention that the head paid to earlier scales; NaN at its own query scale too."""
    as_planned: bool
    """Kept and read as the schedule says; of an online policy: nothing is kept that was not read."""


@dataclass(frozen=True, slots=True)
class History:
    """One head-scale from its first step to the last finished one."""

    layer: int
    head: int
    source_scale: int
    fate: Fate
    tokens: int
    num_bytes: int
    """Of all its tokens, for all rows."""
    drop_step: int
    num_layers: int
    scas: float
    """Mean mass over the later query scales that read it; NaN: none has."""
    scas_scales: int
    """How many query scales that is the mean of."""
    rank: int | None
    """By S-CAS among the heads of its source scale, 1 has most; None: it has no S-CAS."""
    ranked: int
    """How many heads of its source scale have a rank."""
    median: float
    """The median S-CAS of these."""
    moments: tuple[Moment, ...]

    @property
    def dropped_after(self) -> tuple[int, int]:
        """The query scale and the layer of its drop step."""
        return divmod(self.drop_step, self.num_layers)

    @property
    def is_early(self) -> bool:
        """Planned to be dropped before its own layer reads it at that query scale."""
        query_scale, layer = self.dropped_after
        return self.fate is Fate.DROPPED and query_scale > self.source_scale and layer < self.layer

    @property
    def is_gone(self) -> bool:
        """Observed: the last finished query scale did not keep it."""
        return bool(self.moments) and not self.moments[-1].kept_tokens

    @property
    def last_read(self) -> Moment | None:
        """The last query scale that read it; None: none has yet."""
        return next((one for one in reversed(self.moments) if one.read_tokens), None)

    @property
    def unplanned(self) -> tuple[int, ...]:
        """Query scales at which it was not kept or read as planned."""
        return tuple(one.query_scale for one in self.moments if not one.as_planned)


@lru_cache(maxsize=16)
def history_of(snapshot: Snapshot, layer: int, head: int, source_scale: int) -> History:
    """The life of one head-scale as far as the run has come."""
    schedule = snapshot.schedule
    tokens = schedule.scales.tokens[source_scale]
    scores, ranks = scas_of(snapshot)[:, :, source_scale], ranks_of(snapshot)[layer, head, source_scale]
    known = scores[np.isfinite(scores)]
    moments = tuple(
        _moment(snapshot, query_scale, layer, head, source_scale)
        for query_scale in range(source_scale, snapshot.scales_done)
    )
    return History(
        layer=layer,
        head=head,
        source_scale=source_scale,
        fate=_fate(snapshot, layer, head, source_scale),
        tokens=tokens,
        num_bytes=tokens * _token_bytes(snapshot, layer, head, source_scale),
        drop_step=int(schedule.drop_step[layer, head, source_scale]),
        num_layers=schedule.num_layers,
        scas=float(scores[layer, head]),
        scas_scales=sum(one.read_tokens > 0 and np.isfinite(one.mass) for one in moments[1:]),
        rank=None if np.isnan(ranks) else int(ranks),
        ranked=known.size,
        median=float(np.median(known)) if known.size else float("nan"),
        moments=moments,
    )


def rule_words(snapshot: Snapshot, history: History) -> str:
    """By which rule the head-scale is kept or dropped, and where that rule came from."""
    schedule = snapshot.schedule
    if history.fate is Fate.LAST:
        return "No later scale reads the last one, so no policy keeps it."
    if history.fate is Fate.SINK:
        return f"The first {schedule.sink_scales} scales of this run are its sink scales: no policy evicts them."
    budget = "" if schedule.budget is None else f" with a budget of {units.fraction_text(schedule.budget)}"
    rule = f"Decided by the policy {units.printable(schedule.policy)}{budget}, {_source(snapshot)}"
    if history.fate is Fate.CHOSEN:
        return f"{_choice(snapshot, budget)} {_rows(snapshot)}"
    if history.is_early:
        reason = ", to stay within the budget" if schedule.budget is not None else ""
        return f"{rule}. Dropped early, before its own layer read it at that scale{reason}."
    if history.fate is Fate.KEPT:
        return f"{rule}, which leaves this head-scale to the end."
    return f"{rule}."


def planned_words(history: History) -> str:
    """What the schedule says of it."""
    scale, layer = history.dropped_after
    return {
        Fate.SINK: "kept to the end",
        Fate.KEPT: "kept to the end",
        Fate.LAST: "never cached",
        Fate.UNKEPT: f"read at scale {history.source_scale}, never kept",
        Fate.CHOSEN: "only how many tokens the head holds; which ones is chosen during the run",
        Fate.DROPPED: f"dropped after scale {scale}, layer {layer}" + (" (early)" if history.is_early else ""),
    }[history.fate]


def observed_words(history: History) -> str:
    """What the recorded tokens say of it, and whether that is what was planned."""
    if not history.moments:
        return "not written yet"
    kept = [one.query_scale for one in history.moments if one.kept_tokens]
    read, now = history.last_read, history.moments[-1].query_scale
    if history.fate is Fate.CHOSEN and not history.is_gone:
        words = f"{kept_words(history.moments[-1].kept_tokens, history.tokens)} held after scale {now}"
    elif not history.is_gone:
        words = f"held after scale {now}"
    elif not kept:
        words = f"read at scale {history.source_scale}, held after no scale"
    elif read is not None and read.query_scale > kept[-1]:
        words = f"gone after scale {read.query_scale}, which read it"
    else:
        words = f"held after scale {kept[-1]}, gone when scale {kept[-1] + 1} read"
    if history.fate is Fate.CHOSEN:
        return words
    if history.unplanned:
        return f"{words}; not as planned at scale {', '.join(map(str, history.unplanned))}"
    return f"{words}: as planned"


def rank_words(history: History) -> str:
    """Its place by the run's own S-CAS among the heads of its source scale."""
    if history.rank is None:
        return "no later scale that was measured has read it"
    share, median = units.fraction_text(history.scas), units.fraction_text(history.median)
    scales = f"{history.scas_scales} later scale{'' if history.scas_scales == 1 else 's'} that read it"
    return f"{share}, rank {history.rank} of {history.ranked}; median {median}. Mean over {scales}"


def size_words(history: History) -> str:
    """What it takes in the cache, or frees by going."""
    size = f"{units.tokens_text(history.tokens)} = {units.bytes_text(history.num_bytes)}"
    if history.fate is Fate.LAST:
        return f"nothing: its {units.tokens_text(history.tokens)} are never cached"
    if history.fate is Fate.CHOSEN and history.moments:
        now = history.moments[-1]
        held = (
            f"{units.tokens_text(now.kept_tokens)} = {units.bytes_text(now.kept_bytes)} after scale {now.query_scale}"
        )
        return f"{held}; all of it would take {size}"
    if history.fate is Fate.UNKEPT:
        return f"nothing; keeping it would take {size}"
    if history.fate is Fate.DROPPED:
        return f"{size}, freed" if history.is_gone else f"{size}, until it is dropped"
    return size


def lost_words(history: History) -> str:
    """What went with it: its last measured mass, and that nothing is known of later."""
    if history.fate is Fate.CHOSEN and history.moments and 0 < history.moments[-1].kept_tokens < history.tokens:
        gone = history.tokens - history.moments[-1].kept_tokens
        return f"{units.tokens_text(gone)} of it; what attention they would get is {NOBODY_LOOKED}"
    if not history.is_gone or history.fate is Fate.LAST:
        return "nothing so far: it is still there" if history.moments and history.fate is not Fate.LAST else "nothing"
    last = history.last_read
    if last is None or np.isnan(last.mass):
        return f"{units.NOT_MEASURED}; {NOBODY_LOOKED}"
    of = "the tokens left of it" if history.fate is Fate.CHOSEN else "it"
    at = f"at scale {last.query_scale}, the last to read {of}"
    return f"{units.fraction_text(last.mass)} of this head's attention {at}; {NOBODY_LOOKED}"


def _choice(snapshot: Snapshot, budget: str) -> str:
    """Who chooses, and with which parameters."""
    schedule = snapshot.schedule
    policy = f"{units.printable(schedule.policy)}{parameters_words(schedule)}"
    return f"Chosen by the policy {policy}{budget}: token by token, after each scale, during the run."


def parameters_words(schedule: PruningSchedule) -> str:
    """An online policy's parameters: `:window=4,kernel=5`; empty: it has none, or they are not known."""
    given = schedule.provenance.get("parameters")
    if not isinstance(given, dict) or not given:
        return ""
    return ":" + units.printable(",".join(f"{name}={value}" for name, value in given.items()))


def _rows(snapshot: Snapshot) -> str:
    """Whose tokens are told of."""
    if snapshot.schedule.provenance.get("rows") == "run":
        return "Every row keeps the same tokens."
    return "What is told here is the first row; other rows may keep other tokens, as many of the head in all."


def _source(snapshot: Snapshot) -> str:
    """Where the plan's knowledge of the heads came from."""
    job, orders = snapshot.header.job, snapshot.schedule.provenance.get("orders")
    if job.schedule is not None:
        return f"as written in the schedule {_name(job.schedule)}"
    if isinstance(orders, str):
        bundled = "bundled " if job.orders is None else ""
        return f"from the {bundled}head orders {_name(orders)}"
    return "from no head orders"


def _name(path: str) -> str:
    """The last part of a path, which may come from another system."""
    return units.printable(PurePath(path.replace("\\", "/")).name or path)


def _fate(snapshot: Snapshot, layer: int, head: int, source_scale: int) -> Fate:
    schedule = snapshot.schedule
    drop_step = int(schedule.drop_step[layer, head, source_scale])
    if source_scale == schedule.scales.num_scales - 1:
        return Fate.LAST
    if source_scale < schedule.sink_scales:
        return Fate.SINK
    if schedule.online:
        return Fate.CHOSEN
    if drop_step == schedule.num_steps - 1:
        return Fate.KEPT
    return Fate.UNKEPT if drop_step == source_scale * schedule.num_layers + layer else Fate.DROPPED


def _moment(snapshot: Snapshot, query_scale: int, layer: int, head: int, source_scale: int) -> Moment:
    place = query_scale, layer, head, source_scale
    kept, read = int(snapshot.kept_tokens[place]), int(snapshot.read_tokens[place])
    mass, own = float(snapshot.attention_mass[place]), float(snapshot.attention_mass[(*place[:3], query_scale)])
    past = 1.0 - own if query_scale > source_scale else float("nan")
    return Moment(
        query_scale=query_scale,
        kept_tokens=kept,
        kept_bytes=kept * _token_bytes(snapshot, layer, head, source_scale),
        read_tokens=read,
        mass=mass,
        mass_uncond=float(snapshot.attention_mass_uncond[place]),
        of_cache=mass / past if past > 0 else float("nan"),
        as_planned=kept <= read
        if snapshot.schedule.online
        else (kept, read) == _planned(snapshot, query_scale, layer, head, source_scale),
    )


def _token_bytes(snapshot: Snapshot, layer: int, head: int, source_scale: int) -> int:
    return int(snapshot.header.bytes_of(snapshot.schedule)[layer, head, source_scale])


def _planned(snapshot: Snapshot, query_scale: int, layer: int, head: int, source_scale: int) -> tuple[int, int]:
    """Tokens kept after and read at a step, by the schedule that was in force."""
    schedule = plan_at(snapshot.plans, query_scale)
    drop_step, step = int(schedule.drop_step[layer, head, source_scale]), query_scale * schedule.num_layers + layer
    is_last = source_scale == schedule.scales.num_scales - 1
    kept = not is_last and (drop_step > step or drop_step == schedule.num_steps - 1)
    tokens = schedule.scales.tokens[source_scale]
    return tokens * kept, tokens * (drop_step >= step)
