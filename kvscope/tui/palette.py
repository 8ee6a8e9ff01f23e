"""Every colour and glyph of the screens: the themes, the heat levels, the ramp that needs no colour, the styles.

Heat follows cividis: luminance rises with the value on a dark ground and falls on a light one, so more always
stands out more. Shape comes before colour: dropped is `·`, unknown is `?`, not yet written is blank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from rich.style import Style
from textual.color import Color
from textual.theme import Theme

HEAT = (
    "#002051", "#002860", "#073069", "#13376d", "#223f6e", "#31476e", "#404f6e", "#4e576d",
    "#5b5f6e", "#67676f", "#716f71", "#7b7774", "#848076", "#8d8878", "#969178", "#a09a78",
    "#aca376", "#b8ac72", "#c5b66d", "#d3c065", "#e1ca5d", "#edd454", "#f7df4b", "#fdea45",
)  # fmt: skip
"""Cividis in 24 levels, least to most."""

NUM_LEVELS = len(HEAT)

RAMP = "▁▂▃▄▅▆▇█"
"""The glyphs of a value, least to most, where colour is not to be relied on."""

BLOCK = "▇"
"""A cell filled with colour; lower than its line, so that rows stay apart."""

DROPPED, UNKNOWN, UNWRITTEN = "·", "?", " "

ASCII = str.maketrans("─━╸┤┴┼·…●◌○■◆✓✗×→←↑↓↕█▁▂▃▄▅▆▇▐▌▸“”–", "-==|++.~*oo#@+xx><^v:#1234567[]>''-")
"""What a terminal without Unicode gets instead; one character for one."""

DARK = Theme(
    name="kvscope-dark",
    primary="#6cc4d9",
    accent="#6cc4d9",
    foreground="#d3dae1",
    background="#0f1317",
    surface="#151a20",
    panel="#1c232b",
    success="#8cc28a",
    warning="#e2b55a",
    error="#ea7f79",
    dark=True,
)
LIGHT = Theme(
    name="kvscope-light",
    primary="#0f6d85",
    accent="#0f6d85",
    foreground="#20262c",
    background="#f8f7f3",
    surface="#efeee9",
    panel="#e6e4dd",
    success="#2f7a3a",
    warning="#8f5f00",
    error="#b3332e",
    dark=False,
)


@dataclass(frozen=True, slots=True)
class Ink:
    """The styles of one theme, made once: painters share them, so equal styles are one object and runs merge."""

    text: Style
    strong: Style
    muted: Style
    faint: Style
    accent: Style
    """Where the cursor is, and what is measured."""
    calm: Style
    """The accent, for large areas."""
    good: Style
    warn: Style
    bad: Style
    cursor: Style
    """The cell under the cursor, where it has room for nothing else."""
    heat: tuple[Style, ...]
    """One per level of HEAT, as foreground."""
    glyphs: bool
    """Draw each value as a glyph of RAMP as well: readable without colour."""
    plain: bool
    """Draw in ASCII only."""
    colour: bool
    """There are colours; else bold, dim and reverse are all there is."""


def ink(theme: Theme, *, glyphs: bool = False, plain: bool = False, colour: bool = True) -> Ink:
    """The styles of a theme, one Ink for equal colours. `plain` implies `glyphs`, and so does the want of `colour`."""
    front, ground = ("#ffffff", "#000000") if theme.dark else ("#000000", "#ffffff")
    accent = theme.accent or theme.primary
    colours = (theme.foreground or front, theme.background or ground, accent)
    signals = (theme.success or accent, theme.warning or accent, theme.error or accent)
    return _ink(*colours, *signals, HEAT if theme.dark else HEAT[::-1], glyphs or plain or not colour, plain, colour)


@cache
def _ink(
    foreground: str,
    background: str,
    accent: str,
    success: str,
    warning: str,
    error: str,
    heat: tuple[str, ...],
    glyphs: bool,
    plain: bool,
    colour: bool,
) -> Ink:
    front, ground = Color.parse(foreground), Color.parse(background)
    return Ink(
        text=Style(color=front.hex),
        strong=Style(color=front.hex, bold=True),
        # As quiet as may be: either stays above WCAG's 4.5 to 1 on the theme's surface.
        muted=Style(color=front.blend(ground, 0.42 if ground.brightness < 0.5 else 0.3).hex),
        faint=Style(color=front.blend(ground, 0.78).hex, dim=not colour),
        accent=Style(color=accent),
        calm=Style(color=Color.parse(accent).blend(ground, 0.45).hex),
        good=Style(color=success),
        warn=Style(color=warning, bold=True),
        bad=Style(color=error, bold=True),
        cursor=Style(color=ground.hex, bgcolor=accent, bold=True) if colour else Style(reverse=True, bold=True),
        heat=tuple(Style(color=colour) for colour in heat),
        glyphs=glyphs,
        plain=plain,
        colour=colour,
    )


def level(value: float, low: float, high: float, *, levels: int = NUM_LEVELS) -> int:
    """The level, 0 to levels - 1, of a value between low and high; values outside are clamped."""
    if not high > low:
        return levels - 1
    share = (value - low) / (high - low)
    return min(levels - 1, max(0, round(share * (levels - 1))))


def glyph(value: float, low: float, high: float) -> str:
    """The glyph of RAMP for a value between low and high."""
    return RAMP[level(value, low, high, levels=len(RAMP))]
