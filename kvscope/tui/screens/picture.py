"""Picture: the image as large as fits, scale by scale; in real pixels where the terminal draws them."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Container, Vertical
from textual.events import Key
from textual.screen import ModalScreen
from textual.strip import Strip

from kvscope.tui.actions import keys_of, keys_shown
from kvscope.tui.widgets.canvas import Canvas, Part, View, parts_width, row, spread
from kvscope.tui.widgets.picture import picture, picture_of

if TYPE_CHECKING:
    from textual.widget import Widget

    from kvscope.tui.feed import Snapshot

ACTION = "view.picture"


class PictureScreen(ModalScreen[None]):
    """The picture alone; its keys go through the scales without moving the cursor below."""

    AUTO_FOCUS = ""

    BINDINGS: ClassVar = [
        Binding("escape,q,enter,space", "dismiss", "back", show=False),
        Binding("left_square_bracket,left,h", "turn(-1)", show=False),
        Binding("right_square_bracket,right,l", "turn(1)", show=False),
    ]

    DEFAULT_CSS = """
    PictureScreen {
        background: $background;
        #large { width: 100%; height: 1fr; }
        #pixels { display: none; width: 100%; height: 1fr; align: center middle; }
        #strip { height: 1; background: $surface; }
        &.-pixels #large { height: 1; }
        &.-pixels #pixels { display: block; }
    }
    """

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Canvas(picture, id="large")
            yield Container(id="pixels")
            yield Canvas(scale_strip, id="strip")

    async def on_mount(self) -> None:
        await self._draw()

    def on_key(self, event: Key) -> None:
        if event.key in keys_of(ACTION, self._view.keymap):
            event.stop()
            self.dismiss()

    async def action_turn(self, by: int) -> None:
        """The picture after another scale, if there is one."""
        snapshot, cursor = self._view.snapshot, self._view.cursor
        if snapshot is None:
            return
        scale = max(0, min(snapshot.scales_done - 1, cursor.query_scale + by))
        self._view = replace(self._view, cursor=replace(cursor, query_scale=scale))
        await self._draw()

    async def _draw(self) -> None:
        real = _real_picture(self._view)
        self.set_class(real is not None, "-pixels")
        if real is not None:
            holder = self.query_one("#pixels", Container)
            await holder.remove_children()
            await holder.mount(real)
        for canvas in self.query(Canvas):
            canvas.show(self._view)


def scale_strip(view: View, width: int, _height: int) -> list[Strip]:
    """Which scales have a picture, the one shown marked; and the keys."""
    ink, snapshot = view.ink, view.snapshot
    tail: list[Part] = [(" [ ]", ink.accent), (" scale ", ink.muted)]
    tail += [(f" {keys_shown(ACTION, view.keymap)}", ink.accent), (" closes ", ink.muted)]
    parts: list[Part] = [(" after scale ", ink.muted)]
    for scale in range(snapshot.scales_done if snapshot else 0):
        entry = _scale_part(view, snapshot, scale)
        parts += [entry] if parts_width([*parts, entry, *tail]) <= width else []
    if snapshot is None or not snapshot.scales_done:
        parts = [(" no scale is finished", ink.muted)]
    return [spread(parts, tail, width, fill=(" ", ink.muted))] if width > parts_width(tail) else [row(parts, width)]


def _scale_part(view: View, snapshot: Snapshot | None, scale: int) -> Part:
    ink, chosen = view.ink, scale == view.cursor.query_scale
    assert snapshot is not None  # there are no scales without one
    if chosen:
        return f"▸{scale} ", ink.accent
    has_own = scale < len(snapshot.previews) and snapshot.previews[scale] is not None
    return (f" {scale} ", ink.text) if has_own else (f" {scale}·", ink.muted)


def _real_picture(view: View) -> Widget | None:
    """The picture in pixels; None: this terminal, or this installation, has none."""
    pixels = None if view.snapshot is None else picture_of(view.snapshot, view.cursor.query_scale)[0]
    if pixels is None or view.ink.plain or not view.ink.colour:
        return None
    # Deferred: only who asks for the picture needs it.
    found: Widget | None = importlib.import_module("kvscope.tui.widgets.real_pixels").real_picture(pixels)
    return found
