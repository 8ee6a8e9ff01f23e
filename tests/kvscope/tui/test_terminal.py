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

from kvscope.tui.terminal import speaks_unicode

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


def drawn(path: Path, **environ: str) -> bytes:
    """What a terminal gets of both screens, until `q`."""
    program = f"from pathlib import Path; from kvscope.tui.app import run_app; run_app(Path({str(path)!r}))"
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
        said += read_until(ours, b"layer 0")
        os.write(ours, b"q")
        return said + read_until(ours, None)
    finally:
        viewer.kill()
        viewer.wait()
        os.close(ours)


def read_until(terminal: int, word: bytes | None, *, seconds: float = 20.0) -> bytes:
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


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {"LC_ALL": "C"}, {"LANG": "C"}])
def test_a_terminal_or_a_locale_without_unicode_gets_ascii_bytes(wide_trace: Path, environ: dict[str, str]) -> None:
    assert drawn(wide_trace, **environ).isascii()


def test_no_sequence_of_a_trace_reaches_the_terminal(hostile_trace: Path) -> None:
    said = drawn(hostile_trace)

    assert rb"AAA\x1b]0;PWNED" in said
    assert b"\x1b]0;" not in said
    assert b"PWNED\x07" not in said
    assert "\u202e".encode() not in said
