"""`run --open` without a screen: the run is a real process, the viewer a function of this test."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kvscope.live import run_and_open
from kvscope.trace import Trace

TINY_RUN = ["run", "--model", "infinity-tiny", "--random-weights", "--threads", "1"]


def test_the_trace_is_shown_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvscope.live._ENDING_S", 60)  # a loaded machine takes its time to end a process
    out, said, seen = tmp_path / "run.h5", [], []

    def show(path: Path) -> int:
        with Trace.open(path) as trace:
            while trace.status == "live":
                trace.refresh()
                time.sleep(0.02)
            seen.append(trace.status)
        return 0

    assert run_and_open([*TINY_RUN, "-o", str(out)], out, narrate=said.append, show=show) == 0
    assert seen == ["done"]
    assert "is loading" in said[0]


def test_a_run_that_never_starts_passes_on_its_complaint_and_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.h5"

    code = run_and_open([*TINY_RUN, "--device", "tpu", "-o", str(out)], out, narrate=lambda _: None, show=lambda _: 99)

    assert code == 2
    assert "unknown device 'tpu'" in capsys.readouterr().err
