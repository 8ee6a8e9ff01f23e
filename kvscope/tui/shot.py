"""Shots: one screen of a trace, drawn without a terminal and returned as text, as SVG, or as its numbers."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from textual.color import Color

from kvscope.errors import KVScopeError, UsageError
from kvscope.tui import goto
from kvscope.tui.app import KVScopeApp
from kvscope.tui.editing import EditOptions
from kvscope.tui.keymap import key_name
from kvscope.tui.palette import theme_for
from kvscope.tui.screens import SCREENS
from kvscope.tui.screens.base import TraceScreen
from kvscope.tui.terminal import Colours
from kvscope.tui.widgets.chrome import NEEDED
from kvscope.tui.write import records_text

if TYPE_CHECKING:
    from textual.pilot import Pilot

Form = Literal["text", "svg", "csv", "json"]
FORMS: tuple[Form, ...] = get_args(Form)

LARGEST = (1000, 500)
_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a shot is drawn."""

    width: int = 120
    height: int = 40
    light: bool = False
    contrast: bool = False
    plain: bool = False
    glyphs: bool = False
    colours: Colours = "truecolor"

    def __post_init__(self) -> None:
        if not (NEEDED[0] <= self.width <= LARGEST[0] and NEEDED[1] <= self.height <= LARGEST[1]):
            sizes = f"{NEEDED[0]}x{NEEDED[1]} to {LARGEST[0]}x{LARGEST[1]}"
            raise UsageError(f"a screen of {self.width}x{self.height} cannot be drawn; give a size of {sizes}")


@dataclass(frozen=True, slots=True)
class _Wait:
    for_other: bool
    for_edits: bool
    timeout_s: float


def shoot(
    path: Path,
    form: Form,
    look: Look,
    *,
    other: Path | None = None,
    screen: str | None = None,
    place: str = "",
    presses: Sequence[str] = (),
    edits: tuple[str, ...] | None = None,
    timeout_s: float = 60.0,
) -> str:
    """What the screen says once all that it waits for is there.

    `place`: a line like that of the `:` key; its screen counts where `screen` is None. `presses`: keys, named as in a
    keymap file, pressed before it is taken. `edits`: lines that are staged first, and kept nowhere. Raises UsageError
    for a screen, a place, a key or an edit that is none, TraceError for a trace that cannot be read, and KVScopeError
    after `timeout_s`.
    """
    keys = [key_name(key) for key in presses]
    where = goto.parse(place)
    name = screen or where.screen or next(iter(SCREENS))
    if name not in SCREENS:
        raise UsageError(f"{name!r} is no screen; the screens are {', '.join(SCREENS)}")
    app = KVScopeApp(
        path,
        other=other,
        edit=None if edits is None else EditOptions(path, script=edits),
        folder=path.parent,
        screen=name,
        place=where,
        theme=theme_for(light=look.light, contrast=look.contrast),
        glyphs=look.glyphs,
        plain=look.plain,
        colours=look.colours,
    )
    return asyncio.run(_shoot(app, form, look, keys, _Wait(other is not None, edits is not None, timeout_s)))


async def _shoot(app: KVScopeApp, form: Form, look: Look, keys: Sequence[str], wait: _Wait) -> str:
    async with app.run_test(size=(look.width, look.height)) as pilot:
        await _settled(app, pilot, wait)
        if wait.for_edits and app.view.edit_refused is not None:
            raise UsageError(app.view.edit_refused)
        if app.misplaced is not None:
            raise UsageError(app.misplaced)
        for key in keys:
            await pilot.press(key)
            await _settled(app, pilot, wait)
        if app.error is not None:
            raise app.error
        return _taken(app, form)


async def _settled(app: KVScopeApp, pilot: Pilot[None], wait: _Wait) -> None:
    """Return once everything has been read and drawn, or there is nothing to read. Raises KVScopeError if it is not."""
    for _ in range(int(wait.timeout_s / _POLL_S)):
        if app.error is not None:
            return
        if _is_read(app, wait):
            # Twice: what is read may change the height of a part, which is drawn anew then.
            await pilot.pause()
            await pilot.pause()
            return
        await pilot.pause(_POLL_S)
    raise KVScopeError(
        f"{app.view.name}: not drawn after {wait.timeout_s:g} s; the file may be on a disk that does not answer"
    )


def _is_read(app: KVScopeApp, wait: _Wait) -> bool:
    view = app.view
    if view.snapshot is None or view.snapshot.ledger is None:
        return False
    if wait.for_edits and view.edit is None and view.edit_refused is None:
        return False
    if wait.for_other and view.other is None and view.other_refused is None:
        return False
    if view.screen == "runs" and view.runs is None and view.runs_refused is None:
        return False
    place = view.cursor.query_scale, view.cursor.layer, view.cursor.head
    has_maps = "maps" in view.snapshot.header.tiers and view.snapshot.scales_done > 0
    return not has_maps or (view.attention is not None and view.attention.place == place)


def _taken(app: KVScopeApp, form: Form) -> str:
    if not app.is_running:
        raise UsageError("the keys pressed leave the viewer; there is no screen to draw")
    if form == "svg":
        return screen_svg(app)
    if form == "text":
        return screen_text(app)
    screen = next(one for one in reversed(app.screen_stack) if isinstance(one, TraceScreen))
    return records_text(screen.records(app.view), form)


def screen_text(app: KVScopeApp) -> str:
    """The lines of all that is drawn, overlays too, without colours."""
    return "\n".join(line.rstrip() for line in _drawn(app).export_text().splitlines()) + "\n"


def screen_svg(app: KVScopeApp) -> str:
    """A picture of all that is drawn, overlays too."""
    theme = app.current_theme
    ground, front = (Color.parse(one or "#000000").rgb for one in (theme.background, theme.foreground))
    own = TerminalTheme(ground, front, *(_NAMED_ON_DARK if theme.dark else _NAMED_ON_LIGHT))
    svg = _drawn(app).export_svg(title=app.TITLE or "", theme=own)
    # Some readers drop blanks at the ends of a text, hard ones too, and shift what is between.
    return svg.replace("<text class=", '<text xml:space="preserve" class=')


def _drawn(app: KVScopeApp) -> Console:
    """A console that has recorded the screen."""
    width, height = app.size
    console = Console(
        width=width,
        height=height,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        record=True,
        legacy_windows=False,
        safe_box=False,
    )
    # Textual makes such a picture public only as SVG, with a ground of its own.
    console.print(app.screen._compositor.render_update(full=True, screen_stack=app._background_screens))
    return console


_Rgb = tuple[int, int, int]
_NAMED_ON_DARK: tuple[list[_Rgb], list[_Rgb]] = (
    [(0, 0, 0), (205, 92, 92), (105, 175, 105), (205, 175, 95), (105, 145, 215), (185, 125, 185), (85, 175, 185),
     (211, 218, 225)],
    [(110, 118, 129), (234, 127, 121), (140, 194, 138), (226, 181, 90), (130, 170, 240), (210, 150, 210),
     (108, 196, 217), (255, 255, 255)],
)  # fmt: skip
"""What terminals make of the 16 named colours differs; these are what a picture shows: ordinary, then bright."""
_NAMED_ON_LIGHT: tuple[list[_Rgb], list[_Rgb]] = (
    [(0, 0, 0), (160, 40, 36), (40, 110, 50), (130, 85, 0), (20, 80, 160), (125, 40, 125), (15, 100, 120),
     (90, 90, 90)],
    [(70, 70, 70), (180, 50, 46), (47, 122, 58), (143, 95, 0), (30, 95, 180), (140, 50, 140), (20, 115, 135),
     (32, 38, 44)],
)  # fmt: skip
