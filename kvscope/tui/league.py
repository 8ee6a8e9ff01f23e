"""A league on the screen: the standings of one measure as a table, and its curves below. Read again as it grows."""

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
from kvscope.league.plot import letter, plot_lines
from kvscope.league.report import mean_text
from kvscope.league.standings import standings
from kvscope.league.table import MEASURES
from kvscope.tui.terminal import is_served
from kvscope.units import bytes_text, fraction_text, printable

if TYPE_CHECKING:
    from kvscope.league.standings import Standing
    from kvscope.league.table import League

_READ_EVERY_S = 2.0
_TITLES = ("", "policy", "budget", "peak", "mean ± 95 %", "× time", "")


class LeagueApp(App[None]):
    """One league; `m` and `M` go through its measures."""

    CSS = """
    #head { height: 2; padding: 0 1; }
    DataTable { height: 1fr; }
    #plot { height: 12; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "measure(1)", "next measure"),
        Binding("M", "measure(-1)", "previous measure"),
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

    def compose(self) -> ComposeResult:
        yield Static(id="head", markup=False)
        yield DataTable(cursor_type="row")
        yield Static(id="plot", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        self.theme = "textual-light" if self._light else "textual-dark"
        self.query_one(DataTable).add_columns(*_TITLES)
        self._draw()
        self.set_interval(_READ_EVERY_S, self._read)

    def on_resize(self, _: Resize) -> None:
        self._draw_plot()

    def action_measure(self, step: int) -> None:
        """Show the next measure that was measured, or the one before."""
        names = [name for name in MEASURES if self._has(name)] or ["kl"]
        place = names.index(self._measure) if self._measure in names else 0
        self._measure = names[(place + step) % len(names)]
        self._draw()

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
        self._draw()

    def _draw(self) -> None:
        league, column = self._league, MEASURES[self._measure]
        done = f"{len(league.rows)} of {league.num_wanted} runs, {len(league.settings.prompts)} prompts"
        better = "more is better" if column.better > 0 else "less is better"
        first = f"{printable(self._path.name)}  {printable(league.settings.model)}: {done}"
        self.query_one("#head", Static).update(f"{first}\n{column.title}: {column.words}; {better}")
        table = self.query_one(DataTable)
        row = table.cursor_row
        table.clear()
        for one in self._table:
            table.add_row(*(Text(cell) for cell in self._cells(one)))
        table.move_cursor(row=row)
        self._draw_plot()

    def _draw_plot(self) -> None:
        plot = self.query_one("#plot", Static)
        settings, width = self._league.settings, self.size.width - 2
        lines = plot_lines(settings, self._table, self._measure, width=width, height=12)
        plot.update("\n".join(lines))

    def _cells(self, one: Standing) -> list[str]:
        settings, entrant = self._league.settings, one.entrant
        return [
            letter(settings, entrant.policy),
            printable(entrant.policy),
            fraction_text((entrant.target_bytes or settings.history_bytes) / settings.history_bytes),
            bytes_text(entrant.peak_bytes),
            mean_text(one.means[self._measure]) if self._measure in one.means else "-",
            f"{one.time_ratio:.2f}" if one.runs else "-",
            entrant.remark,
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
