"""What a terminal can do, from what it and the user say of it: Unicode or not, colour or not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

from rich.segment import Segment
from rich.style import Style
from textual.filter import LineFilter

if TYPE_CHECKING:
    from textual.color import Color

Colours = Literal["truecolor", "256", "16", "none"]
COLOURS: tuple[Colours, ...] = get_args(Colours)
"""How many colours a terminal shows."""

FEW_COLOURS: tuple[Colours, ...] = ("16", "none")
"""Too few for 24 levels of heat: values are drawn as glyphs."""

_C_LOCALES = ("C", "POSIX")
_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")
"""What Python itself sets LC_CTYPE to in a C locale (PEP 538)."""


def speaks_unicode(environ: Mapping[str, str], encoding: str | None) -> bool:
    """Whether more than ASCII may be drawn: by the terminal's name, the stream's encoding and the locale.

    No locale at all says nothing of the terminal, and today's terminals draw UTF-8.
    """
    if environ.get("TERM") in ("dumb", "unknown") or "utf" not in (encoding or "").lower():
        return False
    named = next((environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if environ.get(name)), "UTF-8")
    if named in _COERCED and not environ.get("LC_ALL") and environ.get("LANG") in _C_LOCALES:
        return False
    return "utf" in named.lower()


def is_remote(environ: Mapping[str, str]) -> bool:
    """Whether every frame goes over a network."""
    return any(environ.get(name) for name in ("SSH_CONNECTION", "SSH_TTY", "SSH_CLIENT"))


def colours_of(environ: Mapping[str, str], wanted: str | None) -> Colours:
    """How many colours to draw with: those wanted, else what the environment says of the terminal."""
    if wanted is not None:
        return next(colours for colours in COLOURS if colours == wanted)
    if environ.get("NO_COLOR"):
        return "none"
    if environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return "truecolor"
    term = environ.get("TERM", "")
    if "256color" in term or "direct" in term:
        return "256" if "direct" not in term else "truecolor"
    return "16"


class NoColour(LineFilter):
    """Takes every colour away, greys and grounds too; bold, dim and reverse stay."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - Textual's
        return [Segment(text, _colourless(style) if style else None, control) for text, style, control in segments]


@lru_cache(1024)
def _colourless(style: Style) -> Style:
    return Style(bold=style.bold, dim=style.dim, reverse=style.reverse, underline=style.underline, meta=style.meta)
