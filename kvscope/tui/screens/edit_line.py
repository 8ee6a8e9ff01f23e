"""Edit line: one line that says an edit, `budget 10%` or `drop l3 h0-7 s5 after q8`; what is wrong is said as typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widgets import Input

from kvscope.edits import EXAMPLES, Clear, Drop, Pin, parse_edit
from kvscope.errors import UsageError
from kvscope.tui.widgets.canvas import Canvas, View, paragraph

if TYPE_CHECKING:
    from kvscope.draft import Ground
    from kvscope.edits import Edit
    from kvscope.tui.app import KVScopeApp

_READ_ONLY = "read-only: nothing can be edited; `kvscope open TRACE --edit` opens it for editing · esc back"


class EditLineScreen(ModalScreen[None]):
    """Takes a line; enter stages it."""

    app: KVScopeApp

    BINDINGS: ClassVar = [
        Binding("escape", "dismiss", "back", show=False),
        Binding("up", "recall(-1)", show=False),
        Binding("down", "recall(1)", show=False),
    ]

    DEFAULT_CSS = """
    EditLineScreen {
        align: center bottom;
        #edit-line { width: 100%; height: auto; background: $panel; margin-bottom: 1; }
        #line { border: none; height: 1; padding: 0 1; background: $panel; }
        #line:focus { border: none; }
        #words { height: 2; background: $panel; }
    }
    """

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view
        self._recalled = 0
        """How far back in the edits the line is; 0: it is new."""

    def compose(self) -> ComposeResult:
        with Vertical(id="edit-line"):
            yield Input(placeholder=f"edit: {EXAMPLES[0]}, {EXAMPLES[4]}", id="line", compact=True)
            yield Canvas(self._words, id="words")

    def on_mount(self) -> None:
        self._draw()

    def on_input_changed(self) -> None:
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if not event.value.strip():
            self.dismiss()
        elif edit_problem(event.value, self._view) is None:
            self.dismiss()
            self.app.edit(lambda _: event.value.strip())

    def action_recall(self, by: int) -> None:
        """A line staged before, or one after that."""
        before = self._view.edit.edits if self._view.edit is not None else ()
        self._recalled = max(0, min(len(before), self._recalled - by))
        line = self.query_one(Input)
        line.value = before[-self._recalled] if self._recalled else ""
        line.cursor_position = len(line.value)

    def _draw(self) -> None:
        self.query_one("#words", Canvas).show(self._view)

    def _words(self, view: View, width: int, height: int) -> list[Strip]:
        line, ink = self.query_one(Input).value, view.ink
        problem = edit_problem(line, view)
        if problem is not None:
            return paragraph(problem, ink.bad, width)[:height]
        return paragraph(edit_words(line, view), ink.muted, width)[:height]


def edit_problem(line: str, view: View) -> str | None:
    """Why a line is no edit of the trace that is shown; None: it is one, or empty."""
    if view.edit is None:
        return view.edit_refused or _READ_ONLY
    word = line.strip().lower()
    if word in ("", "undo", "redo"):
        return None
    try:
        edit = parse_edit(line)
        if isinstance(edit, Drop | Pin | Clear):
            edit.target.mask(view.edit.draft.ground.shape)
        if isinstance(edit, Drop) and edit.after is not None and edit.after >= view.edit.draft.ground.shape[2]:
            return f"there is no query scale {edit.after}; they go from 0 to {view.edit.draft.ground.shape[2] - 1}"
    except UsageError as error:
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
    if not isinstance(edit, Drop | Pin | Clear):
        return ""
    count = int(edit.target.mask(ground.shape).sum())
    return f" · {count:,} head-scale{'' if count == 1 else 's'}"
