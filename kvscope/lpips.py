"""LPIPS (Zhang et al., 2018), where the package that computes it and its weights are at hand. Nothing is downloaded.

The package `lpips` brings its own linear weights; those of the network beneath (AlexNet's, of torchvision) must lie in
torch's cache of files already: $TORCH_HOME, or ~/.cache/torch, under hub/checkpoints.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WEIGHTS = "alexnet-owt-*.pth"
_LEAST_SIDE = 32
"""The network halves a picture's sides several times: of smaller ones nothing is left."""


def unavailable() -> str | None:
    """Why there is no LPIPS here, in words; None: there is."""
    if importlib.util.find_spec("lpips") is None:
        return "the package lpips is not installed (kvscope[lpips])"
    folder = _weights_folder()
    if not any(folder.glob(_WEIGHTS)):
        return f"no {_WEIGHTS} in {folder}, and nothing is downloaded"
    return None


def lpips(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float | None:
    """The distance of two pictures [height, width, 3], by AlexNet; 0: equal. None: unavailable, or too small."""
    if unavailable() is not None or min(a.shape[:2]) < _LEAST_SIDE:
        return None
    # Deferred: torch, which only this number needs.
    import torch

    package: Any = importlib.import_module("lpips")  # Any: it has no types
    network = package.LPIPS(net="alex", verbose=False).eval()
    with torch.inference_mode():
        pictures = [torch.from_numpy(one.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 for one in (a, b)]
        return float(network(*pictures))


def _weights_folder() -> Path:
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    return Path(home) / "hub" / "checkpoints"
