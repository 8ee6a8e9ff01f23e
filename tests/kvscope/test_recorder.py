"""Recorder: what a run told is in the file, however the run ends, and the run never suffers for it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from kvscope import filters, liveness
from kvscope import recorder as recorder_module
from kvscope import writer as writer_module
from kvscope.errors import OutputError, TraceError, UsageError
from kvscope.format import TABLES, Reason, decode_text
from kvscope.maps import MAP_ERROR, pool
from kvscope.nvml import GpuSampler
from kvscope.recorder import Recorder
from kvscope.trace import Trace
from kvscope.writer import TraceWriter

FAKE_RUN = Path(__file__).with_name("fake_run.py")
NUM_SCALES = 5


@pytest.fixture
def common_folder() -> Iterator[Path]:
    """A folder that every user can reach: pytest's own are private, and the administrator may write anywhere."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder).resolve()


def run_program(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The fake run in a process of its own, which options may kill or limit."""
    command = [sys.executable, str(FAKE_RUN), str(path), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_kept_and_read_tokens_equal_the_plan_at_every_step(tiny_trace: Path, fake_run: ModuleType) -> None:
    plan = fake_run.fake_schedule()

    with Trace.open(tiny_trace) as trace:
        np.testing.assert_array_equal(trace.kept_tokens, plan.kept_tokens())
        np.testing.assert_array_equal(trace.read_tokens, plan.read_tokens())
        assert trace.schedule == plan


def test_steps_hold_what_the_run_told(tiny_trace: Path, fake_run: ModuleType) -> None:
    held = fake_run.fake_schedule().tokens_held() * fake_run.TOKEN_BYTES

    with Trace.open(tiny_trace) as trace:
        steps = trace.steps

    np.testing.assert_array_equal(steps["query_scale"] * fake_run.LAYERS + steps["layer"], np.arange(15))
    np.testing.assert_array_equal(steps["accounted_bytes"], held)
    assert (steps["storage_bytes"] == held.max() + fake_run.CACHE_OVERHEAD_BYTES).all()
    assert steps["evicted_tokens"].sum() == 4 + 4 + 9 + 16
    assert (steps["end_ns"] - steps["begin_ns"] >= fake_run.STEP_S * 1e9).all()
    assert np.isnan(steps["device_ns"]).all()


def test_arrays_are_those_of_the_moment_although_the_run_spoils_them_later(
    tiny_trace: Path, fake_run: ModuleType
) -> None:
    plan = fake_run.fake_schedule()

    with Trace.open(tiny_trace) as trace:
        for scale in range(NUM_SCALES):
            np.testing.assert_array_equal(trace.bits(scale), fake_run.fake_bits(scale))
            np.testing.assert_array_equal(trace.attention_mass[scale], fake_run.fake_mass(plan, scale))
            preview = trace.preview(scale)
            assert preview is not None
            assert (preview == (scale + 1) * 40).all()
        np.testing.assert_array_equal(trace.image, fake_run.fake_image())


def test_maps_are_those_of_the_run_within_the_error_of_their_codes(maps_trace: Path, fake_run: ModuleType) -> None:
    plan = fake_run.fake_schedule()

    with Trace.open(maps_trace) as trace:
        error = MAP_ERROR if trace.header.job.attention_map == "uint8" else 0
        for scale in range(NUM_SCALES):
            for layer, token_map in enumerate(fake_run.fake_map(plan, scale)):
                measured = pool(token_map, fake_run.SCALES, scale)
                for head in range(fake_run.HEADS):
                    found = trace.attention_map(scale, layer, head)
                    np.testing.assert_allclose(found, measured[head], rtol=error, atol=0)  # NaN where NaN


def test_maps_sum_up_to_attention_mass(maps_trace: Path) -> None:
    with Trace.open(maps_trace) as trace:
        for scale in range(NUM_SCALES):
            mass = trace.attention_mass[scale, 0, 1]
            cells = trace.attention_map(scale, 0, 1)
            seen = ~np.isnan(mass)
            np.testing.assert_array_equal(seen, ~np.isnan(cells).all(axis=(1, 2)))
            np.testing.assert_allclose(np.nansum(cells, axis=(1, 2))[seen], mass[seen], rtol=MAP_ERROR)


def test_unconditional_rows_have_a_table_of_their_own(maps_trace: Path, fake_run: ModuleType) -> None:
    with Trace.open(maps_trace) as trace:
        for scale in range(NUM_SCALES):
            mass = fake_run.fake_mass(fake_run.fake_schedule(), scale)
            np.testing.assert_array_equal(trace.attention_mass_uncond[scale], mass[:, ::-1])


def test_maps_take_the_room_of_their_kind(maps_trace: Path) -> None:
    with h5py.File(maps_trace) as file:
        table = file["attention_map"]
        assert table.dtype == json.loads(file.attrs["job"])["attention_map"]
        assert table.compression == "gzip"  # the run has ended
        assert ("codes" in table.attrs) == (table.dtype == "uint8")
        assert table.attrs["grid"].startswith(b"Token (y, x)")


def test_attention_that_was_not_measured_is_nan_and_costs_no_room(gpu_trace: Path) -> None:
    with Trace.open(gpu_trace) as trace:
        for mass in (trace.attention_mass, trace.attention_mass_uncond):
            assert mass.shape == trace.kept_tokens.shape
            assert np.isnan(mass).all()
        assert np.isnan(trace.attention_map(3, 2, 1)).all()
        assert trace.image is None
        assert trace.preview(0) is None
        assert not trace.header.perturbed
    with h5py.File(gpu_trace, swmr=True) as file:
        for name in ("attention_mass", "attention_mass_uncond", "attention_map"):
            assert file[name].shape[0] == 4
            assert file[name].id.get_storage_size() == 0


def test_memory_of_a_cpu_run_is_resident_memory_and_nothing_of_cuda(tiny_trace: Path) -> None:
    with Trace.open(tiny_trace) as trace:
        memory = trace.allocator

    assert len(memory) == 1 + NUM_SCALES
    for name in ("allocated_bytes", "reserved_bytes", "peak_bytes"):
        assert np.isnan(memory[name]).all()
    assert (memory["process_rss_bytes"] > 1 << 20).all() or np.isnan(memory["process_rss_bytes"]).all()


def test_gpu_samples_are_drained_into_the_trace(gpu_trace: Path, fake_nvml: ModuleType) -> None:
    with Trace.open(gpu_trace) as trace:
        gpu = trace.gpu
        assert trace.gpu_unavailable is None
        assert trace.header.gpu_name == "Fake H200"

    assert len(gpu) >= 3
    assert (gpu["used_bytes"] == 5 * fake_nvml.GIB).all()
    assert (gpu["used_bytes_reason"] == Reason.MEASURED).all()
    assert (np.diff(gpu["t_ns"]) > 0).all()


def test_a_gpu_value_that_is_unavailable_is_nan_with_its_reason(
    tmp_path: Path, fake_run: ModuleType, fake_nvml: ModuleType
) -> None:
    sampler = GpuSampler(0.001, nvml=fake_nvml.FakeNvml(failing={"nvmlDeviceGetPowerUsage": 3}))
    with Recorder(tmp_path / "a.h5", fake_run.fake_job(), sampler=sampler) as recorder:
        fake_run.run(recorder, after=lambda _: fake_run.wait_for(lambda: bool(sampler._waiting)))

    with Trace.open(tmp_path / "a.h5") as trace:
        assert len(trace.gpu)
        assert np.isnan(trace.gpu["power_w"]).all()
        assert (trace.gpu["power_w_reason"] == Reason.NOT_SUPPORTED).all()


def test_a_machine_without_a_driver_records_the_reason(
    tmp_path: Path, fake_run: ModuleType, fake_nvml: ModuleType
) -> None:
    sampler = GpuSampler(nvml=fake_nvml.FakeNvml(failing={"nvmlInit": 12}))
    with Recorder(tmp_path / "a.h5", fake_run.fake_job(), sampler=sampler) as recorder:
        fake_run.run(recorder)

    with Trace.open(tmp_path / "a.h5") as trace:
        assert trace.gpu_unavailable == "no NVIDIA driver on this machine: library not found"
        assert not len(trace.gpu)


def test_dropped_samples_are_counted_in_cost(tmp_path: Path, fake_run: ModuleType, fake_nvml: ModuleType) -> None:
    sampler = GpuSampler(0.001, nvml=fake_nvml.FakeNvml(), capacity=1)
    with Recorder(tmp_path / "a.h5", fake_run.fake_job(), sampler=sampler) as recorder:
        fake_run.run(recorder, after=lambda _: fake_run.wait_for(lambda: sampler.dropped >= 2))

    with Trace.open(tmp_path / "a.h5") as trace:
        assert trace.cost["dropped_rows"].sum() >= 2


def test_cost_says_what_recording_took(tiny_trace: Path) -> None:
    with Trace.open(tiny_trace) as trace:
        cost = trace.cost

    assert cost["run_ns"].sum() >= cost["preview_ns"].sum() > 0
    assert cost["writer_ns"].sum() > 0
    assert cost["scales_done"][-1] == NUM_SCALES
    assert (cost["file_bytes"] > 0).all()


def test_log_lines_keep_order_level_and_characters(tmp_path: Path, fake_run: ModuleType) -> None:
    with Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        fake_run.run(recorder)
        recorder.log("warning", "größer als gedacht")

    with Trace.open(tmp_path / "a.h5") as trace:
        lines = [(int(row["level"]), decode_text(row["text"])) for row in trace.log]
    assert lines == [(0, "a fake run"), (1, "größer als gedacht")]


def test_two_runs_of_one_job_differ_only_in_times_and_ids(tmp_path: Path, fake_run: ModuleType) -> None:
    for name in ("a.h5", "b.h5"):
        with Recorder(tmp_path / name, fake_run.fake_job(), preview=fake_run.fake_preview) as recorder:
            fake_run.run(recorder)

    with h5py.File(tmp_path / "a.h5", swmr=True) as one, h5py.File(tmp_path / "b.h5", swmr=True) as other:
        for name in ("drop_step", "kept_tokens", "read_tokens", "attention_mass", "bits", "preview", "image"):
            np.testing.assert_array_equal(one[name][...], other[name][...])
        differing = {key for key in one.attrs if one.attrs[key] != other.attrs[key]}
    assert differing <= {"run_id", "created_ns", "created_monotonic_ns"}


# How a run ends.


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), "cancelled", "stopped by the user"),
        (ValueError("no such thing"), "failed", "ValueError: no such thing"),
    ],
)
def test_a_run_that_breaks_off_leaves_a_trace_that_says_so(
    tmp_path: Path, fake_run: ModuleType, error: BaseException, status: str, message: str
) -> None:
    def stop(scale: int) -> None:
        if scale == 1:
            raise error

    with pytest.raises(type(error)), Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        fake_run.run(recorder, after=stop)

    with Trace.open(tmp_path / "a.h5") as trace:
        assert (trace.status, trace.message, trace.scales_done) == (status, message, 2)
        assert not trace.recording_stopped


def test_finish_may_be_called_again_and_the_first_word_counts(tmp_path: Path, fake_run: ModuleType) -> None:
    with Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        fake_run.run(recorder)
        assert recorder.finish() is None
        assert recorder.finish("failed", "too late") is None

    with Trace.open(tmp_path / "a.h5") as trace:
        assert (trace.status, trace.message) == ("done", "")


def test_a_run_that_never_starts_leaves_no_file(tmp_path: Path, fake_run: ModuleType) -> None:
    with pytest.raises(ValueError, match="weights"), Recorder(tmp_path / "a.h5", fake_run.fake_job()):
        raise ValueError("weights")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", range(1, NUM_SCALES))
def test_a_killed_run_opens_as_crashed_with_every_committed_scale(
    tmp_path: Path, fake_run: ModuleType, scale: int
) -> None:
    done = run_program(tmp_path / "a.h5", "--kill-at", str(scale))

    assert done.returncode == -9
    with Trace.open(tmp_path / "a.h5") as trace:
        assert (trace.status, trace.scales_done) == ("crashed", scale)
        np.testing.assert_array_equal(trace.kept_tokens, fake_run.fake_schedule().kept_tokens()[:scale])
        assert len(trace.steps) == scale * fake_run.LAYERS


# Outputs that cannot be.


def test_an_output_that_exists_is_not_overwritten(tmp_path: Path, fake_run: ModuleType) -> None:
    (tmp_path / "a.h5").write_text("precious")

    with pytest.raises(OutputError, match="exists"):
        Recorder(tmp_path / "a.h5", fake_run.fake_job())

    assert (tmp_path / "a.h5").read_text() == "precious"


def test_an_output_is_overwritten_when_told_to(tmp_path: Path, fake_run: ModuleType) -> None:
    (tmp_path / "a.h5").write_text("old")

    with Recorder(tmp_path / "a.h5", fake_run.fake_job(), overwrite=True) as recorder:
        fake_run.run(recorder)

    with Trace.open(tmp_path / "a.h5") as trace:
        assert trace.status == "done"


def test_an_output_that_appears_meanwhile_is_not_overwritten(tmp_path: Path, fake_run: ModuleType) -> None:
    recorder = Recorder(tmp_path / "a.h5", fake_run.fake_job())
    (tmp_path / "a.h5").write_text("precious")

    with pytest.raises(OutputError, match="exists"), recorder:
        fake_run.run(recorder)

    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    assert (tmp_path / "a.h5").read_text() == "precious"


@pytest.mark.parametrize(("name", "message"), [("missing/a.h5", "does not exist"), (".", "is a folder")])
def test_an_output_that_cannot_be_is_refused_before_the_run(
    tmp_path: Path, fake_run: ModuleType, name: str, message: str
) -> None:
    with pytest.raises(OutputError, match=message):
        Recorder(tmp_path / name, fake_run.fake_job())


def test_a_name_that_is_taken_at_the_last_moment_is_not_overwritten(
    tmp_path: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = writer_module.check_output
    recorder = Recorder(tmp_path / "a.h5", fake_run.fake_job())

    def taken_right_after_the_check(path: Path, *, overwrite: bool) -> Path:
        target = check(path, overwrite=overwrite)
        if (tmp_path / "a.h5.part").exists():
            path.write_text("precious")
        return target

    monkeypatch.setattr(writer_module, "check_output", taken_right_after_the_check)
    with pytest.raises(OutputError, match="exists"), recorder:
        fake_run.run(recorder)

    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    assert (tmp_path / "a.h5").read_text() == "precious"


def test_a_trace_that_is_being_recorded_is_not_overwritten(live_trace: Path, fake_run: ModuleType) -> None:
    content = live_trace.read_bytes()

    with pytest.raises(OutputError, match=rf"is being recorded by process {os.getpid()}; choose another name"):
        Recorder(live_trace, fake_run.fake_job(), overwrite=True)

    assert live_trace.read_bytes()[:1000] == content[:1000]


def test_a_trace_that_is_being_recorded_without_locks_is_not_overwritten(
    tmp_path: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "SUPPORTED", False)
    with Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        fake_run.run(recorder, scales=1)
        with pytest.raises(OutputError, match="is being recorded"):
            Recorder(tmp_path / "a.h5", fake_run.fake_job(), overwrite=True)


def test_of_two_overwriting_runs_that_start_together_one_is_refused(tmp_path: Path, fake_run: ModuleType) -> None:
    (tmp_path / "a.h5").write_text("old")
    first = Recorder(tmp_path / "a.h5", fake_run.fake_job(), overwrite=True)
    second = Recorder(tmp_path / "a.h5", fake_run.fake_job(), overwrite=True)

    with first:
        first.run_started(fake_run.fake_start())
        with pytest.raises(OutputError, match="is being recorded"), second:
            fake_run.run(second)
        assert first.is_in_place

    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize("name", ["/dev/null", "pipe"])
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path, fake_run: ModuleType, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OutputError, match="not a regular file"):
        Recorder(tmp_path / name, fake_run.fake_job(), overwrite=True)


def test_a_link_is_followed(tmp_path: Path, fake_run: ModuleType) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.h5").symlink_to("folder/b.h5")

    with Recorder(tmp_path / "a.h5", fake_run.fake_job(), overwrite=True) as recorder:
        fake_run.run(recorder)

    assert recorder.is_in_place
    assert (tmp_path / "a.h5").is_symlink()
    with Trace.open(tmp_path / "folder" / "b.h5") as trace:
        assert trace.status == "done"


@pytest.mark.parametrize("change", ["moved", "deleted", "replaced"])
def test_a_trace_that_was_taken_away_during_the_run_is_noticed(
    tmp_path: Path, fake_run: ModuleType, change: str
) -> None:
    path = tmp_path / "a.h5"
    with Recorder(path, fake_run.fake_job()) as recorder:
        assert not recorder.is_in_place
        fake_run.run(recorder, scales=2)
        assert recorder.is_in_place
        if change == "moved":
            path.rename(tmp_path / "b.h5")
        else:
            path.unlink()
        if change == "replaced":
            path.write_text("another")

    assert recorder.failed is None
    assert not recorder.is_in_place
    said = {
        "moved": f"the trace was moved during the run, to {tmp_path / 'b.h5'}",
        "deleted": "the trace was deleted during the run",
        "replaced": "another file took the trace's place during the run",
    }
    assert recorder.problem == f"{path}: {said[change]}"
    assert (recorder.file.finalised is not None) == (change == "moved")  # where it is now


def test_a_part_file_of_another_run_is_left_alone(tmp_path: Path, fake_run: ModuleType) -> None:
    (tmp_path / "a.h5.part").write_text("another")

    with pytest.raises(OutputError, match="delete it"), Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        fake_run.run(recorder)

    assert [path.name for path in tmp_path.iterdir()] == ["a.h5.part"]


# Disks that fail.


def test_no_room_for_even_an_empty_trace_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_program(tmp_path / "a.h5", "--limit-bytes", "50000")

    assert done.returncode == 1
    assert "OutputError: " in done.stderr.splitlines()[-1]
    assert "nothing was left behind" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--limit-at", "1"], ["--limit-at", "2", "--large-image"]])
def test_on_a_full_disk_the_run_goes_on_and_the_trace_ends_at_its_last_commit(
    tmp_path: Path, fake_run: ModuleType, options: list[str]
) -> None:
    limit = "500000" if "--large-image" in options else "200000"
    done = run_program(tmp_path / "a.h5", "--limit-bytes", limit, *options)

    assert done.returncode == 0, done.stderr
    assert "the run went on to its end" in done.stdout
    assert "failed: " in done.stdout
    assert "File too large" in done.stdout
    with Trace.open(tmp_path / "a.h5") as trace:
        assert trace.status == "failed"
        assert trace.recording_stopped
        assert trace.message.startswith(
            f"recording stopped: File too large; the run went on, {trace.scales_done} scale"
        )
        plan = fake_run.fake_schedule().kept_tokens()
        np.testing.assert_array_equal(trace.kept_tokens, plan[: trace.scales_done])
        assert trace.image is None
    with h5py.File(tmp_path / "a.h5"):
        pass  # closed cleanly: opens without SWMR


@pytest.mark.parametrize("options", [["--limit-bytes", "97000"], ["--limit-bytes", "300000", "--large-image"]])
def test_when_the_disk_breaks_its_promise_the_run_goes_on_and_committed_scales_open(
    tmp_path: Path, fake_run: ModuleType, options: list[str]
) -> None:
    done = run_program(tmp_path / "a.h5", "--no-promise", "--limit-at", "1", *options)

    # HDF5 crashes on a file that it could not write; here it must not, and must not write it at exit either.
    assert done.returncode == 0, done.stderr
    assert "the run went on to its end" in done.stdout
    assert "failed: " in done.stdout
    with Trace.open(tmp_path / "a.h5") as trace:
        assert trace.status == "crashed"
        plan = fake_run.fake_schedule().kept_tokens()
        np.testing.assert_array_equal(trace.kept_tokens, plan[: trace.scales_done])


def test_an_error_of_the_disk_is_kept_and_told_by_finish(
    tmp_path: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = TraceWriter.commit

    def failing(writer: TraceWriter, *arguments: object, **options: object) -> None:
        if writer._counts["query_scale"] >= 2:
            raise OSError(errno.EIO, "Input/output error")
        commit(writer, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(TraceWriter, "commit", failing)
    recorder = Recorder(tmp_path / "a.h5", fake_run.fake_job())
    fake_run.run(recorder)

    reason = recorder.finish()

    assert reason is not None
    assert "Input/output error" in reason
    assert str(tmp_path / "a.h5") in reason
    assert recorder.failed == reason


@pytest.mark.parametrize("change", ["folder moved", "folder deleted", "folder closed", "file closed"])
def test_what_happens_to_the_folder_during_the_run_does_not_stop_the_run(common_folder: Path, change: str) -> None:
    folder, path = common_folder / "a", common_folder / "a" / "a.h5"
    folder.mkdir()
    folder.chmod(0o777)
    done = run_program(path, "--change", change)

    assert done.returncode == 0, done.stderr
    assert "the run went on to its end" in done.stdout
    assert "failed: None" in done.stdout
    said = {
        "folder moved": f"{path}: the trace was moved during the run, to {common_folder / 'b' / 'a.h5'}",
        "folder deleted": f"{path}: the trace was deleted during the run",
    }
    assert f"problem: {said.get(change)}" in done.stdout
    left = common_folder / "b" / "a.h5" if change == "folder moved" else path
    if change != "folder deleted":
        with Trace.open(left) as trace:
            assert (trace.status, trace.scales_done) == ("done", NUM_SCALES)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_quota_is_met_as_a_full_disk_is_and_told_at_once(
    tmp_path: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    said: list[str] = []
    recorder = Recorder(tmp_path / "a.h5", fake_run.fake_job(), narrate=said.append)

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    def stop(scale: int) -> None:
        if scale == 1:
            fake_run.wait_for_scales(tmp_path / "a.h5", 2)
            monkeypatch.setattr(os, "posix_fallocate", full)

    with recorder:
        fake_run.run(recorder, image=np.zeros((2048, 2048, 3), np.uint8), after=stop)

    assert recorder.failed is not None
    assert said == [recorder.failed]
    assert os.strerror(number) in recorder.failed
    assert "\n" not in recorder.failed
    with Trace.open(tmp_path / "a.h5") as trace:
        assert trace.recording_stopped
        assert trace.scales_done >= 2


def test_a_real_disk_that_gets_full_leaves_the_committed_scales(tmp_path: Path, fake_run: ModuleType) -> None:
    program = (
        f"mount -t tmpfs -o size=700k none {tmp_path} && {sys.executable} {FAKE_RUN} {tmp_path}/a.h5 --large-image"
    )
    check = f"{sys.executable} -c \"from kvscope.trace import Trace; t = Trace.open('{tmp_path}/a.h5'); "
    check += 'print(t.status, t.recording_stopped, t.scales_done, t.message)"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f"{program} && {check}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"needs a user namespace: {done.stderr.splitlines()[0]}")

    assert done.returncode == 0, done.stderr
    assert "the run went on to its end" in done.stdout
    said = done.stdout.splitlines()[-1]
    assert said.startswith(f"failed True {NUM_SCALES} recording stopped: No space left on device")


def test_a_file_system_that_cannot_reserve_room_is_recorded_to_all_the_same(
    tmp_path: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    with Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        fake_run.run(recorder)

    assert recorder.problem is None


def test_a_file_system_without_locks_is_recorded_to_all_the_same(
    tmp_path: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = h5py.File

    def without_locks(*arguments: object, **options: object) -> h5py.File:
        if options.get("locking") == "best-effort":
            raise OSError(errno.ENOLCK, "unable to lock file, errno = 37, error message = 'No locks available'")
        return opened(*arguments, **options)

    with monkeypatch.context() as patch, Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        patch.setattr(writer_module.h5py, "File", without_locks)
        fake_run.run(recorder, scales=1)
        patch.undo()

    with Trace.open(tmp_path / "a.h5") as trace:
        assert trace.scales_done == 1


def test_an_unknown_filter_is_refused_before_the_run(tmp_path: Path, fake_run: ModuleType) -> None:
    with pytest.raises(UsageError, match="expected one of gzip, none, bitshuffle-lz4"):
        Recorder(tmp_path / "a.h5", fake_run.fake_job(), filter="zip")


def test_a_filter_that_is_not_installed_is_one_line_when_writing_and_when_reading(
    tmp_path: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        fake_run.run(recorder)
    monkeypatch.setattr(filters, "is_available", lambda code: code == h5py.h5z.FILTER_SHUFFLE)

    with pytest.raises(UsageError, match=r"bitshuffle-lz4: needs the Python package hdf5plugin; install it, or use"):
        Recorder(tmp_path / "b.h5", fake_run.fake_job(), filter="bitshuffle-lz4")
    with pytest.raises(TraceError, match=r"a.h5: is stored with the filter gzip, which is not installed; install the"):
        Trace.open(tmp_path / "a.h5")


def test_a_faster_filter_stores_the_same(tmp_path: Path, fake_run: ModuleType) -> None:
    pytest.importorskip("hdf5plugin")
    job = fake_run.fake_job(attention_map="float32")
    with Recorder(tmp_path / "a.h5", job, filter="bitshuffle-lz4", preview=fake_run.fake_preview) as recorder:
        fake_run.run(recorder)

    assert recorder.file.finalised is not None
    with Trace.open(tmp_path / "a.h5") as trace:
        np.testing.assert_array_equal(trace.kept_tokens, fake_run.fake_schedule().kept_tokens())
        assert not np.isnan(trace.attention_map(4, 1, 0)).all()
        assert trace.preview(0) is not None
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["filter"] == b"bitshuffle-lz4"
        assert file["attention_map"].id.get_create_plist().get_filter(0)[0] == 32008


def test_the_summary_of_a_scale_is_what_its_steps_add_up_to(tiny_trace: Path) -> None:
    with Trace.open(tiny_trace) as trace:
        for scale, summary in enumerate(trace.scale_summary):
            steps = trace.steps[trace.steps["query_scale"] == scale]
            assert summary["begin_ns"] == steps["begin_ns"][0]
            assert summary["end_ns"] == steps["end_ns"][-1]
            assert summary["layer_ns"] == (steps["end_ns"] - steps["begin_ns"]).sum()
            assert summary["accounted_peak_bytes"] == steps["accounted_bytes"].max()
            assert summary["storage_peak_bytes"] == steps["storage_bytes"].max()
            assert summary["evicted_tokens"] == steps["evicted_tokens"].sum()
            assert summary["kept_tokens"] == trace.kept_tokens[scale].sum()
            assert summary["read_tokens"] == trace.read_tokens[scale].sum()
        assert len(trace.scale_summary) == NUM_SCALES


def test_a_writer_that_stands_still_holds_the_run_up_only_for_a_moment(
    tmp_path: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = threading.Event()
    append_scale = TraceWriter.append_scale

    def stuck(writer: TraceWriter, arrays: dict[str, np.ndarray]) -> None:
        assert going_on.wait(600)
        append_scale(writer, arrays)

    monkeypatch.setattr(TraceWriter, "append_scale", stuck)
    monkeypatch.setattr(recorder_module, "QUEUE_SLOTS", 1)
    monkeypatch.setattr(recorder_module, "MAX_WAIT_S", 0.05)
    recorder = Recorder(tmp_path / "a.h5", fake_run.fake_job())
    begin = time.monotonic()

    fake_run.run(recorder)

    assert time.monotonic() - begin < 60  # 0.05 s in theory; what matters is that it is not 600
    assert recorder.failed is not None
    going_on.set()
    assert recorder.finish() == recorder.failed
    with Trace.open(tmp_path / "a.h5") as trace:
        assert trace.status == "failed"
        assert trace.recording_stopped
        assert "took no data" in trace.message


def test_a_bug_in_the_writer_is_raised_by_finish(
    tmp_path: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_writer: TraceWriter, _bits: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(TraceWriter, "append_bits", broken)
    recorder = Recorder(tmp_path / "a.h5", fake_run.fake_job())
    fake_run.run(recorder)

    with pytest.raises(TypeError, match="a bug"):
        recorder.finish()


def test_only_the_writer_thread_opens_the_file(tmp_path: Path, fake_run: ModuleType) -> None:
    threads = set()
    create = TraceWriter.create

    class Watching(TraceWriter):
        @classmethod
        def create(cls, *arguments: object, **options: object) -> TraceWriter:  # type: ignore[override]
            threads.add(threading.current_thread().name)
            return create(*arguments, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        patch.setattr(recorder_module, "TraceWriter", Watching)
        fake_run.run(recorder)

    assert threads == {"kvscope-recorder"}


def test_every_table_of_the_format_is_in_the_file(tiny_trace: Path) -> None:
    with h5py.File(tiny_trace, swmr=True) as file:
        assert set(TABLES) <= set(file)
