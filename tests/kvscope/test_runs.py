"""The traces of a folder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvscope.analysis import summarize
from kvscope.errors import TraceError
from kvscope.runs import Run, Runs, Unreadable, list_runs, runs_text
from kvscope.trace import Trace

RUN = Run("run.h5", "0", 0, "infinity-2b", "1M", "heatkv", 0.1, "done", 13, 13, 1 << 28, 1 << 20)
HOUR_NS = 3_600_000_000_000


def test_it_finds_traces_in_sub_folders_and_says_why_others_are_none(tmp_path: Path, tiny_trace: Path) -> None:
    (tmp_path / "sub" / "deeper").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for place in ("a.h5", "sub/b.h5", "sub/deeper/c.h5", ".hidden/d.h5"):
        shutil.copy(tiny_trace, tmp_path / place)
    (tmp_path / "sub" / "bad.h5").write_text("no trace")
    (tmp_path / "notes.txt").write_text("no trace either")

    found = list_runs(tmp_path)

    assert [run.file for run in found.runs] == ["a.h5", "sub/b.h5", "sub/deeper/c.h5"]
    assert found.unreadable == (Unreadable("sub/bad.h5", "not an HDF5 file; expected a trace made by `kvscope run`"),)


def test_a_run_is_told_as_the_summary_tells_it(tmp_path: Path, tiny_trace: Path) -> None:
    shutil.copy(tiny_trace, tmp_path / "a.h5")

    (run,) = list_runs(tmp_path).runs

    with Trace.open(tiny_trace) as trace:
        summary = summarize(trace)
    for name in ("model", "resolution", "policy", "budget", "status", "scales_done", "num_scales", "run_id",
                 "storage_peak_bytes"):  # fmt: skip
        assert getattr(run, name) == getattr(summary, name)


def test_live_and_crashed_traces_are_told_apart(live_trace: Path, crashed_trace: Path) -> None:
    found = list_runs(live_trace.parent)

    assert {run.file: (run.status, run.scales_done) for run in found.runs} == {
        "live.h5": ("live", 3),
        "crashed.h5": ("crashed", 3),
    }


def test_the_newest_comes_first(tmp_path: Path, tiny_trace: Path, gpu_trace: Path) -> None:
    shutil.copy(tiny_trace, tmp_path / "tiny.h5")
    shutil.copy(gpu_trace, tmp_path / "gpu.h5")

    created = [run.created_ns for run in list_runs(tmp_path).runs]

    assert created == sorted(created, reverse=True)


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot be listed \(No such file"):
        list_runs(tmp_path / "missing")


def test_a_line_tells_a_run() -> None:
    text = runs_text(Runs("d", (replace(RUN, file="sub/a.h5"),), ()), now_ns=5 * HOUR_NS)

    assert text.splitlines() == [
        "file      age  model           policy         scales   stored   size",
        "sub/a.h5  5 h  infinity-2b 1M  heatkv 10.0 %  done 13  256 MiB  1.00 MiB",
    ]


def test_an_empty_folder_is_told_in_words() -> None:
    assert runs_text(Runs("d", (), ()), now_ns=0) == "d: no trace in it"


TEXTS = st.text(st.characters(codec="ascii"), max_size=120)


@given(
    st.lists(
        st.builds(
            replace, st.just(RUN), file=TEXTS, model=TEXTS, policy=TEXTS, status=st.sampled_from(["done", "live"])
        ),
        max_size=3,
    ),
    st.lists(st.builds(Unreadable, TEXTS, TEXTS), max_size=2),
    st.integers(0, 1 << 62),
)
def test_no_line_is_wider_than_80_columns(runs: list[Run], unreadable: list[Unreadable], now_ns: int) -> None:
    text = runs_text(Runs("d", tuple(runs), tuple(unreadable)), now_ns=now_ns)

    assert max(map(len, text.split("\n"))) <= 80


def test_a_name_that_is_too_long_for_its_column_stands_on_a_line_of_its_own() -> None:
    long = replace(RUN, file="infinity-2b-heatkv-20261122-120000-abcd.h5")

    lines = runs_text(Runs("d", (long,), ()), now_ns=0).splitlines()

    assert lines[1] == long.file
    assert lines[2].split()[0] == "0"
