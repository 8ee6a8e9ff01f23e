from __future__ import annotations

import itertools

import pytest
from textual.color import Color
from textual.theme import Theme

from kvscope.tui.palette import (
    ASCII,
    CONTRAST_DARK,
    CONTRAST_LIGHT,
    DARK,
    DROPPED,
    HEAT,
    HEAT_256,
    LIGHT,
    NUM_LEVELS,
    RAMP,
    THEMES,
    UNKNOWN,
    UNWRITTEN,
    glyph,
    ink,
    level,
    turned,
)
from kvscope.tui.terminal import nearest_256, rgb_of_256


def luminance(colour: str) -> float:
    red, green, blue = (value**2.2 for value in Color.parse(colour).normalized)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_heat_has_at_most_24_levels_each_lighter_than_the_one_before() -> None:
    lightness = [luminance(colour) for colour in HEAT]

    assert NUM_LEVELS <= 24
    assert all(low < high for low, high in itertools.pairwise(lightness))


@pytest.mark.parametrize("theme", [DARK, LIGHT], ids=lambda theme: theme.name)
def test_more_stands_out_more_from_the_ground(theme: Theme) -> None:
    colours = [style.color.name for style in ink(theme).heat if style.color]
    distances = [abs(luminance(colour) - luminance(str(theme.background))) for colour in colours]

    assert distances == sorted(distances)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_every_text_colour_can_be_read(theme: Theme) -> None:
    style = ink(theme)

    # 4.5 is what WCAG asks of text; muted text is shown on the surface of the top line too.
    for readable in (style.text, style.strong, style.muted, style.accent, style.good, style.warn, style.bad):
        assert readable.color is not None
        assert contrast(readable.color.name, str(theme.surface)) >= 4.5


def test_equal_colours_give_the_same_ink_so_that_styles_are_shared() -> None:
    assert ink(DARK) is ink(DARK)


def test_levels_and_glyphs_never_fall_as_the_value_rises() -> None:
    values = [index / 100 for index in range(101)]

    levels = [level(value, 0, 1) for value in values]
    heights = [RAMP.index(glyph(value, 0, 1)) for value in values]

    assert levels == sorted(levels)
    assert set(levels) == set(range(NUM_LEVELS))
    assert heights == sorted(heights)
    assert set(heights) == set(range(len(RAMP)))


def test_values_outside_the_bounds_are_clamped() -> None:
    assert level(-5, 0, 1) == 0
    assert level(5, 0, 1) == NUM_LEVELS - 1
    assert level(5, 0, 0) == NUM_LEVELS - 1


def test_ascii_replaces_one_character_by_one() -> None:
    assert all(isinstance(plain, int) and plain < 128 for plain in ASCII.values())


def test_without_unicode_each_glyph_and_sign_stays_different() -> None:
    signs = [*RAMP, DROPPED, UNKNOWN, UNWRITTEN]

    assert len({sign.translate(ASCII) for sign in signs}) == len(signs)


def test_with_256_colours_the_levels_are_colours_of_the_palette_and_never_fall() -> None:
    lightness = [luminance(colour) for colour in HEAT_256]
    reached = {nearest_256(*Color.parse(colour).rgb) for colour in HEAT_256}

    assert len(HEAT_256) == NUM_LEVELS
    assert lightness == sorted(lightness)
    assert len(reached) == len(set(HEAT_256)) == 12
    assert all(is_in_palette(colour) for colour in HEAT_256)


def is_in_palette(colour: str) -> bool:
    rgb = Color.parse(colour).rgb
    return rgb_of_256(nearest_256(*rgb)) == rgb


# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB.
PROTANOPIA = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
DEUTERANOPIA = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))


def seen(colour: str, matrix: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    """A colour's lightness as somebody without one kind of cones sees it, and the linear colour itself."""
    linear = [value**2.2 for value in Color.parse(colour).normalized]
    mixed = [min(1.0, max(0.0, sum(a * b for a, b in zip(row, linear, strict=True)))) for row in matrix]
    return (0.2126 * mixed[0] + 0.7152 * mixed[1] + 0.0722 * mixed[2], *mixed)


@pytest.mark.parametrize("matrix", [PROTANOPIA, DEUTERANOPIA], ids=["protanopia", "deuteranopia"])
@pytest.mark.parametrize("levels", [HEAT, tuple(dict.fromkeys(HEAT_256))], ids=["truecolor", "256"])
def test_colour_blind_eyes_see_the_levels_in_order(
    levels: tuple[str, ...], matrix: tuple[tuple[float, ...], ...]
) -> None:
    lightness = [seen(colour, matrix)[0] for colour in levels]

    assert all(low < high for low, high in itertools.pairwise(lightness))


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_good_differs_from_bad_by_weight_too(theme: Theme) -> None:
    style = ink(theme)

    assert style.bad.bold
    assert style.warn.bold
    assert not style.good.bold


@pytest.mark.parametrize("theme", [CONTRAST_DARK, CONTRAST_LIGHT], ids=lambda theme: theme.name)
def test_high_contrast_is_seven_to_one_for_every_text(theme: Theme) -> None:
    style = ink(theme)

    for readable in (style.text, style.strong, style.muted, style.accent, style.good, style.warn, style.bad):
        assert readable.color is not None
        assert contrast(readable.color.name, str(theme.panel)) >= 7


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_every_text_colour_can_be_read_in_the_palette_of_256(theme: Theme) -> None:
    style = ink(theme, colours="256")

    for readable in (style.text, style.strong, style.muted, style.accent, style.good, style.warn, style.bad):
        assert readable.color is not None
        shown, ground = (reduced(colour) for colour in (readable.color.name, str(theme.surface)))
        assert contrast(shown, ground) >= 4.5


def reduced(colour: str) -> str:
    return Color(*rgb_of_256(nearest_256(*Color.parse(colour).rgb))).hex


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_with_16_colours_only_named_ones_are_used_and_values_are_glyphs(theme: Theme) -> None:
    style = ink(theme, colours="16")

    styles = [style.text, style.strong, style.muted, style.faint, style.accent, style.calm, style.good, style.warn]
    assert all(one.color is None or one.color.triplet is None for one in [*styles, style.bad, *style.heat])
    assert all(one.bgcolor is None for one in [*styles, style.cursor])
    assert style.glyphs
    assert style.text.color is None  # the terminal's own, which its user can read


def test_few_colours_mean_glyphs_and_none_means_no_colour() -> None:
    assert not ink(DARK).glyphs
    assert not ink(DARK, colours="256").glyphs
    assert ink(DARK, colours="none") is ink(DARK, colour=False)
    assert ink(DARK, colours="none").glyphs
    assert not ink(DARK, colours="none").colour


def test_turning_a_theme_keeps_its_contrast() -> None:
    for theme in THEMES:
        assert turned(theme).dark != theme.dark
        assert turned(turned(theme)) is theme
    assert turned(CONTRAST_DARK) is CONTRAST_LIGHT
