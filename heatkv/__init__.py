"""heatkv: next-scale image models whose KV cache obeys a pruning schedule.

The public names below are loaded on first use: importing heatkv imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heatkv.config import MODELS as MODELS
    from heatkv.config import ModelConfig as ModelConfig
    from heatkv.config import model_config as model_config
    from heatkv.errors import HeatKVError as HeatKVError
    from heatkv.generate import Generation as Generation
    from heatkv.generate import Sampling as Sampling
    from heatkv.orders import HeadOrders as HeadOrders
    from heatkv.pipeline import Pipeline as Pipeline
    from heatkv.policies import POLICIES as POLICIES
    from heatkv.policies import load_policy as load_policy
    from heatkv.scales import ScaleSchedule as ScaleSchedule
    from heatkv.scas import ScasAccumulator as ScasAccumulator
    from heatkv.scas import ScasScores as ScasScores
    from heatkv.schedule import PruningSchedule as PruningSchedule

_MODULE_OF = {
    "MODELS": "heatkv.config",
    "ModelConfig": "heatkv.config",
    "model_config": "heatkv.config",
    "HeatKVError": "heatkv.errors",
    "Generation": "heatkv.generate",
    "Sampling": "heatkv.generate",
    "HeadOrders": "heatkv.orders",
    "Pipeline": "heatkv.pipeline",
    "POLICIES": "heatkv.policies",
    "load_policy": "heatkv.policies",
    "ScaleSchedule": "heatkv.scales",
    "ScasAccumulator": "heatkv.scas",
    "ScasScores": "heatkv.scas",
    "PruningSchedule": "heatkv.schedule",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'heatkv' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
