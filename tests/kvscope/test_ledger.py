"""The ledger adds up exactly, says where each number comes from, and predicts a cache to the byte."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from heatkv.config import model_config
from heatkv.errors import ScheduleError
from heatkv.policies.full import FullPolicy
from kvscope.commands import ledger as command
from kvscope.errors import UsageError
from kvscope.format import Reason
from kvscope.job import Job
from kvscope.ledger import Ledger, measure, predict
from kvscope.ledger_lines import BUDGET, FULL, lines_of
from kvscope.ledger_report import ledger_text
from kvscope.ledger_sheet import Amount, Sheet, answer_of, sheet_of
from kvscope.plan import plan_job
from kvscope.runner import run_job
from kvscope.trace import Trace

MIB = 1 << 20
GIB = 1 << 30


class FakeTrace:
    """A recorded trace, with some of what it says replaced."""

    def __init__(self, trace: Trace, **changes: Any) -> None:
        names = (
            *("path", "status", "header", "schedule", "scales_done", "steps", "allocator"),
            *("gpu", "gpu_unavailable", "plans"),
        )
        for name in names:
            setattr(self, name, changes.get(name, getattr(trace, name)))
        self.allocator = self.allocator.copy()
        self.gpu = self.gpu.copy()


@pytest.fixture
def cuda(gpu_trace: Path, fake_run: ModuleType) -> FakeTrace:
    """4 of 5 scales on a GPU: 100 MiB before the first, then up to 160 allocated, 200 reserved, 300 by the driver."""
    with Trace.open(gpu_trace) as trace:
        fake = FakeTrace(trace, header=replace(trace.header, device="cuda:0", attention="triton (as asked for)"))
    memory = fake.allocator
    memory["allocated_bytes"] = np.array([100, 110, 120, 130, 125]) * MIB
    memory["peak_bytes"] = np.array([150, 150, 150, 160, 160]) * MIB
    memory["reserved_bytes"] = np.array([200, 200, 200, 200, 200]) * MIB
    fake.gpu["process_bytes"] = 300 * MIB
    return fake


def levels_add_up(sheet: Sheet) -> int:
    """How many pairs of neighbouring known levels there are; each is the sum of what is between."""
    pairs = 0
    for column in ("predicted", "measured"):
        below, between = None, 0
        for line in sheet.lines:
            num_bytes = line.amount(column).num_bytes
            if not line.entry.is_level:
                between += num_bytes or 0
            elif num_bytes is not None:
                if below is not None:
                    assert below + between == num_bytes, (column, line.key)
                    pairs += 1
                below, between = num_bytes, 0
    return pairs


def line_beside(trace: FakeTrace, key: str) -> Amount:
    return next(line for line in measure(trace).run.beside if line.key == key).measured  # type: ignore[arg-type]


def tiny_job(**changes: object) -> Job:
    fixed = {"prompt": "a red circle", "model": "infinity-tiny", "policy": "full", "random_weights": True}
    return Job(**(fixed | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [{}, {"policy": "heatkv", "budget": 0.1}, {"policy": "heatkv", "budget": 0.5, "dtype": "float32", "cfg": 1.0}],
    ids=["full", "tenth", "half"],
)
def test_predicted_cache_bytes_equal_a_real_runs_to_the_byte(tmp_path: Path, changes: dict[str, Any]) -> None:
    job = tiny_job(**changes)
    made = run_job(job, tmp_path / "run.h5")
    rows, dtype_bytes = (1 if job.cfg == 1 else 2), (4 if job.dtype == "float32" else 2)

    with Trace.open(made.trace) as trace:
        found = measure(trace)
        peak = int(trace.steps["storage_bytes"].max())
    before = predict(plan_job(job).schedule, model_config(job.model), rows, dtype_bytes)

    assert before.run.line("stored").predicted.num_bytes == peak
    for sheet, planned in zip((found.run, *found.scales), (before.run, *before.scales), strict=True):
        assert [sheet.line(key).difference for key in ("kept", "capacity", "index", "stored")] == [0, 0, 0, 0]
        assert [line.predicted for line in sheet.lines] == [line.predicted for line in planned.lines]
        assert levels_add_up(sheet) >= 7
    assert found.run.line("rss").measured.tag == "measured"


class TestOnTheCpu:
    def test_the_run_is_what_the_process_grew_by(self, tiny_trace: Path) -> None:
        with Trace.open(tiny_trace) as trace:
            found, memory = measure(trace), trace.allocator["process_rss_bytes"]

        assert found.run.line("rss").measured.num_bytes == memory[1:].max()
        assert found.run.line("rss_added").measured.num_bytes == memory[1:].max() - memory[0]
        assert found.scales[2].line("rss").measured.num_bytes == memory[3]
        assert found.run.line("host_other").measured.num_bytes == memory[0]

    def test_a_residual_below_zero_says_what_that_means(self, tiny_trace: Path) -> None:
        with Trace.open(tiny_trace) as trace:
            fake = FakeTrace(trace)
        fake.allocator["process_rss_bytes"] = 100 * MIB

        sheet = measure(fake).run  # type: ignore[arg-type]

        moment = sheet.line("moment").measured
        assert moment.num_bytes == -sheet.line("stored").measured.num_bytes  # type: ignore[operator]
        assert "less than nothing: the run used memory that the process already had" in moment.note
        assert levels_add_up(sheet) == 4 + 2
        assert "less than nothing" in ledger_text(measure(fake))  # type: ignore[arg-type]

    def test_a_gpu_beside_the_run_is_not_added_to_it(self, gpu_trace: Path) -> None:
        with Trace.open(gpu_trace) as trace:
            found = measure(trace)

        assert not any("driver" in line.entry.name for line in found.run.lines)
        assert {line.measured.tag for line in found.run.beside} == {"unavailable"}
        assert ledger_text(found).count("the run was on the CPU") == 1

    def test_without_process_memory_of_an_unknown_model_no_answer_is_made_up(self, tiny_trace: Path) -> None:
        with Trace.open(tiny_trace) as trace:
            fake = FakeTrace(trace)
        fake.allocator["process_rss_bytes"] = np.nan

        found = measure(fake)  # type: ignore[arg-type]

        assert found.run.line("rss").measured.tag == "unavailable"
        assert found.answer is None
        assert "not known" in ledger_text(found)


class TestOnAGpu:
    def test_every_byte_from_tokens_to_the_whole_gpu_is_on_a_line(self, cuda: FakeTrace, fake_run: ModuleType) -> None:
        sheet = measure(cuda).run  # type: ignore[arg-type]

        schedule = fake_run.fake_schedule()
        pool, index = schedule.peak_tokens * fake_run.TOKEN_BYTES, fake_run.CACHE_OVERHEAD_BYTES
        measured = {line.key: line.measured.num_bytes for line in sheet.lines}
        assert measured == {
            "kept": pool,
            "free_slots": 0,
            "capacity": pool,
            "index": index,
            "stored": pool + index,
            "index_on_host": -index,
            "weights": 100 * MIB - pool,
            "moment": 60 * MIB,
            "allocated": 160 * MIB,
            "allocator_cache": 40 * MIB,
            "reserved": 200 * MIB,
            "context": 100 * MIB,
            "process": 300 * MIB,
            "others": 5 * GIB - 300 * MIB,
            "used": 5 * GIB,
            "driver_reserved": GIB // 2,
            "gpu_free": 80 * GIB - 5 * GIB - GIB // 2,
            "total": 80 * GIB,
        }
        assert levels_add_up(sheet) == 7 + 2
        assert sheet.line("rss").measured.tag == "measured"

    def test_what_decoding_took_stands_beside_the_sum(self, cuda: FakeTrace) -> None:
        assert line_beside(cuda, "decoding").note == "the run did not get so far"

        cuda.scales_done = cuda.header.scales.num_scales
        cuda.gpu["t_ns"] = cuda.allocator["t_ns"][-1]
        assert line_beside(cuda, "decoding").note == "no sample was taken then"

        cuda.gpu["t_ns"][-1] += 1
        cuda.gpu["process_bytes"][-1] = 900 * MIB
        assert line_beside(cuda, "decoding").num_bytes == 900 * MIB
        assert measure(cuda).run.line("process").measured.num_bytes == 300 * MIB  # type: ignore[arg-type]

    def test_a_scale_has_its_own_peak_only_if_torchs_peak_rose_in_it(self, cuda: FakeTrace) -> None:
        scales = measure(cuda).scales  # type: ignore[arg-type]

        assert [sheet.line("allocated").measured.num_bytes for sheet in scales[:4]] == [
            110 * MIB, 120 * MIB, 160 * MIB, 125 * MIB,
        ]  # fmt: skip
        assert "the true peak" in scales[2].line("allocated").measured.note
        assert "peak was earlier" in scales[3].line("allocated").measured.note

    def test_what_the_driver_does_not_tell_is_part_of_the_next_residual(self, cuda: FakeTrace) -> None:
        cuda.gpu["process_bytes"], cuda.gpu["process_bytes_reason"] = np.nan, Reason.NOT_LISTED

        sheet = measure(cuda).run  # type: ignore[arg-type]

        assert sheet.line("process").measured.note == Reason.NOT_LISTED.text
        assert sheet.line("context").measured.note == "part of other processes"
        others = sheet.line("others").measured
        assert others.num_bytes == 5 * GIB - 200 * MIB
        assert "contains CUDA context and kernels" in others.note
        levels_add_up(sheet)

    def test_an_old_drivers_reserved_memory_is_said_to_be_within(self, cuda: FakeTrace) -> None:
        cuda.gpu["memory_version"] = 1
        cuda.gpu["reserved_bytes"], cuda.gpu["reserved_bytes_reason"] = np.nan, Reason.NOT_SEPARATED

        sheet = measure(cuda).run  # type: ignore[arg-type]

        assert "with what it reserves" in sheet.line("used").measured.note
        assert sheet.line("driver_reserved").measured.num_bytes is None
        levels_add_up(sheet)

    def test_a_scale_faster_than_the_sampler_takes_the_nearest_sample_and_says_so(self, cuda: FakeTrace) -> None:
        cuda.gpu = cuda.gpu[-1:]
        cuda.gpu["t_ns"] = cuda.allocator["t_ns"][1] + 30_000_000_000

        used = measure(cuda).scales[0].line("used").measured  # type: ignore[arg-type]

        assert used.num_bytes == 5 * GIB
        assert used.note == "a sample 30.0 s from its end"

    def test_without_samples_the_reason_is_given_once_and_the_allocators_lines_stay(self, cuda: FakeTrace) -> None:
        cuda.gpu, cuda.gpu_unavailable = cuda.gpu[:0], Reason.DRIVER_NOT_LOADED.text

        found = measure(cuda)  # type: ignore[arg-type]

        assert found.answer is not None
        assert found.answer.total_name == "allocator: reserved"
        assert ledger_text(found).replace("\n  ", " ").count(Reason.DRIVER_NOT_LOADED.text) == 1

    def test_foreign_numbers_are_no_error(self, cuda: FakeTrace) -> None:
        cuda.allocator["peak_bytes"] = cuda.allocator["allocated_bytes"] = np.inf
        cuda.gpu["used_bytes"], cuda.gpu["used_bytes_reason"] = -np.inf, 250

        found = measure(cuda)  # type: ignore[arg-type]

        assert found.run.line("allocated").measured.tag == "unavailable"
        assert "newer kvscope" in found.run.line("used").measured.note
        json.dumps(found.to_json(), allow_nan=False)


def test_a_run_that_was_on_a_gpu_is_accounted_for_to_the_driver() -> None:
    with Trace.open(Path(__file__).resolve().parents[2] / "traces" / "infinity-tiny-h100.h5") as trace:
        found = measure(trace)

    levels = [line.measured.num_bytes for line in found.run.lines if line.entry.is_level]
    assert None not in levels
    assert levels_add_up(found.run) >= 7
    assert found.run.line("stored").difference == 0
    assert "H100" in (trace.header.gpu_name or "")


def test_the_answer_says_what_share_of_all_memory_was_saved(cuda: FakeTrace) -> None:
    found = measure(cuda)  # type: ignore[arg-type]
    answer = found.answer

    assert answer is not None
    assert answer.saved_bytes == answer.full_bytes - answer.stored_bytes
    assert answer.total_bytes == 300 * MIB
    assert answer.saved_fraction == answer.saved_bytes / (300 * MIB + answer.saved_bytes)
    assert sum(size for _, size in answer.parts) == answer.total_bytes
    assert answer.parts[0] == ("CUDA context and kernels", 100 * MIB)


@pytest.mark.parametrize("added_bytes", [7, 10, 11, 12])
def test_a_part_that_is_less_than_nothing_is_a_part_of_the_total(added_bytes: int) -> None:
    sizes = {"kept": 9, "capacity": 10, "stored": 11, "rss_added": added_bytes, "rss": 100}
    sheet = sheet_of(None, "cpu", {}, {key: Amount(size, "measured") for key, size in sizes.items()})

    answer = answer_of(sheet, 20, "measured")

    assert answer is not None
    assert sum(size for _, size in answer.parts) == answer.total_bytes == 100
    assert dict(answer.parts).get(sheet.line("moment").entry.name, 0) == added_bytes - 11


def test_of_an_unknown_model_only_the_cache_is_predicted(tiny_trace: Path) -> None:
    with Trace.open(tiny_trace) as trace:
        sheet = measure(trace).run

    assert [sheet.line(key).predicted.tag for key in ("kept", "capacity", "stored")] == ["predicted"] * 3
    assert {sheet.line(key).predicted.tag for key in ("weights", "rss_added", "rss", "moment")} == {"unavailable"}


@pytest.mark.parametrize("kind", ["live_trace", "crashed_trace"])
def test_scales_that_are_not_done_are_not_measured(kind: str, request: pytest.FixtureRequest) -> None:
    with Trace.open(request.getfixturevalue(kind)) as trace:
        found = measure(trace)

    tags = [sheet.line("kept").measured.tag for sheet in found.scales]
    assert tags == ["measured"] * 3 + ["unavailable"] * 2
    assert all(sheet.line("kept").predicted.num_bytes for sheet in found.scales)


def test_before_the_first_scale_is_done_there_is_only_the_prediction(tiny_trace: Path) -> None:
    with Trace.open(tiny_trace) as trace:
        found = measure(FakeTrace(trace, scales_done=0, steps=trace.steps[:0]))  # type: ignore[arg-type]

    assert found.run.line("kept").measured.note == "this has not run"
    assert "difference" not in ledger_text(found)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_plan_is_predicted_line_by_line_with_nothing_measured(device: str) -> None:
    config = model_config("infinity-2b")
    scales = config.schedule_for("0.25M")

    found = predict(FullPolicy().plan(config, scales), config, 2, 2, device=device)

    assert found.answer is not None
    assert found.answer.column == "predicted"
    assert {line.measured.tag for line in found.run.lines} == {"unavailable"}
    assert found.run.line("weights").predicted.num_bytes == pytest.approx(4.74e9, rel=0.01)
    assert all(levels_add_up(sheet) >= 3 for sheet in (found.run, *found.scales))
    assert "\n" in ledger_text(found)


def every_ledger(cuda: FakeTrace, tiny_trace: Path) -> list[Ledger]:
    config = model_config("infinity-2b")
    plan = FullPolicy().plan(config, config.schedule_for("1M"))
    with Trace.open(tiny_trace) as trace:
        named = FakeTrace(trace, path="a" * 200 + "\n\x1b[31m", status="crashed")
        return [measure(trace), measure(named), measure(cuda), predict(plan, config, 2, 2, device="cuda")]  # type: ignore[arg-type]


def test_the_text_fits_80_columns_and_foreign_names_begin_no_lines(cuda: FakeTrace, tiny_trace: Path) -> None:
    for ledger in every_ledger(cuda, tiny_trace):
        for scale in (None, 0, len(ledger.scales) - 1):
            text = ledger_text(ledger, scale)
            assert max(map(len, text.splitlines())) <= 80
            assert "\x1b" not in text


def test_every_line_tells_unit_definition_source_and_tag(cuda: FakeTrace, tiny_trace: Path) -> None:
    for ledger in every_ledger(cuda, tiny_trace):
        record = ledger.to_json()
        json.dumps(record, allow_nan=False)
        for sheet in (record["run"], *record["scales"]):
            for line in (*sheet["lines"], *sheet["beside"], *record["defined"]):
                assert line["unit"] == "bytes"
                assert line["source"]
                assert line["definition"].endswith(".")
                assert ". " not in line["definition"]
                for column in (line["predicted"], line["measured"]):
                    assert column["tag"] in ("measured", "predicted", "defined", "unavailable")
                    assert (column["num_bytes"] is None) == (column["tag"] == "unavailable")
                    assert column["num_bytes"] is not None or column["note"]


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    return parser.parse_args(arguments)


class TestCommand:
    def test_prints_a_traces_ledger(self, tiny_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.run(parsed(str(tiny_trace))) == 0

        said = capsys.readouterr().out
        assert "A full history is" in said
        assert "process memory (RSS)" in said

    def test_prints_one_scale(self, tiny_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.run(parsed(str(tiny_trace), "--scale", "2", "--json")) == 0

        record = json.loads(capsys.readouterr().out)
        assert [sheet["scale"] for sheet in record["scales"]] == [2]

    def test_predicts_a_schedule_file_without_being_told_its_model(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = model_config("infinity-2b")
        plan = FullPolicy().plan(config, config.schedule_for("0.06M"))
        path = plan.save(tmp_path / "plan.json")

        command.run(parsed("--plan", str(path), "--cfg", "1", "--json"))

        record = json.loads(capsys.readouterr().out)
        assert (record["model"], record["rows"], record["status"]) == ("infinity-2b", 1, "planned")
        assert record["run"]["lines"][0]["predicted"]["num_bytes"] == plan.peak_tokens * 2 * 128 * 2

    def test_predicts_what_options_plan(self, capsys: pytest.CaptureFixture[str]) -> None:
        command.run(parsed("--plan", "--budget", "0.2", "--dtype", "float32"))

        assert "policy heatkv, budget 20.0 %, float32 on cpu" in " ".join(capsys.readouterr().out.split())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "give a trace, or --plan"),
            (("TRACE", "--plan"), "one of them"),
            (("TRACE", "--budget", "0.1"), "leave out|one or the other"),
            (("TRACE", "--scale", "5"), "there are 5 scales, from 0"),
            (("TRACE", "--scale", "-1"), "there are 5 scales, from 0"),
            (("--plan", "x.json", "--budget", "0.1"), "--plan x.json says all that --budget would"),
        ],
    )
    def test_refuses_options_that_make_no_sense(
        self, tiny_trace: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        given = [str(tiny_trace) if one == "TRACE" else one for one in arguments]

        with pytest.raises(UsageError, match=message):
            command.run(parsed(*given))

    def test_a_schedule_file_that_is_none_is_an_error_of_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "plan.json").write_text("{}")

        with pytest.raises(ScheduleError, match=r"plan\.json"):
            command.run(parsed("--plan", str(tmp_path / "plan.json")))

    def test_its_options_import_neither_numpy_nor_h5py(self) -> None:
        source = (
            "import argparse, sys; from kvscope.commands import ledger; ledger.add_options(argparse.ArgumentParser()); "
            "sys.exit(bool({'numpy', 'h5py', 'torch'} & set(sys.modules)))"
        )

        assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0


def test_the_documentation_has_every_line_in_the_codes_own_words() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "ledger.md").read_text()

    for entry in (FULL, BUDGET, *lines_of("cpu"), *lines_of("cuda")):
        assert f"| {entry.name} | {entry.definition} | {entry.source} | {entry.formula} |" in page
