"""Lanes: one line per head, one bar per source scale for the share of the steps left that it lives; and the plan's sum.

Heads that do not fit below each other go on in a block beside; what still does not fit is another page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from textual.strip import Strip

from kvscope import units
from kvscope.tui.figures import planned_peaks
from kvscope.tui.history import parameters_words
from kvscope.tui.lanes import (
    CODEC_LETTERS,
    PINS,
    Change,
    changes,
    lifetimes,
    plan_facts,
    source_fates,
)
from kvscope.tui.metrics import stored_codec, why
from kvscope.tui.palette import DROPPED
from kvscope.tui.widgets.canvas import Part, View, field, fit, parts_width, row, rule
from kvscope.tui.widgets.capacity import capacity_hit, capacity_table
from kvscope.tui.widgets.edits import edit_cell_line, edit_head, edit_totals

if TYPE_CHECKING:
    from heatkv.schedule import PruningSchedule
    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Snapshot
    from kvscope.tui.palette import Ink

_LABEL = 9
_GAP = 2
_NARROWEST, _WIDEST = 4, 9
"""Columns of one cell, the gap before its bar included."""
_MOST_BLOCKS = 3
_SHORT = 16
"""Where there are fewer lines, the token grids have none."""

_EIGHTHS = " ▏▎▍▌▋▊▉"
_HALF_IN_ASCII = "─"
_SINK = "━"
_HASH = 12
"""Letters of the schedule's hash that are shown."""
_ROOM_FOR_BYTES = 9

MARKS = {
    Change.SAME: " ",
    Change.PINNED_KEPT: "◆",
    Change.PINNED_GONE: "✗",
    Change.LONGER: "▲",
    Change.SHORTER: "▼",
    Change.RECODED: "○",
}
"""What stands before the bar of a head-scale that was edited."""
EDIT_LEGEND = "◆ pinned · ✗ dropped by hand · ▲ longer · ▼ shorter than recorded"


@dataclass(frozen=True, slots=True)
class LaneFold:
    """How lanes lie in a rectangle, below `heads` lines of titles."""

    cell: int
    blocks: int
    rows: int
    first: int
    """The first lane of the page."""
    num_scales: int
    heads: int

    @property
    def block_width(self) -> int:
        return _LABEL + self.num_scales * self.cell + _GAP

    @property
    def page(self) -> int:
        return self.blocks * self.rows

    def lane_at(self, row_index: int, block: int) -> int:
        return self.first + block * self.rows + row_index


def lane_fold(schedule: PruningSchedule, width: int, height: int, *, lane: int) -> LaneFold:
    """As many blocks as fit and are needed, then the widest cells; the page that has the lane."""
    heads = 4 if height >= _SHORT else 3
    rows, scales = max(1, height - 1 - heads), schedule.scales.num_scales
    lanes = schedule.num_layers * schedule.num_heads
    narrow = _LABEL + scales * _NARROWEST + _GAP
    blocks = max(1, min(_MOST_BLOCKS, width // narrow, -(-lanes // rows)))
    cell = max(2, min(_WIDEST, (width // blocks - _LABEL - _GAP) // scales))
    page = blocks * rows
    return LaneFold(cell, blocks, rows, lane // page * page, scales, heads)


def lanes(view: View, width: int, height: int) -> list[Strip]:
    """A rule, the source scales with how many of each are dropped, and the lanes of one page."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None:
        return [rule("lanes", width, ink)]
    schedule = schedule_of(view, snapshot)
    if schedule.online:
        return capacity_table(view, snapshot, width, height)
    fold = _fold(view, snapshot, width, height)
    total = schedule.num_layers * schedule.num_heads
    last = min(total, fold.first + fold.page)
    title = f"heads {fold.first}–{last - 1} of 0–{total - 1}" if last - fold.first < total else f"all {total} heads"
    title += " × source scales: how long each lives"
    legend = f"{_bar(1.0, 3, ink)} to the end · {_bar(0.5, 3, ink)} dropped · {_SINK * 3} sink · {DROPPED} never kept"
    if view.edit is not None:
        legend = EDIT_LEGEND
        if parts_width([(title + legend, ink.text)]) + 12 > width:
            title = f"heads {fold.first}–{last - 1} of {total}" if last - fold.first < total else f"all {total} heads"
    plan = "plan" if view.edit is None else "staged plan"
    roomy = parts_width([(title + legend, ink.text)]) + 12 <= width
    return [
        rule(title, width, ink, tag=f"{legend} · {plan}" if roomy else plan),
        *_titles(view, snapshot, fold),
        *(row(_line_parts(view, snapshot, fold, y), width) for y in range(fold.rows)),
    ]


def lanes_hit(view: View, width: int, height: int, x: int, y: int) -> Cursor | None:
    """The head-scale at a place; above the lanes, the cursor's head at that source scale."""
    snapshot = view.snapshot
    if snapshot is None or y < 1:
        return None
    if snapshot.schedule.online:
        return capacity_hit(view, snapshot, width, height, x, y)
    fold = _fold(view, snapshot, width, height)
    block, inside = divmod(x, fold.block_width)
    # A cell begins with its gap, and the one after the last belongs to the block's end.
    source = (inside - _LABEL) // fold.cell
    if block >= fold.blocks or inside < _LABEL or source >= fold.num_scales:
        return None
    if y <= fold.heads:
        return replace(view.cursor, source_scale=source)
    if y - 1 - fold.heads >= fold.rows:
        return None
    layer, head = divmod(fold.lane_at(y - 1 - fold.heads, block), snapshot.schedule.num_heads)
    if layer >= snapshot.schedule.num_layers:
        return None
    return replace(view.cursor, layer=layer, head=head, source_scale=source)


def cell_line(view: View, width: int, _height: int) -> list[Strip]:
    """The cursor's head-scale in words: when it is dropped, or why not."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None:
        return []
    if view.edit is not None:
        return edit_cell_line(view, width, _height)
    cursor = view.cursor
    rows, columns = snapshot.schedule.scales.sizes[cursor.source_scale]
    drop_step = int(snapshot.schedule.drop_step[cursor.layer, cursor.head, cursor.source_scale])
    sentence: Part = (why(snapshot, cursor), ink.text)
    place = f" L{cursor.layer} h{cursor.head} s{cursor.source_scale}"
    grid: Part = (f"{place} ({rows}×{columns})  ", ink.accent)
    longest: list[Part] = [grid, sentence, (f"  drop step {drop_step}", ink.muted)]
    for parts in (longest, longest[:2])[snapshot.schedule.online :]:
        if parts_width(parts) <= width:
            return [row(parts)]
    return [row(fit([(f"{place}  ", ink.accent), sentence], width, ink.muted))]


def plan_head(view: View, width: int, _height: int) -> list[Strip]:
    """The budget in every unit, the peak and what is left at it, and which plan this is."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None:
        return [rule("schedule", width, ink)]
    if view.edit is not None:
        return edit_head(view, width, _height)
    facts, schedule = plan_facts(snapshot), snapshot.schedule
    name = f"{units.printable(schedule.policy)}{parameters_words(schedule)}"
    policy = f"{name}, {schedule.sink_scales} sink scales"
    dropped = f"{facts.dropped:,} of {facts.head_scales:,} head-scales dropped"
    if schedule.online:
        dropped = "chooses during the run which tokens stay"
    return [
        rule("schedule", width, ink, tag=f"planned · sha256 {schedule.content_hash[:_HASH]}"),
        _budget_line(snapshot, width, ink),
        _peak_line(snapshot, width, ink),
        field("policy", (policy, ink.text), dropped, width, ink),
    ]


def plan_head_height(view: View, width: int) -> int:
    return len(plan_head(view, width, 0))


def totals(view: View, width: int, height: int) -> list[Strip]:
    """A rule, and for each query scale the most it holds: planned, and measured where it ran."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is None:
        return [rule("peak of each query scale", width, ink)]
    if view.edit is not None:
        return edit_totals(view, width, height)
    budget, full = snapshot.summary.budget_bytes, snapshot.summary.full_history_bytes
    whole, name = (budget, "budget") if budget else (full, "full history")
    title = f"peak of each query scale, % of {name} {units.bytes_text(whole)}"
    fold = _Totals.of(view, snapshot, width)
    how = snapshot.summary.tags["scales"]
    planned = planned_peaks(snapshot).tolist()
    measured = [scale.accounted_bytes for scale in snapshot.summary.scales]
    scales = [str(scale) for scale in range(len(planned))]
    room = fold.cell - 1
    lines = [
        fold.line("query", scales, view.cursor.query_scale),
        fold.line("planned", [_percent(one / whole, room) for one in planned], view.cursor.query_scale),
        fold.line(how, [_percent(one / whole, room) for one in measured], view.cursor.query_scale),
    ]
    if height >= 6 and fold.cell >= _ROOM_FOR_BYTES:
        lines[2:2] = [fold.line("", [units.bytes_text(one) for one in planned], view.cursor.query_scale)]
        lines.append(fold.line("", [units.bytes_text(one) for one in measured], view.cursor.query_scale))
    if not measured:
        lines[-1] = row([(f" {how:<{_LABEL}}", ink.muted), ("nothing has run yet", ink.muted)])
    return [rule(title, width, ink, tag=f"planned · {how}" if measured else "planned"), *lines[: height - 1]]


def totals_hit(view: View, width: int, _height: int, x: int, y: int) -> Cursor | None:
    """The query scale of a column, if it ran."""
    snapshot = view.snapshot
    if snapshot is None or y < 1:
        return None
    scale = (x - _LABEL - 1) // _Totals.of(view, snapshot, width).cell
    return replace(view.cursor, query_scale=scale) if 0 <= scale < snapshot.scales_done and x > _LABEL else None


@dataclass(frozen=True, slots=True)
class _Totals:
    """Columns of one width, one per query scale."""

    ink: Ink
    cell: int

    @classmethod
    def of(cls, view: View, snapshot: Snapshot, width: int) -> _Totals:
        room = (width - _LABEL - 2) // snapshot.schedule.scales.num_scales
        return cls(view.ink, max(3, min(12, room)))

    def line(self, name: str, texts: list[str], chosen: int) -> Strip:
        ink = self.ink
        parts: list[Part] = [(f" {name:<{_LABEL}}", ink.muted)]
        for index, text in enumerate(texts):
            style = ink.strong if index == chosen else ink.text
            parts.append((f"{text[: self.cell - 1]:>{self.cell}}", style))
        return row(parts)


def _budget_line(snapshot: Snapshot, width: int, ink: Ink) -> Strip:
    """The budget as a fraction, a head's tokens and bytes; then what it is a fraction of, in the words that fit."""
    facts = plan_facts(snapshot)
    keeps_all = snapshot.schedule.peak_tokens == snapshot.schedule.history_tokens
    value = "none: everything is kept" if keeps_all else "none"
    if facts.budget_tokens is not None:
        a_head = units.tokens_text(facts.budget_tokens // facts.heads)
        value = f"{units.fraction_text(facts.budget)} = {a_head} a head = {units.bytes_text(facts.budget_bytes)}"
    history = units.head_tokens_text(facts.history_tokens)
    words = (f"of the history's {history}, all scales but the last", f"of history, {history}", "of history")
    room = width - len(value) - 12
    return field("budget", (value, ink.strong), next((one for one in words if len(one) <= room), ""), width, ink)


def _peak_line(snapshot: Snapshot, width: int, ink: Ink) -> Strip:
    """The planned peak and the least headroom, which is there; and the measured peak, tagged, where there is one."""
    facts, summary = plan_facts(snapshot), snapshot.summary
    place = f"scale {facts.peak_place.query_scale} L{facts.peak_place.layer}"
    value = f"{units.bytes_text(facts.peak_bytes)} planned"
    if facts.headroom_bytes is not None:
        left = "headroom" if facts.headroom_bytes >= 0 else "over the budget by"
        value += f", {left} {units.bytes_text(abs(facts.headroom_bytes))}"
    value += f" at {place}"
    measured = summary.accounted_peak_bytes
    tag = summary.tags["accounted_peak_bytes"]
    more = "" if measured is None else f"{units.bytes_text(measured)} {tag}"
    return field("peak", (value, ink.text), more, width, ink)


def schedule_of(view: View, snapshot: Snapshot) -> PruningSchedule:
    """The plan that is shown: the staged one where there is editing, else the run's own."""
    return snapshot.schedule if view.edit is None else view.edit.schedule


def _is_selected(view: View, layer: int, head: int, source: int) -> bool:
    """Within the box between the cursor and the other corner of the selection."""
    if view.span is None:
        return False
    here = (layer, head, source)
    one, other = ((end.layer, end.head, end.source_scale) for end in (view.cursor, view.span))
    return all(min(a, b) <= index <= max(a, b) for index, a, b in zip(here, one, other, strict=True))


def _fold(view: View, snapshot: Snapshot, width: int, height: int) -> LaneFold:
    lane = view.cursor.layer * snapshot.schedule.num_heads + view.cursor.head
    return lane_fold(snapshot.schedule, width, height, lane=lane)


def _titles(view: View, snapshot: Snapshot, fold: LaneFold) -> Iterator[Strip]:
    """The source scales above every block; above the first, how many of each are dropped and how much is kept."""
    schedule, room = schedule_of(view, snapshot), fold.cell - 1
    fates, sizes = source_fates(schedule), schedule.scales.sizes
    squares = not view.ink.plain
    sides = [f"{height}²" if squares and height == width else f"{height}×{width}" for height, width in sizes]
    yield _title_line(view, fold, "source", [str(index) for index in range(len(sizes))], blocks=fold.blocks)
    if fold.heads == 4:
        texts = [side if len(side) <= room else "" for side in sides]
        yield _title_line(view, fold, "grid", texts, blocks=fold.blocks)
    texts = [str(fate.dropped) if len(str(fate.dropped)) <= room else "…" for fate in fates[:-1]]
    yield _title_line(view, fold, "dropped", [*texts, ""], blocks=1)
    texts = [_percent(fate.kept_fraction, room) for fate in fates[:-1]]
    yield _title_line(view, fold, "kept %", [*texts, ""], blocks=1)


def _percent(fraction: float, room: int) -> str:
    """A share without its sign, which the line's name has; with as many digits as there is room for."""
    texts = [units.fraction_text(fraction).removesuffix(" %"), *(f"{fraction * 100:.{count}f}" for count in (2, 1, 0))]
    text = next((text for text in texts if len(text) <= room), "…")
    # Neither all nor nothing is said of what is only nearly so.
    if float(text.replace("…", "nan")) == 0 < fraction:
        return "<1"
    return "99" if float(text.replace("…", "nan")) == 100 > fraction * 100 else text


def _title_line(view: View, fold: LaneFold, name: str, texts: list[str], *, blocks: int) -> Strip:
    ink = view.ink
    parts: list[Part] = []
    for _ in range(blocks):
        parts.append((f" {name:<{_LABEL - 1}}", ink.muted))
        for source, text in enumerate(texts):
            chosen = source == view.cursor.source_scale
            parts.append((f" {text:<{fold.cell - 1}}", ink.accent if chosen else ink.muted))
        parts.append((" " * _GAP, ink.muted))
    return row(parts)


def _line_parts(view: View, snapshot: Snapshot, fold: LaneFold, y: int) -> Iterator[Part]:
    ink, schedule = view.ink, schedule_of(view, snapshot)
    lived = lifetimes(schedule)
    changed = None if view.edit is None else changes(view.edit.draft)
    # Where the frame cannot differ from a bar by its colour, it does by its shape.
    opening, closing = "▐▌" if ink.colour else "[]"
    for block in range(fold.blocks):
        layer, head = divmod(fold.lane_at(y, block), schedule.num_heads)
        if layer >= schedule.num_layers:
            return
        here = (layer, head) == (view.cursor.layer, view.cursor.head)
        yield f"{'▸' if here else ' '}{f'L{layer} h{head}':<{_LABEL - 1}}", ink.strong if here else ink.muted
        for source in range(fold.num_scales):
            chosen = here and source == view.cursor.source_scale
            after = here and source == view.cursor.source_scale + 1
            if chosen or (changed is not None and _is_selected(view, layer, head, source)):
                yield opening, ink.accent
            elif after or changed is None:
                yield (closing if after else " "), ink.accent
            else:
                change = Change(changed[layer, head, source])
                yield MARKS[change], ink.strong if change in PINS else ink.muted
            letter = CODEC_LETTERS.get(stored_codec(schedule, layer, head, source), "")
            yield from _cell(schedule, source, float(lived[layer, head, source]), fold.cell - 1, ink, letter)
        closed = here and view.cursor.source_scale == fold.num_scales - 1
        yield (closing if closed else " ").ljust(_GAP), ink.accent


def _cell(
    schedule: PruningSchedule, source: int, lived: float, width: int, ink: Ink, letter: str = ""
) -> Iterator[Part]:
    """A bar; that of what is ever stored in a codec begins with the codec's letter."""
    if source < schedule.sink_scales:
        yield letter + _SINK * (width - len(letter)), ink.muted
        return
    if letter and lived > 0:
        yield letter, ink.text
        width -= 1
    bar = _bar(lived, width, ink)
    alive = bar.rstrip(DROPPED)
    yield alive, ink.calm
    yield bar[len(alive) :], ink.faint if alive else ink.muted


def _bar(lived: float, width: int, ink: Ink) -> str:
    """A bar in eighths, in ASCII in halves; only what lives to the end fills it, only what never does is empty."""
    if lived <= 0.0:
        return DROPPED.ljust(width)
    if lived >= 1.0:
        return "█" * width
    steps = 2 if ink.plain else len(_EIGHTHS)
    parts = max(1, min(width * steps - 1, round(lived * width * steps)))
    full, rest = divmod(parts, steps)
    part = (_HALF_IN_ASCII if ink.plain else _EIGHTHS[rest]) if rest else ""
    return ("█" * full + part).ljust(width, DROPPED)
