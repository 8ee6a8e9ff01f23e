"""A league on the screen: each measure in turn, at any size, in words and letters."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import DataTable, Static

from kvscope.cli import main
from kvscope.league import file
from kvscope.league.plot import SHARED, letter, plot_lines
from kvscope.league.standings import standings
from kvscope.league.table import League
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
    assert [row[1] for row in cells] == ["full", "heatkv", "other", "heatkv", "other"]
    assert {row[0] for row in cells} == {"", "a", "b"}
    assert "a" in plot
    assert "b" in plot


def test_keys_go_through_the_measures_and_back(saved: Path) -> None:
    assert "PSNR" in shown(saved, "m")[0]
    assert "forced KL" in shown(saved, "m", "M")[0]


def test_a_league_without_rows_says_so(made_up: League, tmp_path: Path) -> None:
    path = tmp_path / "empty.h5"
    file.save(path, replace(made_up, rows=()))

    head, cells, plot = shown(path, "m")

    assert "0 of 50 runs" in head
    assert all(row[4] == "-" for row in cells)
    assert "nothing measured" in plot


def test_open_knows_a_league_and_refuses_what_it_would_not_read(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["open", str(saved)]) == 7  # there is no terminal
    assert main(["open", str(saved), "--screen", "map"]) == 2
    assert "--screen is of traces" in capsys.readouterr().err


def test_policies_on_one_cell_are_not_hidden(made_up: League) -> None:
    same = replace(
        made_up, rows=tuple(replace(row, numbers={**row.numbers, "kl": 1.0}) for row in made_up.rows if row.entrant)
    )

    lines = plot_lines(same.settings, standings(same), "kl", width=60, height=8)

    assert SHARED in "".join(lines[1:-1])
    assert letter(same.settings, "other") == "b"
