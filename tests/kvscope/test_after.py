from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heatkv.config import model_config
from heatkv.pipeline import Pipeline
from kvscope.after import After, after
from kvscope.job import Job
from kvscope.plan import plan_job
from kvscope.runner import run_job
from kvscope.trace import Trace

FULL = Path(__file__).parents[2] / "traces" / "infinity-tiny-full.h5"
PRUNED = Path(__file__).parents[2] / "traces" / "infinity-tiny-heatkv-10.h5"

Ran = Callable[..., Path]


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    planned = plan_job(Job("", "infinity-tiny", "heatkv", budget=0.2)).schedule
    return planned.save(tmp_path_factory.mktemp("plans") / "s.json")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, schedule: Path) -> Ran:
    """The trace of a replay of the full run."""
    pipeline = Pipeline.load(model_config("infinity-tiny"), None)

    def run(mode: str) -> Path:
        with Trace.open(FULL) as parent:
            job = replace(parent.header.job, policy="schedule", schedule=str(schedule), parent=str(FULL), mode=mode)
        out = tmp_path_factory.mktemp("runs") / f"{mode}.h5"
        return run_job(job, out, threads=1, load=lambda *_, **__: pipeline).trace

    return run


@pytest.fixture(scope="module")
def forced(ran: Ran) -> Path:
    return ran("forced")


def found(path: Path, sha256: str | None = None) -> After:
    with Trace.open(FULL) as parent, Trace.open(path) as run:
        return after(parent, run, sha256 or run.schedule.content_hash)


def test_every_step_of_a_run_that_obeyed_took_the_estimated_bytes(forced: Path) -> None:
    told = found(forced)

    assert told.as_planned
    assert told.steps_as_estimated == told.steps_compared == 42
    assert told.estimated_peak_bytes == told.accounted_peak_bytes
    assert told.storage_peak_bytes is not None
    assert told.storage_peak_bytes > told.estimated_peak_bytes


def test_another_schedule_than_the_one_asked_for_is_told(forced: Path) -> None:
    assert not found(forced, "0" * 64).as_planned


def test_means_weigh_scales_by_their_tokens(forced: Path) -> None:
    told = found(forced)

    with Trace.open(forced) as run:
        tokens = run.schedule.scales.tokens
        expected = np.average(np.asarray(run.forced_kl, np.float64), weights=tokens)
        flips = np.average(np.asarray(run.forced_flips, np.float64), weights=tokens)
    assert told.kl == pytest.approx(expected)
    assert told.flips == pytest.approx(flips)
    assert len(told.kl_by_scale) == 7
    assert len(told.attention_error_by_layer) == 6
    assert told.lost is not None
    assert 0 < told.lost < 1


def test_a_free_run_has_no_forced_error_and_strict_json(ran: Ran) -> None:
    told = found(ran("free"))

    assert (told.mode, told.kl, told.flips) == ("free", None, None)
    assert told.kl_by_scale == told.attention_error_by_layer == ()
    assert json.loads(json.dumps(told.to_json(), allow_nan=False))["lost"] == told.lost


def test_where_the_parent_never_attended_the_loss_covers_only_what_is_known() -> None:
    with Trace.open(PRUNED) as parent, Trace.open(FULL) as run:
        told = after(parent, run, run.schedule.content_hash)

    assert told.lost is None or not math.isnan(told.lost)
    assert json.dumps(told.to_json(), allow_nan=False)
