"""Every test in this folder needs a CUDA device, and is skipped without one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

_CASES = Path(__file__).parents[1] / "heatkv" / "kernels" / "ragged_cases.py"


@pytest.fixture(autouse=True, scope="session")  # before anything that needs a device is made
def _cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    """The module of ragged attention's inputs and answers: tests/heatkv/kernels/ragged_cases.py."""
    spec = importlib.util.spec_from_file_location(_CASES.stem, _CASES)
    assert spec is not None
    assert spec.loader is not None
    # Registered first, because a dataclass with slots looks its module up by name.
    module = sys.modules.setdefault(_CASES.stem, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module
