"""The viewer's app: holds the one View, changes it as keys, feeds and the run tell, and shows it on a screen.

It reads no file itself: a Feed does, from its own thread, and tells by messages. `run_app` is the way in.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from textual.app import App, SystemCommand
from textual.filter import LineFilter
from textual.screen import Screen

from kvscope.errors import KVScopeError, NoTerminalError
from kvscope.recent import recent, remember
from kvscope.tui import goto
from kvscope.tui.actions import actions_of, bindings, keys_shown
from kvscope.tui.cursor import Axis, Cursor, first_cursor, shape_of
from kvscope.tui.feed import FASTEST_S, REMOTE_S, Feed, Launched, Snapshot
from kvscope.tui.keymap import read_keymap
from kvscope.tui.listing import Listing, start_demo
from kvscope.tui.messages import AttentionTaken, RunSaid, RunsListed, RunTold, SnapshotTaken, TraceLost, TraceRefused
from kvscope.tui.metrics import METRICS
from kvscope.tui.palette import DARK, THEMES, Ink, ink, theme_for, turned
from kvscope.tui.playback import FRAME_S, SPEEDS, Playback, last_step, next_speed
from kvscope.tui.remote import Remote
from kvscope.tui.screens import SCREENS, load_overlay, load_screen
from kvscope.tui.screens.base import TraceScreen
from kvscope.tui.terminal import (
    FEW_COLOURS,
    Colours,
    colours_of,
    full_console,
    is_remote,
    is_served,
    line_filters,
    speaks_unicode,
)
from kvscope.tui.toasts import toast
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Canvas
from kvscope.units import printable

if TYPE_CHECKING:
    from textual.theme import Theme
    from textual.timer import Timer

    from kvscope.tui.applying import Desk, PlanApplied, PlanReviewed
    from kvscope.tui.editing import EditingBegan, EditingRefused, EditOptions, Editor

_FIRST_READ_S = 0.1
"""How long the first frame waits for the trace; what is read later is drawn when it is there."""
_READ_ONLY = "read-only: nothing can be edited; `kvscope open TRACE --edit` opens it for editing"


class KVScopeApp(App[None]):
    """Views traces, live or closed. It writes no trace, and a run hears of it only where a key asks for that.

    Only with `edit` can schedules be edited, and all of that goes through `_write`.
    """

    TITLE = "kvscope"
    CSS_PATH = "theme.tcss"
    BINDINGS: ClassVar = bindings()

    def __init__(
        self,
        path: Path | None,
        *,
        other: Path | None = None,
        launched: Launched | None = None,
        edit: EditOptions | None = None,
        folder: Path = Path(),
        screen: str | None = None,
        place: goto.Place = goto.NOWHERE,
        theme: Theme = DARK,
        glyphs: bool = False,
        plain: bool = False,
        colours: Colours | None = None,
        keymap: Mapping[str, str] | None = None,
        recent: tuple[str, ...] = (),
        remember: Callable[[Path], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.console = full_console()
        # Before the first `self.no_color`, `_ink` and what is made of them.
        self._colours: Colours = colours or ("none" if self.no_color else "truecolor")
        self.error: KVScopeError | None = None
        """Why there was nothing to show; None: there was."""
        self.misplaced: str | None = None
        """Why there is no such cell as was asked for at the start; None: there is."""
        self._plain, self._first_theme = plain, theme
        # The palette is Textual's own and draws signs that ASCII has not; each of its commands has a key.
        self.use_command_palette = not plain
        self._must_glyph = plain or self._colours in FEW_COLOURS
        self._glyphs = glyphs or self._must_glyph
        self._fastest_s = REMOTE_S if is_remote(os.environ) else FASTEST_S
        self._first_screen = screen or place.screen or (next(iter(SCREENS)) if path is not None else "runs")
        self._place, self._launched, self._first_paths = place, launched, (path, other)
        self._feed: Feed | None = None
        self._other_feed: Feed | None = None
        self._remote = Remote(self.post_message)
        self._listing = Listing(self.post_message)
        self._newest: Snapshot | None = None
        """What a paused view does not show yet."""
        self._rows: dict[str, int] = {}
        self._remember = remember
        self._edit_options = edit
        self._editor: Editor | None = None
        self._desk: Desk | None = None
        self._speed = next(iter(SPEEDS))
        self._player: Timer | None = None
        self._view = View(
            self._ink(theme), name=path.name if path else "", folder=str(folder), recent=recent, keymap=keymap or {}
        )

    @property
    def view(self) -> View:
        """All that is shown now."""
        return self._view

    def on_load(self) -> None:
        # Before anything is styled: a theme that comes later parses and applies all styles once more.
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = self._first_theme.name
        self.theme_changed_signal.subscribe(self, lambda theme: self._show(replace(self._view, ink=self._ink(theme))))
        path, other = self._first_paths
        if path is not None:
            self.open(path, launched=self._launched)
        if other is not None:
            self.open_other(other)

    def on_mount(self) -> None:
        self.set_keymap(self._view.keymap)
        if self._feed is not None and self._launched is None:
            # Most traces are read before this; then the first frame shows one, and need not be drawn twice.
            first = self._feed.first(_FIRST_READ_S)
            if first is not None:
                self._newest = first
                self._take(first)
        self.call_later(self.action_show, self._first_screen)

    def on_unmount(self) -> None:
        self._remote.close()
        self._listing.stop()
        self._end_editing()
        for feed in (self._feed, self._other_feed):
            if feed is not None:
                feed.stop()

    def open(self, path: Path, *, launched: Launched | None = None) -> None:
        """Show another trace; the one beside it stays."""
        if self._feed is not None:
            self._feed.stop(wait=False)
            self._remote.close()
        self._end_editing()
        self._stop_playing()
        self._newest = None
        kept, name = self._view, str(path.absolute())
        self._show(
            View(
                kept.ink,
                name=path.name,
                screen=kept.screen,
                metric=kept.metric,
                other=kept.other,
                other_refused=kept.other_refused,
                folder=kept.folder,
                runs=kept.runs,
                recent=(name, *(one for one in kept.recent if one != name)),
                choices=kept.choices,
                keymap=kept.keymap,
            )
        )
        self._feed = Feed(path, self.post_message, launched=launched, fastest_s=self._fastest_s, opened=self._remember)
        self._feed.start()

    def open_other(self, path: Path, *, launched: Launched | None = None) -> None:
        """Read a trace to compare with, once it is there if its run was `launched`."""
        if self._other_feed is not None:
            self._other_feed.stop(wait=False)
        self._other_feed = Feed(path, self.post_message, launched=launched, fastest_s=self._fastest_s)
        self._other_feed.start()

    # What feeds, the run and widgets tell.

    def on_snapshot_taken(self, message: SnapshotTaken) -> None:
        self.call_after_refresh(message.feed.shown)
        if message.feed is self._other_feed:
            self._show(replace(self._view, other=message.snapshot, other_refused=None))
            self._read_back(message.snapshot)
        elif message.feed is self._feed and message.snapshot is not self._newest:
            self._newest = message.snapshot
            self._read_back(message.snapshot)
            if self._view.paused and self._view.snapshot is not None:
                behind = message.snapshot.scales_done - self._view.snapshot.scales_done
                self._show(replace(self._view, behind=behind))
            else:
                self._take(message.snapshot)

    def on_trace_lost(self, message: TraceLost) -> None:
        if message.feed is self._feed:
            self._show(replace(self._view, lost=message.reason))

    def on_trace_refused(self, message: TraceRefused) -> None:
        if message.feed is self._other_feed:
            self._show(replace(self._view, other=None, other_refused=str(message.error)))
            applied = self._view.applied
            if applied is not None and applied.path == message.feed.path:
                self._show(replace(self._view, applied=replace(applied, refused=str(message.error))))
        elif message.feed is self._feed:
            if self._view.runs is None and self._view.snapshot is None:
                self.error = message.error
                self.exit()
            else:
                self._feed = None
                self._show(replace(self._view, name="", said=()))
                self.action_show("runs")
                self.say(str(message.error), bad=True)

    def on_attention_taken(self, message: AttentionTaken) -> None:
        if message.feed is self._feed:
            self._show(replace(self._view, attention=message.attention))

    def on_run_said(self, message: RunSaid) -> None:
        if message.feed is self._other_feed:
            self._show(replace(self._view, applied_said=message.lines))
        elif message.feed is self._feed:
            self._show(replace(self._view, said=message.lines))
            if message.socket is not None:
                self._remote.listen(message.socket)

    def on_run_told(self, message: RunTold) -> None:
        self._show(replace(self._view, link=message.link))
        if message.link.words:
            self.say(message.link.words)

    def on_runs_listed(self, message: RunsListed) -> None:
        view = replace(self._view, runs=message.runs, runs_refused=message.refused)
        screen = self._trace_screen
        if screen is not None and view.screen == "runs":
            view = replace(view, row=screen.row_of(view, screen.chosen_path(self._view)))
        self._show(view)

    def on_editing_began(self, message: EditingBegan) -> None:
        if message.feed is not self._feed or self._view.snapshot is None:
            message.editor.close()
            return
        self._editor = message.editor
        self._show(replace(self._view, edit=message.editor.follow(self._view.snapshot)))
        if message.editor.state.words:
            self.say(message.editor.state.words)

    def on_editing_refused(self, message: EditingRefused) -> None:
        if message.feed is self._feed:
            self._show(replace(self._view, edit_refused=message.reason))
            self.say(message.reason, bad=True)

    def on_plan_reviewed(self, message: PlanReviewed) -> None:
        review, before = message.review, self._view.review
        self._show(replace(self._view, review=review))
        if review.refused:
            self.say(f"no plan: {review.refused}", bad=True)
        elif before is None or before.name != review.name:
            self.say(f"plan written to {review.name}; `kvscope apply {review.name}` runs it too")

    def on_plan_applied(self, message: PlanApplied) -> None:
        applied, before = message.applied, self._view.applied
        self._show(replace(self._view, applied=applied))
        if applied.refused:
            self.say(f"nothing {'changes' if applied.mode == 'revise' else 'runs'}: {applied.refused}", bad=True)
        elif applied.mode == "revise":
            if before is None or before.where != applied.where:
                self.say(applied.where)
        elif before is None or before.path != applied.path:
            self._show(replace(self._view, applied_said=()))
            self.open_other(applied.path, launched=applied.launched)
            self.say(f"the run is B on Compare, key {keys_shown('screen.compare', self._view.keymap)}")

    def on_canvas_picked(self, message: Canvas.Picked) -> None:
        if isinstance(message.target, Cursor):
            self._show(replace(self._view, cursor=message.target, span=None))
        else:
            self.action_row(message.target - self._view.row)
        if message.twice:
            self.action_enter()

    def on_canvas_hovered(self, message: Canvas.Hovered) -> None:
        self._show(replace(self._view, hover=message.cursor))

    def on_canvas_dragged(self, message: Canvas.Dragged) -> None:
        self._show(replace(self._view, cursor=message.end, span=message.begin, hover=None))

    def on_canvas_rolled(self, message: Canvas.Rolled) -> None:
        screen = self._trace_screen
        if screen is not None and screen.rows(self._view):
            self.action_row(message.by)
        else:
            self.action_move("source_scale" if message.shifted else "query_scale", message.by)

    # What keys do: the commands of ACTIONS.

    def action_show(self, name: str) -> None:
        """Show a screen of SCREENS, in the place of the one that is up."""
        if not self.is_screen_installed(name):
            self.install_screen(load_screen(name)(), name)
        if self._trace_screen is not None:
            self.switch_screen(name)
        else:
            self.push_screen(name)
        self._view = replace(self._view, screen=name, row=self._rows.get(name, 0), hover=None)
        self._draw()
        if name == "runs":
            self.action_list()
        else:
            self._listing.rest()
        if name == "plan" and self._view.review is not None and self._view.review.name:
            self._desk_of().check(self._view.review)

    def action_move(self, axis: Axis, by: int) -> None:
        """Move the cursor along one axis."""
        if self._view.snapshot is not None:
            self._put(self._view.cursor.moved(axis, by, shape=shape_of(self._view.snapshot)))

    def action_go(self, axis: Axis, index: int) -> None:
        """Put the cursor at one index of an axis."""
        if self._view.snapshot is not None:
            self._put(self._view.cursor.at(axis, index, shape=shape_of(self._view.snapshot)))

    def action_step(self, by: int) -> None:
        """Move the cursor along the steps of the run: layer by layer, from one query scale into the next."""
        if self._view.snapshot is not None:
            self._put(self._view.cursor.stepped(by, shape=shape_of(self._view.snapshot)))

    def action_lane(self, by: int) -> None:
        """Move the cursor along the heads of all layers."""
        if self._view.snapshot is not None:
            self._put(self._view.cursor.laned(by, shape=shape_of(self._view.snapshot)))

    def action_row(self, by: int) -> None:
        """Choose another line of a list."""
        screen = self._trace_screen
        if screen is not None:
            row = max(0, min(screen.rows(self._view) - 1, self._view.row + by))
            self._rows[self._view.screen] = row
            self._show(replace(self._view, row=row))

    def action_metric(self, by: int) -> None:
        """Show the next metric, or one before."""
        names = list(METRICS)
        self._show(replace(self._view, metric=names[(names.index(self._view.metric) + by) % len(names)]))

    def action_choose(self, name: str, by: int) -> None:
        """The next value of one of CHOICES, or one before."""
        self._show(self._view.chosen(name, by))

    def action_enter(self) -> None:
        """What the screen leads to: another cell, another trace, or why the cell is as it is."""
        screen = self._trace_screen
        target = screen.entered(self._view) if screen is not None else None
        if isinstance(target, Cursor):
            self._put(target)
        elif isinstance(target, Path):
            self.open(target)
            self.action_show("live")
        elif self._view.snapshot is not None and self._view.screen != "runs":
            self._over("why")

    def action_over(self, name: str) -> None:
        """Lay a screen of OVERLAYS over this one."""
        self._over(name)

    def action_span(self) -> None:
        """Begin a range at the cursor, or end it."""
        self._show(replace(self._view, span=None if self._view.span else self._view.cursor))

    def action_clear(self) -> None:
        """Nothing selected, nothing zoomed."""
        self._show(replace(self._view, span=None, window=None))

    def action_zoom(self) -> None:
        """The timeline: the selected steps only, else the cursor's query scale; all again if it is zoomed."""
        snapshot, view = self._view.snapshot, self._view
        if snapshot is None:
            return
        window = None
        if view.window is None:
            layers = snapshot.schedule.num_layers
            ends = [view.cursor, view.span] if view.span else []
            steps = sorted(end.query_scale * layers + end.layer for end in ends) or [
                view.cursor.query_scale * layers,
                view.cursor.query_scale * layers + layers - 1,
            ]
            window = (steps[0], steps[-1] + 1)
        self._show(replace(view, window=window, span=None))

    def action_pause(self) -> None:
        """Let the view stand still, or go on with what is newest; play a finished run. The run never notices."""
        snapshot = self._view.snapshot
        if snapshot is not None and snapshot.status != "live" and not self._view.paused:
            self.action_play()
            return
        view = replace(self._view, paused=not self._view.paused, behind=0)
        self._show(view)
        if not view.paused and self._newest is not None and self._newest is not view.snapshot:
            self._take(self._newest)

    def action_play(self) -> None:
        """Move the cursor along the recorded steps, from the first if it stands in the last query scale; or stop."""
        snapshot = self._view.snapshot
        if snapshot is None or not snapshot.scales_done:
            self.say("nothing is recorded yet that could be played")
        elif self._view.playback is not None:
            self._stop_playing()
            self.say("stopped")
        else:
            in_last = self._view.cursor.query_scale >= snapshot.scales_done - 1
            self._play_from(0 if in_last else self._step)
            self._player = self.set_interval(FRAME_S, self._play_on)
            self.say(f"playing, {self._speed}")

    def action_speed(self, by: int) -> None:
        """Play faster, or as fast as the run was."""
        self._speed = next_speed(self._speed, by)
        if self._view.playback is not None:
            self._play_from(self._step)
        self.say(f"playing speed: {self._speed}")

    # Editing: every command that changes anything goes through `_write`.

    def action_edit(self, kind: str) -> None:
        """Drop, never keep, pin or clear what is selected, or the cursor's head-scale; fill; undo; redo."""
        self.edit(lambda editor: editor.line_of(kind, self._view.cursor, self._view.span))

    def action_nudge(self, by: int) -> None:
        """Move the budget by tokens a head."""
        self.edit(lambda editor: editor.nudged(by))

    def edit(self, line_of: Callable[[Editor], str]) -> None:
        """Stage the edit that a line says."""

        def write(editor: Editor) -> None:
            state = editor.write(line_of(editor))
            self._show(replace(self._view, edit=state))
            if state.is_refused:
                self.say(state.words, bad=True)

        self._write(write)

    def action_review(self) -> None:
        """Show what is staged as a plan."""
        self.action_show("plan")

    def action_save_plan(self) -> None:
        """Write what is staged as a plan file."""
        self._write(lambda editor: self._desk_of().save(self._shown, editor.state, editor.fidelity))

    def apply_plan(self, *, revise: bool = False) -> None:
        """Write what is staged as a plan file, and run it; or let the run that is shown go on with it."""
        link, live = self._view.link, self._shown.status == "live"
        resident = link is not None and link.connected and (link.state == "idle" or live)
        mode: Literal["free", "forced", "revise"] = "forced" if self._view.choices["mode"] == "forced" else "free"
        if revise:
            mode = "revise"
        self._write(
            lambda editor: self._desk_of().apply(
                self._shown,
                editor.state,
                editor.fidelity,
                mode=mode,
                resident=resident,
                review=self._view.review,
            )
        )

    def discard_edits(self) -> None:
        """Undo every edit; redo brings them back."""

        def write(editor: Editor) -> None:
            self._show(replace(self._view, edit=editor.discard()))

        self._write(write)

    def action_list(self) -> None:
        """List the folder that Runs shows, anew."""
        self._listing.start(Path(self._view.folder))

    def action_mark(self) -> None:
        """Compare the trace that is chosen on Runs with the one shown."""
        screen = self._trace_screen
        path = screen.chosen_path(self._view) if screen is not None else None
        if path is not None:
            self.open_other(path)
            self.say(f"{path.name} is B on Compare, key {keys_shown('screen.compare', self._view.keymap)}")

    def action_demo(self) -> None:
        """Record a demo run in a process of its own, and show it from its first moment."""
        launched = start_demo(Path.cwd())
        self.open(launched.path, launched=launched)
        self.action_show("live")

    def look_in(self, folder: Path) -> None:
        """List another folder on Runs."""
        self._show(replace(self._view, folder=str(folder), runs=None, runs_refused=None, row=0))
        self.action_list()

    def action_ask(self, kind: str) -> None:
        """Ask the run: pause, resume, step or stop; what came of it is said when it answers. Pausing twice resumes."""
        link = self._view.link
        if kind == "pause" and link is not None and link.state == "paused":
            kind = "resume"
        refusal = self._remote.ask(kind, self._view)
        if refusal:
            self.say(refusal, bad=True)

    def action_glyphs(self) -> None:
        """Values as glyphs, or as colour; where there is no colour, always as glyphs."""
        self._glyphs = not self._glyphs or self._must_glyph
        self._show(replace(self._view, ink=self._ink(self.current_theme)))

    def action_theme(self) -> None:
        """Dark or light."""
        self.theme = turned(self.current_theme).name

    def action_write(self, form: str) -> None:
        """Write the screen here as svg, or what it shows as csv or json; never over a file that is there."""
        # Deferred: only who writes needs it.
        from kvscope.tui.write import write_screen

        screen = self._trace_screen
        if screen is None:
            return
        try:
            self.say(f"wrote {write_screen(self, screen, form)}")
        except OSError as error:
            self.say(f"nothing written: {error.strerror or error}; start kvscope in another folder", bad=True)

    def go_to(self, place: goto.Place) -> None:
        """Put the cursor, the metric and the screen where a line like `q7 l12 h3 s5` says."""
        view = self._view
        if view.snapshot is not None:
            view = replace(view, cursor=place.of(view.cursor, shape_of(view.snapshot)))
        self._show(replace(view, metric=place.metric or view.metric, span=None))
        if place.screen is not None:
            self.action_show(place.screen)

    def say(self, text: str, *, bad: bool = False) -> None:
        """One short line over the footer, in the place of the one before."""
        self.clear_notifications()
        severity: Literal["error", "information"] = "error" if bad else "information"
        toast(self, printable(text), severity=severity, seconds=6 if bad else 2)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """What is done to every line before the terminal gets it."""
        return line_filters(self._colours, super().get_line_filters())

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:  # noqa: ARG002 - Textual's
        """The command palette: every action of this screen, and nothing else."""
        for action in actions_of(self._view.screen, self._view.keymap):
            yield SystemCommand(action.help, f"key {action.shown}", partial(self.run_action, action.command))

    @property
    def _trace_screen(self) -> TraceScreen | None:
        """The screen that is up, or that help and palette lie over; None at the very start."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, TraceScreen)), None)

    def _ink(self, theme: Theme) -> Ink:
        return ink(theme, glyphs=self._glyphs, plain=self._plain, colours=self._colours)

    def _over(self, name: str) -> None:
        self.push_screen(load_overlay(name)(self._view))

    def _put(self, cursor: Cursor) -> None:
        self._show(replace(self._view, cursor=cursor))
        if self._view.playback is not None:
            self._play_from(self._step)

    def _write(self, use: Callable[[Editor], None]) -> None:
        """The one gate of all editing: nothing passes where the viewer only reads."""
        if self._editor is None:
            waits = self._edit_options is not None and self._view.edit_refused is None
            self.say(self._view.edit_refused or ("one moment" if waits else _READ_ONLY), bad=True)
            return
        use(self._editor)

    def _begin_editing(self, snapshot: Snapshot) -> None:
        """Read the journal and the head orders, in a thread; what came of it is posted."""
        if self._edit_options is not None:
            # Deferred: only who edits needs it.
            from kvscope.tui.editing import begin

            begin(snapshot, self._edit_options, self._feed, self.post_message)

    def _end_editing(self) -> None:
        editor, self._editor = self._editor, None
        if editor:
            editor.close()

    def _desk_of(self) -> Desk:
        if self._desk is None:
            # Deferred: only who applies needs it.
            from kvscope.tui.applying import Desk

            self._desk = Desk(self.post_message)
        return self._desk

    def _read_back(self, snapshot: Snapshot) -> None:
        """Compare the schedule of a plan's run with the plan; and what became of it, once it has ended."""
        applied = self._view.applied
        if applied is None or applied.path != snapshot.path:
            return
        # Deferred: only who applies needs it.
        from kvscope.tui.applying import has_ended, read_back_of

        read = read_back_of(applied, snapshot, self._view.edit)
        self._show(replace(self._view, applied=read))
        if has_ended(read.status) and not has_ended(applied.status) and read.mode != "revise":
            self._desk_of().read_back(self._shown.path, read)
        if read.as_planned is False and applied.as_planned is None:
            self.say(read.read_back, bad=True)

    @property
    def _shown(self) -> Snapshot:
        snapshot = self._view.snapshot
        assert snapshot is not None  # what is staged was staged on it
        return snapshot

    @property
    def _step(self) -> int:
        """The cursor's step of the run."""
        return self._view.cursor.query_scale * self._shown.schedule.num_layers + self._view.cursor.layer

    def _play_from(self, step: int) -> None:
        query_scale, layer = divmod(step, self._shown.schedule.num_layers)
        cursor = replace(self._view.cursor, query_scale=query_scale, layer=layer)
        self._show(replace(self._view, cursor=cursor, playback=Playback(self._speed, time.monotonic(), step)))

    def _play_on(self) -> None:
        """Show the step that is due; stop at the last."""
        playback = self._view.playback
        if playback is None:
            return
        step = playback.step_at(time.monotonic(), self._shown)
        query_scale, layer = divmod(step, self._shown.schedule.num_layers)
        cursor = replace(self._view.cursor, query_scale=query_scale, layer=layer)
        if cursor != self._view.cursor:
            self._show(replace(self._view, cursor=cursor))
        if step >= last_step(self._shown):
            self._stop_playing()
            self.say("played to the end")

    def _stop_playing(self) -> None:
        player, self._player = self._player, None
        if player is not None:
            player.stop()
        if self._view.playback is not None:
            self._show(replace(self._view, playback=None))

    def _take(self, snapshot: Snapshot) -> None:
        """Show a newer state of the trace."""
        before, shape = self._view.snapshot, shape_of(snapshot)
        if before is None:
            self.misplaced = self._place.problem(shape)
            if self.misplaced is not None:
                self.say(self.misplaced, bad=True)
            cursor = self._place.of(first_cursor(snapshot), shape)
            view = replace(self._view, cursor=cursor, metric=self._place.metric or self._view.metric, said=())
            if snapshot.schedule.online:
                # Deferred: only such a run's edits are refused, and no frame waits for what estimates need.
                from kvscope.estimate import chosen_words

                view = replace(view, edit_refused=chosen_words(snapshot.schedule))
            self._remote.follow(snapshot)
            self._begin_editing(snapshot)
        else:
            view = replace(self._view, cursor=self._view.cursor.followed(shape_of(before), shape))
            if self._editor:
                view = replace(view, edit=self._editor.follow(snapshot))
        self._show(replace(view, snapshot=snapshot, behind=0))

    def _show(self, view: View) -> None:
        moved = view.cursor != self._view.cursor or view.snapshot is not self._view.snapshot
        self._view = view
        if moved and view.snapshot is not None and self._feed is not None:
            place = view.cursor.query_scale, view.cursor.layer, view.cursor.head
            if view.attention is None or view.attention.place != place:
                self._feed.want(place)
        self._draw()

    def _draw(self) -> None:
        if self._trace_screen is not None:
            self._trace_screen.show(self._view)


def run_app(
    path: Path | None,
    *,
    other: Path | None = None,
    launched: Launched | None = None,
    edit: EditOptions | None = None,
    folder: Path | None = None,
    screen: str | None = None,
    place: str = "",
    light: bool = False,
    contrast: bool = False,
    plain: bool | None = None,
    colours: str | None = None,
    keymap: Path | None = None,
) -> int:
    """Show a trace until the user quits, or without one a folder of traces; returns the exit code.

    `folder`: where Runs looks; None: where the trace is.
    `plain`: ASCII only; None: where the terminal or the locale needs it. `colours`: one of terminal.COLOURS; None: as
    many as the terminal says it has. `place`: a line like that of the `:` key. `keymap`: a file of keys; None: the
    user's own, if there is one. `edit`: how to edit; None: nothing can be. Raises NoTerminalError where there is no
    terminal, UsageError for a place or a keymap that makes no sense, and TraceError where there is no trace.
    """
    if os.environ.get("TERM") == "dumb":
        raise NoTerminalError("TERM is dumb: this terminal moves no cursor; `kvscope screen` draws without one")
    # Textual reads keys from stdin and draws on stderr; stdout stays free for data.
    if not (is_served(os.environ) or (sys.stdin.isatty() and sys.stderr.isatty())):
        raise NoTerminalError("no terminal here; `kvscope stats` prints the same numbers without one")
    if plain is None:
        plain = not speaks_unicode(os.environ, sys.stderr.encoding)
    app = KVScopeApp(
        path,
        other=other,
        launched=launched,
        edit=edit,
        folder=folder or (Path() if path is None else path.parent),
        screen=screen,
        place=goto.parse(place),
        theme=theme_for(light=light, contrast=contrast),
        plain=plain,
        colours=colours_of(os.environ, colours),
        keymap=read_keymap(keymap),
        recent=recent(),
        remember=remember,
    )
    app.run()
    if app.error is not None:
        raise app.error
    if app.view.edit is not None and app.view.edit.journal and app.view.edit.edits:
        kept = f"{len(app.view.edit.edits)} edits are kept in {app.view.edit.journal}; --edit goes on with them"
        sys.stderr.write(f"kvscope: {printable(kept)}\n")
    return app.return_code or 0
