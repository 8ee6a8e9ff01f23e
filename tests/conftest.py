"""Fixtures that several test files share."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_ROOT = Path(__file__).resolve().parent.parent

# What the suite says depends on the commit alone, never on chance or on how busy the machine is.
# To look for what it misses: pytest --hypothesis-profile=search
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# What a test opens is no part of the user's history.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="kvscope-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    """What the viewer's start froze is collected again: a process of tests does more than view."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the reference implementations' numbers; skips where it is not at hand."""
    folder = Path(os.environ.get("KVSCOPE_GOLDEN", _ROOT.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip("golden data absent: set KVSCOPE_GOLDEN to the folder of reference numbers")
    return folder
