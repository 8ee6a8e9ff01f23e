from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.segment import Segment
from rich.style import Style
from textual._ansi_theme import MONOKAI
from textual.color import Color
from textual.filter import ANSIToTruecolor, DimFilter, Monochrome

from kvscope.tui.terminal import (
    COLOURS,
    Colours,
    NoColour,
    Palette256,
    SixteenColours,
    colours_of,
    full_console,
    line_filters,
    nearest_256,
    rgb_of_256,
    speaks_unicode,
)

COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-9]|4[0-9]|9[0-7]|10[0-7])(?:;\d+)*m")
"""Any sequence that sets a colour of text or ground."""


@pytest.mark.parametrize(
    ("environ", "encoding", "unicode"),
    [
        ({"TERM": "xterm-256color", "LANG": "en_US.UTF-8"}, "utf-8", True),
        ({"TERM": "xterm", "LC_ALL": "C.utf8"}, "utf-8", True),
        ({"TERM": "xterm"}, "utf-8", True),
        ({"TERM": "dumb", "LANG": "en_US.UTF-8"}, "utf-8", False),
        ({"TERM": "xterm", "LC_ALL": "C"}, "utf-8", False),  # Python turns to UTF-8 mode there, the terminal does not
        ({"TERM": "xterm", "LANG": "C", "LC_CTYPE": "C.UTF-8"}, "utf-8", False),  # as Python itself sets it
        ({"TERM": "xterm", "LANG": "de_DE.ISO-8859-1"}, "utf-8", False),
        ({"TERM": "xterm", "LANG": "en_US.UTF-8", "LC_ALL": "POSIX"}, "utf-8", False),
        ({"TERM": "xterm", "LANG": "en_US.UTF-8"}, "iso8859-1", False),
        ({"TERM": "xterm", "LANG": "en_US.UTF-8"}, None, False),
    ],
)
def test_unicode_is_drawn_only_where_terminal_and_locale_speak_it(
    environ: dict[str, str], encoding: str | None, unicode: bool
) -> None:
    assert speaks_unicode(environ, encoding) is unicode


@pytest.mark.parametrize(
    ("environ", "wanted", "colours"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, None, "truecolor"),
        ({"TERM": "xterm", "COLORTERM": "24bit"}, None, "truecolor"),
        ({"TERM": "xterm-direct"}, None, "truecolor"),
        ({"TERM": "screen-256color"}, None, "256"),
        ({"TERM": "dumb", "TEXTUAL_DRIVER": "textual.drivers.web_driver:WebDriver"}, None, "truecolor"),
        ({"TERM": "xterm"}, None, "16"),
        ({"TERM": "linux"}, None, "16"),
        ({}, None, "16"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, None, "none"),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, None, "256"),
        *(({"TERM": "dumb", "NO_COLOR": "1"}, wanted, wanted) for wanted in COLOURS),
    ],
)
def test_colours_are_those_asked_for_or_those_the_terminal_says_it_has(
    environ: dict[str, str], wanted: str | None, colours: Colours
) -> None:
    assert colours_of(environ, wanted) == colours


GROUND = Color.parse("#0f1317")


def test_the_nearest_of_256_is_no_further_than_any_other() -> None:
    for rgb in (
        (0, 0, 0),
        (255, 255, 255),
        (15, 19, 23),
        (247, 223, 75),
        (120, 120, 121),
        (95, 135, 175),
        (200, 3, 90),
    ):
        chosen = rgb_of_256(nearest_256(*rgb))
        distances = {
            index: sum((a - b) ** 2 for a, b in zip(rgb_of_256(index), rgb, strict=True)) for index in range(16, 256)
        }
        assert sum((a - b) ** 2 for a, b in zip(chosen, rgb, strict=True)) == min(distances.values())


def test_the_palette_of_256_is_that_of_xterm() -> None:
    known = {16: (0, 0, 0), 94: (135, 95, 0), 110: (135, 175, 215), 231: (255, 255, 255), 232: (8, 8, 8)}

    assert {index: rgb_of_256(index) for index in known} == known
    assert rgb_of_256(255) == (238, 238, 238)


def test_256_colours_are_by_number_and_keep_what_is_no_colour() -> None:
    style = Style(color="#f7df4b", bgcolor="#0f1317", bold=True, meta={"a": 1})

    (segment,) = Palette256().apply([Segment("x", style)], GROUND)

    assert segment.style is not None
    assert segment.style.color is not None
    assert segment.style.bgcolor is not None
    assert (segment.style.color.number, segment.style.bgcolor.number) == (221, 233)
    assert segment.style.bold
    assert segment.style.meta == {"a": 1}


@pytest.mark.parametrize("line_filter", [SixteenColours(), NoColour()])
def test_a_loud_ground_becomes_reverse_and_a_quiet_one_nothing(line_filter: SixteenColours | NoColour) -> None:
    segments = [
        Segment("chosen", Style(color="#ffffff", bgcolor="#6cc4d9")),
        Segment("panel", Style(color="#ffffff", bgcolor="#1c232b")),
    ]

    chosen, panel = line_filter.apply(segments, GROUND)

    for segment, is_reverse in ((chosen, True), (panel, False)):
        assert segment.style is not None
        assert segment.style.reverse is is_reverse
        assert segment.style.color is segment.style.bgcolor is None


def test_16_colours_keep_only_named_ones() -> None:
    named, other = SixteenColours().apply(
        [Segment("a", Style(color="bright_cyan", bold=True)), Segment("b", Style(color="#6cc4d9", dim=True))], GROUND
    )

    assert named.style is not None
    assert named.style.color is not None
    assert named.style.color.number == 14
    assert named.style.bold
    assert other.style is not None
    assert other.style.color is None
    assert other.style.dim


def test_no_filter_of_textuals_changes_colours_behind_our_back() -> None:
    named = ANSIToTruecolor(MONOKAI)
    textuals = [named, Monochrome(), DimFilter()]

    assert line_filters("truecolor", textuals) == [named]
    assert line_filters("256", textuals)[0] is named
    assert [type(one) for one in line_filters("256", textuals)] == [ANSIToTruecolor, Palette256]
    assert [type(one) for one in line_filters("16", textuals)] == [SixteenColours]
    assert [type(one) for one in line_filters("none", textuals)] == [NoColour]


@pytest.mark.parametrize("term", ["dumb", "xterm", "xterm-256color"])
def test_the_console_takes_every_colour_whatever_the_environment_says(
    term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", "1")

    assert full_console().color_system == "truecolor"


def drawn(path: Path, colours: Colours | None = None, **environ: str) -> bytes:
    """What a terminal gets of both screens, until `q`."""
    program = (
        "from pathlib import Path; from kvscope.tui.app import run_app; "
        f"run_app(Path({str(path)!r}), colours={colours!r})"
    )
    keep = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "LC_ALL", "LC_CTYPE")}
    ours, theirs = pty.openpty()
    viewer = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**keep, "TERM": "xterm-256color", "LANG": "C.UTF-8", "COLUMNS": "100", "LINES": "30", **environ},
    )
    os.close(theirs)
    try:
        said = read_until(ours, b"accounted")
        os.write(ours, b"2")
        said += read_until(ours, b" head ")
        os.write(ours, b"q")
        return said + read_until(ours, None)
    finally:
        viewer.kill()
        viewer.wait()
        os.close(ours)


def read_until(terminal: int, word: bytes | None, *, seconds: float = 120.0) -> bytes:
    """What a terminal gets until a word, or None: until its program has ended."""
    said, deadline = b"", time.monotonic() + seconds
    while word is None or word not in said:
        assert time.monotonic() < deadline, said[-2000:]
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            said += os.read(terminal, 65536)
        except OSError:  # Linux' way to say that the other end is closed
            break
    return said


def test_no_color_reaches_the_terminal_without_one_colour_code(wide_trace: Path) -> None:
    assert COLOUR.search(drawn(wide_trace))
    assert not COLOUR.search(drawn(wide_trace, NO_COLOR="1"))


TRUECOLOR, BY_NUMBER = re.compile(rb"\x1b\[[0-9;]*[34]8;2;"), re.compile(rb"\x1b\[[0-9;]*[34]8;5;")
NAMED = re.compile(rb"\x1b\[(?:\d;)*(?:3[0-7]|9[0-7])m")


@pytest.mark.parametrize(
    ("colours", "used"), [("truecolor", TRUECOLOR), ("256", BY_NUMBER), ("16", NAMED), ("none", None)]
)
@pytest.mark.parametrize("term", ["xterm-256color", "xterm"])
def test_the_terminal_gets_the_kind_of_colours_that_was_asked_for(
    wide_trace: Path, term: str, colours: Colours, used: re.Pattern[bytes] | None
) -> None:
    said = drawn(wide_trace, colours, TERM=term, NO_COLOR="1")

    for pattern in (TRUECOLOR, BY_NUMBER, NAMED):
        assert bool(pattern.search(said)) == (pattern is used)


@pytest.mark.parametrize("environ", [{"TERM": "unknown"}, {"LC_ALL": "C"}, {"LANG": "C"}])
def test_a_terminal_or_a_locale_without_unicode_gets_ascii_bytes(wide_trace: Path, environ: dict[str, str]) -> None:
    assert drawn(wide_trace, **environ).isascii()


def test_no_sequence_of_a_trace_reaches_the_terminal(hostile_trace: Path) -> None:
    said = drawn(hostile_trace)

    assert rb"AAA\x1b]0;PWNED" in said
    assert b"\x1b]0;" not in said
    assert b"PWNED\x07" not in said
    assert "\u202e".encode() not in said


def test_a_browser_gets_the_screen_without_a_terminal(wide_trace: Path) -> None:
    program = f"from pathlib import Path; from kvscope.tui.app import run_app; run_app(Path({str(wide_trace)!r}))"
    served = {"TEXTUAL_DRIVER": "textual.drivers.web_driver:WebDriver", "COLUMNS": "100", "ROWS": "30"}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **served},
    ) as viewer:
        assert viewer.stdout is not None
        try:
            said = read_until(viewer.stdout.fileno(), b"accounted")
        finally:
            viewer.kill()

    assert TRUECOLOR.search(said)
