"""run_league: plan who takes part, measure what is missing, keep the file whole all the while."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from kvscope.errors import UsageError
from kvscope.league import file
from kvscope.league.dealing import dealt, tasks_of
from kvscope.league.entrants import entrants
from kvscope.league.settings import Settings
from kvscope.league.table import League, Row
from kvscope.runner import check_weights
from kvscope.units import seconds_text

_SAVE_EVERY_S = 2.0
_SAVE_SHARE = 20
"""A save takes at most one part in this many of the time."""
_MOST_JOBS = 256

Narrate = Callable[[str], None]


def run_league(
    settings: Settings,
    out: Path,
    *,
    jobs: int = 1,
    threads: int = 1,
    overwrite: bool = False,
    narrate: Narrate = lambda _: None,
) -> League:
    """Measure the league, or the rest of it. Ctrl-C, or any error, leaves in `out` what is done.

    Raises UsageError if `out` is a league of other settings; HeatKVError for what no run could do.
    """
    if not 1 <= jobs <= _MOST_JOBS:
        raise UsageError(f"--jobs {jobs}; expected 1 to {_MOST_JOBS}")
    check_weights(settings.job("full", None), settings.config)
    with file.locked(out):
        begun = file.begun(out, settings, overwrite=overwrite)
        league = begun or League(settings, tuple(entrants(settings, narrate=narrate)), ())
        _tell_missed(league, narrate)
        if league.rows:
            narrate(f"{len(league.rows)} of {league.num_wanted} rows were measured before; going on")
        rows = list(league.rows)
        try:
            _measure(league, rows, out, jobs, threads)
        except KeyboardInterrupt:
            sys.stderr.write("\n" if sys.stderr.isatty() else "")  # ends the line of progress
            narrate(f"{len(rows)} of {league.num_wanted} rows are safe in {out}; the same command goes on from there")
            raise
        return replace(league, rows=tuple(rows))


def _measure(league: League, rows: list[Row], out: Path, jobs: int, threads: int) -> None:
    """Add what is missing to `rows`, saving now and then and, whatever happens, at the end."""
    begin = saved_at = time.monotonic()
    pause, before, count = _SAVE_EVERY_S, len(rows), league.num_wanted
    try:
        with closing(dealt(league, tasks_of(league.missing(rows)), jobs=jobs, threads=threads)) as arriving:
            for row in arriving:
                rows.append(row)
                _show(len(rows), count, before, time.monotonic() - begin)
                if time.monotonic() - saved_at >= pause:
                    pause = max(_SAVE_EVERY_S, _SAVE_SHARE * _saved(out, league, rows))
                    saved_at = time.monotonic()
    finally:
        if len(rows) > before:
            _saved(out, league, rows)


def _saved(out: Path, league: League, rows: Sequence[Row]) -> float:
    """Save; returns the seconds it took."""
    begin = time.monotonic()
    file.save(out, replace(league, rows=tuple(rows)))
    return time.monotonic() - begin


def _tell_missed(league: League, narrate: Narrate) -> None:
    for one in league.entrants:
        if one.remark:
            assert one.target_bytes is not None  # full has no remark
            narrate(f"{one.policy} at {one.target_bytes:,} bytes: {one.remark}, {one.peak_bytes:,} bytes")


def _show(done: int, count: int, before: int, elapsed: float) -> None:
    left = elapsed / (done - before) * (count - done)
    ending = "done" if done == count else f"about {seconds_text(left)} left"
    line = f"row {done:>5}/{count}  {seconds_text(elapsed)} gone, {ending}"
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if done == count else ""))
        sys.stderr.flush()
    elif done == count or done % max(1, count // 50) == 0:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
