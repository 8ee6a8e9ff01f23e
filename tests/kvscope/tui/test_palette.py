from __future__ import annotations

import itertools

import pytest
from textual.color import Color
from textual.theme import Theme

from kvscope.tui.palette import (
    ASCII,
    DARK,
    DROPPED,
    HEAT,
    LIGHT,
    NUM_LEVELS,
    RAMP,
    UNKNOWN,
    UNWRITTEN,
    glyph,
    ink,
    level,
)


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


@pytest.mark.parametrize("theme", [DARK, LIGHT], ids=lambda theme: theme.name)
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
