"""What a terminal can do, from what it and the user say of it: Unicode or not, colour or not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from textual.filter import LineFilter

if TYPE_CHECKING:
    from textual.color import Color

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


class NoColour(LineFilter):
    """Takes every colour away, greys and grounds too; bold, dim and reverse stay."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - Textual's
        return [Segment(text, _colourless(style) if style else None, control) for text, style, control in segments]


@lru_cache(1024)
def _colourless(style: Style) -> Style:
    return Style(bold=style.bold, dim=style.dim, reverse=style.reverse, underline=style.underline, meta=style.meta)
