"""Rows made from what a run says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heatkv.probe import StepInfo
from heatkv.scales import ScaleSchedule
from kvscope import rows

STEP = StepInfo(
    query_scale=1,
    layer=2,
    begin_ns=10,
    end_ns=30,
    device_ns=15,
    accounted_bytes=100,
    storage_bytes=120,
    evicted_tokens=4,
    kept_tokens=np.ones((2, 3), np.int64),
    read_tokens=np.ones((2, 3), np.int64),
    attention_mass=None,
)


def test_a_step_becomes_a_row_with_the_same_names() -> None:
    row = rows.step_rows([STEP])[0]

    assert {name: row[name].item() for name in row.dtype.names} == {
        "query_scale": 1,
        "layer": 2,
        "begin_ns": 10,
        "end_ns": 30,
        "device_ns": 15.0,
        "accounted_bytes": 100,
        "storage_bytes": 120,
        "evicted_tokens": 4,
    }


def test_attention_that_was_not_measured_at_a_step_is_nan() -> None:
    for name in ("attention_mass", "attention_mass_uncond"):
        assert np.isnan(rows.mass_array([STEP, STEP], name)).all()
        assert rows.mass_array([STEP, STEP], name).shape == (2, 2, 3)


def test_a_layer_whose_map_was_not_measured_is_nan() -> None:
    scales = ScaleSchedule.custom(((1, 1), (2, 2), (3, 3)))
    measured = replace(STEP, attention_map=np.full((2, 5), 0.2, np.float32))

    maps = rows.map_array(rows.token_maps([STEP, measured]), 2, scales, 1, "float32")

    assert maps.shape == (2, 2, 3, 16, 16)
    assert np.isnan(maps[0]).all()
    assert np.count_nonzero(~np.isnan(maps[1])) == 2 * 5
    assert rows.token_maps([STEP, STEP]) == []


def test_on_host_copies_torch_tensors_and_arrays() -> None:
    torch = pytest.importorskip("torch")
    for values in (torch.arange(3.0, requires_grad=True), np.arange(3.0)):
        copy = rows.on_host(values)
        assert copy.tolist() == [0.0, 1.0, 2.0]

        with torch.no_grad():
            values[0] = 9.0

        assert copy[0] == 0.0


def test_resident_memory_that_the_system_does_not_tell_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_PAGE_FILE", Path("/no/such/file"))

    assert np.isnan(rows.memory_row(0, "cpu")["process_rss_bytes"][0])


@pytest.mark.gpu
def test_memory_of_a_cuda_run_is_what_its_allocator_says() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    tensor = torch.zeros(1 << 20, device="cuda")

    row = rows.memory_row(0, "cuda")[0]

    assert row["peak_bytes"] >= row["allocated_bytes"] >= tensor.nbytes
    assert row["reserved_bytes"] >= row["allocated_bytes"]
