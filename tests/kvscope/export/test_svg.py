"""Charts."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvscope.export.svg import Level, Line, byte_ticks, bytes_chart, cells


@given(st.floats(1, 1e15))
def test_ticks_are_few_even_and_reach_the_top(top: float) -> None:
    ticks = byte_ticks(top)

    assert ticks[0] == 0
    assert ticks[-1] >= top
    assert 2 <= len(ticks) <= 6
    assert np.ptp(np.diff(ticks)) < 1e-6 * ticks[-1]


def test_a_chart_is_xml_and_stays_within_its_frame() -> None:
    chart = bytes_chart(
        [Line("stored", [10, 20, 30, 40], "stored")], [Level("budget", 35, "budget")], [(2, "0"), (2, "1")], "bytes"
    )

    root = ElementTree.fromstring(chart)
    path = next(one.attrib["d"] for one in root.iter() if one.attrib.get("class") == "stored")
    heights = [float(y) for y in re.findall(r"V([\d.]+)", path)]
    assert heights == sorted(heights, reverse=True)  # more bytes are higher up
    assert all(0 <= y <= 300 for y in heights)


def test_a_cell_is_a_square_by_its_share_a_dot_or_nothing() -> None:
    shares = np.array([[1.0, 0.25], [0.0, np.nan]])

    kept, dropped = re.findall(r'd="([^"]*)"', cells(shares, "title"))

    sides = [float(side) for side in re.findall(r"h([\d.]+)", kept)]
    assert len(sides) == 2
    assert sides[0] > sides[1]
    assert dropped.count("M") == 1


@pytest.mark.parametrize("values", [[], [0]])
def test_a_chart_of_nothing_is_drawn(values: list[float]) -> None:
    ElementTree.fromstring(bytes_chart([Line("stored", values, "")], [], [(len(values), "0")], "empty"))
