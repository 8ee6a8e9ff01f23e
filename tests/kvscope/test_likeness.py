from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from kvscope.likeness import psnr, ssim


def noisy_pair(height: int = 40, width: int = 48) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture of gradients, and the same with noise."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([rows * 6, columns * 5, (rows + columns) * 2], axis=-1).astype(np.uint8)
    noise = np.random.default_rng(3).integers(-40, 41, picture.shape)
    return picture, np.clip(picture.astype(int) + noise, 0, 255).astype(np.uint8)


def flat(value: int) -> NDArray[np.uint8]:
    return np.full((16, 16, 3), value, np.uint8)


def test_pictures_that_are_the_same_are_as_alike_as_can_be() -> None:
    picture, _ = noisy_pair()

    assert psnr(picture, picture.copy()) == math.inf
    assert ssim(picture, picture.copy()) == pytest.approx(1, abs=1e-12)


def test_the_psnr_of_a_known_error_is_the_formulas() -> None:
    assert psnr(flat(100), flat(105)) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(flat(0), flat(255)) == pytest.approx(0)


def test_the_ssim_of_flat_pictures_is_that_of_their_brightness() -> None:
    stable = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + stable) / (100**2 + 150**2 + stable)

    assert ssim(flat(100), flat(150)) == pytest.approx(expected, abs=1e-9)


def test_psnr_and_ssim_agree_with_another_implementation() -> None:
    # scikit-image 0.26: structural_similarity(a @ luma, b @ luma, gaussian_weights=True, sigma=1.5,
    # use_sample_covariance=False, data_range=255), luma = (0.299, 0.587, 0.114); peak_signal_noise_ratio(a, b).
    picture, noisy = noisy_pair()

    assert ssim(picture, noisy) == pytest.approx(0.34134929535712927, abs=1e-12)
    assert psnr(picture, noisy) == pytest.approx(20.94474453138833, abs=1e-6)  # squares in float32


def test_ssim_is_symmetric_and_falls_with_noise() -> None:
    picture, noisy = noisy_pair(101, 37)  # more than one band, the last one short
    little = ((picture.astype(int) * 9 + noisy) // 10).astype(np.uint8)

    found = ssim(picture, little), ssim(picture, noisy)

    assert ssim(noisy, picture) == pytest.approx(found[1])
    assert found[1] is not None
    assert found[0] is not None
    assert found[1] < found[0] < 1


def test_a_picture_smaller_than_the_window_has_no_ssim() -> None:
    assert ssim(flat(0)[:10], flat(0)[:10]) is None
