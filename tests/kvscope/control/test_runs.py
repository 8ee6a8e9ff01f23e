"""Control of real runs in processes of their own: the tiny model, real signals, the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from kvscope.cli import main
from kvscope.control.protocol import Accepted, Refused
from kvscope.format import decode_text
from kvscope.job import Job
from kvscope.trace import Trace

if TYPE_CHECKING:
    from conftest import Started

Start = Callable[..., "Started"]
Wait = Callable[..., None]

VIEWER = """
import sys, time
from kvscope.control.client import Client
client = Client(sys.argv[1], lambda message: print(message.kind, flush=True))
client.start()
time.sleep(60)
"""


def log_of(trace: Trace) -> list[str]:
    return [decode_text(row["text"]) for row in trace.log]


def job(**changes: object) -> dict[str, object]:
    return Job(prompt="a red circle", model="infinity-tiny", policy="full", **changes).to_json()  # type: ignore[arg-type]


def test_a_run_is_paused_stepped_resumed_and_stopped(start: Start, tiny_run: tuple[str, ...], wait_until: Wait) -> None:
    run = start(*tiny_run, "-o", "run.h5")
    out = run.folder / "run.h5"

    assert run.ask("pause").reply == Accepted("pause", "it pauses before its first scale")
    run.until_state("paused")
    for done in (1, 2):
        assert isinstance(run.ask("step").reply, Accepted)
        wait_until(lambda done=done: run.ask().progress.scales_done == done)
        run.until_state("paused")
    with Trace.open(out) as trace:
        wait_until(lambda: trace.refresh() and trace.scales_done == 2)
        before = trace.committed_ns
        wait_until(lambda: trace.refresh() and trace.committed_ns > before + 2e9)  # heartbeats go on
        assert trace.status == "live"
        assert trace.header.control_socket == run.socket
        assert trace.header.run_id == run.ask().progress.run_id
    run.ask("stop")

    code, said = run.finish()
    assert code == 130
    assert said.splitlines()[-1] == "kvscope: stopped by a viewer"
    with Trace.open(out) as trace:
        assert (trace.status, trace.message, trace.scales_done) == ("cancelled", "stopped by a viewer", 2)
        assert trace.image is None
        log = [line for line in log_of(trace) if "viewer" in line]
    assert [line.partition(" for ")[0] for line in log] == [
        "paused by a viewer, before scale 0",
        "stepped: paused",
        "paused by a viewer, after scale 0",
        "stepped: paused",
        "paused by a viewer, after scale 1",
        "paused",
        "stopped by a viewer",
    ]
    assert list((run.folder / "r" / "kvscope").iterdir()) == []


def test_the_time_that_a_run_is_held_is_in_no_layer(start: Start, tiny_run: tuple[str, ...], wait_until: Wait) -> None:
    run = start(*tiny_run, "-o", "run.h5")
    run.ask("pause")
    run.until_state("paused")
    run.ask("step")
    wait_until(lambda: run.ask().progress.scales_done == 1)
    run.until_state("paused")
    with Trace.open(run.folder / "run.h5") as trace:
        wait_until(lambda: trace.refresh() and trace.scales_done == 1)
        begun = trace.committed_ns
        wait_until(lambda: trace.refresh() and trace.committed_ns > begun + 1.5e9)
    run.ask("resume")
    code, said = run.finish()

    with Trace.open(run.folder / "run.h5") as trace:
        steps = trace.steps
        log = log_of(trace)
    assert code == 0, said
    layers_ns = (steps["end_ns"] - steps["begin_ns"]).sum()
    assert layers_ns < steps["end_ns"].max() - steps["begin_ns"].min() - 1.5e9
    assert any(line.startswith("resumed: paused for ") for line in log)


def test_a_held_run_makes_the_same_picture(start: Start, tiny_run: tuple[str, ...]) -> None:
    held, free = start(*tiny_run, "-o", "held.h5"), start(*tiny_run, "-o", "free.h5")
    held.ask("pause")
    held.until_state("paused")
    held.ask("step")
    held.until_state("paused")
    held.ask("resume")

    assert held.finish()[0] == free.finish()[0] == 0
    with Trace.open(held.folder / "held.h5") as one, Trace.open(free.folder / "free.h5") as other:
        np.testing.assert_array_equal(one.image, other.image)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_held_run_at_once(start: Start, tiny_run: tuple[str, ...], how: signal.Signals) -> None:
    run = start(*tiny_run, "-o", "run.h5")
    run.ask("pause")
    run.until_state("paused")

    run.process.send_signal(how)

    code, said = run.finish()
    assert code == 130
    assert said.splitlines()[-1] == "kvscope: stopped"
    with Trace.open(run.folder / "run.h5") as trace:
        assert trace.status == "cancelled"


def test_a_viewer_that_is_killed_leaves_the_run_alone(
    start: Start, tiny_run: tuple[str, ...], wait_until: Wait
) -> None:
    run = start(*tiny_run, "-o", "run.h5")
    run.ask("pause")
    run.until_state("paused")
    with subprocess.Popen([sys.executable, "-c", VIEWER, run.socket], stdout=subprocess.PIPE, text=True) as viewer:
        assert viewer.stdout is not None
        assert viewer.stdout.readline() == "welcome\n"
        run.ask("step")
        viewer.kill()

    run.until_state("paused")
    run.ask("resume")

    assert run.finish()[0] == 0


def test_a_process_that_stays_takes_jobs_and_outlives_one_that_fails(start: Start, tiny_run: tuple[str, ...]) -> None:
    run = start(*tiny_run, "--keep", "-o", "first.h5")
    run.until_state("idle")
    second, third = str(run.folder / "second.h5"), str(run.folder / "third.h5")
    wrong, fails = job(budget=1e-9, seed=1), job(device="tpu")
    orphan = job(parent=str(run.folder / "nobody.h5"), mode="forced")

    refused = run.ask("submit", job=wrong | {"policy": "heatkv"}, trace=second).reply
    assert isinstance(refused, Refused)
    assert "below the minimum" in refused.reason
    refused = run.ask("submit", job=job(), trace=str(run.folder / "first.h5")).reply
    assert isinstance(refused, Refused)
    assert "exists" in refused.reason
    for one in ({"prompt": 7}, orphan, job() | {"model": "infinity-9b"}):
        assert isinstance(run.ask("submit", job=one, trace=second).reply, Refused)
    assert run.ask("submit", job=fails, trace=second).reply == Accepted("submit", "it begins")
    run.until_state("idle")
    assert "unknown device 'tpu'" in run.ask().progress.message
    for name in (second, third):
        assert isinstance(run.ask("submit", job=job(seed=5), trace=name, image=name + ".png").reply, Accepted)
    until_done(run, third)
    assert run.ask("stop").reply == Accepted("stop", "it ends")

    code, said = run.finish()
    assert code == 0
    assert "infinity-tiny is loaded already" in said
    assert (run.folder / "third.h5.png").exists()
    with Trace.open(Path(second)) as one, Trace.open(Path(third)) as other:
        assert one.header.run_id != other.header.run_id
        assert one.header.pid == other.header.pid == run.process.pid
        np.testing.assert_array_equal(one.image, other.image)


def until_done(run: Started, trace: str) -> None:
    while not (run.ask().progress.state == "idle" and Path(trace).exists()):
        assert run.process.poll() is None


def test_stopping_a_job_of_a_process_that_stays_leaves_the_process(start: Start, tiny_run: tuple[str, ...]) -> None:
    run = start(*tiny_run, "--keep", "-o", "first.h5")
    run.ask("pause")
    run.until_state("paused")

    run.ask("stop")
    run.until_state("idle")

    assert "stopped by a viewer" in run.ask().progress.message
    run.process.send_signal(signal.SIGTERM)
    assert run.finish()[0] == 130


def test_the_command_line_can_do_all_that_a_viewer_can(
    start: Start, tiny_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(*tiny_run, "--keep", "-o", "first.h5")
    assert run.socket
    pid, out = str(run.process.pid), str(run.folder / "first.h5")

    def said(*arguments: str, code: int = 0) -> str:
        assert main(["control", *arguments]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    assert "before its first scale" in said("pause")
    run.until_state("paused")
    assert "paused already" in said("pause", pid, code=10)
    listed = json.loads(said("list", "--json"))["runs"]
    assert [(one["pid"], one["state"], one["trace"]) for one in listed] == [(run.process.pid, "paused", out)]
    assert f"{pid}  paused    0 of 7 scales    {out}" in said("list")
    assert json.loads(said("step", out, "--json"))["message"] == "it computes scale 0 and pauses"
    run.until_state("paused")
    assert json.loads(said("status", run.socket, "--json"))["num_scales"] == 7
    said("resume", out)
    run.until_state("idle")
    assert "its run is over (done)" in said("pause", out, code=10)
    assert "no run of yours" in said("status", "1", code=10)
    second = str(run.folder / "second.h5")
    assert "it begins" in said("submit", pid, "--seed", "5", "-o", second)
    until_done(run, second)
    assert "exists" in said("submit", "-o", second, code=10)
    assert "it ends" in said("stop")
    assert run.finish()[0] == 0
    assert "no run of yours can be controlled" in said("list")
    assert "kvscope run" in said("status", code=10)


def test_of_several_runs_one_must_be_named(
    start: Start, tiny_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for name in ("a.h5", "b.h5"):
        runs.append(start(*tiny_run, "-o", name))
        runs[-1].ask("pause")
    for run in runs:
        run.until_state("paused")

    assert main(["control", "status"]) == 10

    said = capsys.readouterr().err
    assert all(f"{run.process.pid} (paused, " in said for run in runs)


def test_a_trace_of_a_run_without_a_socket_says_so(
    live_trace: Path, runtime: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["control", "stop", str(live_trace)]) == 10

    assert "names no socket" in capsys.readouterr().err


def test_attach_needs_a_terminal(start: Start, tiny_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    run = start(*tiny_run, "-o", "run.h5")
    run.ask("pause")

    assert main(["attach", str(run.process.pid)]) == 7


def test_a_run_that_cannot_have_a_socket_goes_on_without(
    tmp_path: Path, tiny_run: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = tmp_path / f"kvscope-{os.geteuid()}"
    closed.mkdir(mode=0o755)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    assert main([*tiny_run, "-o", str(tmp_path / "run.h5")]) == 0

    said = capsys.readouterr().err.splitlines()
    assert sum("no viewer can control this run" in line for line in said) == 1
    with Trace.open(tmp_path / "run.h5") as trace:
        assert trace.header.control_socket is None
