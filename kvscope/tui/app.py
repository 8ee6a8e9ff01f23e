"""The viewer's app: holds the newest snapshot and the one cursor, and shows both on whatever screen is up.

It reads no file itself: a Feed does, from its own thread, and tells by messages. `run_app` is the way in.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from textual.app import App, SystemCommand
from textual.filter import LineFilter
from textual.screen import Screen

from kvscope.errors import KVScopeError, NoTerminalError
from kvscope.tui.actions import actions_of, bindings
from kvscope.tui.cursor import Axis, Cursor, Shape
from kvscope.tui.feed import Feed, Snapshot
from kvscope.tui.messages import SnapshotTaken, TraceLost, TraceRefused
from kvscope.tui.metrics import METRICS
from kvscope.tui.palette import DARK, LIGHT, ink
from kvscope.tui.screens import SCREENS, load_screen
from kvscope.tui.screens.base import TraceScreen
from kvscope.tui.screens.help import HelpScreen
from kvscope.tui.terminal import NoColour, speaks_unicode
from kvscope.tui.widgets.canvas import Canvas, View
from kvscope.units import printable

if TYPE_CHECKING:
    from textual.theme import Theme


class KVScopeApp(App[None]):
    """Views one trace, live or closed. Read-only: it can change nothing but its own screen."""

    TITLE = "kvscope"
    CSS_PATH = "theme.tcss"
    BINDINGS: ClassVar = bindings()

    def __init__(self, path: Path, *, theme: Theme = DARK, glyphs: bool = False, plain: bool = False) -> None:
        super().__init__()
        self.error: KVScopeError | None = None
        """Why there was nothing to show; None: there was."""
        self._plain, self._first_theme = plain, theme
        # The palette is Textual's own and draws signs that ASCII has not; each of its commands has a key.
        self.use_command_palette = not plain
        self._glyphs = glyphs or plain or self.no_color
        self._feed = Feed(path, self.post_message)
        self._path = path
        self._snapshot: Snapshot | None = None
        self._cursor = Cursor()
        self._metric = next(iter(METRICS))
        self._lost: str | None = None

    @property
    def view(self) -> View:
        """All that is shown now."""
        screen = self._trace_screen
        style = ink(self.current_theme, glyphs=self._glyphs, plain=self._plain, colour=not self.no_color)
        name = screen.NAME if screen else ""
        return View(style, self._snapshot, self._cursor, self._metric, self._lost, self._path.name, name)

    def on_mount(self) -> None:
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        self.theme = self._first_theme.name
        self.theme_changed_signal.subscribe(self, lambda _theme: self._draw())
        self.action_show(next(iter(SCREENS)))
        self._feed.start()

    def on_unmount(self) -> None:
        self._feed.stop()

    def on_snapshot_taken(self, message: SnapshotTaken) -> None:
        before, self._snapshot = self._snapshot, message.snapshot
        shape = _shape(message.snapshot)
        if before is None:
            self._cursor = _first_cursor(message.snapshot)
        else:
            self._cursor = self._cursor.followed(_shape(before), shape)
        self._draw()

    def on_trace_lost(self, message: TraceLost) -> None:
        self._lost = message.reason
        self._draw()

    def on_trace_refused(self, message: TraceRefused) -> None:
        self.error = message.error
        self.exit()

    def on_canvas_picked(self, message: Canvas.Picked) -> None:
        self._cursor = message.cursor
        self._draw()

    def get_line_filters(self) -> Sequence[LineFilter]:
        """What is done to every line before the terminal gets it."""
        # Textual's own answer to NO_COLOR is greys, and its filter of dim text turns dim into colour.
        return [NoColour()] if self.no_color else super().get_line_filters()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:  # noqa: ARG002 - Textual's
        """The command palette: every action of this screen, and nothing else."""
        for action in actions_of(self.view.screen):
            yield SystemCommand(action.help, f"key {action.shown}", partial(self.run_action, action.command))

    def action_show(self, name: str) -> None:
        """Show a screen of SCREENS, in the place of the one that is up."""
        if not self.is_screen_installed(name):
            self.install_screen(load_screen(name)(), name)
        if self._trace_screen is not None:
            self.switch_screen(name)
        else:
            self.push_screen(name)
        self.call_after_refresh(self._draw)

    def action_move(self, axis: Axis, by: int) -> None:
        """Move the cursor along one axis."""
        if self._snapshot is not None:
            self._cursor = self._cursor.moved(axis, by, shape=_shape(self._snapshot))
            self._draw()

    def action_go(self, axis: Axis, index: int) -> None:
        """Put the cursor at one index of an axis."""
        if self._snapshot is not None:
            self._cursor = self._cursor.at(axis, index, shape=_shape(self._snapshot))
            self._draw()

    def action_metric(self, by: int) -> None:
        """Show the next metric, or one before."""
        names = list(METRICS)
        self._metric = names[(names.index(self._metric) + by) % len(names)]
        self._draw()

    def action_glyphs(self) -> None:
        """Values as glyphs, or as colour; where there is no colour, always as glyphs."""
        self._glyphs = not self._glyphs or self._plain or self.no_color
        self._draw()

    def action_write(self) -> None:
        """Write the screen as an SVG file beside the user, never over one that is there."""
        try:
            stem = f"kvscope-{printable(self._path.stem)}-{self.view.screen}"
            name = _write_new(stem, self.export_screenshot())
        except OSError as error:
            self._say(f"nothing written: {error.strerror or error}; start kvscope in another folder", bad=True)
        else:
            self._say(f"wrote {name}")

    def _say(self, text: str, *, bad: bool = False) -> None:
        """One short line over the footer, in the place of the one before."""
        self.clear_notifications()
        severity: Literal["error", "information"] = "error" if bad else "information"
        self.notify(printable(text), severity=severity, timeout=6 if bad else 2, markup=False)

    def action_help(self) -> None:
        """Every key of this screen, over it."""
        self.push_screen(HelpScreen(self.view))

    @property
    def _trace_screen(self) -> TraceScreen | None:
        """The screen that is up, or that help and palette lie over; None at the very start."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, TraceScreen)), None)

    def _draw(self) -> None:
        if self._trace_screen is not None:
            self._trace_screen.show(self.view)


def run_app(path: Path, *, light: bool = False, plain: bool | None = None) -> int:
    """Show a trace until the user quits; returns the exit code. `plain`: ASCII only; None: where the terminal
    or the locale needs it.

    Raises NoTerminalError where there is no terminal, and TraceError where there is no trace.
    """
    # Textual reads keys from stdin and draws on stderr; stdout stays free for data.
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise NoTerminalError("no terminal here; `kvscope stats` prints the same numbers without one")
    if plain is None:
        plain = not speaks_unicode(os.environ, sys.stderr.encoding)
    app = KVScopeApp(path, theme=LIGHT if light else DARK, plain=plain)
    app.run()
    if app.error is not None:
        raise app.error
    return app.return_code or 0


def _write_new(stem: str, text: str) -> str:
    """Write an SVG file in the current folder, with the first number that is free; returns its name."""
    number = 1
    while True:
        path = Path(f"{stem}-{number}.svg")
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            number += 1
        else:
            return path.name


def _shape(snapshot: Snapshot) -> Shape:
    schedule = snapshot.schedule
    return Shape(max(1, snapshot.scales_done), schedule.num_layers, schedule.num_heads, schedule.scales.num_scales)


def _first_cursor(snapshot: Snapshot) -> Cursor:
    """The newest query scale, and the first source scale that anything can be dropped from."""
    shape = _shape(snapshot)
    source = min(snapshot.schedule.sink_scales, shape.source_scale - 1)
    return Cursor(query_scale=shape.query_scale - 1, source_scale=source)
