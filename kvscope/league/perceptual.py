"""Pictures judged by trained models of others, where the user has the package and its weights: LPIPS, ImageReward, HPS.

Nothing here is fetched: a row of METRICS names a package and what file of weights it takes. Their numbers were not
checked by this project, which has neither.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatkv.errors import UnknownNameError
from kvscope.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]
    """[height, width, 3] RGB."""

Judge = Callable[["Picture", "Picture", str], float]
"""(picture, full's picture, prompt) → a number."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One trained judge."""

    package: str
    weights: str
    """What file the user gives, in words."""
    load: Callable[[Any, Path], Judge]  # Any: the package, an untyped library
    """(package, weights) → judge."""


def _lpips(package: Any, weights: Path) -> Judge:  # Any: as in Metric
    import torch

    model = package.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False).eval()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    def judge(picture: Picture, full: Picture, _: str) -> float:
        one, other = (torch.from_numpy(each).permute(2, 0, 1)[None].float() / 127.5 - 1 for each in (picture, full))
        with torch.inference_mode():
            return float(model(one, other))

    return judge


def _image_reward(package: Any, weights: Path) -> Judge:  # Any: as in Metric
    model = package.load(str(weights), device="cpu", med_config=str(weights.with_name("med_config.json")))
    return lambda picture, _, prompt: float(model.score(prompt, _image(picture)))


def _hps(package: Any, weights: Path) -> Judge:  # Any: as in Metric
    def judge(picture: Picture, _: Picture, prompt: str) -> float:
        return float(package.score(_image(picture), prompt, cp=str(weights), hps_version="v2.1")[0])

    return judge


METRICS: dict[str, Metric] = {
    "lpips": Metric(
        "lpips", "the whole model's state dict, net alex (torch.save of LPIPS(net='alex').state_dict())", _lpips
    ),
    "image_reward": Metric("ImageReward", "ImageReward.pt, with med_config.json beside it", _image_reward),
    "hps": Metric("hpsv2.img_score", "HPS_v2.1_compressed.pt", _hps),
}
"""Name of a column of the league → who judges it."""


def parsed(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(name, weights) of options such as `lpips=alex.pt`. Raises UsageError for one that could not be measured."""
    return tuple(_parsed(text) for text in texts)


def loaded(chosen: Sequence[tuple[str, str]]) -> dict[str, Judge]:
    """The judges by name, ready. Raises UsageError if one does not load."""
    judges = {}
    for name, weights in chosen:
        metric = METRICS[name]
        try:
            judges[name] = metric.load(importlib.import_module(metric.package), Path(weights))
        except Exception as error:  # any type: foreign code reads a foreign file
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UsageError(f"metric {name}: does not load ({reason}); expected {metric.weights}") from None
    return judges


def _parsed(text: str) -> tuple[str, str]:
    name, _, weights = text.partition("=")
    if name not in METRICS:
        raise UnknownNameError("metric", name, METRICS)
    metric = METRICS[name]
    if not weights or not Path(weights).is_file():
        raise UsageError(f"metric {name} reads weights; give {name}=FILE: {metric.weights}")
    if importlib.util.find_spec(metric.package.partition(".")[0]) is None:
        raise UsageError(
            f"metric {name} needs the package {metric.package.partition('.')[0]}; install it, or leave it out"
        )
    return name, weights


def _image(picture: Picture) -> Any:  # Any: PIL, which comes with what asks for it
    return importlib.import_module("PIL.Image").fromarray(picture)
