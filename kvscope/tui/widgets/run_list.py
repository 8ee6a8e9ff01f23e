"""The parts of Runs: the welcome where nothing is open, the list of traces, and what the chosen one is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from textual.strip import Strip

from kvscope import units
from kvscope.tui.run_rows import RunRow, chosen, is_home, mark_of, marks, run_rows
from kvscope.tui.widgets.canvas import Part, View, field, fit, paragraph, parts_width, row, rule
from kvscope.tui.widgets.ledger_table import first_shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.style import Style

    from kvscope.runs import Run
    from kvscope.tui.palette import Ink

_AGE, _POLICY, _STATUS, _STORED, _SIZE = 7, 14, 15, 9, 10
_MODEL = 24
_SHORTEST_NAME = 8
_ROOM_FOR_MODELS = 116
_HEADS = 2
"""Lines over the list."""

ABOUT_LIST = (
    "Every trace of the folder and those below it, live runs first, then the newest; then traces opened before that "
    "lie elsewhere, then files that are no readable trace, with the reason. A is the trace shown, B the one beside it "
    "on Compare. Stored is the most bytes that the cache really held. The list follows the folder while it is shown."
)
ABOUT_RUN = "The chosen trace. Enter opens it, x puts it beside the one shown, on Compare."

_MOTTO = "See, record and tune the KV cache of visual autoregressive models."
_KEYS = (
    ("enter", "open the chosen trace"),
    ("d", "record a demo: the bundled model, on this CPU, in seconds"),
    ("b", "look in another folder"),
    ("r", "list this folder again"),
    ("?", "every key, and what the signs mean"),
    ("q", "quit"),
)
_COMMANDS = (
    ("kvscope run --help", "record a run of your own"),
    ("kvscope --help", "every command, for use without screens"),
    ("docs/", "how it works; beside the source"),
)
_TWO_COLUMNS = 110


def welcome(view: View, width: int, _height: int) -> list[Strip]:
    """What this is and how to begin; nothing once a trace is open."""
    if not is_home(view):
        return []
    ink = view.ink
    name = row([("  ", ink.muted), ("▁▂▃▄▅▆▇█", ink.accent), ("  kvscope", ink.strong)])
    motto = row(fit([("  ", ink.muted), (_MOTTO, ink.text)], width, ink.muted))
    is_wide = width >= _TWO_COLUMNS
    keys = [_pair(key, words, 7 if is_wide else 20, ink) for key, words in _KEYS]
    commands = [_pair(command, words, 20, ink) for command, words in _COMMANDS]
    if is_wide:
        half = width // 2
        commands += [[]] * (len(keys) - len(commands))
        lines = [
            row([*left, (" " * max(1, half - parts_width(left)), ink.muted), *right], width)
            for left, right in zip(keys, commands, strict=True)
        ]
    else:
        lines = [row(fit(parts, width, ink.muted)) for parts in (*keys[:3], *commands)]
    return [Strip([]), name, motto, Strip([]), *lines, Strip([])]


def welcome_height(view: View, width: int) -> int:
    return len(welcome(view, width, 0))


def run_list(view: View, width: int, height: int) -> list[Strip]:
    """The folder, and as many traces round the chosen one as fit; or why there are none."""
    ink, rows = view.ink, run_rows(view)
    place = f"{min(view.row, len(rows) - 1) + 1} of {len(rows)}" if rows else ""
    folder = "this folder" if view.folder in ("", ".") else _cut(units.printable(view.folder), max(8, width - 40))
    head = rule(f"{folder} and below", width, ink, tag=place)
    words = _words(view)
    room = max(1, height - _HEADS - (1 if words and rows else 0))
    if not rows:
        return [head, Strip([]), *(line for text in words for line in paragraph(text, ink.text, width, indent=2))]
    first = first_shown(min(view.row, len(rows) - 1), len(rows), room)
    letters, now_ns = marks(view), time.time_ns()
    picked = chosen(view, rows)
    columns = _name_width(rows, width)
    lines = [
        _line(one, view, (width, columns), mark_of(one, letters), now_ns, is_chosen=one is picked)
        for one in rows[first : first + room]
    ]
    notes = [row(fit([(f" {words[0]}", ink.warn)], width, ink.warn))] if words else []
    return [head, _titles(width, columns, ink), *lines, *notes]


def list_hit(view: View, width: int, height: int, x: int, y: int) -> int | None:  # noqa: ARG001 - a whole line counts
    """The line that is drawn there."""
    count = len(run_rows(view))
    if not count or y < _HEADS:
        return None
    room = max(1, height - _HEADS - (1 if _words(view) else 0))
    index = first_shown(min(view.row, count - 1), count, room) + y - _HEADS
    return index if y - _HEADS < room and index < count else None


def run_words(view: View, width: int, _height: int) -> list[Strip]:
    """What the chosen trace is."""
    ink = view.ink
    one = chosen(view, run_rows(view))
    if one is None:
        return []
    letters = mark_of(one, marks(view))
    shown = {"A": "the trace shown", "B": "compared with the one shown", "AB": "shown, and compared with itself"}
    title = units.printable(one.name)
    tag = shown.get(letters, {"run": "", "recent": "opened before", "unreadable": "not readable"}[one.kind])
    head = rule(_cut(title, max(8, width - len(tag) - 12)), width, ink, tag=tag)
    if one.run is not None:
        return [head, *_run_lines(one.run, width, ink)]
    if one.kind == "unreadable":
        return [head, *paragraph(one.reason, ink.text, width)]
    return [head, *paragraph("It lies in another folder and was not read again; enter opens it.", ink.text, width)]


def words_height(view: View, width: int) -> int:
    return len(run_words(view, width, 0))


def _pair(key: str, words: str, columns: int, ink: Ink) -> list[Part]:
    return [(f"  {key:<{columns}}", ink.accent), (words, ink.muted)]


def _words(view: View) -> list[str]:
    """What there is to say of the list as a whole: why it is empty, or not all."""
    if view.runs_refused is not None:
        return [view.runs_refused]
    if view.runs is None:
        return ["looking …"]
    if not view.runs.runs and not view.runs.unreadable:
        return ["no trace here; d records a demo run, b looks in another folder"]
    return []


def _titles(width: int, columns: int, ink: Ink) -> Strip:
    names = f"     {'file':<{columns}}{'age':>{_AGE}}  {'policy':<{_POLICY}}{'scales':<{_STATUS}}"
    names += f"{'stored':>{_STORED}}"
    if width >= _ROOM_FOR_MODELS:
        names += f"{'file size':>{_SIZE}}  {'model':<{_MODEL}}"
    return row(fit([(names, ink.muted)], width, ink.muted))


def _name_width(rows: Sequence[RunRow], width: int) -> int:
    """Columns of the names: as many as the longest trace's takes, if there is room."""
    wide = _SIZE + 2 + _MODEL if width >= _ROOM_FOR_MODELS else 0
    room = max(_SHORTEST_NAME, width - 6 - _AGE - 2 - _POLICY - _STATUS - _STORED - wide)
    longest = max((cell_len(units.printable(one.name)) for one in rows), default=0)
    return max(_SHORTEST_NAME, min(room, longest + 1))


def _line(one: RunRow, view: View, room: tuple[int, int], letters: str, now_ns: int, *, is_chosen: bool) -> Strip:
    """`room`: the columns of the line, and those of its name."""
    ink, (width, columns) = view.ink, room
    style = ink.strong if is_chosen else ink.text if one.kind == "run" else ink.muted
    sign, sign_style = _sign(one, ink)
    name = _cut(units.printable(one.name), columns)
    head: list[Part] = [
        ("▸" if is_chosen else " ", ink.accent),
        (f"{letters:<2}", ink.accent),
        (f"{sign} ", sign_style),
        (set_cell_size(name, columns), style),
    ]
    if one.run is None:
        words = units.printable(one.reason) or "opened before"
        return row(fit([*head, ("  ", ink.muted), (words, ink.muted)], width, ink.muted))
    return row(fit([*head, *_cells(one.run, width, now_ns, style, ink)], width, ink.muted))


def _cells(run: Run, width: int, now_ns: int, style: Style, ink: Ink) -> list[Part]:
    budget = "" if run.budget is None else f" {units.fraction_text(run.budget)}"
    policy = _cut(units.printable(run.policy), _POLICY - 1 - len(budget)) + budget
    done = f"{run.scales_done}" if run.scales_done == run.num_scales else f"{run.scales_done}/{run.num_scales}"
    parts: list[Part] = [
        (f"{units.age_text(now_ns - run.created_ns):>{_AGE}}  ", ink.muted),
        (set_cell_size(policy, _POLICY), style),
        (f"{f'{run.status} {done}':<{_STATUS}}", _status_style(run.status, ink)),
        (f"{units.bytes_text(run.storage_peak_bytes, absent='?'):>{_STORED}}", style),
    ]
    if width >= _ROOM_FOR_MODELS:
        model = _cut(units.printable(f"{run.model} {run.resolution}"), _MODEL)
        parts += [(f"{units.bytes_text(run.file_bytes):>{_SIZE}}  ", ink.muted), (model, ink.muted)]
    return parts


def _sign(one: RunRow, ink: Ink) -> tuple[str, Style]:
    if one.kind == "recent":
        return "○", ink.muted
    if one.run is None:
        return "?", ink.warn
    sign = {"live": "●", "done": "✓", "cancelled": "■"}.get(one.run.status, "✗")
    return sign, _status_style(one.run.status, ink)


def _status_style(status: str, ink: Ink) -> Style:
    return {"live": ink.accent, "done": ink.good, "cancelled": ink.warn}.get(status, ink.bad)


def _run_lines(run: Run, width: int, ink: Ink) -> list[Strip]:
    budget = "no budget" if run.budget is None else f"budget {units.fraction_text(run.budget)}"
    scales = units.scales_text(run.scales_done, run.num_scales)
    model = units.printable(f"{run.model} {run.resolution}")
    stored = units.bytes_text(run.storage_peak_bytes)
    recorded = f"recorded {units.age_text(time.time_ns() - run.created_ns)} ago"
    return [
        field("model", (model, ink.text), f"policy {units.printable(run.policy)}, {budget}", width, ink),
        field("status", (run.status, _status_style(run.status, ink)), f"{scales}, {recorded}", width, ink),
        field("stored", (stored, ink.strong), "the most after any step, measured", width, ink),
        field("file", (units.bytes_text(run.file_bytes), ink.text), f"run {units.printable(run.run_id)}", width, ink),
    ]


def _cut(text: str, columns: int) -> str:
    """The text, without its middle if it is too long: names begin and end alike."""
    if cell_len(text) <= columns:
        return text
    tail = text[-((columns - 1) // 2) :] if columns > 2 else ""
    while cell_len(tail) > columns // 2:
        tail = tail[1:]
    return f"{set_cell_size(text, max(0, columns - 1 - cell_len(tail))).rstrip()}…{tail}"
