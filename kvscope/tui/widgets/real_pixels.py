"""The picture in real pixels, where the terminal draws them (kitty or sixels), by the extra `kvscope[pixels]`.

Asked for by a key, never imported at start. textual-image asks the terminal what it can do when it is imported, which
no longer works while the viewer reads the keys; so the terminal is judged by its environment here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from textual.widget import Widget

Protocol = Literal["kitty", "sixel"]

_KITTY = ("xterm-kitty", "xterm-ghostty")
"""Values of TERM. Other terminals that speak kitty's protocol lack the placeholders that scroll with the text."""
_SIXEL_TERMS = ("foot", "mlterm", "contour", "yaft")
_SIXEL_PROGRAMS = ("WezTerm", "iTerm.app", "mintty")
_MULTIPLEXERS = ("TMUX", "STY", "ZELLIJ")
"""They show plus signs, or nothing, in the place of pixels."""


def protocol_of(environ: Mapping[str, str]) -> Protocol | None:
    """How this terminal draws pixels, as far as it says; None: not at all, or only through tmux or the like."""
    if any(environ.get(name) for name in _MULTIPLEXERS):
        return None
    term = environ.get("TERM", "")
    if term in _KITTY:
        return "kitty"
    if term.startswith(_SIXEL_TERMS) or "sixel" in term or environ.get("TERM_PROGRAM") in _SIXEL_PROGRAMS:
        return "sixel"
    return None


def real_picture(rgb: NDArray[np.uint8], environ: Mapping[str, str] = os.environ) -> Widget | None:
    """A widget of the picture [height, width, 3]; None: this terminal, or this installation, draws none."""
    protocol = protocol_of(environ)
    if protocol is None or find_spec("textual_image") is None or find_spec("PIL") is None:
        return None
    # Deferred, and by name: optional, and LGPL.
    image: Any = importlib.import_module("PIL.Image").fromarray(rgb)
    widgets = importlib.import_module("textual_image.widget")
    made: Widget = {"kitty": widgets.TGPImage, "sixel": widgets.SixelImage}[protocol](image)
    return made
