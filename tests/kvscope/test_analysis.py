"""Summary: every number of a trace, from one function, with its denominator and where it comes from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from heatkv.schedule import PruningSchedule
from kvscope.analysis import DENOMINATOR, StepPlace, Summary, summarize
from kvscope.errors import TraceFormatError
from kvscope.recorder import Recorder
from kvscope.report import summary_text
from kvscope.trace import Trace

PROMISED_KEYS = [
    "trace",
    "model",
    "resolution",
    "policy",
    "budget",
    "denominator",
    "budget_bytes",
    "accounted_peak_bytes",
    "storage_peak_bytes",
    "full_history_bytes",
    "seconds",
    "status",
]


def summary_of(path: Path) -> Summary:
    with Trace.open(path) as trace:
        return summarize(trace)


def test_json_has_the_promised_keys_and_survives(tiny_trace: Path) -> None:
    record = json.loads(json.dumps(summary_of(tiny_trace).to_json(), allow_nan=False))

    assert set(PROMISED_KEYS) <= record.keys()
    assert record["trace"] == str(tiny_trace)
    assert (record["status"], record["policy"], record["denominator"]) == ("done", "heatkv", DENOMINATOR)


def test_the_full_history_is_all_scales_but_the_last_over_layers_and_heads(
    tiny_trace: Path, fake_run: ModuleType
) -> None:
    summary = summary_of(tiny_trace)

    tokens = (1 + 4 + 9 + 16) * fake_run.LAYERS * fake_run.HEADS
    assert summary.denominator_tokens == tokens
    assert summary.full_history_bytes == tokens * fake_run.TOKEN_BYTES


def test_peaks_are_the_true_maxima_over_steps_and_say_where(tiny_trace: Path) -> None:
    with Trace.open(tiny_trace) as trace:
        summary, steps = summarize(trace), trace.steps

    assert summary.storage_peak_bytes == steps["storage_bytes"].max()
    assert summary.accounted_peak_bytes == steps["accounted_bytes"].max()
    assert summary.storage_peak_step is not None
    place = (steps["query_scale"] == summary.storage_peak_step.query_scale) & (
        steps["layer"] == summary.storage_peak_step.layer
    )
    assert steps["storage_bytes"][place] == summary.storage_peak_bytes


def test_a_peak_in_the_middle_of_a_scale_is_not_missed(tiny_trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Trace.open(tiny_trace) as trace:
        steps = trace.steps.copy()
        steps["storage_bytes"][4] = 1 << 40
        monkeypatch.setattr(Trace, "steps", steps)
        summary = summarize(trace)

    assert summary.storage_peak_bytes == 1 << 40
    assert summary.storage_peak_step == StepPlace(1, 1)
    assert summary.scales[1].storage_bytes == 1 << 40


def test_fractions_are_over_the_stated_bytes(tiny_trace: Path, fake_run: ModuleType) -> None:
    summary = summary_of(tiny_trace)

    peak = fake_run.fake_schedule().peak_tokens * fake_run.TOKEN_BYTES
    assert summary.accounted_peak_bytes == summary.budget_bytes == peak
    assert summary.accounted_peak_of_budget == 1.0
    assert summary.accounted_peak_fraction == pytest.approx(peak / summary.full_history_bytes)
    assert summary.storage_peak_of_budget == pytest.approx((peak + fake_run.CACHE_OVERHEAD_BYTES) / peak)


def test_the_scale_table_covers_what_is_done(tiny_trace: Path, fake_run: ModuleType) -> None:
    summary = summary_of(tiny_trace)

    assert [row.tokens for row in summary.scales] == list(fake_run.SCALES.tokens)
    assert all(row.seconds >= 3 * fake_run.STEP_S for row in summary.scales)
    assert max(row.accounted_bytes for row in summary.scales) == summary.accounted_peak_bytes
    assert max(row.storage_bytes for row in summary.scales) == summary.storage_peak_bytes
    assert summary.seconds is not None
    assert sum(row.seconds for row in summary.scales) <= summary.seconds


def test_the_recorders_cost_is_told(tiny_trace: Path) -> None:
    summary = summary_of(tiny_trace)

    assert summary.recorder is not None
    assert summary.recorder.file_bytes == tiny_trace.stat().st_size
    assert summary.recorder.run_seconds >= summary.recorder.preview_seconds > 0
    assert summary.seconds is not None
    assert summary.recorder.run_fraction == pytest.approx(summary.recorder.run_seconds / summary.seconds)


def test_unknowns_are_none_and_never_zero(tiny_trace: Path) -> None:
    summary = summary_of(tiny_trace)

    assert summary.gpu_used_peak_bytes is None
    assert summary.gpu_unavailable == "this run had no GPU sampler"
    assert summary.allocator_peak_bytes is None


def test_gpu_numbers_come_from_the_samples(gpu_trace: Path, fake_nvml: ModuleType) -> None:
    assert summary_of(gpu_trace).gpu_used_peak_bytes == 5 * fake_nvml.GIB


def test_what_the_gpu_held_while_the_image_was_decoded_is_told_apart(
    gpu_trace: Path, fake_nvml: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Trace.open(gpu_trace) as trace:
        gpu = trace.gpu.copy()
        gpu["t_ns"][-1] = trace.allocator["t_ns"][-1] + 1
        gpu["used_bytes"][-1] *= 2
        monkeypatch.setattr(Trace, "gpu", gpu)
        summary = summarize(trace)

    assert summary.gpu_used_peak_bytes == 10 * fake_nvml.GIB
    assert summary.gpu_used_scales_peak_bytes == 5 * fake_nvml.GIB
    assert "peak: 10.0 GiB (NVML, whole device), 5.00 GiB until the image was decoded" in summary_text(summary).replace(
        "\n  ", " "
    )


def test_a_trace_without_a_finished_scale_has_no_numbers_and_no_crash(tmp_path: Path, fake_run: ModuleType) -> None:
    with Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        recorder.run_started(fake_run.fake_start())

    summary = summary_of(tmp_path / "a.h5")

    assert (summary.status, summary.scales_done, summary.scales) == ("done", 0, ())
    assert summary.seconds is None
    assert summary.storage_peak_bytes is None
    assert summary.accounted_peak_fraction is None


@pytest.mark.parametrize("fixture", ["live_trace", "crashed_trace", "gpu_trace"])
def test_every_state_of_a_trace_can_be_summarized(fixture: str, request: pytest.FixtureRequest) -> None:
    summary = summary_of(request.getfixturevalue(fixture))

    assert summary.scales_done == len(summary.scales) >= 3


def test_every_number_is_tagged(tiny_trace: Path) -> None:
    summary = summary_of(tiny_trace)

    numbers = {
        name
        for name, value in summary.to_json().items()
        if (isinstance(value, float) and name != "aspect") or name.endswith(("_bytes", "_tokens"))
    }
    assert numbers <= summary.tags.keys()
    assert set(summary.tags.values()) == {"measured", "defined"}
    assert summary.tags["full_history_bytes"] == "defined"


def test_a_forced_run_tags_its_numbers_as_forced(tmp_path: Path, fake_run: ModuleType) -> None:
    job = fake_run.fake_job(mode="forced", parent="parent.h5")
    with Recorder(tmp_path / "a.h5", job) as recorder:
        fake_run.run(recorder)

    assert summary_of(tmp_path / "a.h5").tags["storage_peak_bytes"] == "forced"


def test_a_run_without_a_budget_has_none(tmp_path: Path, fake_run: ModuleType) -> None:
    full = fake_run.fake_schedule()
    plan = PruningSchedule(full.drop_step, "fake", fake_run.SCALES, 1, "full")
    with Recorder(tmp_path / "a.h5", fake_run.fake_job()) as recorder:
        recorder.run_started(fake_run.fake_start(plan))
        fake_run.run_scale(recorder, plan, 0)

    summary = summary_of(tmp_path / "a.h5")

    assert summary.budget is None
    assert summary.budget_bytes is None
    assert summary.storage_peak_of_budget is None
    assert np.isfinite(summary.storage_peak_fraction or np.nan)


def test_a_scale_without_steps_is_damage_told_in_one_line(tmp_path: Path, tiny_trace: Path) -> None:
    path = Path(shutil.copy(tiny_trace, tmp_path / "changed.h5"))
    with h5py.File(path, "r+") as file:
        file["steps"][3:6] = np.zeros(3, file["steps"].dtype)  # a block of zeros: the steps of scale 1 are gone

    with (
        Trace.open(path) as trace,
        pytest.raises(TraceFormatError, match=r"damaged: scale 1 is done, but has no steps"),
    ):
        summarize(trace)
