from __future__ import annotations

import pytest

from kvscope.tui.cursor import AXES, LAST, Axis, Cursor, Shape

SHAPE = Shape(query_scale=3, layer=4, head=2, source_scale=5)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("by", [-99, -1, 1, 99])
def test_the_cursor_stays_within_its_shape(axis: Axis, by: int) -> None:
    moved = Cursor().moved(axis, by, shape=SHAPE)

    assert 0 <= getattr(moved, axis) < getattr(SHAPE, axis)


@pytest.mark.parametrize("axis", AXES)
def test_moving_along_one_axis_leaves_the_others(axis: Axis) -> None:
    moved = Cursor(1, 1, 1, 1).at(axis, 0, shape=SHAPE)

    assert [getattr(moved, other) for other in AXES if other != axis] == [1, 1, 1]


def test_last_is_the_end_of_an_axis() -> None:
    assert Cursor().at("layer", LAST, shape=SHAPE).layer == 3


def test_at_the_newest_query_scale_the_cursor_follows_the_run() -> None:
    grown = Shape(5, 4, 2, 5)

    assert Cursor(query_scale=2).followed(SHAPE, grown).query_scale == 4


def test_at_an_older_query_scale_the_cursor_stays() -> None:
    grown = Shape(5, 4, 2, 5)

    assert Cursor(query_scale=1).followed(SHAPE, grown).query_scale == 1


def test_steps_go_layer_by_layer_from_one_query_scale_into_the_next() -> None:
    last_layer = Cursor(query_scale=1, layer=3, head=1, source_scale=2)

    assert last_layer.stepped(1, shape=SHAPE) == Cursor(2, 0, 1, 2)
    assert last_layer.stepped(-4, shape=SHAPE) == Cursor(0, 3, 1, 2)
    assert last_layer.stepped(99, shape=SHAPE) == Cursor(2, 3, 1, 2)


def test_lanes_go_head_by_head_from_one_layer_into_the_next() -> None:
    last_head = Cursor(query_scale=1, layer=0, head=1)

    assert last_head.laned(1, shape=SHAPE) == Cursor(1, 1, 0)
    assert last_head.laned(-99, shape=SHAPE) == Cursor(1, 0, 0)
    assert last_head.laned(99, shape=SHAPE) == Cursor(1, 3, 1)
