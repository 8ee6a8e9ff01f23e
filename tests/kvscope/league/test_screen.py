"""A league on the screen: each measure in turn, at any size, in words and letters."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import DataTable, Static

from kvscope.cli import main
from kvscope.league import file
from kvscope.league.plot import LOOKED_AT, OTHER, plot_lines
from kvscope.league.standings import standings
from kvscope.league.table import League, Row
from kvscope.tui.league import LeagueApp


def shown(path: Path, *keys: str, size: tuple[int, int] = (80, 24)) -> tuple[str, list[list[str]], str]:
    """(head, cells of the table, plot) after these keys."""
    app = LeagueApp(path)

    async def main() -> tuple[str, list[list[str]], str]:
        async with app.run_test(size=size) as pilot:
            await pilot.press(*keys)
            await pilot.pause()
            table = app.query_one(DataTable)
            cells = [[str(cell) for cell in table.get_row_at(row)] for row in range(table.row_count)]
            head, plot = (str(app.query_one(name, Static).content) for name in ("#head", "#plot"))
            assert all(len(line) <= size[0] for line in plot.splitlines())
            return head, cells, plot

    return asyncio.run(main())


@pytest.fixture
def saved(made_up: League, tmp_path: Path) -> Path:
    path = tmp_path / "league.h5"
    file.save(path, made_up)
    return path


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
def test_it_opens_with_the_forced_kl_of_everybody(saved: Path, size: tuple[int, int]) -> None:
    head, cells, plot = shown(saved, size=size)

    assert "50 of 50 runs" in head
    assert "less is better" in head
    assert "at 117 KiB (10.0 %)" in head
    assert [row[:2] for row in cells] == [["", "full"], ["1", "heatkv"], ["2", "other"]]
    assert f"{LOOKED_AT} heatkv, {OTHER} others" in plot
    assert "10.0 % 117 KiB" in plot


def test_arrows_go_through_budgets_and_policies_and_stop_at_the_ends(saved: Path) -> None:
    assert "at 585 KiB (50.0 %)" in shown(saved, "right", "right")[0]
    assert "at 117 KiB (10.0 %)" in shown(saved, "right", "left", "left")[0]
    assert f"{LOOKED_AT} other, {OTHER} others" in shown(saved, "down", "right")[2]


def test_what_cannot_keep_so_little_is_last_with_what_it_needs(made_up: League, tmp_path: Path) -> None:
    least = replace(made_up.entrants[2], peak_bytes=200_000, is_reachable=False)
    entrants = (*made_up.entrants[:2], least, *made_up.entrants[3:])
    rows = tuple(row for row in made_up.rows if row.entrant != 2)
    path = tmp_path / "league.h5"
    file.save(path, replace(made_up, entrants=entrants, rows=rows))

    _, cells, _ = shown(path, "left")

    assert [row[1] for row in cells] == ["full", "other", "heatkv"]
    assert cells[-1][2] == "at least 195 KiB"


def test_enter_tells_and_copies_the_command_of_the_chosen_policy(saved: Path) -> None:
    app = LeagueApp(saved)

    async def main() -> str:
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.press("down", "enter")
            await pilot.pause()
            return app.clipboard

    assert "--policy other" in asyncio.run(main())


def test_keys_go_through_the_measures_and_back(saved: Path) -> None:
    assert "PSNR" in shown(saved, "m")[0]
    assert "forced KL" in shown(saved, "m", "M")[0]


def test_a_league_without_rows_says_so(made_up: League, tmp_path: Path) -> None:
    path = tmp_path / "empty.h5"
    file.save(path, replace(made_up, rows=()))

    head, cells, plot = shown(path, "m")

    assert "0 of 50 runs" in head
    assert all(row[3] == "-" for row in cells)
    assert "nothing measured" in plot
    assert cells[0][1] == "full"


def test_open_knows_a_league_and_refuses_what_it_would_not_read(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["open", str(saved)]) == 7  # there is no terminal
    assert main(["open", str(saved), "--screen", "map"]) == 2
    assert "--screen is of traces" in capsys.readouterr().err


def test_the_policy_that_is_looked_at_is_never_below_another(made_up: League) -> None:
    same = replace(
        made_up, rows=tuple(replace(row, numbers={**row.numbers, "kl": 1.0}) for row in made_up.rows if row.entrant)
    )

    lines = plot_lines(same.settings, standings(same), "kl", "other", 119_808, width=60, height=9)

    assert len(lines) == 9
    assert OTHER not in "".join(lines[1:-2])
    assert "".join(lines[1:-2]).count(LOOKED_AT) == 2


def test_values_far_apart_stand_on_a_logarithmic_axis(made_up: League) -> None:
    def kl(row: Row) -> Row:
        return replace(row, numbers={**row.numbers, "kl": 10.0 ** -(row.entrant % 3)})

    apart = replace(made_up, rows=tuple(map(kl, made_up.rows)))

    lines = plot_lines(apart.settings, standings(apart), "kl", None, None, width=80, height=9)

    assert "both logarithmic" in lines[0]
    assert [line.partition("|")[0].strip() for line in (lines[1], lines[6])] == ["1", "0.01"]
