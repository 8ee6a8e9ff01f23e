"""When memory runs out, one line says how much was missing, and the trace of the run says it too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import heatkv.generate
from kvscope import shortage
from kvscope.cli import main
from kvscope.errors import OutOfMemoryError
from kvscope.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ON_GPU = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which 3.30 GiB is "
    "free. Including non-PyTorch memory, this process has 75.86 GiB memory in use. Of the allocated memory 74 GiB is "
    "allocated by PyTorch, and 1.20 GiB is reserved by PyTorch but unallocated."
)


@pytest.mark.parametrize(
    ("fail", "says"),
    [
        (lambda: torch.empty(1 << 50, dtype=torch.uint8), "1.00 PiB more were asked of the machine"),
        (lambda: np.empty(1 << 50, np.uint8), "1.00 PiB more were asked of the machine"),
        (lambda: bytes(1 << 60), "the machine has no more"),
    ],
    ids=["torch", "numpy", "python"],
)
def test_what_the_machine_has_not(fail: Callable[[], object], says: str) -> None:
    with pytest.raises(OutOfMemoryError, match=f"^out of memory: .*{says}.*takes less$") as caught, shortage.told():
        fail()

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ON_GPU, "20.00 GiB more were asked of the GPU, 3.30 GiB of 79.18 GiB were free"),
        ("a text of another version\nof two lines", "a text of another version"),
    ],
)
def test_what_a_gpu_has_not(text: str, says: str) -> None:
    with (
        pytest.raises(OutOfMemoryError, match=f"^out of memory: {says}; `kvscope ledger --plan` says"),
        shortage.told(),
    ):
        raise torch.OutOfMemoryError(text)


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="shapes"), shortage.told():
        raise RuntimeError("shapes do not fit")


def test_a_run_that_is_short_of_memory_says_so_and_so_does_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(ON_GPU)

    monkeypatch.setattr(heatkv.generate, "sample_bits", fail)

    assert main(["run", "--random-weights", "-o", str(tmp_path / "run.h5")]) == 11

    assert "out of memory: 20.00 GiB more were asked of the GPU" in capsys.readouterr().err.splitlines()[-1]
    with Trace.open(tmp_path / "run.h5") as trace:
        assert trace.status == "failed"
        assert "20.00 GiB more were asked" in trace.message
