"""Asking before a plan is run, and before all edits are taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widgets import Input

from kvscope import units
from kvscope.tui.widgets.canvas import Canvas, Part, View, paragraph, row, rule

if TYPE_CHECKING:
    from kvscope.tui.app import KVScopeApp

CONFIRMATION, REVISION = "apply", "revise"
"""What is typed before a plan of a run that is live is handed over: to run after it, or for it to go on with."""

_READ_ONLY = "Read-only: there is no plan. `kvscope open TRACE --edit` opens a trace for editing."
_CSS = """
    {name} {{
        align: center middle;
        #ask {{ width: 72; max-width: 100%; height: auto; background: $panel; }}
        #words {{ height: auto; background: $panel; }}
        #word {{ border: none; height: 1; padding: 0 1; background: $panel; }}
        #word:focus {{ border: none; }}
    }}
"""


class ApplyScreen(ModalScreen[None]):
    """y runs the plan; where the run is live a word must be typed. Every other way out leaves all as it is."""

    app: KVScopeApp

    BINDINGS: ClassVar = [
        Binding("y,enter", "apply", "run it", show=False),
        Binding("n,escape,q,space", "dismiss", "not now", show=False),
    ]

    AUTO_FOCUS = "#word"
    DEFAULT_CSS = _CSS.format(name="ApplyScreen")

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view

    def compose(self) -> ComposeResult:
        with Vertical(id="ask"):
            yield Canvas(apply_lines, id="words", height=apply_height)
            if needs_word(self._view):
                yield Input(placeholder=f"{REVISION} or {CONFIRMATION}", id="word", compact=True)

    def on_mount(self) -> None:
        self.query_one("#words", Canvas).show(self._view)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        word = event.value.strip().lower()
        if word in (CONFIRMATION, REVISION):
            self._run(revise=word == REVISION)

    def action_apply(self) -> None:
        """Run it, if nothing has to be typed."""
        if apply_problem(self._view) is None and not needs_word(self._view):
            self._run()

    def _run(self, *, revise: bool = False) -> None:
        self.dismiss()
        self.app.apply_plan(revise=revise)


class DiscardScreen(ModalScreen[None]):
    """y takes every edit back, every other way out keeps them."""

    app: KVScopeApp

    BINDINGS: ClassVar = [
        Binding("y", "discard", "take them back", show=False),
        Binding("n,escape,q,enter,space,x", "dismiss", "keep them", show=False),
    ]

    AUTO_FOCUS = ""
    DEFAULT_CSS = _CSS.format(name="DiscardScreen")

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view

    def compose(self) -> ComposeResult:
        with Vertical(id="ask"):
            yield Canvas(discard_lines, id="words", height=discard_height)

    def on_mount(self) -> None:
        self.query_one("#words", Canvas).show(self._view)

    def action_discard(self) -> None:
        """Undo them all."""
        self.dismiss()
        if self._view.edit is not None and self._view.edit.edits:
            self.app.discard_edits()


def apply_problem(view: View) -> str | None:
    """Why there is no plan to run; None: there is."""
    edit = view.edit
    if edit is None:
        return view.edit_refused or _READ_ONLY
    if edit.draft.problem is not None:
        return f"There is no plan to run: {edit.draft.problem.text}."
    if not edit.draft.is_changed:
        return "Nothing is changed: the run obeyed this plan already."
    return None


def needs_word(view: View) -> bool:
    """A run that is live is not interfered with by one key."""
    is_live = view.snapshot is not None and view.snapshot.status == "live"
    return is_live and apply_problem(view) is None


def apply_lines(view: View, width: int, _height: int) -> list[Strip]:
    """What would be run, and the answers; or why nothing can be."""
    ink, edit, problem = view.ink, view.edit, apply_problem(view)
    if problem is not None:
        return [rule("run the plan", width, ink), *paragraph(problem, ink.text, width), _answers(view, ("n", "back"))]
    assert edit is not None  # else there is a problem
    mode = view.choices["mode"]
    what = {
        "free": "A free run: the same prompt and seed, and the image that a user would get.",
        "forced": "A forced run: the parent's bits at every scale, so each error is the cache's alone.",
    }[mode]
    idle = view.link is not None and view.link.connected and view.link.state == "idle"
    live = view.snapshot is not None and view.snapshot.status == "live"
    where = "the process that recorded the parent, which waits for jobs" if idle else "a new process of this machine"
    if live:
        where = "the run's own process, after its present job, if that takes jobs (run --keep)"
        what = f"{REVISION}: the run itself goes on with it from the next scale on. {CONFIRMATION}: {what}"
    size = units.bytes_text(edit.after.peak_bytes)
    return [
        rule("run the plan", width, ink, tag=mode),
        *paragraph(f"{edit.num_changed:,} head-scales change; peak est. {size}.", ink.strong, width),
        *paragraph(what, ink.text, width),
        *paragraph(f"In {where}. A plan file and a new trace are written here.", ink.muted, width),
        *(
            paragraph(f"The run is live: type {REVISION} or {CONFIRMATION}; esc leaves all as it is.", ink.warn, width)
            if live
            else [_answers(view, ("y", "run it"), ("n", "not now"))]
        ),
    ]


def apply_height(view: View, width: int) -> int:
    return len(apply_lines(view, width, 0))


def discard_lines(view: View, width: int, _height: int) -> list[Strip]:
    """The question, what it means, and the two answers; or that there is nothing to take back."""
    ink, edit = view.ink, view.edit
    if edit is None or not edit.edits:
        words = _READ_ONLY if edit is None else "Nothing is staged."
        return [rule("discard", width, ink), *paragraph(words, ink.text, width), _answers(view, ("n", "back"))]
    count = len(edit.edits)
    return [
        rule("discard", width, ink),
        *paragraph(f"Take back {'the one edit' if count == 1 else f'all {count} edits'}?", ink.strong, width),
        *paragraph("Each is undone by a line of the journal; redo brings them back.", ink.muted, width),
        _answers(view, ("y", "take them back"), ("n", "keep them")),
    ]


def discard_height(view: View, width: int) -> int:
    return len(discard_lines(view, width, 0))


def _answers(view: View, *answers: tuple[str, str]) -> Strip:
    parts: list[Part] = []
    for key, words in answers:
        parts += [(f" {key}", view.ink.accent), (f" {words}  ", view.ink.text)]
    return row(parts)
