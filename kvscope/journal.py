"""Journal: the edits of one session, one line each, on disk before they are seen; with undo and redo without end.

A session that is killed goes on where it was: the file is read again from the top. `undo` and `redo` are lines too, so
the file says what happened, in order. Its first lines name the schedule that it began with.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from kvscope.draft import Draft, edited
from kvscope.edits import Edit, parse_edit
from kvscope.errors import OutputError, UsageError

_HEAD = "# kvscope edits of schedule "
UNDO, REDO = "undo", "redo"


@dataclass(frozen=True, slots=True)
class History:
    """Drafts, the one that is shown, and those that undo left behind."""

    drafts: tuple[Draft, ...]
    edits: tuple[Edit, ...]
    """What led from each draft to the next."""
    at: int = 0

    @classmethod
    def of(cls, draft: Draft) -> Self:
        return cls((draft,), ())

    @property
    def draft(self) -> Draft:
        return self.drafts[self.at]

    @property
    def can_undo(self) -> bool:
        return self.at > 0

    @property
    def can_redo(self) -> bool:
        return self.at < len(self.drafts) - 1

    def done(self, edit: Edit) -> History:
        """With an edit; what was undone before is gone. Raises UsageError for an edit that makes no sense."""
        draft = edited(self.draft, edit)
        return History((*self.drafts[: self.at + 1], draft), (*self.edits[: self.at], edit), self.at + 1)

    def undone(self) -> History:
        """Before the last edit. Raises UsageError if there is none."""
        if not self.can_undo:
            raise UsageError("nothing to undo")
        return History(self.drafts, self.edits, self.at - 1)

    def redone(self) -> History:
        """With the edit again that was undone. Raises UsageError if none was."""
        if not self.can_redo:
            raise UsageError("nothing to redo")
        return History(self.drafts, self.edits, self.at + 1)

    def told(self, line: str) -> History:
        """With a line of a journal: an edit, `undo`, `redo`, or nothing."""
        word = line.split("#", 1)[0].strip().lower()
        if word in (UNDO, REDO):
            return self.undone() if word == UNDO else self.redone()
        edit = parse_edit(line)
        return self if edit is None else self.done(edit)


def replayed(draft: Draft, lines: Iterable[str], *, source: str) -> History:
    """The history that lines lead to. Raises UsageError naming source and line."""
    history = History.of(draft)
    for number, line in enumerate(lines, 1):
        try:
            history = history.told(line)
        except UsageError as error:
            raise UsageError(f"{source}, line {number}: {error}") from None
    return history


class Journal:
    """The file of a session: every line is on the disk when `write` returns.

    Raises OutputError if the file cannot be written, UsageError if it is the journal of another schedule.
    """

    def __init__(self, path: Path, draft: Draft) -> None:
        self.path = path
        begun = draft.start.content_hash
        try:
            self._file: IO[str] = path.open("a+", encoding="utf-8")
            self._lock()
            self._file.seek(0)
            text = self._file.read()
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror or error}; choose another place for the journal") from None
        whole, _, torn = text.rpartition("\n")
        if torn:  # a line that a crash cut short was never acknowledged
            self._file.truncate(len(text.encode()) - len(torn.encode()))
        lines = whole.splitlines()
        if lines and lines[0] != _HEAD + begun:
            self._file.close()
            raise UsageError(
                f"{path}: the edits of another schedule than this one ({begun[:12]}); "
                "choose another journal, or move it away"
            )
        if not lines:
            self._write(_HEAD + begun)
        self.history = replayed(draft, lines, source=str(path))

    def write(self, line: str) -> History:
        """Take a line: an edit, `undo` or `redo`; returns where it led. Raises UsageError, and writes nothing then."""
        history = self.history.told(line)
        if history is not self.history:
            self._write(line.strip())
            self.history = history
        return history

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what a full disk did not take was refused when it was written
            self._file.close()

    def _lock(self) -> None:
        """Raises UsageError if another editor has the journal; its lock goes with its process."""
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UsageError(f"{self.path}: another editor has it open; close that, or name another journal") from None

    def _write(self, line: str) -> None:
        """Raises OutputError, with nothing of the line left, if the disk does not take it."""
        end = os.fstat(self._file.fileno()).st_size
        try:
            # Straight to the file: a buffer would keep what the disk did not take, and write it later.
            os.write(self._file.fileno(), f"{line}\n".encode())
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), end)
            raise OutputError(f"{self.path}: {error.strerror or error}; the edit is not taken") from None
