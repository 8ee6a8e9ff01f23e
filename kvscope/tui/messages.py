"""What the feed's thread tells the app: messages only, so that one handler on the UI thread changes state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
    from kvscope.errors import KVScopeError
    from kvscope.tui.feed import Snapshot


class SnapshotTaken(Message):
    """The newest state of the trace. A slow terminal gets the newest one, not the queue."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        super().__init__()

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, SnapshotTaken)


class TraceRefused(Message):
    """The trace could not be opened at all."""

    def __init__(self, error: KVScopeError) -> None:
        self.error = error
        super().__init__()


class TraceLost(Message):
    """The file can no longer be read; what was read before stays on the screen. None: it can again."""

    def __init__(self, reason: str | None) -> None:
        self.reason = reason
        super().__init__()

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, TraceLost)
