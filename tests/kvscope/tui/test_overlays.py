"""Help, about, goto and stop: what lies over a screen and goes away again."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from kvscope.tui.actions import actions_of
from kvscope.tui.palette import DARK, ink
from kvscope.tui.screens import SCREENS
from kvscope.tui.screens.about import about_lines
from kvscope.tui.screens.goto import goto_problem, goto_words
from kvscope.tui.screens.stop import stop_lines
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Canvas


def text_of(strips) -> str:
    return "\n".join(strip.text for strip in strips)


def test_every_key_of_the_screen_can_be_scrolled_to_in_the_smallest_terminal(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("2", "question_mark")
        page = viewer.app.screen.query_one("#page")
        seen = ""
        for _ in range(8):
            top = int(page.scroll_offset.y)
            seen += "\n".join(viewer.lines("help")[top : top + page.size.height]) + "\n"
            await viewer.press("pagedown")
        assert page.scroll_offset.y == page.max_scroll_y > 0
        for action in actions_of("map"):
            assert action.help in seen

    drive(tiny_trace, script)


@pytest.mark.parametrize("key", ["escape", "q", "question_mark", "enter", "space"])
def test_help_goes_away_by_what_one_would_press(drive, tiny_trace: Path, key: str) -> None:
    async def script(viewer) -> None:
        await viewer.press("question_mark")
        assert len(viewer.app.screen_stack) == 3
        await viewer.press(key)
        assert len(viewer.app.screen_stack) == 2
        assert viewer.app.is_running

    drive(tiny_trace, script)


def test_about_tells_of_the_part_in_focus_or_else_of_all(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        parts = [canvas for canvas in viewer.app.screen.query(Canvas) if canvas.id in ("ledger", "chart")]
        for canvas in viewer.app.screen.query(Canvas):
            canvas.about, canvas.can_focus = "", False
        for canvas in parts:
            canvas.about, canvas.can_focus = f"the words of {canvas.id}", True
        await viewer.press("f1")
        assert "the words of ledger" in viewer.text("about")
        assert "the words of chart" in viewer.text("about")
        await viewer.press("f1", "tab", "tab", "f1")
        assert "the words of chart" in viewer.text("about")
        assert "the words of ledger" not in viewer.text("about")
        await viewer.press("escape")
        assert len(viewer.app.screen_stack) == 2

    drive(tiny_trace, script)


def test_about_without_any_words_says_where_the_keys_are() -> None:
    text = text_of(about_lines([], View(ink(DARK)), 80, 0))

    assert "No part of this screen has words of its own; ? lists the keys." in text


def test_a_typed_place_is_gone_to(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("colon", *"map", "space", *"q2", "space", *"l1", "space", *"h1", "space", *"read", "enter")
        view = viewer.app.view
        assert (view.screen, view.metric) == ("map", "read")
        assert (view.cursor.query_scale, view.cursor.layer, view.cursor.head) == (2, 1, 1)
        assert len(viewer.app.screen_stack) == 2

    drive(tiny_trace, script)


def test_what_is_wrong_is_said_while_it_is_typed_and_enter_stays(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        before = viewer.app.view.cursor
        await viewer.press("colon", *"l99")
        assert "layer 99: they go from 0 to 2" in viewer.text("words")
        await viewer.press("enter")
        assert len(viewer.app.screen_stack) == 3
        assert viewer.app.view.cursor == before
        await viewer.press("backspace", "backspace")
        assert "leads nowhere" in viewer.text("words")
        await viewer.press("1")
        assert "enter: layer 1" in viewer.text("words")
        await viewer.press("escape")
        assert viewer.app.view.cursor == before

    drive(tiny_trace, script)


def test_lines_that_led_somewhere_come_back(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        for line in ("l1", "l2"):
            await viewer.press("colon", *line, "enter")
        await viewer.press("colon", "up")
        line = viewer.app.screen.query_one(Input)
        assert line.value == "l2"
        await viewer.press("up", "up")
        assert line.value == "l1"
        await viewer.press("down", "down")
        assert line.value == ""

    drive(tiny_trace, script)


def test_a_place_that_no_scale_has_reached_yet_is_said(live_snapshot) -> None:
    view = View(ink(DARK), snapshot=live_snapshot)

    assert goto_problem("q2 s4", view) is None
    assert goto_problem("q3", view) == "query scale 3: they go from 0 to 2 so far"
    assert goto_problem("map", View(ink(DARK))) is None
    assert goto_problem("l0", View(ink(DARK))) == "there is no trace yet, so no cell to go to"


def test_an_empty_line_says_what_may_be_typed() -> None:
    for name in SCREENS:
        assert name in goto_words("")
    assert goto_words("map q1 mass") == "enter: query scale 1, screen map, metric mass"


class Asked:
    """A remote that sends nothing and keeps what it was asked."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def follow(self, snapshot: object) -> None:
        pass

    def ask(self, kind: str, view: View) -> str | None:
        self.kinds.append(kind)
        return None

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("key", "asked"), [("y", ["stop"]), ("n", []), ("escape", []), ("enter", []), ("X", [])])
def test_only_y_ends_a_run(drive, live_trace: Path, key: str, asked: list[str]) -> None:
    remote = Asked()

    async def script(viewer) -> None:
        viewer.app._remote = remote
        await viewer.press("X")
        assert "End the run after this scale?" in viewer.text("stop")
        assert remote.kinds == []
        await viewer.press(key)
        assert len(viewer.app.screen_stack) == 2

    drive(live_trace, script)
    assert remote.kinds == asked


def test_a_run_that_has_ended_is_not_asked_to(drive, tiny_trace: Path, tiny_snapshot) -> None:
    remote = Asked()

    async def script(viewer) -> None:
        viewer.app._remote = remote
        await viewer.press("X", "y", "n")

    drive(tiny_trace, script)

    assert remote.kinds == []
    text = text_of(stop_lines(View(ink(DARK), snapshot=tiny_snapshot), 60, 0))
    assert "This run has ended (done): there is nothing to stop." in text.replace("\n", "")
    assert " y" not in text.split()
