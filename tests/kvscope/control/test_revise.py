"""A paused run of the tiny model goes on with another schedule: its trace is true to it, step by step."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from heatkv.bundled import bundled_calibration
from heatkv.config import model_config
from heatkv.revision import revised
from heatkv.schedule import PruningSchedule
from kvscope.analysis import summarize
from kvscope.cli import main
from kvscope.control.protocol import Accepted, Refused
from kvscope.format import decode_text
from kvscope.info import describe, info_text
from kvscope.trace import Trace
from kvscope.validate import validate

if TYPE_CHECKING:
    from conftest import Started

Start = Callable[..., "Started"]
Wait = Callable[..., None]
ORDERS = str(bundled_calibration(model_config("infinity-tiny")))


def paused(start: Start, arguments: tuple[str, ...], wait_until: Wait, *, scales: int) -> Started:
    """A run that is held when so many scales are done."""
    run = start(*arguments, "-o", "run.h5")
    run.ask("pause")
    run.until_state("paused")
    for done in range(1, scales + 1):
        run.ask("step")
        wait_until(lambda done=done: run.ask().progress.scales_done == done)
        run.until_state("paused")
    return run


def pruned(schedule: PruningSchedule, *, after: int) -> PruningSchedule:
    """Every second head of a full schedule lets go of scales 1 to 3 after that scale."""
    drop_step = schedule.drop_step.copy()
    drop_step[:, ::2, 1:4] = np.maximum(drop_step[:, ::2, 1:4] * 0 + after * schedule.num_layers, 0)
    written = np.arange(schedule.num_layers)[:, None, None] + np.arange(1, 4) * schedule.num_layers
    drop_step[:, ::2, 1:4] = np.maximum(drop_step[:, ::2, 1:4], written)
    return replace(schedule, drop_step=drop_step, policy="edited", sink_scales=1)


def saved(schedule: PruningSchedule, path: Path) -> dict[str, str]:
    schedule.save(path)
    return {"schedule": str(path.absolute()), "sha256": schedule.content_hash}


def test_a_paused_run_obeys_the_revised_plan_from_the_next_scale_on(
    start: Start, tiny_run: tuple[str, ...], wait_until: Wait, tmp_path: Path
) -> None:
    run = paused(start, tiny_run, wait_until, scales=3)
    out = run.folder / "run.h5"
    with Trace.open(out) as trace:
        first = trace.schedule
        assert len(trace.plans) == 1
    wanted = pruned(first, after=1)

    reply = run.ask("revise", **saved(wanted, tmp_path / "wanted.json")).reply

    assert reply == Accepted("revise", "it goes on with the schedule from scale 3 on")
    with Trace.open(out) as trace:
        assert trace.schedule == first  # nothing under the new one is recorded yet
        run.ask("resume")
        assert run.finish()[0] == 0
        while trace.refresh():
            pass
    with Trace.open(out) as trace:
        expected = revised(first, wanted, 3)
        assert np.array_equal(trace.schedule.drop_step, expected.drop_step)
        assert (trace.schedule.policy, trace.schedule.sink_scales) == ("edited", 1)
        assert summarize(trace).revised == ((3, "edited"),)
        assert "revised       the plan of edited from scale 3 on" in info_text(describe(trace))
        assert [(one.query_scale, one.asked_sha256) for one in trace.plans] == [
            (0, first.content_hash),
            (3, wanted.content_hash),
        ]
        layers, per_token = first.num_layers, trace.header.bytes_per_token
        accounted = trace.steps["accounted_bytes"]
        assert np.array_equal(accounted[3 * layers :], expected.tokens_held()[3 * layers :] * per_token)
        assert np.array_equal(accounted[: 3 * layers], first.tokens_held()[: 3 * layers] * per_token)
        assert np.array_equal(trace.kept_tokens[3:], expected.kept_tokens()[3:])
        assert np.array_equal(trace.read_tokens[3:], expected.read_tokens()[3:])
        assert trace.steps["evicted_tokens"][3 * layers] > 0  # what left at the boundary
        log = [decode_text(row["text"]) for row in trace.log]
    assert any(line.startswith("revised by a viewer: from scale 3 on schedule") for line in log)
    assert validate(out) == []


def test_a_run_that_stores_in_codecs_is_revised_within_them(
    start: Start, tiny_run: tuple[str, ...], wait_until: Wait, tmp_path: Path
) -> None:
    run = paused(start, (*tiny_run, "--kv-codec", "int8"), wait_until, scales=3)
    out = run.folder / "run.h5"
    with Trace.open(out) as trace:
        first = trace.schedule
    wanted = pruned(first, after=1)

    refused = run.ask("revise", **saved(wanted.in_codec("int4"), tmp_path / "int4.json")).reply
    reply = run.ask("revise", **saved(wanted, tmp_path / "wanted.json")).reply

    assert isinstance(refused, Refused)
    assert "it stores in int4, and the run's cache has room for model, int8 alone" in refused.reason
    assert isinstance(reply, Accepted)
    run.ask("resume")
    assert run.finish()[0] == 0
    with Trace.open(out) as trace:
        expected, since = revised(first, wanted, 3), 3 * first.num_layers
        assert trace.schedule == expected
        assert np.array_equal(trace.steps["accounted_bytes"][since:], trace.header.bytes_held(expected)[since:])
    assert validate(out) == []


def test_what_cannot_be_is_refused_and_the_run_goes_on_as_it_was(
    start: Start, tiny_run: tuple[str, ...], wait_until: Wait, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = paused(start, (*tiny_run, "--orders", ORDERS, "--budget", "0.2"), wait_until, scales=4)
    with Trace.open(run.folder / "run.h5") as trace:
        plan = trace.schedule
    last = plan.num_steps - 1
    back, large = plan.drop_step.copy(), plan.drop_step.copy()
    gone = np.argwhere((plan.drop_step < 4 * plan.num_layers) & (plan.drop_step < last))[0]
    back[tuple(gone)] = last
    large[:, :, 4:-1] = last

    def reason(drop_step: np.ndarray, name: str, **changes: str) -> str:
        fields = saved(replace(plan, drop_step=drop_step, budget=None), tmp_path / name) | changes
        reply = run.ask("revise", **fields).reply
        assert isinstance(reply, Refused)
        return reply.reason

    layer, head, source = gone
    assert f"layer {layer}, head {head}, source scale {source} left after" in reason(back, "back.json")
    assert "bytes too many; keep less" in reason(large, "large.json")
    assert "is not the schedule that was reviewed" in reason(plan.drop_step, "other.json", sha256="0" * 64)
    other = replace(plan, model="infinity-2b")
    assert isinstance(run.ask("revise", **saved(other, tmp_path / "model.json")).reply, Refused)
    assert main(["control", "revise", str(run.folder / "run.h5"), "--schedule", str(tmp_path / "back.json")]) == 10
    assert "cannot come back" in capsys.readouterr().err
    run.ask("resume")

    assert run.finish()[0] == 0
    with Trace.open(run.folder / "run.h5") as trace:
        assert trace.plans[0].schedule == plan
        assert len(trace.plans) == 1
    assert validate(run.folder / "run.h5") == []


def test_the_command_line_revises_a_run(
    start: Start, tiny_run: tuple[str, ...], wait_until: Wait, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = paused(start, tiny_run, wait_until, scales=1)
    with Trace.open(run.folder / "run.h5") as trace:
        wanted = pruned(trace.schedule, after=4)
    wanted.save(tmp_path / "wanted.json")

    assert (
        main(["control", "revise", str(run.process.pid), "--schedule", os.path.relpath(tmp_path / "wanted.json")]) == 0
    )

    assert "it goes on with the schedule from scale 1 on" in capsys.readouterr().out
    run.ask("resume")
    assert run.finish()[0] == 0
    with Trace.open(run.folder / "run.h5") as trace:
        assert np.array_equal(trace.schedule.drop_step, wanted.drop_step)
    assert validate(run.folder / "run.h5") == []


def test_a_reviewed_plan_revises_the_run_that_it_was_made_from(
    start: Start, tiny_run: tuple[str, ...], wait_until: Wait, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = paused(start, tiny_run, wait_until, scales=2)
    out, script, plan = str(run.folder / "run.h5"), tmp_path / "edits.kvs", str(tmp_path / "plan.json")
    script.write_text("drop l0 h1 s3 after q4\n")
    assert main(["plan", "--from", out, "--script", str(script), "--save-plan", plan]) == 0
    run.ask("step")  # its trace grows: that alone makes no plan stale that is for the run itself
    wait_until(lambda: run.ask().progress.scales_done == 3)
    run.until_state("paused")
    capsys.readouterr()

    assert main(["apply", plan, "--revise"]) == 0
    assert "is paused, and obeys the plan as soon as it goes on" in capsys.readouterr().out
    run.ask("step")
    wait_until(lambda: run.ask().progress.scales_done == 4)
    run.until_state("paused")
    with Trace.open(out) as trace:
        wait_until(lambda: len(trace.plans) == 2 or (trace.refresh() and False))
        assert trace.plans[1].query_scale == 3
    assert main(["apply", plan, "--revise"]) == 2
    assert "the run obeys another schedule by now" in capsys.readouterr().err
    run.ask("resume")

    assert run.finish()[0] == 0
    assert validate(out) == []
