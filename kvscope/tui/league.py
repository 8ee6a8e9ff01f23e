"""A league on the screen: who is best at a budget, and how one policy fares at all. Read again as it grows."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.widgets import DataTable, Footer, Static

from kvscope.errors import NoTerminalError, TraceError
from kvscope.league.file import load
from kvscope.league.plot import plot_lines
from kvscope.league.report import command, mean_text, target_text
from kvscope.league.standings import standings
from kvscope.league.table import MEASURES
from kvscope.tui.terminal import is_served
from kvscope.tui.toasts import toast
from kvscope.units import bytes_text, printable

if TYPE_CHECKING:
    from kvscope.league.standings import Standing
    from kvscope.league.table import League

_READ_EVERY_S = 2.0
_NEEDED = (80, 20)
"""Columns and lines."""
_TITLES = ("", "policy", "true peak", "mean ± 95 %", "× time")


class LeagueApp(App[None]):
    """One league: who stands where at one budget under one measure, and the chosen policy at all of them."""

    CSS = """
    #head { height: 2; padding: 0 1; }
    DataTable { height: 1fr; }
    #plot { height: auto; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "budget(-1)", "fewer bytes", priority=True),
        Binding("right", "budget(1)", "more bytes", priority=True),
        Binding("m", "measure(1)", "next measure"),
        Binding("M", "measure(-1)", "previous"),
        Binding("enter", "say_command", "its command", priority=True),
        Binding("q", "quit", "quit"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, path: Path, *, light: bool = False) -> None:
        """Raises TraceError if the file is no readable league."""
        super().__init__()
        self._path, self._light = path, light
        self._league = load(path)
        self._read_ns = path.stat().st_mtime_ns
        self._table = standings(self._league)
        self._measure = next((name for name in ("kl", *MEASURES) if self._has(name)), "kl")
        targets = self._targets
        self._target = targets[len(targets) // 2] if targets else None
        self._policy: str | None = None

    @property
    def _targets(self) -> list[int]:
        """Most bytes first."""
        return sorted(self._league.settings.targets, reverse=True)

    def compose(self) -> ComposeResult:
        yield Static(id="head", markup=False)
        yield DataTable(cursor_type="row")
        yield Static(id="plot", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        self.theme = "textual-light" if self._light else "textual-dark"
        self._draw()
        self.set_interval(_READ_EVERY_S, self._read)

    def on_resize(self, _: Resize) -> None:
        self._draw()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        if event.row_key.value is not None:
            self._policy = event.row_key.value
            self._draw_plot()

    def action_measure(self, step: int) -> None:
        """Show the next measure that was measured, or the one before."""
        names = [name for name in MEASURES if self._has(name)] or ["kl"]
        place = names.index(self._measure) if self._measure in names else 0
        self._measure = names[(place + step) % len(names)]
        self._draw()

    def action_budget(self, step: int) -> None:
        """Show the next larger budget, or the next smaller."""
        targets = self._targets
        if self._target is not None:
            place = targets.index(self._target) - step
            self._target = targets[min(max(place, 0), len(targets) - 1)]
            self._draw()

    def action_say_command(self) -> None:
        """Tell the command that repeats the chosen policy's run of the first prompt, and copy it."""
        settings = self._league.settings
        one = next((one for one in self._table if self._is_shown(one) and one.entrant.policy == self._policy), None)
        if one is None or not one.entrant.is_reachable:
            toast(self, "no run of it at this budget: it cannot keep so little", severity="warning", seconds=4)
            return
        words = command(settings, one.entrant, 0, settings.seeds[0])
        self.copy_to_clipboard(words)
        toast(self, printable(words), title="copied: its run of the first prompt", seconds=8)

    @work(thread=True, exclusive=True)
    def _read(self) -> None:
        """Read the file again if it has changed; what cannot be read now is read next time."""
        try:
            changed_ns = self._path.stat().st_mtime_ns
            if changed_ns != self._read_ns:
                league = load(self._path)
                self.call_from_thread(self._take, league, changed_ns)
        except (OSError, TraceError):
            return

    def _take(self, league: League, changed_ns: int) -> None:
        self._league, self._read_ns, self._table = league, changed_ns, standings(league)
        if self._target not in self._targets:
            self._target = next(iter(self._targets), None)
        self._draw()

    def _draw(self) -> None:
        league, column = self._league, MEASURES[self._measure]
        done = f"{len(league.rows)} of {league.num_wanted} runs, {len(league.settings.prompts)} prompts"
        better = "more is better" if column.better > 0 else "less is better"
        budget = "" if self._target is None else f"  at {target_text(league.settings, self._target)}"
        first = f"{printable(self._path.name)}: {done}{budget}"
        self.query_one("#head", Static).update(f"{first}\n{column.title}, {better}: {column.words}")
        table, policy = self.query_one(DataTable), self._policy
        table.clear(columns=True)  # no wider than this budget's words need
        table.add_columns(*_TITLES)
        ordered = self._ordered()
        for rank, one in enumerate(ordered):
            table.add_row(*(Text(cell) for cell in self._cells(rank, one)), key=one.entrant.policy)
        names = [one.entrant.policy for one in ordered]
        table.move_cursor(row=names.index(policy) if policy in names else min(1, len(names)))
        self._draw_plot()

    def _draw_plot(self) -> None:
        plot, settings = self.query_one("#plot", Static), self._league.settings
        is_small = self.size.width < _NEEDED[0] or self.size.height < _NEEDED[1]
        self.query_one(DataTable).display = plot.display = not is_small
        if is_small:
            needed, found = ("×".join(map(str, size)) for size in (_NEEDED, self.size))
            self.query_one("#head", Static).update(f"too small: {needed} needed, {found} here")
            return
        room = {"width": self.size.width - 2, "height": min(max(self.size.height * 2 // 5, 7), 20)}
        plot.update("\n".join(plot_lines(settings, self._table, self._measure, self._policy, self._target, **room)))

    def _is_shown(self, one: Standing) -> bool:
        return one.entrant.target_bytes in (None, self._target)

    def _ordered(self) -> list[Standing]:
        """Full, then the best at this budget first; what was not measured, and what cannot be, last."""
        better = MEASURES[self._measure].better

        def place(one: Standing) -> tuple[bool, bool, float]:
            mean = one.means.get(self._measure)
            return one.entrant.target_bytes is not None, mean is None, 0.0 if mean is None else -better * mean.value

        return sorted(filter(self._is_shown, self._table), key=place)

    def _cells(self, rank: int, one: Standing) -> list[str]:
        entrant, mean = one.entrant, one.means.get(self._measure)
        peak = bytes_text(entrant.peak_bytes)
        if not entrant.is_reachable:
            return ["-", printable(entrant.policy), f"at least {peak}", "-", "-"]
        return [
            "" if entrant.target_bytes is None else "-" if mean is None else str(rank),
            printable(entrant.policy),
            peak
            if entrant.is_equal or entrant.target_bytes is None
            else f"{peak} (−{100 * entrant.below_target:.1f} %)",
            "-" if mean is None else mean_text(mean),
            f"{one.time_ratio:.2f}" if one.runs else "-",
        ]

    def _has(self, measure: str) -> bool:
        return any(measure in one.means for one in self._table)


def run_league_app(path: Path, *, light: bool = False) -> int:
    """Show a league until the user quits; returns the exit code. Raises NoTerminalError, or TraceError."""
    if os.environ.get("TERM") == "dumb" or not (is_served(os.environ) or (sys.stdin.isatty() and sys.stderr.isatty())):
        raise NoTerminalError("no terminal here; `kvscope league show` prints the same numbers without one")
    app = LeagueApp(path, light=light)
    app.run()
    return app.return_code or 0
