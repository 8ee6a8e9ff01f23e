from __future__ import annotations

import pytest

from kvscope.errors import UsageError
from kvscope.tui.cursor import Cursor, Shape
from kvscope.tui.goto import NOWHERE, parse

SHAPE = Shape(query_scale=3, layer=4, head=2, source_scale=5)


def test_a_line_names_axes_a_metric_and_a_screen_in_any_order() -> None:
    place = parse("S2 map q1 mass H1")

    assert (place.screen, place.metric) == ("map", "mass")
    assert place.of(Cursor(layer=3), SHAPE) == Cursor(1, 3, 1, 2)


def test_an_empty_line_leads_nowhere() -> None:
    assert parse("  ") == NOWHERE
    assert NOWHERE.of(Cursor(1, 2, 1, 3), SHAPE) == Cursor(1, 2, 1, 3)


def test_an_index_past_the_end_stops_there() -> None:
    assert parse("q99 l99").of(Cursor(), SHAPE) == Cursor(2, 3)


@pytest.mark.parametrize("line", ["q", "q-1", "x3", "q1 nowhere", "7"])
def test_a_word_that_means_nothing_is_named(line: str) -> None:
    with pytest.raises(UsageError, match=r"leads nowhere; give words like q7 l12 h3 s5"):
        parse(line)


def test_mass_is_a_screen_as_the_first_word_and_a_metric_after_it() -> None:
    assert (parse("mass q1").screen, parse("mass q1").metric) == ("mass", None)
    assert (parse("map mass").screen, parse("map mass").metric) == ("map", "mass")
    assert (parse("q1 mass").screen, parse("q1 mass").metric) == (None, "mass")
