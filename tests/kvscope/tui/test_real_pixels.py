from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from kvscope.tui.widgets import real_pixels
from kvscope.tui.widgets.real_pixels import protocol_of, real_picture

PICTURE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("environ", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "sixel"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux-0/default,1,0"}, None),
        ({"TERM": "foot", "STY": "1.pts"}, None),
        ({}, None),
    ],
)
def test_pixels_are_offered_only_where_the_terminal_says_it_draws_them(
    environ: dict[str, str], protocol: str | None
) -> None:
    assert protocol_of(environ) == protocol
    if protocol is None:
        assert real_picture(PICTURE, environ) is None


def test_without_the_extra_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_pixels, "find_spec", lambda _name: None)

    assert real_picture(PICTURE, {"TERM": "xterm-kitty"}) is None


def test_the_viewer_never_imports_the_extra() -> None:
    code = "import sys, kvscope.tui.app, kvscope.tui.screens.live; sys.exit('textual_image' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
