"""Validation: a clean trace has no finding, and each rule that is broken alone is found, with where, what and why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from heatkv.config import MODELS
from kvscope.errors import TraceFormatError
from kvscope.findings import Finding
from kvscope.recorder import Recorder
from kvscope.validate import validate

Edit = Callable[[h5py.File], None]


@pytest.fixture(scope="module")
def whole_trace(tmp_path_factory: pytest.TempPathFactory, fake_run: ModuleType) -> Path:
    """A finished trace with attention mass, maps, previews and an image."""
    path = tmp_path_factory.mktemp("traces") / "whole.h5"
    with Recorder(path, fake_run.fake_job(attention_map="uint8"), preview=fake_run.fake_preview) as recorder:
        fake_run.run(recorder)
    return path


@pytest.fixture
def damaged(tmp_path: Path, whole_trace: Path) -> Callable[[Edit], Path]:
    """Makes a copy of that trace, damaged as told."""

    def damage(edit: Edit) -> Path:
        path = Path(shutil.copy(whole_trace, tmp_path / "damaged.h5"))
        with h5py.File(path, "r+") as file:
            edit(file)
        return path

    return damage


def cell(table: str, column: str, row: int, value: object) -> Edit:
    """Put a value into a row of a table."""

    def edit(file: h5py.File) -> None:
        rows = file[table][...]
        rows[column][row] = value
        file[table][...] = rows

    return edit


def moved(table: str, column: str, row: int, difference: int) -> Edit:
    """Add to a value in a row of a table."""

    def edit(file: h5py.File) -> None:
        rows = file[table][...]
        rows[column][row] += difference
        file[table][...] = rows

    return edit


def value(table: str, place: tuple[int, ...], new: float) -> Edit:
    """Put a value into an array."""

    def edit(file: h5py.File) -> None:
        file[table][place] = new

    return edit


def text(key: str, new: str) -> Edit:
    """Replace a text of the header."""
    return lambda file: file.attrs.__setitem__(key, np.bytes_(new.encode()))


def job_with(**changes: object) -> Edit:
    """Change what the header's job says."""

    def edit(file: h5py.File) -> None:
        job = json.loads(file.attrs["job"]) | changes
        file.attrs.modify("job", np.bytes_(json.dumps(job).encode()))

    return edit


def removed(name: str) -> Edit:
    return lambda file: file.__delitem__(name)


def as_type(table: str, dtype: str) -> Edit:
    """Store a table as another type, with its axes and words."""

    def edit(file: h5py.File) -> None:
        old = file[table]
        scales, words = [old.dims[index][0] for index in range(old.ndim)], dict(old.attrs)
        content, chunks, maxshape = old[...].astype(dtype), old.chunks, old.maxshape
        del file[table]
        new = file.create_dataset(table, data=content, chunks=chunks, maxshape=maxshape)
        for index, scale in enumerate(scales):
            new.dims[index].attach_scale(scale)
        for key in ("long_name", "units"):
            new.attrs[key] = words[key]

    return edit


def without_column(table: str, column: str) -> Edit:
    def edit(file: h5py.File) -> None:
        rows = file[table][...]
        kept = [name for name in rows.dtype.names if name != column]
        words = file[table].attrs["units"]
        del file[table]
        file[table] = rows[kept].astype([(name, rows.dtype[name]) for name in kept])
        file[table].attrs["units"] = words

    return edit


def detached(file: h5py.File) -> None:
    file["kept_tokens"].dims[1].detach_scale(file["layer"])


def unequal_mass(file: h5py.File) -> None:
    file["attention_mass"][4, 0, 0] = file["attention_mass"][4, 0, 0] * 1.01


def shorter(file: h5py.File) -> None:
    file["steps"].resize((14,))


def fewer_steps(file: h5py.File) -> None:
    rows = file["commit"][...]
    rows["steps_rows"] = np.minimum(rows["steps_rows"], 14)
    file["commit"][...] = rows


def late_commits(file: h5py.File) -> None:
    rows = file["commit"][...]
    rows["t_ns"][1:-1] = rows["t_ns"][-1] + 5
    file["commit"][...] = rows


def half_map(file: h5py.File) -> None:
    # 3.8 % per code: ten codes down is two thirds.
    codes = file["attention_map"][4, 1, 1]
    codes[codes > 12] -= 10
    file["attention_map"][4, 1, 1] = codes


DAMAGES: dict[str, tuple[Edit, str, str]] = {
    # name: (edit, where it is found, what must be said there)
    "header key of another type": (
        lambda file: file.attrs.create("run_id", 7, dtype="i8"), "header key run_id", "int64 of shape []"
    ),
    "table missing": (removed("attention_map"), "table attention_map", "absent; expected u1 [query_scale, layer, head"),
    "another type": (as_type("kept_tokens", "f8"), "table kept_tokens", "f8; expected u2"),
    "column missing": (without_column("cost", "dropped_rows"), "table cost, column dropped_rows", "absent"),
    "axis not attached": (detached, "table kept_tokens", "axes [query_scale, unnamed, head, source_scale]"),
    "no dimension scale": (removed("layer"), "axis layer", "layer is missing; expected a dimension scale"),
    "other axis values": (value("head", (1,), 5), "axis head", "other values; expected 0 to 1"),
    "other unit": (
        lambda file: file["kept_tokens"].attrs.modify("units", np.bytes_(b"bytes")),
        "units of kept_tokens", "'bytes'; expected 'tokens'"
    ),
    "other unit of a column": (
        lambda file: file["cost"].attrs.modify("units", np.bytes_(b"t_ns: s")), "units of cost.t_ns", "expected 'ns'"
    ),
    "no long_name": (lambda file: file["bits"].attrs.__delitem__("long_name"), "long_name of bits", "absent"),
    "scales": (value("scale_height", (2,), 4), "scale_height[2]", "4; expected 3: the header's scales"),
    "tiers": (text("tiers", "occupancy"), "header key tiers", "occupancy; expected occupancy, mass, maps: the job's"),
    "perturbed": (
        lambda file: file.attrs.modify("perturbed", np.int64(0)), "header key perturbed", "0; expected 1: perturbed_by"
    ),
    "liveness": (text("liveness", "prayer"), "header key liveness", "'prayer'; expected lock or heartbeat"),
    "kept tokens": (value("kept_tokens", (2, 0, 1, 1), 3), "kept_tokens[2, 0, 1, 1]", "3; expected 0: as the schedule"),
    "read tokens": (value("read_tokens", (4, 2, 1, 0), 0), "read_tokens[4, 2, 1, 0]", "0; expected 1: as the schedule"),
    "plan": (value("drop_step", (0, 0, 2), 9), "kept_tokens[3, 0, 0, 2]", "9, and 1 more like it; expected 0"),
    "accounted bytes": (moved("steps", "accounted_bytes", 4, 1), "steps.accounted_bytes[4]", "tokens held × bytes"),
    "stored less than capacity": (
        lambda file: file.attrs.modify("capacity_tokens", np.int64(10_000)), "steps.storage_bytes[0]", "room for 10,000"
    ),
    "capacity below the peak": (
        lambda file: file.attrs.modify("capacity_tokens", np.int64(5)), "header key capacity_tokens", "5; expected "
    ),
    "scale summary": (
        moved("scale_summary", "kept_tokens", 2, 1), "scale_summary.kept_tokens[2]", ": what its steps say"
    ),
    "evicted tokens": (cell("steps", "evicted_tokens", 7, 1), "steps.evicted_tokens[7]", "1; expected 13: the plan"),
    "budget of the job": (job_with(budget=0.25), "header key schedule", "expected 0.25: the job's"),
    "order of steps": (cell("steps", "layer", 5, 1), "steps[5]", "scale 1 layer 1; expected scale 1 layer 2"),
    "number of steps": (fewer_steps, "steps", "14 rows; expected 15: 5 scales of 3 layers"),
    "step clock": (moved("steps", "begin_ns", 8, -(10**9)), "steps.begin_ns[8]", " or later"),
    "step end": (moved("steps", "end_ns", 0, -(10**9)), "steps.end_ns[0]", " or later"),
    "device time": (cell("steps", "device_ns", 3, -5.0), "steps.device_ns", "-5; expected a time of 0 or more, or NaN"),
    "allocator clock": (moved("allocator", "t_ns", 3, -(10**10)), "allocator.t_ns[3]", " or later"),
    "log clock": (moved("log", "t_ns", 0, 10**15), "log.t_ns[0]", " or earlier: the last commit"),
    "cost clock": (moved("cost", "t_ns", 0, -(10**15)), "cost.t_ns[0]", " or later: the trace's begin"),
    "commit clock": (late_commits, "commit.t_ns[", " or later"),
    "mass not 1": (unequal_mass, "attention_mass[4, 0, 0]", "sums up to 1.01; expected 1 within 0.001"),
    "mass missing": (
        value("attention_mass", (3, 2, 0, 0), np.nan), "attention_mass is measured[3, 2, 0, 0]", "False; expected True"
    ),
    "mass of what is not seen": (
        value("attention_mass", (1, 0, 0, 4), 0.0), "attention_mass is measured[1, 0, 0, 4]", "True; expected False"
    ),
    "negative mass": (value("attention_mass", (1, 0, 0, 0), -0.5), "attention_mass", "-0.5; expected a fraction"),
    "map not 1": (half_map, "attention_map[4, 1, 1]", "; expected 1 within 0.038"),
    "map past the grid": (
        value("attention_map", (4, 1, 0, 0, 15, 15), 255), "attention_map[4, 1, 0]", "NaN in other cells"
    ),
    "bits": (value("bits", (0, 7, 1), 2), "bits of scale 2", "2; expected 0 or 1"),
    "bits missing": (cell("commit", "bits_rows", -1, 60), "commit.bits_rows", "60; expected 66: tokens of 5 scales"),

    "cost below 0": (cell("cost", "run_ns", 2, -1), "cost.run_ns", "-1; expected 0 or more"),
    "log level": (cell("log", "level", 0, 9), "log.level", "9; expected 0 to 2"),
    "log text": (lambda file: cell("log", "text", 0, np.frombuffer(b"\xff" * 240, "S1"))(file), "log.text[0]", "UTF-8"),
    "epoch": (cell("commit", "epoch", 1, 9), "commit.epoch[1]", "9; expected 1: in order"),
    "ended twice": (cell("commit", "status", 1, 2), "commit[1]", "status 2; expected 0: only the last"),
    "commit counts shrink": (cell("commit", "log_rows", 1, 40), "commit.log_rows[2]", " or more"),
    "table shorter than its count": (shorter, "commit.steps_rows", "15; expected 14 at most: the length of steps"),

}  # fmt: skip


def test_a_clean_trace_has_no_finding(
    whole_trace: Path, tiny_trace: Path, live_trace: Path, crashed_trace: Path
) -> None:
    for path in (whole_trace, tiny_trace, live_trace, crashed_trace):
        assert validate(path) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_rule_is_found_and_told(damaged: Callable[[Edit], Path], name: str) -> None:
    edit, where, told = DAMAGES[name]

    findings = validate(damaged(edit))

    assert findings
    assert any(finding.where.startswith(where) and told in finding.text for finding in findings), findings
    assert all("\n" not in finding.text for finding in findings)


def test_an_image_of_another_size_than_the_models_is_found(whole_trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The fake run draws 24 x 24 pixels of 6 x 6 tokens.
    tiny = MODELS["infinity-tiny"]
    monkeypatch.setitem(MODELS, "fake", tiny)
    assert validate(whole_trace) == []

    monkeypatch.setitem(MODELS, "fake", replace(tiny, vae=replace(tiny.vae, patch_size=8)))

    assert [finding.text for finding in validate(whole_trace)] == [
        "image: 24x24 pixels; expected 48x48: fake of these scales"
    ]


def test_a_gpu_value_without_its_reason_is_found(tmp_path: Path, gpu_trace: Path) -> None:
    path = Path(shutil.copy(gpu_trace, tmp_path / "gpu.h5"))
    with h5py.File(path, "r+") as file:
        cell("gpu", "power_w", 0, np.nan)(file)

    assert any(finding.where == "gpu.power_w is measured[0]" for finding in validate(path))


def test_a_run_that_is_done_has_all_its_scales(gpu_trace: Path) -> None:
    assert [finding.text for finding in validate(gpu_trace)] == ["commit.scales_done: 4; expected 5: the run is done"]


def test_what_is_no_trace_is_an_error_and_no_finding(damaged: Callable[[Edit], Path], tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"hello")

    for path in (tmp_path / "a.h5", damaged(lambda file: file.attrs.__delitem__("device"))):
        with pytest.raises(TraceFormatError):
            validate(path)


def test_a_table_that_cannot_be_read_is_told_and_the_others_are_checked(tmp_path: Path, whole_trace: Path) -> None:
    with h5py.File(whole_trace) as file:
        chunk = file["attention_mass"].id.get_chunk_info(0)
    content = bytearray(whole_trace.read_bytes())
    content[chunk.byte_offset + 8 : chunk.byte_offset + 40] = bytes(32)
    (tmp_path / "a.h5").write_bytes(content)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        value("bits", (0, 7, 1), 2)(file)

    findings = {finding.where: finding.text for finding in validate(tmp_path / "a.h5")}

    assert findings.keys() == {"attention_mass, attention_mass_uncond", "bits of scale 2"}
    assert "damaged or cut short" in findings["attention_mass, attention_mass_uncond"]


def test_a_finding_says_where_what_and_what_was_expected() -> None:
    assert Finding("steps[3]", "scale 1", "scale 2").text == "steps[3]: scale 1; expected scale 2"


def test_a_finding_is_one_line_whatever_the_trace_says(damaged: Callable[[Edit], Path]) -> None:
    texts = [finding.text for finding in validate(damaged(text("tiers", "\x1b[2J\nmass")))]

    assert r"header key tiers: \x1b[2J\nmass; expected occupancy, mass, maps: the job's" in texts
    assert all(one.isprintable() for one in texts)
