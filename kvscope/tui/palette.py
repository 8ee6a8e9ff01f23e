"""Every colour and glyph of the screens: the themes, the heat levels, the ramp that needs no colour, the styles.

Heat follows cividis: luminance rises with the value on a dark ground and falls on a light one, so more always
stands out more. Shape comes before colour: dropped is `·`, unknown is `?`, not yet written is blank.
Where a terminal has 256 colours the levels are colours of its palette; where it has 16, they are all of one colour and
the glyph is what tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from rich.style import Style
from textual.color import Color
from textual.theme import Theme

from kvscope.tui.terminal import FEW_COLOURS, Colours

HEAT = (
    "#002051", "#002860", "#073069", "#13376d", "#223f6e", "#31476e", "#404f6e", "#4e576d",
    "#5b5f6e", "#67676f", "#716f71", "#7b7774", "#848076", "#8d8878", "#969178", "#a09a78",
    "#aca376", "#b8ac72", "#c5b66d", "#d3c065", "#e1ca5d", "#edd454", "#f7df4b", "#fdea45",
)  # fmt: skip
"""Cividis in 24 levels, least to most."""

HEAT_256 = tuple(
    colour
    for colour in (
        "#00005f", "#000087", "#3a3a3a", "#4e4e4e", "#5f5f5f", "#767676",
        "#878787", "#9e9e9e", "#afaf87", "#d7d75f", "#ffd75f", "#ffff5f",
    )
    for _ in range(2)
)  # fmt: skip
"""The same with the palette of 256 colours: twelve that differ, each for two levels."""

NUM_LEVELS = len(HEAT)

RAMP = "▁▂▃▄▅▆▇█"
"""The glyphs of a value, least to most, where colour is not to be relied on."""

BLOCK = "▇"
"""A cell filled with colour; lower than its line, so that rows stay apart."""

DROPPED, UNKNOWN, UNWRITTEN = "·", "?", " "

ASCII = str.maketrans("─━╸┤┴┼·…●◌○■◆✓✗×→←↑↓↕█▁▂▃▄▅▆▇▐▌▸‹›“”’–—µ│▲▼≤²", "-==|++.~*oo#@+xx><^v:#1234567[]><>'''--u|^v<2")
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
    success="#14691f",
    warning="#875f00",
    error="#b02a28",
    dark=False,
)


CONTRAST_DARK = Theme(
    name="kvscope-contrast-dark",
    primary="#7fe7ff",
    accent="#7fe7ff",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#141414",
    success="#8dff8d",
    warning="#ffd75f",
    error="#ff9b96",
    dark=True,
)
CONTRAST_LIGHT = Theme(
    name="kvscope-contrast-light",
    primary="#00465a",
    accent="#00465a",
    foreground="#000000",
    background="#ffffff",
    surface="#ffffff",
    panel="#f0f0f0",
    success="#00520f",
    warning="#5c3b00",
    error="#8a0000",
    dark=False,
)
THEMES = (DARK, LIGHT, CONTRAST_DARK, CONTRAST_LIGHT)


def theme_for(*, light: bool, contrast: bool) -> Theme:
    """The theme that a user asks for."""
    return (CONTRAST_LIGHT if light else CONTRAST_DARK) if contrast else (LIGHT if light else DARK)


def turned(theme: Theme) -> Theme:
    """The dark theme of a light one, and the other way round."""
    return theme_for(light=theme.dark, contrast=theme in (CONTRAST_DARK, CONTRAST_LIGHT))


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


def ink(
    theme: Theme, *, glyphs: bool = False, plain: bool = False, colour: bool = True, colours: Colours = "truecolor"
) -> Ink:
    """The styles of a theme, one Ink for equal colours.

    `plain` implies `glyphs`, and so do too few `colours`. Not `colour`: as with `colours` none.
    """
    colours = colours if colour else "none"
    glyphs = glyphs or plain or colours in FEW_COLOURS
    if colours == "16":
        return _ink_of_16(theme.dark, glyphs, plain)
    front, ground = ("#ffffff", "#000000") if theme.dark else ("#000000", "#ffffff")
    accent = theme.accent or theme.primary
    main = (theme.foreground or front, theme.background or ground, accent)
    signals = (theme.success or accent, theme.warning or accent, theme.error or accent)
    heat = HEAT_256 if colours == "256" else HEAT
    contrast = theme in (CONTRAST_DARK, CONTRAST_LIGHT)
    return _ink(*main, *signals, heat if theme.dark else heat[::-1], contrast, glyphs, plain, colours != "none")


@cache
def _ink(
    foreground: str,
    background: str,
    accent: str,
    success: str,
    warning: str,
    error: str,
    heat: tuple[str, ...],
    contrast: bool,
    glyphs: bool,
    plain: bool,
    colour: bool,
) -> Ink:
    front, ground = Color.parse(foreground), Color.parse(background)
    # As quiet as may be: muted stays above WCAG's 4.5 to 1 on the theme's surface, above its 7 to 1 with `contrast`.
    quiet = 0.22 if contrast else 0.42 if ground.brightness < 0.5 else 0.3
    return Ink(
        text=Style(color=front.hex),
        strong=Style(color=front.hex, bold=True),
        muted=Style(color=front.blend(ground, quiet).hex),
        faint=Style(color=front.blend(ground, 0.5 if contrast else 0.78).hex, dim=not colour),
        accent=Style(color=accent),
        calm=Style(color=Color.parse(accent).blend(ground, 0.45).hex),
        good=Style(color=success),
        warn=Style(color=warning, bold=True),
        bad=Style(color=error, bold=True),
        cursor=Style(color=ground.hex, bgcolor=accent, bold=True) if colour else Style(reverse=True, bold=True),
        heat=tuple(Style(color=level) for level in heat),
        glyphs=glyphs,
        plain=plain,
        colour=colour,
    )


@cache
def _ink_of_16(dark: bool, glyphs: bool, plain: bool) -> Ink:
    """The terminal's own colours of text and ground, and of its 16 those that can be read on either kind of ground.

    What these look like is the terminal's choice, so nothing is told by them alone.
    """
    own = Style()
    return Ink(
        text=own,
        strong=Style(bold=True),
        muted=own,
        faint=Style(dim=True),
        accent=Style(color="bright_cyan" if dark else "blue"),
        calm=Style(color="cyan" if dark else "blue"),
        good=Style(color="bright_green" if dark else "green"),
        warn=Style(color="bright_yellow" if dark else "magenta", bold=True),
        bad=Style(color="bright_red" if dark else "red", bold=True),
        cursor=Style(reverse=True, bold=True),
        heat=(own,) * NUM_LEVELS,
        glyphs=glyphs,
        plain=plain,
        colour=True,
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
