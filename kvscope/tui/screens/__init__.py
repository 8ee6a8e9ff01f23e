"""SCREENS: every screen by name. A new screen is one file in this folder and one line in the table."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvscope.tui.screens.base import TraceScreen


@dataclass(frozen=True, slots=True)
class ScreenRow:
    """One line of SCREENS."""

    key: str
    hint: str
    """Its word in the footer."""
    help: str
    target: str
    """"module:Class", loaded when it is first shown."""


SCREENS: dict[str, ScreenRow] = {
    "live": ScreenRow("1", "live", "memory, scale by scale", "kvscope.tui.screens.live:LiveScreen"),
    "map": ScreenRow("2", "map", "layers × heads, one scale", "kvscope.tui.screens.map:MapScreen"),
}
"""Screen name → its key, words and class."""


def load_screen(name: str) -> type[TraceScreen]:
    """The class of a screen of the table."""
    module, _, class_name = SCREENS[name].target.partition(":")
    screen: type[TraceScreen] = getattr(importlib.import_module(module), class_name)
    return screen
