"""Runs, the welcome and the folder browser."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot

from kvscope.runs import Run, Runs, Unreadable
from kvscope.tui.app import KVScopeApp
from kvscope.tui.feed import Snapshot
from kvscope.tui.palette import DARK, ink
from kvscope.tui.run_rows import row_of, run_rows
from kvscope.tui.screens.browse import TraceTree
from kvscope.tui.screens.runs import RunsScreen
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Canvas
from kvscope.tui.widgets.run_list import list_hit, run_list, run_words, welcome

ROOMS = ((80, 20), (80, 5), (120, 38), (160, 46), (220, 48))
RUN = Run("run.h5", "0" * 32, 0, "infinity-2b", "1M", "heatkv", 0.1, "done", 13, 13, 1 << 28, 1 << 20)
HOSTILE = "evil\x1b[31m\n\u202e.h5"


def runs_of(*runs: Run, unreadable: tuple[Unreadable, ...] = ()) -> Runs:
    return Runs("folder", runs, unreadable)


def view_of(runs: Runs | None = None, **changes: object) -> View:
    return replace(View(ink(DARK), folder="folder", runs=runs, screen="runs"), **changes)


MANY = runs_of(
    *(
        replace(RUN, file=f"sub/{number}-{'long' * (number % 30)}.h5", status=status)
        for number in range(60)
        for status in ("done", "failed", "cancelled", "crashed", "live")
    ),
    replace(RUN, file=HOSTILE, policy=HOSTILE, model=HOSTILE, budget=None, storage_peak_bytes=None, scales_done=0),
    unreadable=(Unreadable(HOSTILE, HOSTILE), Unreadable("图像.h5", "not an HDF5 file")),
)


def text_of(view: View, width: int = 80, height: int = 20) -> str:
    return "\n".join(strip.text for paint in (welcome, run_list, run_words) for strip in paint(view, width, height))


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("looks", [{}, {"plain": True}, {"colour": False}])
@pytest.mark.parametrize(
    "view",
    [
        view_of(),
        view_of(runs_of()),
        view_of(runs_refused="folder: cannot be listed"),
        view_of(MANY),
        view_of(MANY, runs_refused="still looking"),
        view_of(runs_of(), recent=("/elsewhere/a.h5", f"/elsewhere/{HOSTILE}")),
    ],
)
def test_every_state_fits_every_room(room: tuple[int, int], looks: dict[str, bool], view: View) -> None:
    for chosen in (0, 150, len(run_rows(view)) - 1, 1 << 30):
        drawn = replace(view, row=max(0, chosen), ink=ink(DARK, **looks))
        for paint in (welcome, run_list, run_words):
            lines = paint(drawn, *room)
            assert all(strip.cell_length <= room[0] for strip in lines)
            assert not any(sign in strip.text for strip in lines for sign in "\x1b\n\u202e")


def test_live_runs_come_first_and_what_is_not_readable_last() -> None:
    view = view_of(MANY, recent=("/elsewhere/a.h5",))

    rows = run_rows(view)

    statuses = [row.run.status if row.run else row.kind for row in rows]
    assert statuses[:60] == ["live"] * 60
    assert "live" not in statuses[60:]
    assert statuses[-3:] == ["recent", "unreadable", "unreadable"]


def test_a_trace_opened_before_that_is_in_the_folder_is_listed_once() -> None:
    here = str(Path("folder/run.h5").absolute())

    assert len(run_rows(view_of(runs_of(RUN), recent=(here, "/elsewhere/run.h5")))) == 2


def test_a_line_shows_status_by_shape_and_word_and_numbers_with_units() -> None:
    text = text_of(view_of(runs_of(replace(RUN, status="crashed", scales_done=3))))

    for words in ("✗", "crashed 3/13", "heatkv 10.0 %", "256 MiB", "3 of 13 scales"):
        assert words in text


def test_an_unreadable_file_says_why() -> None:
    text = text_of(view_of(runs_of(unreadable=(Unreadable("bad.h5", "not an HDF5 file"),))))

    assert "bad.h5" in text
    assert text.count("not an HDF5 file") == 2


def test_the_trace_shown_and_the_one_beside_it_are_marked_by_letters(tiny_snapshot: Snapshot) -> None:
    folder = tiny_snapshot.path.parent
    runs = replace(
        runs_of(replace(RUN, file="other.h5"), replace(RUN, file=tiny_snapshot.path.name)), folder=str(folder)
    )
    other = replace(tiny_snapshot, path=folder / "other.h5")

    lines = [strip.text for strip in run_list(view_of(runs, snapshot=tiny_snapshot, other=other), 80, 10)]

    assert lines[2].startswith("▸B ")
    assert lines[3].startswith(" A ")


def test_the_chosen_line_of_hundreds_is_shown_and_can_be_clicked() -> None:
    count = len(run_rows(view_of(MANY)))

    for refused in (None, "still looking"):
        for index in (0, 1, 150, count - 2, count - 1):
            view = view_of(MANY, row=index, runs_refused=refused)
            lines = [strip.text for strip in run_list(view, 80, 12)]
            (y,) = [y for y, line in enumerate(lines) if line.startswith("▸")]
            assert list_hit(view, 80, 12, 3, y) == index
            assert f"{index + 1} of {count}" in lines[0]
            assert list_hit(view, 80, 12, 3, 12 + y) is None


def test_each_empty_state_has_its_words() -> None:
    assert "looking" in text_of(view_of())
    assert "no trace here; d records a demo run" in text_of(view_of(runs_of()))
    assert "cannot be listed" in text_of(view_of(runs_refused="folder: cannot be listed"))


def test_home_says_what_this_is_and_how_to_begin_and_goes_when_a_trace_is_open(tiny_snapshot: Snapshot) -> None:
    for width in (80, 120):
        home = "\n".join(strip.text for strip in welcome(view_of(), width, 20))
        for words in ("KV cache of visual autoregressive models", "demo", "look in another folder", "docs/", "--help"):
            assert words in home

    assert welcome(view_of(snapshot=tiny_snapshot), 80, 20) == []
    assert welcome(view_of(name="run.h5"), 80, 20) == []


def test_enter_leads_to_the_chosen_file_and_only_readable_ones_can_be_compared() -> None:
    screen = RunsScreen()
    view = view_of(runs_of(RUN, unreadable=(Unreadable("bad.h5", "no"),)))

    assert screen.entered(view) == screen.chosen_path(view) == Path("folder/run.h5")
    assert screen.entered(replace(view, row=1)) == Path("folder/bad.h5")
    assert screen.chosen_path(replace(view, row=1)) is None
    assert screen.entered(view_of()) is None


def test_a_trace_is_found_again_when_the_list_has_changed() -> None:
    before = view_of(runs_of(RUN), row=0)
    after = view_of(runs_of(replace(RUN, file="new.h5"), RUN))

    assert RunsScreen().row_of(after, RunsScreen().chosen_path(before)) == 1
    assert row_of(run_rows(after), Path("gone.h5")) is None


def test_records_are_one_per_line_with_raw_numbers() -> None:
    view = view_of(runs_of(RUN, unreadable=(Unreadable("bad.h5", "no"),)))

    run, bad = RunsScreen().records(view)

    assert run["storage_peak_bytes"] == 1 << 28
    assert run["budget_fraction"] == 0.1
    assert bad["reason"] == "no"
    assert bad["storage_peak_bytes"] is None


Script = Callable[[KVScopeApp, Pilot[None]], Awaitable[None]]


def drive_home(folder: Path, script: Script, *, size: tuple[int, int] = (80, 24), **options: object) -> None:
    """Run the script once the folder is listed."""
    app = KVScopeApp(None, folder=folder, **options)  # type: ignore[arg-type]

    async def main() -> None:
        async with app.run_test(size=size, notifications=True) as pilot:
            await pilot.press("r")
            await until(pilot, lambda: app.view.runs is not None)
            await script(app, pilot)

    asyncio.run(main())


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            await pilot.pause()
            await pilot.pause()
            return
        await pilot.pause(0.02)
    raise AssertionError("waited too long")


def shown(app: KVScopeApp) -> str:
    parts = [canvas for canvas in app.screen.query(Canvas) if canvas.display]
    return "\n".join(canvas.render_line(y).text for canvas in parts for y in range(canvas.size.height))


@pytest.fixture
def folder(tmp_path: Path, tiny_trace: Path) -> Path:
    made = tmp_path / "folder"
    (made / "sub").mkdir(parents=True)
    (made / ".hidden").mkdir()
    (made / "notes.txt").touch()
    shutil.copy(tiny_trace, made / "one.h5")
    shutil.copy(tiny_trace, made / "sub" / "two.h5")
    return made


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (160, 48), (220, 50)])
@pytest.mark.parametrize("plain", [False, True])
def test_without_a_trace_home_is_shown_and_enter_opens_the_chosen_one(
    folder: Path,
    size: tuple[int, int],
    plain: bool,
) -> None:
    async def script(app: KVScopeApp, pilot: Pilot[None]) -> None:
        text = shown(app)
        assert "no trace open" in text
        assert "sub/two.h5" in text
        assert text.isascii() or not plain

        await pilot.press("j", "enter")
        await until(pilot, lambda: app.view.snapshot is not None)

        assert app.view.snapshot is not None
        assert app.view.snapshot.path == folder / "sub" / "two.h5"
        await pilot.press("9")
        await pilot.pause()
        assert "autoregressive" not in shown(app)

    drive_home(folder, script, size=size, plain=plain)


def test_x_puts_the_chosen_trace_beside_the_one_shown(folder: Path) -> None:
    async def script(app: KVScopeApp, pilot: Pilot[None]) -> None:
        await pilot.press("enter")
        await until(pilot, lambda: app.view.snapshot is not None)
        await pilot.press("9", "r", "j", "x")
        await until(pilot, lambda: app.view.other is not None)

        assert app.view.other is not None
        assert app.view.other.path == folder / "sub" / "two.h5"

    drive_home(folder, script)


def _names(app: KVScopeApp) -> list[str]:
    tree = app.screen.query_one(TraceTree)
    return [node.data.path.name for node in tree.root.children if node.data]


def test_browse_shows_folders_and_traces_only_and_enter_lists_a_folder(folder: Path) -> None:
    async def script(app: KVScopeApp, pilot: Pilot[None]) -> None:
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.focused, TraceTree) and bool(app.focused.root.children))
        assert _names(app) == ["sub", "one.h5"]

        await pilot.press("j", "enter")
        await until(pilot, lambda: app.view.folder.endswith("sub") and app.view.runs is not None)

        assert app.view.runs is not None
        assert [run.file for run in app.view.runs.runs] == ["two.h5"]

    drive_home(folder, script)


def test_browse_opens_a_trace_in_an_unfolded_folder(folder: Path) -> None:
    async def script(app: KVScopeApp, pilot: Pilot[None]) -> None:
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.focused, TraceTree) and bool(app.focused.root.children))
        tree = app.screen.query_one(TraceTree)
        await pilot.press("j", "l")
        await until(pilot, lambda: bool(tree.root.children[0].children))
        await pilot.press("j", "enter")
        await until(pilot, lambda: app.view.snapshot is not None)

        assert app.view.snapshot is not None
        assert app.view.snapshot.path.name == "two.h5"

    drive_home(folder, script)


def test_browse_goes_up_and_escape_leaves_all_as_it_was(folder: Path) -> None:
    async def script(app: KVScopeApp, pilot: Pilot[None]) -> None:
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.focused, TraceTree) and bool(app.focused.root.children))
        await pilot.press("u")
        await until(pilot, lambda: "folder" in _names(app))
        await pilot.press("escape")
        await pilot.pause()

        assert app.view.folder == str(folder)
        assert isinstance(app.screen, RunsScreen)

    drive_home(folder, script)


def test_browse_in_ascii_draws_ascii(folder: Path) -> None:
    (folder / "图像").mkdir()

    async def script(app: KVScopeApp, pilot: Pilot[None]) -> None:
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.focused, TraceTree) and bool(app.focused.root.children))
        tree = app.screen.query_one(TraceTree)

        assert all(tree.render_line(y).text.isascii() for y in range(tree.size.height))

    drive_home(folder, script, plain=True)


def test_looking_writes_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = sorted(os.walk(folder))

    async def script(_: KVScopeApp, pilot: Pilot[None]) -> None:
        await pilot.press("j", "k", "G", "g", "r", "b", "escape", "question_mark", "escape", "enter")
        await pilot.pause()

    drive_home(folder, script)

    assert sorted(os.walk(folder)) == before
