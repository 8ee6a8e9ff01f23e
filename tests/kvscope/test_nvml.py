"""GpuSampler: a number or a reason, in every way that a driver can fail. Never a zero for an unknown."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from kvscope import nvml as nvml_module
from kvscope.format import GPU_FIELDS, Reason
from kvscope.nvml import GpuSample, GpuSampler, Unavailable

INTERVAL_S = 0.001


def connected(nvml: object, **options: object) -> GpuSampler:
    """A sampler that has found its GPU, with one sample taken by hand and no thread left."""
    sampler = GpuSampler(INTERVAL_S, nvml=nvml, **options).start()
    sampler.stop()
    return sampler


def reason(sample: GpuSample, field: str) -> Reason:
    reading = sample.readings[field]
    return reading.reason if isinstance(reading, Unavailable) else Reason.MEASURED


def test_a_healthy_gpu_gives_every_field_in_its_unit(fake_nvml: ModuleType) -> None:
    sampler = connected(fake_nvml.FakeNvml())

    sample = sampler.sample()

    gib = fake_nvml.GIB
    assert sampler.unavailable is None
    assert sampler.gpu_name == "Fake H200"
    assert sample.memory_version == 2
    assert sample.readings == {
        "used_bytes": 5.0 * gib,
        "reserved_bytes": 0.5 * gib,
        "total_bytes": 80.0 * gib,
        "process_bytes": 3.0 * gib,
        "util_pct": 0.0,
        "power_w": 123.456,
        "temperature_c": 45.0,
        "clock_mhz": 1980.0,
    }
    assert set(sample.readings) == {name for name, _, _ in GPU_FIELDS}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (12, Reason.LIBRARY_NOT_FOUND),
        (9, Reason.DRIVER_NOT_LOADED),
        (4, Reason.NO_PERMISSION),
        (15, Reason.GPU_LOST),
        (16, Reason.GPU_LOST),
        (17, Reason.NO_PERMISSION),
        (18, Reason.OTHER),
        (999, Reason.OTHER),
    ],
)
def test_a_driver_that_does_not_start_is_a_reason_and_no_error(
    fake_nvml: ModuleType, code: int, expected: Reason
) -> None:
    sampler = connected(fake_nvml.FakeNvml(failing={"nvmlInit": code}))

    assert sampler.unavailable is not None
    assert sampler.unavailable.reason is expected
    assert expected.text in sampler.unavailable.text
    assert sampler.samples() == []


@pytest.mark.parametrize("gpu", [3, "GPU-unknown"])
def test_a_gpu_that_does_not_exist_is_a_reason(fake_nvml: ModuleType, gpu: int | str) -> None:
    nvml = fake_nvml.FakeNvml()

    sampler = connected(nvml, gpu=gpu)

    assert sampler.unavailable == Unavailable(Reason.NO_SUCH_GPU)
    assert nvml.shut_down


def test_a_gpu_can_be_named_by_uuid(fake_nvml: ModuleType) -> None:
    assert connected(fake_nvml.FakeNvml(), gpu="GPU-1").unavailable is None


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("nvmlDeviceGetUtilizationRates", "util_pct"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetClockInfo", "clock_mhz"),
        ("nvmlDeviceGetComputeRunningProcesses", "process_bytes"),
    ],
)
@pytest.mark.parametrize(
    ("code", "expected"),
    [(3, Reason.NOT_SUPPORTED), (4, Reason.NO_PERMISSION), (13, Reason.FUNCTION_NOT_FOUND), (15, Reason.GPU_LOST)],
)
def test_one_field_that_fails_leaves_the_others_measured(
    fake_nvml: ModuleType, function: str, field: str, code: int, expected: Reason
) -> None:
    sample = connected(fake_nvml.FakeNvml(failing={function: code})).sample()

    assert reason(sample, field) is expected
    others = [name for name, _, _ in GPU_FIELDS if name != field]
    assert all(reason(sample, name) is Reason.MEASURED for name in others)


@pytest.mark.parametrize("code", [2, 3, 13, 25, 999])
def test_an_old_driver_falls_back_to_memory_version_1_and_says_so(fake_nvml: ModuleType, code: int) -> None:
    sample = connected(fake_nvml.FakeNvml(failing={"nvmlDeviceGetMemoryInfo_v2": code})).sample()

    assert sample.memory_version == 1
    assert sample.readings["used_bytes"] == 5.5 * fake_nvml.GIB
    assert reason(sample, "reserved_bytes") is Reason.NOT_SEPARATED


def test_an_old_pynvml_falls_back_to_memory_version_1(fake_nvml: ModuleType) -> None:
    assert connected(fake_nvml.OldNvml()).sample().memory_version == 1


def test_memory_without_permission_is_unavailable_and_not_zero(fake_nvml: ModuleType) -> None:
    sample = connected(fake_nvml.FakeNvml(failing={"nvmlDeviceGetMemoryInfo_v2": 4})).sample()

    assert sample.memory_version == 0
    assert {reason(sample, name) for name in ("used_bytes", "reserved_bytes", "total_bytes")} == {Reason.NO_PERMISSION}


def test_a_process_that_the_driver_does_not_list_is_a_reason(fake_nvml: ModuleType) -> None:
    nvml = fake_nvml.FakeNvml()
    nvml.pid = -5  # a container, or nothing on the GPU yet

    assert reason(connected(nvml).sample(), "process_bytes") is Reason.NOT_LISTED


@pytest.mark.parametrize("given", [None, "N/A", (1 << 64) - 1], ids=["none", "text", "all-ones"])
def test_a_process_without_a_number_is_not_supported_as_on_wsl(fake_nvml: ModuleType, given: object) -> None:
    nvml = fake_nvml.FakeNvml()
    nvml.process_bytes = given

    assert reason(connected(nvml).sample(), "process_bytes") is Reason.NOT_SUPPORTED


@pytest.mark.parametrize("given", [None, "N/A", "[N/A]"])
def test_any_value_that_is_no_number_is_not_supported(fake_nvml: ModuleType, given: object) -> None:
    nvml = fake_nvml.FakeNvml()
    nvml.nvmlDeviceGetPowerUsage = lambda _handle: given
    nvml.nvmlDeviceGetUtilizationRates = lambda _handle: SimpleNamespace(gpu=given)
    nvml.memory = SimpleNamespace(used=given, reserved=given, total=8)

    sample = connected(nvml).sample()

    for name in ("power_w", "util_pct", "used_bytes", "reserved_bytes"):
        assert reason(sample, name) is Reason.NOT_SUPPORTED


def test_a_gpu_of_no_memory_is_not_measured_instead_of_empty(fake_nvml: ModuleType) -> None:
    nvml = fake_nvml.FakeNvml()
    nvml.memory = SimpleNamespace(used=0, reserved=0, total=0)

    sample = connected(nvml).sample()

    assert sample.memory_version == 0
    assert {reason(sample, name) for name in ("used_bytes", "reserved_bytes", "total_bytes")} == {Reason.NOT_SUPPORTED}


def test_a_driver_older_than_pynvml_is_asked_in_the_old_way(fake_nvml: ModuleType) -> None:
    sample = connected(fake_nvml.OldDriver()).sample()

    assert sample.readings["process_bytes"] == 3.0 * fake_nvml.GIB
    assert sample.readings["temperature_c"] == 46.0


def test_bugs_of_pynvml_are_reasons_and_never_end_the_run(fake_nvml: ModuleType) -> None:
    sampler = connected(fake_nvml.BrokenNvml())

    sample = sampler.sample()

    assert sampler.unavailable is None
    assert {reason(sample, name) for name, _, _ in GPU_FIELDS} == {Reason.OTHER}
    assert sample.memory_version == 0
    reading = sample.readings["util_pct"]
    assert isinstance(reading, Unavailable)
    assert "ctypes does not like this" in reading.text


class TestDividedGpu:
    @pytest.mark.parametrize("gpu", [0, "GPU-whole", "GPU-1", "MIG-1"])
    def test_memory_is_that_of_the_instance_of_this_process(self, fake_nvml: ModuleType, gpu: int | str) -> None:
        sampler = connected(fake_nvml.MigNvml(), gpu=gpu)

        sample = sampler.sample()

        assert sampler.gpu_name == "Fake H200 MIG 1g.10gb"
        assert sample.readings["used_bytes"] == 2.0 * fake_nvml.GIB
        assert sample.readings["total_bytes"] == 10.0 * fake_nvml.GIB
        assert sample.readings["process_bytes"] == 3.0 * fake_nvml.GIB

    def test_utilisation_is_not_supported_but_power_and_the_like_are_the_whole_gpus(
        self, fake_nvml: ModuleType
    ) -> None:
        sample = connected(fake_nvml.MigNvml()).sample()

        assert reason(sample, "util_pct") is Reason.NOT_SUPPORTED
        assert sample.readings["power_w"] == 123.456
        assert sample.readings["temperature_c"] == 45.0

    def test_the_only_instance_is_taken_where_processes_are_not_listed(self, fake_nvml: ModuleType) -> None:
        sample = connected(fake_nvml.MigNvml(instances=(3,), ours=None)).sample()

        assert sample.readings["used_bytes"] == 4.0 * fake_nvml.GIB
        assert reason(sample, "process_bytes") is Reason.NOT_LISTED

    def test_without_knowing_the_instance_the_whole_gpu_says_why_it_has_no_numbers(self, fake_nvml: ModuleType) -> None:
        sampler = connected(fake_nvml.MigNvml(ours=None))

        sample = sampler.sample()

        assert sampler.gpu_name == "Fake H200"
        assert {reason(sample, name) for name in ("used_bytes", "process_bytes")} == {Reason.NO_PERMISSION}


class TestHangingDriver:
    def test_a_driver_that_does_not_answer_at_the_start_is_given_up(
        self, fake_nvml: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(nvml_module, "_CONNECT_WAIT_S", 0.05)
        nvml = fake_nvml.HangingNvml("nvmlInit")

        sampler = GpuSampler(INTERVAL_S, nvml=nvml).start()
        sampler.stop()

        assert sampler.unavailable is not None
        assert "did not answer" in sampler.unavailable.text
        assert sampler.samples() == []
        _release(nvml, sampler)
        assert "did not answer" in sampler.unavailable.text

    def test_a_call_that_hangs_does_not_hang_the_runs_end(
        self, fake_nvml: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(nvml_module, "_STOP_WAIT_S", 0.05)
        nvml = fake_nvml.HangingNvml("nvmlDeviceGetPowerUsage")
        sampler = GpuSampler(INTERVAL_S, nvml=nvml).start()
        begin = time.monotonic()

        sampler.stop()

        assert time.monotonic() - begin < 60
        assert sampler.unavailable is not None
        assert "did not answer" in sampler.unavailable.text
        _release(nvml, sampler)


def _release(nvml: object, sampler: GpuSampler) -> None:
    """Let the driver answer at last: the thread ends, and tells nobody anything new."""
    nvml.release.set()  # type: ignore[attr-defined]
    assert sampler._thread is not None
    sampler._thread.join(10)
    assert not sampler._thread.is_alive()
    assert nvml.shut_down  # type: ignore[attr-defined]


def test_no_sampler_thread_survives_stop(fake_nvml: ModuleType) -> None:
    before = set(threading.enumerate())
    for nvml in (fake_nvml.FakeNvml(), fake_nvml.FakeNvml(failing={"nvmlInit": 12}), fake_nvml.MigNvml()):
        sampler = GpuSampler(INTERVAL_S, nvml=nvml).start()
        sampler.stop()

    assert set(threading.enumerate()) - before == set()


def test_a_sample_says_when_it_was_taken_and_what_it_cost_on_the_runs_clock(fake_nvml: ModuleType) -> None:
    nvml = fake_nvml.FakeNvml()
    nvml.nvmlDeviceGetClockInfo = lambda _handle, _kind: time.sleep(0.01) or 1980
    sampler = connected(nvml)
    begin_ns = time.monotonic_ns()

    sample = sampler.sample()

    assert begin_ns <= sample.t_ns
    assert 10_000_000 <= sample.sample_ns <= time.monotonic_ns() - sample.t_ns


def test_the_default_rate_is_between_10_and_20_hz() -> None:
    assert 1 / 20 <= GpuSampler()._interval_s <= 1 / 10


def test_a_sampler_asks_about_as_often_as_it_was_told_to(fake_nvml: ModuleType) -> None:
    sampler = GpuSampler(0.02, nvml=fake_nvml.FakeNvml()).start()
    _wait_for(lambda: len(sampler._waiting) >= 6)
    sampler.stop()

    gaps = np.diff([sample.t_ns for sample in sampler.samples()]) / 1e9
    assert np.median(gaps) >= 0.015


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("print 'this is Python 2'", "SyntaxError"),
        ("def nvmlInit(): pass", "nvmlShutdown"),
        ("raise RuntimeError('no')", "RuntimeError"),
    ],
)
def test_a_file_that_shadows_pynvml_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, found: str
) -> None:
    (tmp_path / "pynvml.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)

    unavailable = connected(None).unavailable
    sys.modules.pop("pynvml", None)

    assert unavailable is not None
    assert unavailable.reason is Reason.WRONG_MODULE
    assert found in unavailable.text
    assert "install nvidia-ml-py" in unavailable.text


def test_another_module_named_pynvml_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    impostor = ModuleType("pynvml")
    impostor.__file__ = "/somewhere/pynvml.py"
    monkeypatch.setitem(sys.modules, "pynvml", impostor)

    unavailable = GpuSampler().start().unavailable

    assert unavailable is not None
    assert unavailable.reason is Reason.WRONG_MODULE
    assert "/somewhere/pynvml.py" in unavailable.text
    assert "nvidia-ml-py" in unavailable.text


def test_a_missing_package_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert GpuSampler().start().unavailable == Unavailable(Reason.NO_MODULE)


@pytest.mark.parametrize("code", [15, 16], ids=["lost", "reset-required"])
def test_a_gpu_lost_in_mid_run_ends_sampling_with_one_last_sample(fake_nvml: ModuleType, code: int) -> None:
    nvml = fake_nvml.FakeNvml()
    sampler = GpuSampler(INTERVAL_S, nvml=nvml).start()

    nvml.failing = {name: code for name in dir(nvml) if name.startswith("nvmlDeviceGet")} | {
        "nvmlDeviceGetMemoryInfo_v2": code,
        "nvmlShutdown": code,
    }
    _wait_for(lambda: sampler.unavailable is not None)
    sampler.stop()

    taken = sampler.samples()
    assert sampler.unavailable == Unavailable(Reason.GPU_LOST)
    assert {reason(taken[-1], name) for name, _, _ in GPU_FIELDS} == {Reason.GPU_LOST}
    assert all(reason(sample, "used_bytes") is Reason.MEASURED for sample in taken[:-1])


def test_samples_come_in_order_and_are_handed_over_once(fake_nvml: ModuleType) -> None:
    sampler = GpuSampler(INTERVAL_S, nvml=fake_nvml.FakeNvml()).start()
    _wait_for(lambda: len(sampler._waiting) >= 3)
    sampler.stop()

    taken = sampler.samples()

    times = [sample.t_ns for sample in taken]
    assert times == sorted(times)
    assert sampler.samples() == []


def test_samples_that_nobody_takes_are_dropped_and_counted(fake_nvml: ModuleType) -> None:
    sampler = GpuSampler(INTERVAL_S, nvml=fake_nvml.FakeNvml(), capacity=2).start()
    _wait_for(lambda: sampler.dropped >= 3)
    sampler.stop()

    assert len(sampler.samples()) == 2


def test_a_sampler_starts_and_stops_more_than_once_without_harm(fake_nvml: ModuleType) -> None:
    nvml = fake_nvml.FakeNvml()
    sampler = GpuSampler(INTERVAL_S, nvml=nvml).start().start()

    sampler.stop()
    sampler.stop()

    assert nvml.shut_down


def test_the_real_library_gives_numbers_or_a_reason_on_this_machine() -> None:
    sampler = GpuSampler(0.01).start()
    sampler.stop()

    if sampler.unavailable is None:
        assert all(isinstance(one, float | Unavailable) for one in sampler.sample().readings.values())
    else:
        assert sampler.unavailable.reason is not Reason.MEASURED


def _wait_for(condition: object) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(INTERVAL_S)


def test_names_of_a_namespace_are_no_gpu() -> None:
    unavailable = connected(SimpleNamespace()).unavailable

    assert unavailable is not None
    assert unavailable.reason is Reason.WRONG_MODULE
