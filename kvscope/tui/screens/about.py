"""About: what the part in focus shows and how to read it; with nothing in focus, every part of the screen."""

from __future__ import annotations

from functools import partial

from textual.strip import Strip

from kvscope.tui.actions import keys_shown
from kvscope.tui.screens import SCREENS
from kvscope.tui.screens.base import TraceScreen
from kvscope.tui.screens.help import Overlay
from kvscope.tui.widgets.canvas import Canvas, View, paragraph, rule

Part = tuple[str, str]
"""A part's name, and what it says about itself."""


class AboutScreen(Overlay):
    """The words of one part, or of all."""

    ACTION = "about"

    def pages(self) -> list[Canvas]:
        parts = self._parts()
        return [Canvas(partial(about_lines, parts), id="about", height=partial(about_height, parts))]

    def _parts(self) -> list[Part]:
        """The part in focus on the screen below, or all of them."""
        below = next((screen for screen in reversed(self.app.screen_stack) if isinstance(screen, TraceScreen)), None)
        if below is None:
            return []
        canvases = [canvas for canvas in below.query(Canvas) if canvas.about and canvas.display]
        focused = [canvas for canvas in canvases if canvas is below.focused]
        return [(canvas.id or "", canvas.about) for canvas in focused or canvases]


def about_lines(parts: list[Part], view: View, width: int, _height: int) -> list[Strip]:
    """What the screen is for, then each part's name and words."""
    ink, closes = view.ink, keys_shown("about", view.keymap)
    screen = SCREENS[view.screen]
    lines = [
        rule(f"{screen.hint} · {screen.help}", width, ink, tag=f"{closes} closes"),
        *paragraph(_intro(len(parts), closes), ink.muted, width),
    ]
    for name, words in parts:
        lines += [Strip([]), rule(name, width, ink), *paragraph(words, ink.text, width)]
    return lines


def about_height(parts: list[Part], view: View, width: int) -> int:
    return len(about_lines(parts, view, width, 0))


def _intro(num_parts: int, key: str) -> str:
    if not num_parts:
        return "No part of this screen has words of its own; ? lists the keys."
    if num_parts == 1:
        return "The part in focus. tab goes to the next one, escape out of here."
    return f"Every part of this screen, for none has the focus: tab moves it, and {key} then tells of that part alone."
