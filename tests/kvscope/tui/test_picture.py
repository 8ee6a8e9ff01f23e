from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot
from kvscope.tui.palette import DARK, ink
from kvscope.tui.view import View
from kvscope.tui.widgets.picture import picture, picture_of

NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)


@pytest.fixture
def pictured(tiny_snapshot: Snapshot) -> Snapshot:
    """One preview after each scale, and an image."""
    return replace(tiny_snapshot, previews=(NOISE[:8, :8],) * tiny_snapshot.scales_done, image=NOISE)


def view_of(snapshot: Snapshot, query_scale: int, **options: bool) -> View:
    return View(ink(DARK, **options), snapshot, Cursor(query_scale=query_scale))


@pytest.mark.parametrize("size", [(25, 5), (42, 12), (64, 30), (9, 4)])
@pytest.mark.parametrize("options", [{}, {"plain": True}, {"colour": False}])
def test_it_stays_within_its_room(pictured: Snapshot, size: tuple[int, int], options: dict[str, bool]) -> None:
    lines = picture(view_of(pictured, 1, **options), *size)

    assert len(lines) <= size[1]
    assert all(line.cell_length <= size[0] for line in lines)


def test_a_preview_says_its_size_and_the_scale_it_was_made_after(pictured: Snapshot) -> None:
    height, width = pictured.schedule.scales.sizes[1]
    text = picture(view_of(pictured, 1), 60, 20)[-1].text

    assert text.strip() == f"8×8 pixels · after scale 1 ({height}×{width})"


def test_the_image_says_its_size(pictured: Snapshot) -> None:
    last = pictured.schedule.scales.num_scales - 1

    assert picture(view_of(pictured, last), 60, 20)[-1].text.strip() == "40×40 pixels"


def test_where_there_is_little_room_the_picture_has_all_of_it(pictured: Snapshot) -> None:
    assert not any("pixels" in line.text for line in picture(view_of(pictured, 1), 60, 8))
    assert not any("pixels" in line.text for line in picture(view_of(pictured, 1), 20, 20))


def test_a_picture_is_drawn_once_for_a_size(pictured: Snapshot) -> None:
    first, again = (picture(view_of(pictured, 1), 60, 20) for _ in range(2))
    smaller = picture(view_of(pictured, 1), 30, 20)

    assert all(one is other for one, other in zip(first[1:-1], again[1:-1], strict=True))
    assert smaller[1].text != first[1].text


def test_an_equal_but_other_array_is_another_picture(pictured: Snapshot) -> None:
    other = replace(pictured, previews=(255 - NOISE[:8, :8],) * pictured.scales_done)

    assert picture(view_of(pictured, 1), 60, 20)[1] != picture(view_of(other, 1), 60, 20)[1]


@pytest.mark.parametrize("options", [{"plain": True}, {"colour": False}, {"glyphs": True}])
def test_without_colour_it_is_drawn_in_characters(pictured: Snapshot, options: dict[str, bool]) -> None:
    body = "".join(line.text for line in picture(view_of(pictured, 1, **options), 60, 20)[1:-1])

    assert set("=+*#") & set(body)
    assert body.isascii()


def test_the_last_scale_shows_the_image_and_others_their_preview(pictured: Snapshot) -> None:
    last = pictured.schedule.scales.num_scales - 1

    assert picture_of(pictured, last)[0] is pictured.image
    assert picture_of(pictured, 0)[0] is pictured.previews[0]


def test_without_a_picture_it_says_so(tiny_snapshot: Snapshot) -> None:
    bare = replace(tiny_snapshot, previews=(), image=None, status="done")

    assert "no picture in this trace" in "\n".join(line.text for line in picture(view_of(bare, 0), 40, 10))
    assert "no picture yet" in "\n".join(line.text for line in picture(View(ink(DARK)), 40, 10))
