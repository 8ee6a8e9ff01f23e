"""Judges of others are asked only with a package and weights that the user has; what is missing is said in words."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from heatkv.errors import UnknownNameError
from kvscope.errors import UsageError
from kvscope.league import perceptual


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="lpips"):
        perceptual.parsed(["fid=a.pt"])


def test_weights_are_asked_for_in_words() -> None:
    with pytest.raises(UsageError, match=r"metric hps reads weights; give hps=FILE: HPS_v2\.1_compressed\.pt"):
        perceptual.parsed(["hps"])


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    weights = tmp_path / "ImageReward.pt"
    weights.touch()

    with pytest.raises(UsageError, match="metric image_reward needs the package ImageReward; install it"):
        perceptual.parsed([f"image_reward={weights}"])


def test_a_judge_that_does_not_load_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("ImageReward")
    monkeypatch.setitem(sys.modules, "ImageReward", package)  # without `load`

    with pytest.raises(UsageError, match="metric image_reward: does not load"):
        perceptual.loaded([("image_reward", str(tmp_path / "a.pt"))])


def test_a_judge_sees_the_picture_and_the_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    package, image = ModuleType("ImageReward"), ModuleType("PIL.Image")
    package.load = lambda *given, **_: SimpleNamespace(  # type: ignore[attr-defined]
        score=lambda *seen: asked.append((*given, *seen)) or 0.5
    )
    image.fromarray = lambda picture: picture.shape  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ImageReward", package)
    monkeypatch.setitem(sys.modules, "PIL.Image", image)
    monkeypatch.setitem(sys.modules, "PIL", ModuleType("PIL"))
    picture = np.zeros((4, 4, 3), np.uint8)

    judges = perceptual.loaded([("image_reward", str(tmp_path / "a.pt"))])

    assert judges["image_reward"](picture, picture, "a cat") == 0.5
    assert asked == [(str(tmp_path / "a.pt"), "a cat", (4, 4, 3))]
