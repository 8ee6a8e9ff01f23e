"""What the Plan screen draws: the edits, what changes by source scale, totals before and after, and the plan's run.

Estimates are dim and carry `est.`; what a run measured is plain, what a forced run says is tagged `forced`.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from textual.strip import Strip

from kvscope import units
from kvscope.tui.actions import keys_shown
from kvscope.tui.palette import RAMP, level
from kvscope.tui.widgets.canvas import Part, View, centred, fit, paragraph, parts_width, row, rule
from kvscope.tui.widgets.edits import band_text, notes, share_band_text, unknown_words

if TYPE_CHECKING:
    from rich.style import Style

    from kvscope.planfile import Totals
    from kvscope.tui.applying import Applied, Review
    from kvscope.tui.editing import EditState
    from kvscope.tui.palette import Ink

_HASH = 12
_NAME, _VALUE = 11, 22
_WIDEST_WORDS = 90


def plan_totals(view: View, width: int, height: int) -> list[Strip]:
    """Before → after, a line each; where nothing is edited, how to begin."""
    edit, ink = view.edit, view.ink
    if edit is None:
        return [rule("plan", width, ink), *_read_only(view, width, height - 1)]
    title = f"plan: {edit.num_changed:,} head-scales change" if edit.draft.is_changed else "plan: nothing changes"
    lines = [_totals_row(view, "", "recorded", "staged", ink.muted, ink.muted, width)]
    for name, before, after in _facts(edit):
        lines.append(_totals_row(view, name, before, after, _style(before, ink), _style(after, ink), width))
    words = notes(view, width) if edit.draft.problem is not None or edit.is_refused else []
    if edit.estimate.unknown_cells and not words:
        words = [row(fit([(f" {unknown_words(edit)}", ink.warn)], width, ink.muted))]
    return [rule(title, width, ink, tag="staged: est."), *lines, *words]


def plan_totals_height(view: View, width: int) -> int:
    return 6 if view.edit is None else len(plan_totals(view, width, 0))


def plan_sources(view: View, width: int, _height: int) -> list[Strip]:
    """How many head-scales change of each source scale."""
    edit, ink = view.edit, view.ink
    if edit is None:
        return []
    counts = edit.changed_by_source.tolist()
    most = max(counts) or 1
    cell = max(4, min(10, (width - _NAME - 1) // len(counts)))
    names: list[Part] = [(f" {'source':<{_NAME - 1}}", ink.muted)]
    numbers: list[Part] = [(f" {'changed':<{_NAME - 1}}", ink.muted)]
    for source, count in enumerate(counts):
        bar = RAMP[level(count, 0, most, levels=len(RAMP))] if count else " "
        names.append((f"{source:>{cell}}", ink.muted))
        numbers.append(
            (f"{f'{bar}{count}' if len(str(count)) < cell else '…':>{cell}}", ink.text if count else ink.faint)
        )
    return [rule("what changes, by source scale", width, ink, tag="head-scales"), row(names), row(numbers)]


def plan_sources_height(view: View, _width: int) -> int:
    return 0 if view.edit is None else 3


def plan_edits(view: View, width: int, height: int) -> list[Strip]:
    """The lines that are in force, oldest first; the chosen one marked."""
    edit, ink = view.edit, view.ink
    if edit is None:
        return []
    undo, redo = (keys_shown(f"plan.{one}", view.keymap) for one in ("undo", "redo"))
    title = f"{len(edit.edits)} edit{'' if len(edit.edits) == 1 else 's'}"
    tag = f"{undo} undoes, {redo} redoes {edit.num_undone}" + (f" · {edit.journal}" if edit.journal else "")
    lines = [rule(title, width, ink, tag=units.printable(tag))]
    if not edit.edits:
        key = keys_shown("screen.schedule", view.keymap)
        return [*lines, *paragraph(f"none yet: edit on Schedule, key {key}, or type a line with =", ink.muted, width)]
    room = max(1, height - 1)
    first = max(0, min(view.row - room // 2, len(edit.edits) - room))
    for index, line in enumerate(edit.edits[first : first + room], first):
        here = index == view.row
        number = f"{'▸' if here else ' '}{index + 1:>4}  "
        lines.append(
            row(
                fit(
                    [(number, ink.accent if here else ink.muted), (line, ink.strong if here else ink.text)],
                    width,
                    ink.muted,
                )
            )
        )
    return lines


def plan_run(view: View, width: int, height: int) -> list[Strip]:
    """The plan file, the run, and what came of it; nothing before there is one."""
    if view.edit is None:
        return []
    lines = _review_lines(view, view.review, width) + _applied_lines(view, view.applied, width)
    if not lines:
        save, run = (keys_shown(f"plan.{one}", view.keymap) for one in ("save", "apply"))
        run = run.split()[0]
        words = f"nothing is written yet: {save} writes a plan file, {run} runs it ({view.choices['mode']})"
        lines = [row(fit([(f" {words}", view.ink.muted)], width, view.ink.muted))]
    tag = f"mode {view.choices['mode']}"
    return [rule("its run", width, view.ink, tag=tag), *lines][: height or None]


def plan_run_height(view: View, width: int) -> int:
    return len(plan_run(view, width, 0))


def _read_only(view: View, width: int, height: int) -> list[Strip]:
    ink = view.ink
    lines: list[list[Part]] = [
        [("Read-only: nothing is staged, so there is no plan.", ink.text)],
        [("kvscope open TRACE --edit", ink.accent), (" lets the schedule be edited, key 5;", ink.muted)],
        [("edits are kept beside the trace, and nothing runs before it is reviewed here.", ink.muted)],
    ]
    if view.edit_refused is not None:
        why = textwrap.wrap(units.printable(view.edit_refused), max(20, min(_WIDEST_WORDS, width - 4)))
        lines = [[("This trace cannot be edited.", ink.text)], *([(line, ink.warn)] for line in why)]
    return centred([fit(line, width, ink.muted) for line in lines], width, height)


def _facts(edit: EditState) -> list[tuple[str, str, str]]:
    """(name, recorded, staged)."""
    before, after = edit.before, edit.after
    rows = [
        ("policy", units.printable(before.policy), units.printable(after.policy)),
        ("budget", _budget(before), _budget(after)),
        ("peak", f"{_peak(before)} planned", f"est. {_peak(after)}"),
        ("lost", _lost(before), _lost(after)),
    ]
    if edit.is_predicted:
        rows += [
            ("KL", f"est. {band_text(before.kl)}", f"est. {band_text(after.kl)}"),
            ("flips", f"est. {share_band_text(before.flips)}", f"est. {share_band_text(after.flips)}"),
        ]
    rows.append(("sha256", before.schedule_sha256[:_HASH], after.schedule_sha256[:_HASH]))
    return rows


def _style(text: str, ink: Ink) -> Style:
    """Estimates are dim."""
    return ink.muted if text.startswith("est. ") else ink.text


def _totals_row(view: View, name: str, before: str, after: str, style: Style, now: Style, width: int) -> Strip:
    ink = view.ink
    room = max(_VALUE, min(48, (width - _NAME - 4) // 2))
    changed = before.removesuffix(" planned").removeprefix("est. ") != after.removeprefix("est. ")
    arrow = " → " if name and changed else "   "
    first = before if len(before) <= room else f"{before[: room - 1]}…"
    parts: list[Part] = [(f" {name:<{_NAME - 1}}", ink.muted), (f"{first:<{room}}", style), (arrow, ink.accent)]
    return row(fit([*parts, (after, now)], width, ink.muted))


def _budget(one: Totals) -> str:
    return f"{units.fraction_text(one.budget, absent='none')}, {one.sink_scales} sinks"


def _peak(one: Totals) -> str:
    return f"{units.bytes_text(one.peak_bytes)} at scale {one.peak_query_scale} L{one.peak_layer}"


def _lost(one: Totals) -> str:
    return "unknown" if one.lost is None else f"est. {units.fraction_text(one.lost)} of attention"


def _review_lines(view: View, review: Review | None, width: int) -> list[Strip]:
    """The plan file: whether it is of what is staged now, and whether it is stale."""
    edit, ink = view.edit, view.ink
    if review is None or edit is None:
        return []
    if review.refused:
        return [_line(ink, "plan", [(f"none: {units.printable(review.refused)}", ink.bad)], width)]
    if review.stale:
        words: Part = (f"stale: {units.printable('; '.join(review.stale))}", ink.bad)
    elif review.schedule_sha256 != edit.schedule.content_hash:
        words = ("of earlier edits, not of what is staged now", ink.warn)
    else:
        words = ("✓ of what is staged, not stale", ink.good)
    return [_line(ink, "plan", [(f"{units.printable(review.name)}  ", ink.text), words], width)]


def _applied_lines(view: View, applied: Applied | None, width: int) -> list[Strip]:
    ink = view.ink
    if applied is None:
        return []
    if applied.refused:
        return [_line(ink, "run", [(f"✗ {units.printable(applied.refused)}", ink.bad)], width)]
    said = units.printable(view.applied_said[-1]) if view.applied_said and applied.status == "starting" else ""
    state = f"{applied.mode}, {applied.status}" + (f": {said}" if said else "")
    lines = [_line(ink, "run", [(f"{applied.path.name}  ", ink.text), (state, ink.accent)], width)]
    if applied.read_back:
        sign, style = {False: ("✗", ink.bad), True: ("✓", ink.good), None: ("…", ink.muted)}[applied.as_planned]
        lines.append(_line(ink, "read back", [(f"{sign} {applied.read_back}", style)], width))
    return [*lines, *_after_lines(view, applied, width)]


def _after_lines(view: View, applied: Applied, width: int) -> list[Strip]:
    """What was estimated, and what was measured or forced."""
    found, ink = applied.after, view.ink
    if found is None:
        return []
    exact = f"; {found.steps_as_estimated} of {found.steps_compared} steps exactly"
    taken = f"{units.bytes_text(found.accounted_peak_bytes)} measured"
    peak: list[Part] = [(taken, ink.text), (f", est. {units.bytes_text(found.estimated_peak_bytes)}{exact}", ink.muted)]
    lines = [_line(ink, "peak", peak, width)]
    if found.kl is not None:
        forced = f"KL {found.kl:.3g} nats a bit, {units.fraction_text(found.flips)} of bits flip, forced"
        guess = view.edit.after if view.edit is not None and _same(view.edit, applied) else None
        beside = f"; est. KL {band_text(guess.kl)}" if guess is not None and guess.kl is not None else ""
        lines.append(_line(ink, "error", [(forced, ink.text), (beside, ink.muted)], width))
    return lines


def _same(edit: EditState, applied: Applied) -> bool:
    return edit.schedule.content_hash == applied.schedule_sha256


def _line(ink: Ink, name: str, parts: list[Part], width: int) -> Strip:
    whole: list[Part] = [(f" {name:<{_NAME - 1}}", ink.muted), *parts]
    return row(whole if parts_width(whole) <= width else fit(whole, width, ink.muted))
