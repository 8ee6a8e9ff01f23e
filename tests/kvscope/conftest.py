"""Fixtures of recorded traces: small, made without a model, and true to their pruning schedule."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from kvscope.nvml import GpuSampler
from kvscope.recorder import Recorder

_FOLDER = Path(__file__).parent


def _load(name: str) -> ModuleType:
    # pytest's importlib mode puts no test folder on sys.path.
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def fake_run() -> ModuleType:
    """The module of the run without a model: tests/kvscope/fake_run.py."""
    return _load("fake_run")


@pytest.fixture(scope="session")
def fake_nvml() -> ModuleType:
    """The module of the stand-in for pynvml: tests/kvscope/fake_nvml.py."""
    return _load("fake_nvml")


@pytest.fixture(scope="session")
def tiny_trace(tmp_path_factory: pytest.TempPathFactory, fake_run: ModuleType) -> Path:
    """A finished trace on a machine without a GPU: 5 scales, 3 layers, 2 heads, attention mass, previews, image."""
    path = tmp_path_factory.mktemp("traces") / "tiny.h5"
    with Recorder(path, fake_run.fake_job(), preview=fake_run.fake_preview) as recorder:
        fake_run.run(recorder)
    return path


@pytest.fixture(scope="session", params=["uint8", "float32"])
def maps_trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fake_run: ModuleType) -> Path:
    """A finished trace with every tier: attention mass of both kinds of rows, and maps, in either way to store them."""
    path = tmp_path_factory.mktemp("traces") / f"{request.param}.h5"
    with Recorder(path, fake_run.fake_job(attention_mass_uncond=True, attention_map=request.param)) as recorder:
        fake_run.run(recorder)
    return path


@pytest.fixture(scope="session")
def gpu_trace(tmp_path_factory: pytest.TempPathFactory, fake_run: ModuleType, fake_nvml: ModuleType) -> Path:
    """A finished trace with GPU samples, and without attention mass, previews and image."""
    path = tmp_path_factory.mktemp("traces") / "gpu.h5"
    sampler = GpuSampler(0.001, nvml=fake_nvml.FakeNvml())
    with Recorder(path, fake_run.fake_job(attention_mass=False), sampler=sampler) as recorder:
        fake_run.run(recorder, scales=4, after=lambda _: fake_run.wait_for(lambda: bool(sampler._waiting)))
    return path


@pytest.fixture
def live_trace(tmp_path: Path, fake_run: ModuleType) -> Iterator[Path]:
    """A trace that is being recorded: 3 of 5 scales are done, and no more come while the test lasts."""
    path = tmp_path / "live.h5"
    with Recorder(path, fake_run.fake_job(), preview=fake_run.fake_preview) as recorder:
        fake_run.run(recorder, scales=3)
        fake_run.wait_for_scales(path, 3)
        yield path


@pytest.fixture
def crashed_trace(tmp_path: Path, live_trace: Path) -> Path:
    """A trace whose run ended without a word after 3 of 5 scales: a copy of a live one, that nobody holds open."""
    return shutil.copy(live_trace, tmp_path / "crashed.h5")
