"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the reference implementations' numbers; skips where it is not at hand."""
    folder = Path(os.environ.get("KVSCOPE_GOLDEN", _ROOT.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip("golden data absent: set KVSCOPE_GOLDEN to the folder of reference numbers")
    return folder
