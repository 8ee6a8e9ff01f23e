from __future__ import annotations

import asyncio

import pytest
from rich.style import Style
from textual.app import App, ComposeResult
from textual.geometry import Region
from textual.strip import Strip

from kvscope.tui.palette import DARK, ink
from kvscope.tui.widgets.canvas import Canvas, View, centred, field, fit, paragraph, row, rule, spread

INK = ink(DARK)


def test_neighbours_of_one_style_become_one_segment() -> None:
    strip = row([("a", INK.text), ("b", INK.text), ("c", INK.muted), ("d", INK.muted)])

    assert [segment.text for segment in strip] == ["ab", "cd"]


@pytest.mark.parametrize("width", range(1, 30))
def test_no_line_is_wider_than_its_room(width: int) -> None:
    long = [("a prompt — ünïcode 赤い車 ", INK.text), ("and more of it", INK.muted)]
    lines = [
        spread(long, [("right", INK.text)], width, fill=(" ", INK.muted)),
        rule("a title", width, INK, tag="measured"),
        row(fit(long, width, INK.muted)),
        field("name", ("value", INK.text), "and more", width, INK),
        row(long, width),
    ]

    assert max(strip.cell_length for strip in lines) <= width


def test_what_is_cut_says_so() -> None:
    assert row(fit([("a long text", INK.text)], 6, INK.muted)).text == "a lon…"


def test_a_paragraph_loses_no_word() -> None:
    text = "no NVIDIA driver on this machine: library not found"

    lines = [strip.text.strip() for strip in paragraph(text, INK.text, 24)]

    assert " ".join(lines) == text


def test_centred_lines_are_in_the_middle() -> None:
    strips = centred([[("word", INK.text)]], 10, 5)

    assert [strip.text for strip in strips] == ["", "", "   word"]


class Stage(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self.words = ["one", "two", "three"]
        self.canvas = Canvas(lambda _view, _width, _height: [Strip([*row([(word, Style())])]) for word in self.words])

    def compose(self) -> ComposeResult:
        yield self.canvas


def test_only_the_lines_that_changed_are_drawn_again() -> None:
    stage, refreshed = Stage(), []

    async def main() -> None:
        async with stage.run_test(size=(10, 3)) as pilot:
            stage.canvas.show(View(INK))
            await pilot.pause()
            stage.canvas.refresh = lambda *regions, **_: refreshed.extend(regions)  # type: ignore[method-assign]
            stage.words[1] = "zwei"
            stage.canvas.show(View(INK))

    asyncio.run(main())

    assert refreshed == [Region(0, 1, 10, 1)]


class Watched(Canvas):
    """Keeps the first line of what was drawn of it, frame by frame."""

    def render_lines(self, crop: Region) -> list[Strip]:
        lines = super().render_lines(crop)
        self.app.frames.append(lines[0].text.strip())  # type: ignore[attr-defined]
        return lines


def test_the_first_frame_of_a_size_is_not_blank() -> None:
    stage = Stage()
    stage.canvas = Watched(lambda _view, width, _height: [row([(f"{width} columns", Style())])])
    stage.frames = []  # type: ignore[attr-defined]

    async def main() -> None:
        stage.canvas.show(View(INK))
        async with stage.run_test(size=(12, 3)) as pilot:
            await pilot.resize_terminal(14, 3)
            await pilot.pause()

    asyncio.run(main())

    assert dict.fromkeys(stage.frames) == dict.fromkeys(["12 columns", "14 columns"])  # type: ignore[attr-defined]


def test_a_canvas_in_ascii_draws_nothing_else() -> None:
    stage = Stage()
    stage.words = ["─ cache ·", "●…×", "▁▂▇█"]

    async def main() -> list[str]:
        async with stage.run_test(size=(10, 3)) as pilot:
            stage.canvas.show(View(ink(DARK, plain=True)))
            await pilot.pause()
            return [stage.canvas.render_line(y).text for y in range(3)]

    assert all(text.isascii() for text in asyncio.run(main()))
