"""What the feed's thread tells the app: messages only, so that one handler on the UI thread changes state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
    from kvscope.errors import KVScopeError
    from kvscope.runs import Runs
    from kvscope.tui.feed import AttentionRead, Feed, Snapshot
    from kvscope.tui.view import Link


class FeedMessage(Message):
    """From a feed; of one kind from one feed, a slow terminal gets the newest, not the queue."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        super().__init__()

    def can_replace(self, message: Message) -> bool:
        return type(message) is type(self) and message.feed is self.feed


class SnapshotTaken(FeedMessage):
    """The newest state of the trace."""

    def __init__(self, feed: Feed, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        super().__init__(feed)


class TraceRefused(FeedMessage):
    """The trace could not be opened at all."""

    def __init__(self, feed: Feed, error: KVScopeError) -> None:
        self.error = error
        super().__init__(feed)


class TraceLost(FeedMessage):
    """The file can no longer be read; what was read before stays on the screen. None: it can again."""

    def __init__(self, feed: Feed, reason: str | None) -> None:
        self.reason = reason
        super().__init__(feed)


class AttentionTaken(FeedMessage):
    """The attention maps that were asked for."""

    def __init__(self, feed: Feed, attention: AttentionRead) -> None:
        self.attention = attention
        super().__init__(feed)


class RunSaid(FeedMessage):
    """What a run that has no trace yet has said so far, and where its control socket is; None: nowhere yet."""

    def __init__(self, feed: Feed, lines: tuple[str, ...], socket: str | None = None) -> None:
        self.lines, self.socket = lines, socket
        super().__init__(feed)


class RunTold(Message):
    """What the run's control socket said."""

    def __init__(self, link: Link) -> None:
        self.link = link
        super().__init__()


class RunsListed(Message):
    """The traces of a folder; or why it cannot be listed."""

    def __init__(self, runs: Runs | None, refused: str | None) -> None:
        self.runs, self.refused = runs, refused
        super().__init__()
