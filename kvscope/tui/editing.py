"""Editor: the one gate through which a viewer edits a schedule: the journal, the drafts, and what each would do.

Every edit is a line that goes through `Editor.write`, which returns a frozen EditState; screens look at that. It knows
no widget. `target_at` and `nudged` make lines of what the cursor and the selection mean.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from textual.message import Message

from heatkv.errors import HeatKVError
from kvscope.draft import Draft, ground_of
from kvscope.edits import Target
from kvscope.errors import KVScopeError, UsageError
from kvscope.estimate import Estimate, estimate
from kvscope.fidelity import Fidelity
from kvscope.journal import REDO, UNDO, History, Journal, replayed
from kvscope.planfile import Totals, totals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.schedule import PruningSchedule
    from kvscope.tui.cursor import Cursor
    from kvscope.tui.feed import Feed, Snapshot

JOURNAL_SUFFIX = ".kvs"
_FIDELITY_SUFFIX = "-fidelity.json"


@dataclass(frozen=True, slots=True)
class EditOptions:
    """How a trace is opened for editing."""

    trace: Path
    journal: Path | None = None
    """None: beside the trace, under its name."""
    fidelity: Path | None = None
    """None: beside the trace, if there is one that fits."""
    script: tuple[str, ...] | None = None
    """Edits that are staged without any journal; None: there is a journal."""


@dataclass(frozen=True, slots=True, eq=False)
class EditState:
    """What was edited so far, and what it would do; all but the recorded run's own plan is estimated."""

    draft: Draft
    estimate: Estimate
    estimate_before: Estimate
    """Of the recorded run's own plan; so is the next."""
    before: Totals
    after: Totals
    edits: tuple[str, ...]
    """The lines that are in force, oldest first."""
    num_undone: int
    """How many edits `redo` brings back."""
    journal: str
    """The journal's name; empty: there is none."""
    is_predicted: bool
    """A fidelity that fits this model is there to predict errors with."""
    words: str = ""
    """What came of the last line."""
    is_refused: bool = False
    """The last line was not taken, and `words` say why."""

    @property
    def schedule(self) -> PruningSchedule:
        return self.draft.schedule

    @property
    def num_changed(self) -> int:
        """Head-scales whose drop step or codec differs from the recorded plan's."""
        return int(self.changed_by_source.sum())

    @property
    def changed_by_source(self) -> NDArray[np.int64]:
        """The same by source scale: [source_scale]."""
        now, before = self.draft.schedule, self.draft.start
        changed = (now.drop_step != before.drop_step) | (now.stored_in() != before.stored_in())
        return np.asarray(changed.sum(axis=(0, 1)), np.int64)


class Editor:
    """Owns the journal of a session and its drafts. Not thread-safe: one thread writes."""

    def __init__(
        self, snapshot: Snapshot, history: History, *, journal: Journal | None = None, fidelity: Fidelity | None = None
    ) -> None:
        self._snapshot, self._history, self._journal = snapshot, history, journal
        self.fidelity = fidelity
        self._before = estimate(snapshot, history.draft.start)
        self.state = self._stated(words=self._first_words())

    @classmethod
    def begin(cls, snapshot: Snapshot, options: EditOptions) -> Editor:
        """Go on with the journal that is there, or begin one. Raises KVScopeError or HeatKVError if that cannot be."""
        draft = Draft.of(snapshot.schedule, ground_of(snapshot.header, snapshot.attention_mass))
        fidelity = fidelity_for(snapshot, options)
        if options.script is not None:
            return cls(snapshot, replayed(draft, options.script, source="the edits"), fidelity=fidelity)
        journal = Journal(options.journal or snapshot.path.with_suffix(JOURNAL_SUFFIX), draft)
        return cls(snapshot, journal.history, journal=journal, fidelity=fidelity)

    def write(self, line: str) -> EditState:
        """Take a line: an edit, `undo` or `redo`. One that makes no sense changes nothing but the state's words."""
        before = self._history
        try:
            after = self._journal.write(line) if self._journal is not None else before.told(line)
        except (KVScopeError, HeatKVError) as error:
            self.state = replace(self.state, words=str(error), is_refused=True)
        except OSError as error:
            words = f"the journal cannot be written ({error.strerror or error}); the edit is not taken"
            self.state = replace(self.state, words=words, is_refused=True)
        else:
            self._history = after
            self.state = self._stated(words=_words(line, before, after))
        return self.state

    def line_of(self, kind: str, cursor: Cursor, span: Cursor | None) -> str:
        """The line that a key means at a cursor and a selection: drop, never, pin, clear, fill, undo or redo."""
        target = target_at(cursor, span).text
        match kind:
            case "drop":
                return f"drop {target} after q{cursor.query_scale}"
            case "never":
                return f"drop {target}"
            case "fill":
                return "policy none" if self._history.draft.policy else "policy heatkv"
            case "pin" | "clear":
                return f"{kind} {target}"
        return kind

    def nudged(self, by: int) -> str:
        """The line that moves the budget by so many tokens a head."""
        return nudged(self._history.draft, by)

    def discard(self) -> EditState:
        """Undo every edit, a line each; `redo` brings them back."""
        while self._history.can_undo and not self.write(UNDO).is_refused:
            pass
        return self.state

    def follow(self, snapshot: Snapshot) -> EditState:
        """The same edits, estimated with what the run has recorded by now."""
        self._snapshot = snapshot
        self._before = estimate(snapshot, self._history.draft.start)
        self.state = self._stated(words=self.state.words)
        return self.state

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def _stated(self, *, words: str) -> EditState:
        history, draft = self._history, self._history.draft
        guess = estimate(self._snapshot, draft.schedule, limit_tokens=draft.limit_tokens)
        fits = self.fidelity is not None and self.fidelity.fits(draft.start.model, draft.start.scales.sizes)
        return EditState(
            draft=draft,
            estimate=guess,
            estimate_before=self._before,
            before=totals(draft.start, self._before, self.fidelity),
            after=totals(draft.schedule, guess, self.fidelity),
            edits=tuple(edit.text for edit in history.edits[: history.at]),
            num_undone=len(history.edits) - history.at,
            journal=self._journal.path.name if self._journal is not None else "",
            is_predicted=fits,
            words=words,
        )

    def _first_words(self) -> str:
        if self._journal is None:
            return ""
        count, name = self._history.at, self._journal.path.name
        if self._history.edits:
            return f"{count} edit{'' if count == 1 else 's'} resumed from {name}"
        return f"every edit is a line of {name}, written at once"


class EditingBegan(Message):
    """The journal of a trace that a feed follows is read."""

    def __init__(self, feed: Feed | None, editor: Editor) -> None:
        self.feed, self.editor = feed, editor
        super().__init__()


class EditingRefused(Message):
    """A trace cannot be edited, and why."""

    def __init__(self, feed: Feed | None, reason: str) -> None:
        self.feed, self.reason = feed, reason
        super().__init__()


def begin(
    snapshot: Snapshot, options: EditOptions, feed: Feed | None, post: Callable[[Message], object]
) -> threading.Thread:
    """Make an Editor in a thread: files are read, and edits done again; post it, or why there is none."""
    if snapshot.path != options.trace:  # the user went on to another trace
        options = EditOptions(snapshot.path)

    def work() -> None:
        try:
            message: Message = EditingBegan(feed, Editor.begin(snapshot, options))
        except (KVScopeError, HeatKVError, OSError) as error:
            message = EditingRefused(feed, str(error))
        post(message)

    thread = threading.Thread(target=work, name="kvscope-editing", daemon=True)
    thread.start()
    return thread


def target_at(cursor: Cursor, span: Cursor | None) -> Target:
    """The head-scale under the cursor, or all of the box between it and the other corner of the selection."""
    other = span or cursor
    return Target(
        _between(cursor.layer, other.layer),
        _between(cursor.head, other.head),
        _between(cursor.source_scale, other.source_scale),
    )


def nudged(draft: Draft, by: int) -> str:
    """The line that moves the budget by so many tokens a head; without a budget, from the peak as it is."""
    heads = draft.schedule.num_layers * draft.schedule.num_heads
    limit = draft.limit_tokens
    now = (draft.schedule.peak_tokens if limit is None else limit) // heads
    most = draft.schedule.history_tokens // heads
    return f"budget {max(1, min(most, now + by))}t"


def fidelity_for(snapshot: Snapshot, options: EditOptions) -> Fidelity | None:
    """What predicts errors of a run that kept everything: the file that was named, else one beside the trace that fits.

    None for any other run: it was learnt on runs that kept everything. Raises UsageError for a file that does not fit.
    """
    if options.fidelity is not None:
        named = Fidelity.load(options.fidelity)
        if not named.fits(snapshot.header.model, snapshot.schedule.scales.sizes):
            raise UsageError(
                f"{options.fidelity}: learnt on {named.model} at other scales or of another model than "
                f"{snapshot.header.model}'s; leave it out, or learn one with `kvscope fidelity`"
            )
        return named if snapshot.schedule.keeps_everything else None
    if not snapshot.schedule.keeps_everything:
        return None
    beside = snapshot.path.with_name(f"{snapshot.header.model}{_FIDELITY_SUFFIX}")
    try:
        found = Fidelity.load(beside) if beside.exists() else None
    except UsageError:
        return None
    fits = found is not None and found.fits(snapshot.header.model, snapshot.schedule.scales.sizes)
    return found if fits else None


def _words(line: str, before: History, after: History) -> str:
    """What a line that was taken did."""
    word = line.strip().lower()
    if after is before:
        return ""
    if word == UNDO:
        return f"undone: {before.edits[before.at - 1].text}"
    if word == REDO:
        return f"done again: {after.edits[after.at - 1].text}"
    return after.edits[after.at - 1].text


def _between(one: int, other: int) -> tuple[int, int]:
    return min(one, other), max(one, other)
