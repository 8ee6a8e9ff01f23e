"""Placing: what becomes of a trace's file between the run's first step and its end.

It is recorded in its place, or on a spool; it may be moved or deleted by others meanwhile; when it is closed it is
finalised where it is, or moved from the spool. Nothing here can harm what was recorded.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kvscope.finalise import Finalised, NotFinalisedError, final_image, replace_content
from kvscope.spool import Spool
from kvscope.writer import reason_text

if TYPE_CHECKING:
    from kvscope.writer import TraceWriter

_FAILURES = (OSError, RuntimeError, ValueError, KeyError, MemoryError)
"""What HDF5 and the system raise while a file is written anew."""


@dataclass(slots=True)
class TraceFile:
    """The file of one recording."""

    path: Path
    """Where the user wants it."""
    spool: Spool | None = None
    """Where it is until the run ends, if not there."""
    status: os.stat_result | None = None
    """What the system says of it; None: there is none yet."""
    misplaced: str | None = None
    """Why it is not where the user wants it, as a sentence; None: it is, or is about to be."""
    finalised: Finalised | None = None
    """What writing it anew gained; None: it is as it was recorded."""
    not_finalised: str | None = None
    """Why it is as it was recorded; None: it is not, or the run has not ended."""
    _found: Path | None = field(default=None, init=False)

    @property
    def is_in_place(self) -> bool:
        """Whether what is at `path` is this file: it was not moved, deleted or replaced since."""
        try:
            return self.status is not None and os.path.samestat(self.status, self.path.stat())
        except OSError:
            return False

    def find(self, writer: TraceWriter) -> None:
        """Note where the file is, right before its writer lets go of it."""
        self._found = writer.current_path()
        if self.is_in_place or (self.spool is not None and self._found == self.spool.path):
            self._found = self._found or writer.path
        elif os.path.lexists(self.path) and not writer.file_status.st_nlink:
            self.misplaced = "another file took the trace's place during the run"
        elif not writer.file_status.st_nlink:
            self.misplaced = "the trace was deleted during the run"
        elif self._found is not None:
            self.misplaced = f"the trace was moved during the run, to {self._found}"
        else:
            self.misplaced = "the trace was moved during the run, or may not be reached any more"

    def settle(self, *, is_whole: bool, untold_ns: int = 0) -> None:
        """Finalise the closed file where it is, or bring it from the spool to its place.

        `is_whole`: its run was recorded to the end; otherwise the disk may have no room for a second file.
        `untold_ns`: what recording took that no row of `cost` tells yet.
        """
        if self._found is None or self.status is None:
            self.not_finalised = "the trace is gone"
            return
        content = self._image(self._found, self.status, untold_ns) if is_whole else None
        if self.spool is not None:
            self._deliver(self.spool, content)
        elif content is not None:
            self._replace(self._found, content, self.status)

    def _image(self, found: Path, status: os.stat_result, untold_ns: int) -> bytes | None:
        begin_ns = time.monotonic_ns()
        try:
            before = found.stat().st_size
            content = final_image(found, status, untold_ns=untold_ns)
        except NotFinalisedError as error:
            self.not_finalised = str(error)
            return None
        except _FAILURES as error:
            self.not_finalised = reason_text(error)
            return None
        self.finalised = Finalised((time.monotonic_ns() - begin_ns) / 1e9, before, len(content))
        return content

    def _replace(self, found: Path, content: bytes, status: os.stat_result) -> None:
        try:
            replace_content(found, content, status)
            self.status = found.stat()
        except (NotFinalisedError, OSError) as error:
            self.finalised, self.not_finalised = None, reason_text(error)

    def _deliver(self, spool: Spool, content: bytes | None) -> None:
        try:
            spool.deliver(content)
            self.status, self.spool = spool.target.stat(), None
        except OSError as error:
            self.misplaced = f"the trace could not be moved there ({reason_text(error)}); it is {spool.path}"
