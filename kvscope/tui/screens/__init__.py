"""SCREENS: every screen by name. A new screen is one file in this folder and one line in the table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual.screen import ModalScreen

    from kvscope.tui.screens.base import TraceScreen
    from kvscope.tui.view import View


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
    "time": ScreenRow("3", "time", "bytes and time, step by step", "kvscope.tui.screens.time:TimeScreen"),
    "mass": ScreenRow("4", "mass", "attention of one head", "kvscope.tui.screens.mass:MassScreen"),
    "schedule": ScreenRow("5", "schedule", "when each head drops", "kvscope.tui.screens.schedule:ScheduleScreen"),
    "plan": ScreenRow("6", "plan", "the edits, before they are run", "kvscope.tui.screens.plan:PlanScreen"),
    "compare": ScreenRow("7", "compare", "two traces", "kvscope.tui.screens.compare:CompareScreen"),
    "ledger": ScreenRow("8", "ledger", "where every byte went", "kvscope.tui.screens.ledger:LedgerScreen"),
    "runs": ScreenRow("9", "runs", "other traces", "kvscope.tui.screens.runs:RunsScreen"),
}
"""Screen name → its key, words and class."""

OVERLAYS: dict[str, str] = {
    "help": "kvscope.tui.screens.help:HelpScreen",
    "about": "kvscope.tui.screens.about:AboutScreen",
    "why": "kvscope.tui.screens.why:WhyScreen",
    "goto": "kvscope.tui.screens.goto:GotoScreen",
    "picture": "kvscope.tui.screens.picture:PictureScreen",
    "browse": "kvscope.tui.screens.browse:BrowseScreen",
    "stop": "kvscope.tui.screens.stop:StopScreen",
    "edit": "kvscope.tui.screens.edit_line:EditLineScreen",
    "apply": "kvscope.tui.screens.apply:ApplyScreen",
    "discard": "kvscope.tui.screens.apply:DiscardScreen",
}
"""What lies over a screen until a key takes it away: name → "module:Class", made from a View."""


def load_screen(name: str) -> type[TraceScreen]:
    """The class of a screen of the table."""
    screen: type[TraceScreen] = _load(SCREENS[name].target)
    return screen


def load_overlay(name: str) -> Callable[[View], ModalScreen[None]]:
    """The class of a screen of OVERLAYS."""
    overlay: Callable[[View], ModalScreen[None]] = _load(OVERLAYS[name])
    return overlay


def _load(target: str) -> type:
    module, _, class_name = target.partition(":")
    loaded: type = getattr(importlib.import_module(module), class_name)
    return loaded
