"""Attention maps: pooling keeps sums, codes keep fractions within the error that they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from heatkv.scales import ScaleSchedule
from kvscope.maps import MAP_CELLS, MAP_ERROR, MAP_FLOOR, decode, encode, pool

GRIDS = st.tuples(st.integers(1, 70), st.integers(1, 70))


def random_map(scales: ScaleSchedule, query_scale: int) -> NDArray[np.float32]:
    """[head, token] of two heads; the second does not see scale 1."""
    token_map = np.random.default_rng(0).random((2, scales.offsets[query_scale + 1]), np.float32)
    token_map /= token_map.sum(axis=1, keepdims=True)
    token_map[1, scales.offsets[1] : scales.offsets[2]] = np.nan
    return token_map


@given(GRIDS)
def test_a_token_is_in_the_cell_that_the_definition_says(grid: tuple[int, int]) -> None:
    height, width = grid
    scales = ScaleSchedule.custom((grid, grid))
    token_map = random_map(scales, 0)[:1]
    expected = np.zeros((MAP_CELLS, MAP_CELLS))
    rows, columns = min(height, MAP_CELLS), min(width, MAP_CELLS)
    y, x = np.divmod(np.arange(height * width), width)
    np.add.at(expected, (y * rows // height, x * columns // width), token_map[0])

    cells = pool(token_map, scales, 0)[0, 0]

    np.testing.assert_allclose(cells[:rows, :columns], expected[:rows, :columns], rtol=1e-5)  # float32 sums
    assert np.isnan(cells[rows:]).all()
    assert np.isnan(cells[:, columns:]).all()


@pytest.mark.parametrize("query_scale", [0, 1, 2, 3])
def test_pooling_keeps_the_mass_of_every_scale_and_nan_where_a_head_saw_none(query_scale: int) -> None:
    scales = ScaleSchedule.custom(((1, 1), (4, 4), (16, 16), (21, 7), (40, 40)))
    token_map = random_map(scales, max(1, query_scale))[:, : scales.offsets[query_scale + 1]]

    cells = pool(token_map, scales, query_scale)

    assert cells.shape == (2, 5, 16, 16)
    for source in range(5):
        begin, end = scales.offsets[source : source + 2]
        for head in range(2):
            if source > query_scale or (source == 1 and head == 1):
                assert np.isnan(cells[head, source]).all()
            else:
                expected = token_map[head, begin:end].sum()
                assert np.nansum(cells[head, source]) == pytest.approx(expected, rel=1e-5)  # float32 sums


@given(st.floats(MAP_FLOOR, 1.0, width=64))
def test_a_code_is_within_the_promised_error(fraction: float) -> None:
    measured = np.array([max(fraction, np.nextafter(np.float32(MAP_FLOOR), np.float32(1)))], np.float32)

    decoded = decode(encode(measured))

    assert abs(decoded[0] / measured[0] - 1) <= MAP_ERROR


def test_what_has_no_fraction_has_codes_of_its_own() -> None:
    codes = encode(np.array([np.nan, 0, MAP_FLOOR / 2, 1, 1 + 1e-6], np.float32))

    assert codes.tolist() == [0, 1, 1, 255, 255]
    np.testing.assert_array_equal(decode(codes), np.array([np.nan, 0, 0, 1, 1], np.float32))


def test_every_code_is_the_code_of_what_it_stands_for() -> None:
    codes = np.arange(256, dtype=np.uint8)

    np.testing.assert_array_equal(encode(decode(codes)), codes)


def test_codes_keep_the_order_of_fractions() -> None:
    fractions = np.sort(np.random.default_rng(1).random(1000, np.float32) ** 8)

    assert (np.diff(encode(fractions).astype(int)) >= 0).all()
