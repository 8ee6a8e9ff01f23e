from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from heatkv.scales import ScaleSchedule
from kvscope.maps import MAP_CELLS, pool
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import AttentionRead, Snapshot
from kvscope.tui.palette import DARK, RAMP, ink
from kvscope.tui.view import View
from kvscope.tui.widgets.attention import _Cells, attention_over_picture

SIZE = (66, 20)


def place_with(snapshot: Snapshot, *, read: bool) -> Cursor:
    """A cell whose head reads its source scale, or does not."""
    query = snapshot.scales_done - 1
    layers, heads, sources = np.nonzero((snapshot.read_tokens[query, :, :, : query + 1] > 0) == read)
    return Cursor(query, int(layers[-1]), int(heads[-1]), int(sources[-1]))


@pytest.fixture
def mapped(tiny_snapshot: Snapshot) -> Snapshot:
    """A trace that has maps, and no pictures."""
    tiers = (*tiny_snapshot.header.tiers, "maps")
    return replace(tiny_snapshot, header=replace(tiny_snapshot.header, tiers=tiers), previews=(), image=None)


def view_of(snapshot: Snapshot, cursor: Cursor, **options: bool) -> View:
    """With maps of one bright token at the top left of each source scale."""
    scales = snapshot.schedule.scales
    tokens = np.full((1, scales.total_tokens), 1e-3, np.float32)
    tokens[:, scales.offsets[:-1]] = 1e-2
    maps = pool(tokens, scales, cursor.query_scale)[0]
    read = AttentionRead(cursor.query_scale, cursor.layer, cursor.head, maps)
    return View(ink(DARK, **options), snapshot, cursor, attention=read)


def text(view: View, size: tuple[int, int] = SIZE) -> str:
    return "\n".join(line.text for line in attention_over_picture(view, *size))


@pytest.mark.parametrize("size", [SIZE, (25, 5), (40, 8), (12, 3), (100, 50)])
@pytest.mark.parametrize("options", [{}, {"plain": True}, {"colour": False}])
@pytest.mark.parametrize("pictured", [False, True])
def test_it_stays_within_its_room(
    mapped: Snapshot, size: tuple[int, int], options: dict[str, bool], pictured: bool
) -> None:
    image = np.full((40, 60, 3), 99, np.uint8) if pictured else None
    view = view_of(replace(mapped, image=image), place_with(mapped, read=True), **options)

    lines = attention_over_picture(view, *size)

    assert len(lines) <= size[1]
    assert all(line.cell_length <= size[0] for line in lines)


def test_the_brightest_cell_is_where_the_head_looks(mapped: Snapshot) -> None:
    view = view_of(mapped, place_with(mapped, read=True), glyphs=True)

    body = [line.strip() for line in text(view).splitlines()[1:-1] if line.strip()]

    assert body[0][0] == RAMP[-1]
    assert body[-1][-1] != RAMP[-1]
    assert "measured" in text(view)
    assert "brightest 1.00 % a token" in text(view)


def test_over_a_picture_the_brightest_cell_takes_the_colour_of_heat_and_the_others_keep_the_pictures(
    mapped: Snapshot,
) -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[..., 2] = 255
    view = view_of(replace(mapped, image=image), place_with(mapped, read=True))

    lines = attention_over_picture(view, *SIZE)[1:-1]
    corners = [next(segment for segment in line if segment.text.strip()).style for line in (lines[0], lines[-1])]

    red, blue = corners[0].color.triplet.red, corners[-1].color.triplet.blue
    assert red > 180
    assert blue > 100
    assert corners[-1].color.triplet.red < 40


@pytest.mark.parametrize("options", [{}, {"glyphs": True}])
def test_words_say_why_there_is_no_map(mapped: Snapshot, options: dict[str, bool]) -> None:
    here = place_with(mapped, read=True)
    view = view_of(mapped, here, **options)
    unmeasured = AttentionRead(here.query_scale, here.layer, here.head, np.full_like(view.attention.maps, np.nan))

    bare = replace(mapped, header=replace(mapped.header, tiers=("mass",)))
    assert "not recorded: run with --attention-map" in text(replace(view, snapshot=bare))
    assert "not recorded: run with --attention-map" in text(
        replace(view, attention=AttentionRead(here.query_scale, here.layer, here.head, None))
    )
    assert "loading…" in text(replace(view, attention=None))
    assert "loading…" in text(replace(view, attention=replace(view.attention, head=here.head + 1)))
    assert "not measured" in text(replace(view, attention=unmeasured))
    assert "dropped" in text(replace(view, cursor=place_with(mapped, read=False)))
    assert "source scale 3 comes after query scale 1" in text(replace(view, cursor=Cursor(1, 0, 0, 3)))
    assert "not reached" in text(replace(view, cursor=replace(here, query_scale=mapped.scales_done)))


def test_a_map_of_zeros_is_dark(mapped: Snapshot) -> None:
    view = view_of(mapped, place_with(mapped, read=True), glyphs=True)
    zeros = replace(view.attention, maps=np.zeros_like(view.attention.maps))

    body = "".join(text(replace(view, attention=zeros)).splitlines()[1:-1])

    assert set(body.strip()) <= {RAMP[0], " "}


def test_even_attention_looks_even_where_cells_have_different_numbers_of_tokens() -> None:
    scales = ScaleSchedule.custom([(1, 1), (24, 20)])
    maps = pool(np.full((1, scales.total_tokens), 1e-3, np.float32), scales, 1)[0, 1]
    down = np.bincount(np.arange(24) * MAP_CELLS // 24)
    across = np.bincount(np.arange(20) * MAP_CELLS // 20)

    cells = _Cells(maps.astype(np.float64), down[:, None] * across, (24, 20))

    assert len(set(down)) == len(set(across)) == 2
    assert len(np.unique(cells.levels)) == 1


def test_every_token_is_drawn_where_it_lies() -> None:
    fractions = np.random.default_rng(0).random((MAP_CELLS, MAP_CELLS))
    cells = _Cells(fractions, np.ones((MAP_CELLS, MAP_CELLS), np.int64), (24, 20))

    drawn = cells.at_size(24, 20)

    for y in range(24):
        for x in range(20):
            assert drawn[y, x] == cells.levels[y * MAP_CELLS // 24, x * MAP_CELLS // 20]
