"""A stand-in for the package, an empty file of weights: what is asked of the real ones, and the words without them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from kvscope.cli import main
from kvscope.lpips import lpips, unavailable

_FAKE = """
import torch

class LPIPS(torch.nn.Module):
    def __init__(self, net, verbose):
        super().__init__()
        assert net == "alex"

    def forward(self, a, b):
        assert a.shape[:2] == (1, 3) and -1 <= a.min() and a.max() <= 1
        return (a - b).abs().mean().reshape(1, 1, 1, 1)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of weights, where they are not yet; the package is there."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "lpips.py").write_text(_FAKE)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "lpips", raising=False)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_the_distance_is_the_package_s_of_pictures_from_minus_one_to_one(stand_in: Path) -> None:
    (stand_in / "alexnet-owt-0.pth").touch()
    dark, bright = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)

    assert unavailable() is None
    assert lpips(dark, dark) == 0
    assert lpips(dark, bright) == pytest.approx(2)
    assert lpips(dark[:8], bright[:8]) is None


def test_without_weights_or_package_the_words_say_what_is_missing(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unavailable() == f"no alexnet-owt-*.pth in {stand_in}, and nothing is downloaded"

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert unavailable() == "the package lpips is not installed (kvscope[lpips])"


def test_compare_measures_it_where_it_is_asked_for(
    tiny_trace: Path, stand_in: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = ["compare", str(tiny_trace), str(tiny_trace)]

    assert main([*pair, "--lpips", "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["comparisons"][0]["pictures"]["lpips"] is None
    assert "LPIPS is not measured: no alexnet-owt-*.pth" in out.err

    (stand_in / "alexnet-owt-0.pth").touch()
    monkeypatch.setattr("kvscope.lpips._LEAST_SIDE", 8)
    assert main([*pair, "--lpips"]) == 0
    assert "LPIPS 0.0000" in capsys.readouterr().out
