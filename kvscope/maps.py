"""Attention maps as a trace stores them: tokens pooled into at most 16 × 16 cells, fractions as codes of one byte.

The whole definition is here, in words (they go into every trace and its documentation) and in code, both ways.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.scales import ScaleSchedule

MAP_CELLS = 16
"""Most rows, and most columns, of a map."""

MAP_GRID = (
    "Token (y, x) of a grid of height × width adds to the cell in row floor(y * rows / height) and column "
    f"floor(x * columns / width); rows = min(height, {MAP_CELLS}), columns = min(width, {MAP_CELLS}). So a grid of at "
    f"most {MAP_CELLS} × {MAP_CELLS} is stored token by token, from the top left. Cells past rows and columns, and "
    "cells of whose tokens the head saw none, are not measured. The cells of a source scale sum up to its "
    "attention_mass."
)
"""How tokens become cells."""

MAP_FLOOR = 1e-8
"""The least fraction that has a code of its own."""

NOT_MEASURED_CODE, ZERO_CODE, FLOOR_CODE, ONE_CODE = 0, 1, 2, 255
_STEPS = ONE_CODE - FLOOR_CODE

MAP_ERROR = 0.038
"""No code above the floor is farther from what was measured, as a fraction of it: 1e-8 ** (-0.5 / 253) - 1."""

MAP_CODES = (
    f"{NOT_MEASURED_CODE}: not measured; {ZERO_CODE}: zero, or less than {MAP_FLOOR:g}; {FLOOR_CODE} to {ONE_CODE}: "
    f"{MAP_FLOOR:g} ** (({ONE_CODE} - code) / {_STEPS}), within {MAP_ERROR:.1%} of what was measured"
)
"""What a code stands for."""


def pool(token_map: NDArray[np.float32], scales: ScaleSchedule, query_scale: int) -> NDArray[np.float32]:
    """[head, source_scale, 16, 16]: the cells of `token_map` [head, token], tokens of scales 0 to query_scale."""
    cells = np.full((len(token_map), scales.num_scales, MAP_CELLS, MAP_CELLS), np.nan, np.float32)
    for source in range(query_scale + 1):
        begin, end = scales.offsets[source : source + 2]
        height, width = scales.sizes[source]
        tokens = token_map[:, begin:end].reshape(-1, height, width)
        cells[:, source, : min(height, MAP_CELLS), : min(width, MAP_CELLS)] = _cells(tokens)
    return cells


def encode(fractions: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The codes of fractions of any shape; NaN: not measured."""
    positions = np.log(np.maximum(fractions, MAP_FLOOR)) / np.log(MAP_FLOOR)  # 1 at the floor, 0 at one, NaN stays
    codes = np.clip(ONE_CODE - np.rint(_STEPS * positions), FLOOR_CODE, ONE_CODE)
    codes = np.where(fractions < MAP_FLOOR, ZERO_CODE, codes)
    return np.where(np.isnan(fractions), NOT_MEASURED_CODE, codes).astype(np.uint8)


def decode(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The fractions of codes of any shape; NaN: not measured."""
    fractions = MAP_FLOOR ** ((ONE_CODE - np.arange(ONE_CODE + 1)) / _STEPS)
    fractions[NOT_MEASURED_CODE], fractions[ZERO_CODE] = np.nan, 0
    return fractions.astype(np.float32)[codes]


def _cells(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """[head, rows, columns]; a cell of which some tokens were seen has their sum, one without any is NaN."""
    seen = ~np.isnan(tokens)
    if seen.all():
        return _summed(_summed(tokens, axis=1), axis=2)
    summed, counts = (
        _summed(_summed(each, axis=1), axis=2) for each in (np.where(seen, tokens, np.float32(0)), seen.astype("f4"))
    )
    return np.where(counts > 0, summed, np.float32(np.nan))


def _summed(values: NDArray[np.float32], *, axis: int) -> NDArray[np.float32]:
    """At most 16 sums along an axis: of the entries whose index * 16 // length is the same."""
    length = values.shape[axis]
    if length <= MAP_CELLS:
        return values
    begins = -(-np.arange(MAP_CELLS) * length // MAP_CELLS)  # the first index of each cell: a ceiling
    return np.add.reduceat(values, begins, axis=axis, dtype=np.float32)
