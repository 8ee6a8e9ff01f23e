"""Edit line: one line that says an edit, `budget 10%` or `drop l3 h0-7 s5 after q8`; what is wrong is said as typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heatkv.codecs import codec_named
from heatkv.errors import UnknownNameError
from kvscope.edits import EXAMPLES, Clear, Drop, Pin, Store, parse_edit
from kvscope.errors import UsageError
from kvscope.tui.screens.line import LineScreen

if TYPE_CHECKING:
    from kvscope.draft import Ground
    from kvscope.edits import Edit
    from kvscope.tui.view import View

_Targeted = Drop | Pin | Store | Clear
_READ_ONLY = "read-only: nothing can be edited; `kvscope open TRACE --edit` opens it for editing · esc back"


class EditLineScreen(LineScreen):
    """Takes a line; enter stages it."""

    PLACEHOLDER = f"edit: {EXAMPLES[0]}, {EXAMPLES[4]}"

    def earlier(self) -> tuple[str, ...]:
        return self._view.edit.edits if self._view.edit is not None else ()

    def problem(self, line: str) -> str | None:
        return edit_problem(line, self._view)

    def words(self, line: str) -> str:
        return edit_words(line, self._view)

    def use(self, line: str) -> None:
        if line.strip():
            self.app.edit(lambda _: line.strip())


def edit_problem(line: str, view: View) -> str | None:
    """Why a line is no edit of the trace that is shown; None: it is one, or empty."""
    if view.edit is None:
        return view.edit_refused or _READ_ONLY
    word = line.strip().lower()
    if word in ("", "undo", "redo"):
        return None
    try:
        edit = parse_edit(line)
        if isinstance(edit, _Targeted):
            edit.target.mask(view.edit.draft.ground.shape)
        if isinstance(edit, Store):
            codec_named(edit.codec)
        if isinstance(edit, Drop) and edit.after is not None and edit.after >= view.edit.draft.ground.shape[2]:
            return f"there is no query scale {edit.after}; they go from 0 to {view.edit.draft.ground.shape[2] - 1}"
    except (UsageError, UnknownNameError) as error:
        return str(error)
    return None


def edit_words(line: str, view: View) -> str:
    """What a line would do, in words; for an empty one, what may be typed."""
    assert view.edit is not None  # edit_problem has said so
    word = line.strip().lower()
    if not word:
        return f"{' · '.join(EXAMPLES)} · ↑ earlier lines · esc back"
    if word in ("undo", "redo"):
        return f"enter: {word}"
    edit = parse_edit(line)
    return (
        "a remark: it changes nothing" if edit is None else f"enter: {edit.text}{_reach(edit, view.edit.draft.ground)}"
    )


def _reach(edit: Edit, ground: Ground) -> str:
    """How many head-scales it means."""
    if not isinstance(edit, _Targeted):
        return ""
    count = int(edit.target.mask(ground.shape).sum())
    return f" · {count:,} head-scale{'' if count == 1 else 's'}"
