from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.style import Style

from kvscope.tui.palette import ASCII, DARK, HEAT, LIGHT, NUM_LEVELS, RAMP, ink, level
from kvscope.tui.pixels import (
    CURSOR_FLAG,
    DROPPED_LEVEL,
    UNKNOWN_LEVEL,
    UNWRITTEN_LEVEL,
    fitted_size,
    halves_fit,
    levels_of,
    looks_of,
    resized,
    rgb_lines,
    shaded_lines,
)

LEVELS = [*range(NUM_LEVELS), DROPPED_LEVEL, UNKNOWN_LEVEL, UNWRITTEN_LEVEL]
COLOURED = ink(DARK)


def grid(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


def cells_of(strip: object) -> list[tuple[str, Style | None]]:
    """Glyph and style of every column."""
    return [(glyph, segment.style) for segment in strip for glyph in segment.text]  # type: ignore[attr-defined]


def halves_of(glyph: str, style: Style) -> tuple[object, object]:
    """The colours of the upper and lower half of a character; None: the ground."""
    shown = {"▀": (style.color, style.bgcolor), "▄": (None, style.color), "█": (style.color, style.color)}
    return shown.get(glyph, (None, None))


@given(levels=st.lists(st.lists(st.sampled_from(range(NUM_LEVELS + 1)), min_size=7, max_size=7), min_size=1))
def test_half_blocks_show_the_colour_of_every_cell_and_nothing_where_it_is_dropped(levels: list[list[int]]) -> None:
    lines = looks_of(COLOURED).half_blocks(grid(*levels))

    drawn: list[list[object]] = []
    for line in lines:
        halves = [halves_of(glyph, style) for glyph, style in cells_of(line)]
        drawn += [[upper for upper, _ in halves], [lower for _, lower in halves]]
    expected = [[None if one == DROPPED_LEVEL else COLOURED.heat[one].color for one in line] for line in levels]
    assert drawn[: len(levels)] == expected
    assert all(half is None for line in drawn[len(levels) :] for half in line)


def test_equal_neighbours_are_one_segment() -> None:
    (line,) = looks_of(COLOURED).half_blocks(grid([3] * 40 + [9] * 40, [3] * 40 + [5] * 40))

    assert [segment.text for segment in line] == ["█" * 40, "▀" * 40]


def test_a_line_that_did_not_change_is_the_same_object_and_styled_only_once() -> None:
    before = looks_of(COLOURED).half_blocks(grid([1, 2], [3, 4], [5, 6], [7, 8]))
    after = looks_of(COLOURED).half_blocks(grid([1, 2], [3, 4], [5, 6], [7, 9]))
    ground = Style(bgcolor="#101010")

    assert after[0] is before[0]
    assert after[1] is not before[1]
    assert after[0].apply_style(ground) is before[0].apply_style(ground)


@pytest.mark.parametrize("halves", [True, False])
def test_a_line_over_a_ground_is_what_textual_makes_of_it(halves: bool) -> None:
    levels = np.random.default_rng(0).choice(LEVELS, (2, 60)).astype(np.uint8)
    levels[0, 5] += CURSOR_FLAG
    draw = looks_of(COLOURED).half_blocks if halves else looks_of(COLOURED).single_rows
    ground = Style(bgcolor="#101010", bold=True)

    for line in draw(levels):
        plain = line.crop(0, 30), line.crop(30, 60)
        expected = [cell for part in plain for cell in cells_of(part.apply_style(ground))]
        assert cells_of(line.apply_style(ground)) == expected
        assert line.apply_style(ground).cell_length == 60


def test_what_is_not_measured_has_a_sign_in_half_blocks_too() -> None:
    (line,) = looks_of(COLOURED).half_blocks(
        grid([UNKNOWN_LEVEL, 4, UNKNOWN_LEVEL], [UNKNOWN_LEVEL, UNKNOWN_LEVEL, DROPPED_LEVEL])
    )

    assert line.text == "???"
    assert cells_of(line)[1][1].bgcolor == COLOURED.heat[4].color


def test_the_cursor_has_a_shape_in_every_mode() -> None:
    here = 5 + CURSOR_FLAG
    looks = looks_of(COLOURED)

    assert looks.half_blocks(grid([here], [3]))[0].text == "◓"
    assert looks.half_blocks(grid([3], [here]))[0].text == "◒"
    assert looks.single_rows(grid([here, DROPPED_LEVEL + CURSOR_FLAG]))[0].text == "◆○"


@pytest.mark.parametrize("amount", [False, True])
def test_glyphs_tell_values_and_every_kind_of_absence_apart_without_colour(amount: bool) -> None:
    (line,) = looks_of(ink(DARK, glyphs=True), amount=amount).single_rows(grid(LEVELS))
    values, absent = line.text[:NUM_LEVELS], line.text[NUM_LEVELS:]

    assert list(values) == sorted(values)
    assert set(values) == set(RAMP[:-1] if amount else RAMP)
    assert absent == "·? "
    assert line.text.translate(ASCII).isascii()


def test_one_row_a_line_shows_every_level_in_its_colour() -> None:
    (line,) = looks_of(COLOURED).single_rows(grid(list(range(NUM_LEVELS))))

    assert [style for _, style in cells_of(line)] == list(COLOURED.heat)


def test_halves_need_colour_and_unicode() -> None:
    assert halves_fit(COLOURED)
    assert not halves_fit(ink(DARK, plain=True))
    assert not halves_fit(ink(DARK, colour=False))
    assert not halves_fit(ink(DARK, glyphs=True))


def test_each_theme_has_its_own_lines() -> None:
    dark, light = (looks_of(ink(theme)).half_blocks(grid([23], [23]))[0] for theme in (DARK, LIGHT))

    assert [cells_of(dark)[0][1].color.name, cells_of(light)[0][1].color.name] == [HEAT[-1], HEAT[0]]


@given(st.lists(st.floats(-2, 3), min_size=1, max_size=20), st.floats(-1, 1), st.floats(-1, 2))
def test_levels_are_those_of_the_palette(values: list[float], low: float, high: float) -> None:
    assert levels_of(np.array(values), low, high).tolist() == [level(value, low, high) for value in values]


def test_nan_is_not_a_level() -> None:
    assert levels_of(np.array([np.nan, 0.0, 1.0]), 0.0, 1.0).tolist() == [UNKNOWN_LEVEL, 0, NUM_LEVELS - 1]


def test_no_rows_are_no_lines() -> None:
    assert looks_of(COLOURED).half_blocks(np.zeros((0, 5), np.uint8)) == []
    assert looks_of(COLOURED).single_rows(np.zeros((3, 0), np.uint8)) == []


def test_a_picture_has_the_colour_of_every_pixel_to_a_step() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    pixels[0:2, 0:3] = 200

    lines = rgb_lines(pixels)

    for y, line in enumerate(lines):
        for x, (glyph, style) in enumerate(cells_of(line)):
            for half, colour in enumerate(halves_of(glyph, style)):
                assert np.abs(np.array(colour.triplet) - pixels[2 * y + half, x].astype(int)).max() <= 4
    assert next(iter(lines[0])).text == "███"


def test_without_colour_a_brighter_pixel_is_a_heavier_character() -> None:
    pixels = np.repeat(np.linspace(0, 255, 10).astype(np.uint8), 2 * 3).reshape(10, 2, 3).transpose(1, 0, 2)

    (line,) = shaded_lines(pixels, Style())

    assert line.text == " .:-=+*#%@"


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    room=st.tuples(st.integers(2, 100), st.integers(1, 200)),
)
def test_a_fitted_size_is_even_and_within_its_room(size: tuple[int, int], room: tuple[int, int]) -> None:
    rows, columns = fitted_size(size, room)

    assert rows % 2 == 0
    assert 2 <= rows <= max(2, room[0])
    assert 1 <= columns <= room[1]


def test_a_picture_is_averaged_down_and_repeated_up() -> None:
    pixels = np.array([[0, 2], [4, 6]], dtype=np.uint8)[..., None].repeat(3, axis=2)

    assert resized(pixels, 1, 1).ravel().tolist() == [3, 3, 3]
    assert resized(pixels, 4, 4)[..., 0].tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [4, 4, 6, 6], [4, 4, 6, 6]]
