"""Toasts: what Textual's own do, but for one that has no time left when it is mounted.

Its timer, of less than no time, would never end and never wait: the whole viewer stands still. That happens to a toast
that expires while the screen it is drawn on changes (Textual 8: Toast and Timer).
"""

from __future__ import annotations

from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any

from textual.notifications import Notification, Notify

if TYPE_CHECKING:
    from textual.app import App
    from textual.notifications import SeverityLevel

_LEAST_S = 0.01


@dataclass
class Toast(Notification):
    """A notification whose time left is never none at all."""

    @property
    def time_left(self) -> float:
        return max(self.raised_at + self.timeout - time(), _LEAST_S)

    @property
    def has_expired(self) -> bool:
        return self.raised_at + self.timeout <= time()


def toast(
    app: App[Any], text: str, *, severity: SeverityLevel = "information", seconds: float, title: str = ""
) -> None:  # Any: whatever the app returns
    """Show a text for so long, as it is: nothing in it is markup."""
    app.post_message(Notify(Toast(text, title, severity, seconds, markup=False)))
