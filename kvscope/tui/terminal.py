"""What a terminal can do, from what it and the user say of it: Unicode or not, colour or not."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, get_args

from rich.color import Color as RichColor
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import ANSIToTruecolor, LineFilter

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


def is_served(environ: Mapping[str, str]) -> bool:
    """Whether Textual draws on something else than a terminal, as in a browser by textual-serve."""
    return bool(environ.get("TEXTUAL_DRIVER"))


def colours_of(environ: Mapping[str, str], wanted: str | None) -> Colours:
    """How many colours to draw with: those wanted, else what the environment says of the terminal."""
    if wanted is not None:
        return next(colours for colours in COLOURS if colours == wanted)
    if environ.get("NO_COLOR"):
        return "none"
    if is_served(environ) or environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return "truecolor"
    term = environ.get("TERM", "")
    if "256color" in term or "direct" in term:
        return "256" if "direct" not in term else "truecolor"
    return "16"


def full_console() -> Console:
    """A console for a Textual app that passes every colour on: what the terminal has not, `line_filters` take away.

    Textual would ask the environment, once, when it is imported; then nobody could ask for more or fewer.
    """
    return Console(file=io.StringIO(), color_system="truecolor", force_terminal=True, legacy_windows=False, emoji=False)


def line_filters(colours: Colours, textuals: Sequence[LineFilter]) -> Sequence[LineFilter]:
    """What is done to every line before the terminal gets it, in the place of `textuals`, Textual's own.

    Of these only the one that gives Textual's named colours a value stays. Under NO_COLOR it has one that makes greys,
    and the one for dim text makes colours of it.
    """
    if colours == "none":
        return [NoColour()]
    if colours == "16":
        return [SixteenColours()]
    named = [one for one in textuals if isinstance(one, ANSIToTruecolor)]
    return [*named, Palette256()] if colours == "256" else named


class NoColour(LineFilter):
    """Takes every colour away, greys and grounds too; bold, dim and reverse stay, and a loud ground becomes reverse."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        ground = background.rich_color
        return [
            Segment(text, _colourless(style, ground) if style else None, control) for text, style, control in segments
        ]


class SixteenColours(LineFilter):
    """Leaves the 16 named colours as the terminal has them, and takes away all others, as NoColour does."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        ground = background.rich_color
        return [Segment(text, _of_16(style, ground) if style else None, control) for text, style, control in segments]


class Palette256(LineFilter):
    """Gives every colour the nearest one of the palette of 256, without its first 16, which terminals change."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - Textual's
        return [Segment(text, _of_256(style) if style else None, control) for text, style, control in segments]


def nearest_256(red: int, green: int, blue: int) -> int:
    """The index, 16 to 255, of the palette's colour nearest to this one: of its cube, or of its greys."""
    steps = [min(range(6), key=lambda step: abs(_CUBE[step] - value)) for value in (red, green, blue)]
    in_cube = tuple(_CUBE[step] for step in steps)
    grey = max(0, min(23, round(((red + green + blue) / 3 - 8) / 10)))
    in_greys = (8 + 10 * grey,) * 3
    if _distance((red, green, blue), in_greys) < _distance((red, green, blue), in_cube):
        return 232 + grey
    return 16 + 36 * steps[0] + 6 * steps[1] + steps[2]


def rgb_of_256(index: int) -> tuple[int, int, int]:
    """A colour of the palette by its index, 16 to 255, as xterm and most others have it."""
    if index >= 232:
        return (8 + 10 * (index - 232),) * 3
    red, green, blue = (index - 16) // 36, (index - 16) // 6 % 6, (index - 16) % 6
    return _CUBE[red], _CUBE[green], _CUBE[blue]


_CUBE = (0, 95, 135, 175, 215, 255)
_LOUD = 2.0
"""The contrast at which a ground is meant to be seen, as that of a chosen line is."""


def _distance(one: Sequence[int], other: Sequence[int]) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


@lru_cache(4096)
def _of_256(style: Style) -> Style:
    return style + Style(color=_color_256(style.color), bgcolor=_color_256(style.bgcolor))


def _color_256(colour: RichColor | None) -> RichColor | None:
    if colour is None or colour.triplet is None:
        return colour
    return RichColor.from_ansi(nearest_256(*colour.triplet))


@lru_cache(1024)
def _of_16(style: Style, ground: RichColor) -> Style:
    named = style.color if style.color is not None and style.color.triplet is None else None
    return _colourless(style, ground) + Style(color=named)


@lru_cache(1024)
def _colourless(style: Style, ground: RichColor) -> Style:
    return Style(
        bold=style.bold,
        dim=style.dim,
        reverse=style.reverse or _is_loud(style.bgcolor, ground),
        underline=style.underline,
        meta=style.meta,
    )


def _is_loud(colour: RichColor | None, ground: RichColor) -> bool:
    if colour is None or colour.triplet is None or ground.triplet is None:
        return False
    light, dark = sorted((_luminance(colour.triplet), _luminance(ground.triplet)), reverse=True)
    return (light + 0.05) / (dark + 0.05) >= _LOUD


def _luminance(rgb: Sequence[int]) -> float:
    return sum(
        weight * float((value / 255) ** 2.2) for weight, value in zip((0.2126, 0.7152, 0.0722), rgb, strict=True)
    )
