"""Stop: asks before a run is ended, for that cannot be taken back."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.screen import ModalScreen
from textual.strip import Strip

from kvscope import units
from kvscope.tui.widgets.canvas import Canvas, View, paragraph, row, rule

_MAY_LIVE = ("live", "crashed")
"""A run taken for crashed, where nothing but the age of its last commit tells, may be one that is paused."""


class StopScreen(ModalScreen[None]):
    """y ends the run, every other way out leaves it alone."""

    BINDINGS: ClassVar = [
        Binding("y", "stop", "end the run", show=False),
        Binding("n,escape,q,enter,space,X", "dismiss", "leave it alone", show=False),
    ]

    AUTO_FOCUS = ""

    DEFAULT_CSS = """
    StopScreen {
        align: center middle;
        #stop { width: 66; max-width: 100%; height: auto; background: $panel; }
    }
    """

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view

    def compose(self) -> ComposeResult:
        yield Canvas(stop_lines, id="stop", height=stop_height)

    def on_mount(self) -> None:
        self.query_one(Canvas).show(self._view)

    async def action_stop(self) -> None:
        """Ask the run to end."""
        snapshot = self._view.snapshot
        if snapshot is not None and snapshot.status not in _MAY_LIVE:
            return
        self.dismiss()
        await self.app.run_action("app.ask('stop')")


def stop_lines(view: View, width: int, _height: int) -> list[Strip]:
    """The question, what it means, and the two answers; or that there is nothing to end."""
    ink, snapshot = view.ink, view.snapshot
    if snapshot is not None and snapshot.status not in _MAY_LIVE:
        words = f"This run has ended ({snapshot.status}): there is nothing to stop."
        return [
            rule("stop", width, ink),
            *paragraph(words, ink.text, width),
            row([(" n", ink.accent), (" back", ink.text)]),
        ]
    done = ""
    if snapshot is not None:
        done = f" {units.scales_text(snapshot.scales_done, snapshot.schedule.scales.num_scales)} are done."
    return [
        rule("stop", width, ink),
        *paragraph("End the run after this scale? Its trace is kept as cancelled.", ink.strong, width),
        *paragraph(f"No picture will be made.{done}", ink.muted, width),
        row(
            [(" y", ink.accent), (" end the run   ", ink.text), ("n", ink.accent), (" leave it alone", ink.text)], width
        ),
    ]


def stop_height(view: View, width: int) -> int:
    return len(stop_lines(view, width, 0))
