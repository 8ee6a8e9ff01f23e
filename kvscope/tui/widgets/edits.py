"""What the Schedule screen says while a schedule is edited: budget, peak and loss of what is staged, and its problem.

Everything here that was not measured is dim and carries `est.`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from textual.strip import Strip

from kvscope import units
from kvscope.tui.actions import keys_shown
from kvscope.tui.figures import byte_peaks, planned_peaks
from kvscope.tui.lanes import MARK_WORDS, Change, changes, fate_words
from kvscope.tui.palette import RAMP, UNKNOWN, level
from kvscope.tui.widgets.canvas import Part, View, field, fit, paragraph, parts_width, row, rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.style import Style

    from kvscope.tui.editing import EditState
    from kvscope.tui.feed import Snapshot
    from kvscope.tui.palette import Ink

_HASH = 8
_LABEL = 9
_MOST_NOTES = 2
_KEYS = {
    "edit.drop": "drops",
    "edit.never": "never keeps",
    "edit.pin": "pins",
    "edit.clear": "clears",
    "edit.range": "range",
    "schedule.type": "types",
    "edit.plan": "reviews",
}
"""Actions that are named where there is nothing else to say, and their words there."""
_UNMEASURED = "unknown: the run measured no attention"


def edit_head(view: View, width: int, _height: int) -> list[Strip]:
    """What is staged: budget, peak, edits, loss, and what came of the last edit."""
    snapshot, edit, ink = view.snapshot, view.edit, view.ink
    assert snapshot is not None  # whoever asks has looked
    assert edit is not None
    before, after = edit.before.schedule_sha256[:_HASH], edit.after.schedule_sha256[:_HASH]
    tag = f"est. · sha256 {before} → {after}" if before != after else f"est. · sha256 {after}, as recorded"
    return [
        rule("schedule, edits staged" if edit.edits else "schedule, nothing staged", width, ink, tag=tag),
        _budget_line(edit, width, ink),
        _peak_line(snapshot, edit, width, ink),
        _edits_line(view, edit, width, ink),
        _lost_line(edit, width, ink),
        *([_error_line(edit, width, ink)] if edit.is_predicted else []),
        *notes(view, width),
    ]


def notes(view: View, width: int) -> list[Strip]:
    """The problem of what is staged, or why the last line was not taken, or what it did; and what is not known."""
    edit, ink = view.edit, view.ink
    assert edit is not None  # whoever asks has looked
    if edit.draft.problem is not None:
        return paragraph(f"✗ {problem_words(edit)}", ink.bad, width)[:_MOST_NOTES]
    if edit.is_refused:
        return paragraph(f"✗ {edit.words}", ink.warn, width)[:_MOST_NOTES]
    words = [edit.words] if edit.words else []
    if edit.estimate.unknown_cells:
        words.append(unknown_words(edit))
    if not words:
        words = [f"{keys_shown(one, view.keymap).split()[0]} {word}" for one, word in _KEYS.items()]
    return [row(fit([(f" {' · '.join(words)}", ink.muted)], width, ink.muted))]


def problem_words(edit: EditState) -> str:
    """Why there is no schedule, and the least budget that would do."""
    problem = edit.draft.problem
    assert problem is not None  # whoever asks has looked
    if problem.minimum is None:
        return problem.text
    history, ground = edit.schedule.history_tokens, edit.draft.ground
    tokens = math.ceil(problem.minimum * history - 1e-9)
    a_head = math.ceil(tokens / (ground.config.num_layers * ground.config.num_heads))
    size = units.bytes_text(tokens * ground.bytes_per_token)
    return f"{problem.text} (least: {units.fraction_text(problem.minimum)} = {a_head}t = {size})"


def unknown_words(edit: EditState) -> str:
    """What nothing is known of."""
    count = edit.estimate.unknown_cells
    return f"estimate only: the parent never attended to {count:,} of these"


def edit_cell_line(view: View, width: int, _height: int) -> list[Strip]:
    """The cursor's head-scale, or the selection: as staged, and as it was recorded."""
    snapshot, edit, ink, cursor = view.snapshot, view.edit, view.ink, view.cursor
    assert snapshot is not None  # whoever asks has looked
    assert edit is not None
    here = cursor.layer, cursor.head, cursor.source_scale
    change = Change(changes(edit.draft)[here])
    now, before = fate_words(edit.schedule, *here), fate_words(edit.draft.start, *here)
    place = f" L{cursor.layer} h{cursor.head} s{cursor.source_scale}"
    if view.span is not None:
        ends = ((cursor.layer, view.span.layer), (cursor.head, view.span.head))
        sides = [abs(a - b) + 1 for a, b in (*ends, (cursor.source_scale, view.span.source_scale))]
        place = f" {sides[0]}×{sides[1]}×{sides[2]} = {math.prod(sides)} selected"
    if change is Change.SAME:
        words = f"{now}, as recorded"
    else:
        words = f"{MARK_WORDS[change]}: {now}; recorded: {before}" if now != before else f"{MARK_WORDS[change]}: {now}"
    drop, earlier = (keys_shown(one, view.keymap) for one in ("edit.drop", "cursor.query_back"))
    key = f"  {drop} drops it after scale {cursor.query_scale}"
    if cursor.query_scale == edit.schedule.scales.num_scales - 1:
        key += f", {earlier} chooses an earlier one"
    parts: list[Part] = [(f"{place}  ", ink.accent), (words, ink.text), (key, ink.muted)]
    return [row(parts if parts_width(parts) <= width else fit(parts[:2], width, ink.muted))]


def edit_totals(view: View, width: int, height: int) -> list[Strip]:
    """For each query scale the peak and the loss, as staged and as recorded; and the loss by layer."""
    snapshot, edit, ink = view.snapshot, view.edit, view.ink
    assert snapshot is not None  # whoever asks has looked
    assert edit is not None
    token_bytes, limit = edit.draft.ground.bytes_per_token, edit.draft.limit_tokens
    whole = limit if limit is not None else edit.schedule.history_tokens
    name = f"budget {units.bytes_text(whole * token_bytes)}" if limit is not None else "full history"
    columns = _Columns(ink, max(3, min(12, (width - _LABEL - 2) // edit.schedule.scales.num_scales)))
    room, scale = columns.cell - 1, view.cursor.query_scale
    staged = byte_peaks(snapshot.header.bytes_held(edit.schedule), edit.schedule.num_layers).tolist()
    lost = edit.estimate.lost_by_scale.tolist()
    whole_bytes = whole * token_bytes
    of_whole = max(whole_bytes, 1)  # a budget may allow nothing at all
    texts = [_peak_text(one / of_whole, room, over=limit is not None and one > whole_bytes) for one in staged]
    recorded = [_percent(one / of_whole, room) for one in planned_peaks(snapshot).tolist()]
    measured = [_percent(one.accounted_bytes / of_whole, room) for one in snapshot.summary.scales]
    was = edit.estimate_before.lost_by_scale.tolist()
    tall = height >= 8
    lines = [
        columns.line("query", [str(one) for one in range(len(staged))], scale, ink.text),
        columns.line("est. peak", texts, scale, ink.muted),
        *([columns.line("planned", recorded, scale, ink.muted)] if tall else []),
        *([columns.line(snapshot.summary.tags["scales"], measured, scale, ink.text)] if tall else []),
        columns.line("est. lost", [_share(one, room) for one in lost], scale, ink.muted),
        *([columns.line("was est.", [_share(one, room) for one in was], scale, ink.muted)] if tall else []),
        _layers_line(edit, width, ink),
    ]
    title = f"peak, % of {name}; attention lost, %" if width >= 100 else f"peak, % of {name}; lost, %"
    return [rule(title, width, ink, tag="est. by query scale"), *lines][:height]


class _Columns:
    """Columns of one width, one per query scale."""

    def __init__(self, ink: Ink, cell: int) -> None:
        self.ink, self.cell = ink, cell

    def line(self, name: str, texts: Sequence[str], chosen: int, style: Style) -> Strip:
        parts: list[Part] = [(f" {name:<{_LABEL}}", self.ink.muted)]
        for index, text in enumerate(texts):
            bad = text.startswith("✗")
            # An estimate stays dim where the cursor is too.
            strong = index == chosen and style is not self.ink.muted
            own = self.ink.bad if bad else self.ink.strong if strong else style
            parts.append((f"{text[: self.cell - 1]:>{self.cell}}", own))
        return row(parts)


def _budget_line(edit: EditState, width: int, ink: Ink) -> Strip:
    draft = edit.draft
    limit = draft.limit_tokens
    history = edit.schedule.history_tokens
    value = "none: as much as there is"
    if limit is not None:
        a_head = units.tokens_text(limit // (draft.ground.config.num_layers * draft.ground.config.num_heads))
        size = units.bytes_text(limit * draft.ground.bytes_per_token)
        value = f"{units.fraction_text(draft.budget)} = {a_head} a head = {size}"
    words = (f"of the history's {units.head_tokens_text(history)}, all scales but the last", "of history")
    return field("budget", (value, ink.strong), _that_fits(words, width - len(value) - 13), width, ink)


def _peak_line(snapshot: Snapshot, edit: EditState, width: int, ink: Ink) -> Strip:
    after, headroom = edit.after, edit.estimate.headroom_bytes
    value = f"est. {units.bytes_text(after.peak_bytes)}"
    if headroom is not None:
        value += f", {'headroom' if headroom >= 0 else 'over the budget by'} {units.bytes_text(abs(headroom))}"
    value += f" at scale {after.peak_query_scale} L{after.peak_layer}"
    measured, tag = snapshot.summary.accounted_peak_bytes, snapshot.summary.tags["accounted_peak_bytes"]
    was = f"recorded: {units.bytes_text(measured)} {tag}" if measured is not None else ""
    style = ink.bad if headroom is not None and headroom < 0 else ink.muted
    return field("peak", (value, style), was, width, ink)


def _edits_line(view: View, edit: EditState, width: int, ink: Ink) -> Strip:
    draft = edit.draft
    filler = f"policy {draft.policy} fills" if draft.policy else "no policy fills"
    undo, redo = (keys_shown(f"schedule.{one}", view.keymap) for one in ("undo", "redo"))
    more = f"{undo} undoes {len(edit.edits)}, {redo} redoes {edit.num_undone}"
    value = f"{len(edit.edits)} · {draft.num_pins:,} by hand · {filler}"
    count = f"{edit.num_changed:,}"
    words = [f"{count} head-scales changed · {more}", f"{count} changed · {more}", f"{count} changed"]
    if edit.journal:
        words.insert(0, f"{words[0]} · {units.printable(edit.journal)}")
    return field("edits", (value, ink.text), _that_fits(words, width - len(value) - 13), width, ink)


def _lost_line(edit: EditState, width: int, ink: Ink) -> Strip:
    if edit.after.lost is None:
        measured = bool((edit.estimate.weights > 0).any()) and edit.estimate.unknown_cells > 0
        value = "unknown: nothing of it was measured" if measured else _UNMEASURED
        return field("lost", (value, ink.muted), "", width, ink)
    value = f"est. {units.fraction_text(edit.after.lost)} of attention"
    was = f"recorded plan: est. {units.fraction_text(edit.before.lost, absent='unknown')}"
    known = edit.estimate.known_fraction
    partly = f"; known of {units.fraction_text(known)} of heads" if known < 1 else ""
    return field("lost", (value, ink.muted), _that_fits((was + partly, was), width - len(value) - 13), width, ink)


def _error_line(edit: EditState, width: int, ink: Ink) -> Strip:
    after, before = edit.after, edit.before
    kl = band_text(after.kl)
    why_not = "what coarser codecs lose was not tried" if after.is_coarse else "past all that was tried"
    value = f"est. KL {kl} nats a bit, forced" if after.kl is not None else f"no prediction: {why_not}"
    flips = f"bits that flip est. {share_band_text(after.flips)}"
    was = f"{flips}; recorded plan: KL est. {band_text(before.kl)}"
    return field("error", (value, ink.muted), _that_fits((was, flips), width - len(value) - 13), width, ink)


def band_text(band: tuple[float, float, float] | None) -> str:
    """A prediction: its middle, and between what it falls in eight cases of ten."""
    return "unknown" if band is None else f"{band[1]:.2g} ({band[0]:.2g}–{band[2]:.2g})"


def share_band_text(band: tuple[float, float, float] | None) -> str:
    """The same of a share of bits."""
    if band is None:
        return "unknown"
    low, middle, high = (units.fraction_text(one) for one in band)
    return f"{middle} ({low.removesuffix(' %')}–{high})"


def _layers_line(edit: EditState, width: int, ink: Ink) -> Strip:
    """One glyph per layer, least to most of what is lost."""
    lost = edit.estimate.lost_by_layer.tolist()
    known = [one for one in lost if not math.isnan(one)]
    if not known:
        return field("by layer", ("unknown", ink.muted), "", width, ink)
    most = max(known)
    glyphs = "".join(UNKNOWN if math.isnan(one) else RAMP[level(one, 0, most or 1, levels=len(RAMP))] for one in lost)
    more = f"L0–L{len(lost) - 1}, most est. {units.fraction_text(most)} at L{lost.index(most)}"
    return field("by layer", (glyphs, ink.calm), more, width, ink)


def _that_fits(words: Iterable[str], room: int) -> str:
    return next((one for one in words if len(one) <= room), "")


def _peak_text(fraction: float, room: int, *, over: bool) -> str:
    text = _percent(fraction, room - over)
    if text == "…":
        text = f"{fraction:.0f}×"  # not percent any more
    return f"✗{text}" if over else text


def _share(fraction: float, room: int) -> str:
    return UNKNOWN if math.isnan(fraction) else _percent(fraction, room)


def _percent(fraction: float, room: int) -> str:
    """A share in percent without its sign, with as many digits as there is room for; only nothing is 0."""
    if fraction == 0:
        return "0"
    texts = (f"{fraction * 100:.{digits}f}" for digits in (2, 1, 0))
    text = next((one for one in texts if len(one) <= room), "…")
    return text if text == "…" or float(text) > 0 else "<1" if room < 4 else "<.01"[:room]
