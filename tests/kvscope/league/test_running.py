"""A league is measured once, whole at every moment, and each row can be made again by its command."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heatkv.budget import budget_tokens
from kvscope.analysis import summarize
from kvscope.cli import main
from kvscope.errors import KVScopeError, OutputError, UsageError
from kvscope.league import file
from kvscope.league.measure import bits_sha256
from kvscope.league.report import command
from kvscope.league.running import run_league
from kvscope.league.settings import Settings
from kvscope.league.table import League
from kvscope.trace import Trace

Measured = tuple[League, Path]


def test_every_run_that_is_possible_has_a_row(measured: Measured) -> None:
    league, path = measured

    assert sorted(row.key for row in league.rows) == [
        (entrant, prompt, 3) for entrant in (0, 1, 2) for prompt in (0, 1)
    ]
    assert league.missing(league.rows) == []
    assert file.load(path) == league


def test_bytes_are_counted_by_the_cache_and_are_what_was_planned(measured: Measured) -> None:
    league, _ = measured

    for row in league.rows:
        entrant, numbers = league.entrants[row.entrant], row.numbers
        assert numbers["accounted_peak_bytes"] == entrant.peak_bytes == numbers["pool_bytes"]
        assert entrant.peak_bytes <= numbers["stored_peak_bytes"] <= 1.05 * entrant.peak_bytes
        if entrant.budget is not None:
            allowed = budget_tokens(entrant.budget, league.settings.config, league.settings.scales)
            assert numbers["accounted_peak_bytes"] <= allowed * league.settings.bytes_per_token


def test_a_pool_is_counted_in_the_codec_of_its_tokens(settings: Settings, tmp_path: Path) -> None:
    coded = replace(
        settings, policies=("full", "heatkv@int4"), targets=settings.targets[1:2], prompts=settings.prompts[:1]
    )

    league = run_league(coded, tmp_path / "coded.h5", jobs=1)

    (numbers,) = (row.numbers for row in league.rows if row.entrant)
    pool, stored = numbers["pool_bytes"], numbers["stored_peak_bytes"]
    assert numbers["accounted_peak_bytes"] <= pool < stored <= 1.1 * numbers["accounted_peak_bytes"]


def test_full_agrees_with_itself_and_less_memory_with_it_less(measured: Measured) -> None:
    league, _ = measured
    kl, agreement = (
        [np.mean(list(league.numbers(entrant, name).values())) for entrant in (0, 1, 2)]
        for name in ("kl", "agreement_free")
    )

    assert kl[0] == 0 < kl[1] < kl[2]
    assert agreement[0] == 1 > agreement[1] > agreement[2]
    assert all(np.isinf(value) for value in league.numbers(0, "psnr").values())
    assert all(0 < value < 1 for value in league.numbers(2, "ssim").values())
    assert all("all_right" in row.numbers for row in league.rows)


def test_kl_of_an_image_is_the_mean_over_its_scales_by_tokens(measured: Measured) -> None:
    league, _ = measured
    tokens = np.array(league.settings.scales.tokens)

    for row in league.rows:
        assert row.numbers["kl"] == pytest.approx((np.array(row.kl_by_scale) * tokens).sum() / tokens.sum())


@pytest.mark.parametrize("index", [0, 2])
def test_the_command_of_a_row_makes_its_bits_and_its_bytes_again(
    measured: Measured, index: int, tmp_path: Path
) -> None:
    league, _ = measured
    row = next(row for row in league.rows if row.key == (index, 1, 3))
    words = shlex.split(command(league.settings, league.entrants[index], 1, 3))

    assert main([*words[1:], "-o", str(tmp_path / "again.h5")]) == 0

    with Trace.open(tmp_path / "again.h5") as trace:
        summary = summarize(trace)
        assert bits_sha256([trace.bits(scale) for scale in range(trace.scales_done)]) == row.bits_sha256
    assert words[0] == "kvscope"
    assert summary.accounted_peak_bytes == row.numbers["accounted_peak_bytes"]
    assert summary.storage_peak_bytes == row.numbers["stored_peak_bytes"]


def test_a_finished_league_is_not_measured_again(measured: Measured, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "league.h5"
    path.write_bytes(measured[1].read_bytes())

    again = run_league(settings, path)

    assert again == measured[0]  # the clocks too


def test_a_league_goes_on_where_it_stopped(measured: Measured, settings: Settings, tmp_path: Path) -> None:
    league, path = measured[0], tmp_path / "league.h5"
    kept = tuple(row for row in league.rows if row.key != (2, 1, 3))
    file.save(path, replace(league, rows=kept))
    told: list[str] = []

    whole = run_league(settings, path, narrate=told.append)

    new = whole.rows[-1]
    old = next(row for row in league.rows if row.key == (2, 1, 3))
    assert whole.rows[:-1] == kept
    assert new.key == old.key
    assert new.bits_sha256 == old.bits_sha256
    assert new.kl_by_scale == old.kl_by_scale
    assert "5 of 6 rows were measured before; going on" in told


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": (4,)}, "seeds"),
        ({"prompts": ("a red circle at the top on a white background",)}, "prompts"),
        ({"targets": (119_808,)}, "targets"),
        ({"cfg": 1.0}, "cfg"),
    ],
)
def test_other_settings_are_never_mixed_in(
    measured: Measured, settings: Settings, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    path = tmp_path / "league.h5"
    path.write_bytes(measured[1].read_bytes())

    with pytest.raises(UsageError, match=rf"a league with other {named}; give the same options"):
        run_league(replace(settings, **change), path)

    assert path.read_bytes() == measured[1].read_bytes()


def test_what_is_no_league_is_not_replaced(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "notes.h5"
    path.write_text("notes")

    with pytest.raises(UsageError, match="no readable league"):
        run_league(settings, path)

    assert path.read_text() == "notes"


def test_two_processes_do_not_measure_into_one_file(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "league.h5"

    with file.locked(path), pytest.raises(OutputError, match="another process measures into it"):
        run_league(settings, path)

    assert not list(tmp_path.iterdir())


def test_what_a_worker_refuses_is_refused_in_its_words_and_exit_code(settings: Settings, tmp_path: Path) -> None:
    foreign = replace(settings, prompts=("a purple dodecahedron",))

    with pytest.raises(KVScopeError, match="unknown word 'purple'") as caught:
        run_league(foreign, tmp_path / "league.h5")

    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a_league_without_rows_holds_nobody_to_its_settings(
    measured: Measured, settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "league.h5"
    file.save(path, replace(measured[0], rows=()))

    assert file.begun(path, replace(settings, seeds=(4,)), overwrite=False) is None


def test_a_plan_that_is_no_longer_what_the_league_was_begun_with_is_refused(
    measured: Measured, settings: Settings, tmp_path: Path
) -> None:
    league, path = measured[0], tmp_path / "league.h5"
    full, half, *rest = league.entrants
    moved = (full, replace(half, peak_bytes=half.peak_bytes - 256), *rest)
    file.save(path, replace(league, entrants=moved, rows=league.rows[:1]))

    with pytest.raises(
        KVScopeError, match=r"heatkv at 0\.4\d+: plans 592,640 bytes, the league was begun with 592,384"
    ):
        run_league(settings, path)


def test_a_killed_league_leaves_a_whole_file_and_no_worker(tmp_path: Path) -> None:
    path = tmp_path / "league.h5"
    options = ["--policies", "heatkv", "--budgets", "10%", "--held-out", "40", "--jobs", "1", "-o", str(path)]
    command_line = [sys.executable, "-m", "kvscope", "league", "run", *options]
    mark = {"KVSCOPE_TEST": path.name + str(os.getpid())}
    process = subprocess.Popen(command_line, stderr=subprocess.DEVNULL, env=os.environ | mark)
    try:
        _wait_for(lambda: path.exists() and file.load(path).rows)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()

    assert 0 < len(file.load(path).rows) < 80
    _wait_for(lambda: not _workers_with(mark["KVSCOPE_TEST"]))


def test_ctrl_c_saves_every_row_that_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "league.h5"
    options = ["--policies", "heatkv", "--budgets", "10%", "--held-out", "40", "--jobs", "1", "-o", str(path)]
    command_line = [sys.executable, "-m", "kvscope", "league", "run", *options]
    process = subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True)
    _wait_for(path.exists)

    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)

    rows = len(file.load(path).rows)
    assert process.returncode == 130
    assert f"{rows} of 80 rows are safe in {path}; the same command goes on from there" in told


def _wait_for(happens: Callable[[], object], timeout_s: float = 90) -> None:
    until = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.05)


def _workers_with(mark: str) -> list[int]:
    """Living workers whose environment bears this mark."""
    found = []
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else []:
        try:
            environment = (entry / "environ").read_bytes() if entry.name.isdigit() else b""
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"kvscope.league.worker" in line and f"KVSCOPE_TEST={mark}".encode() in environment:
            found.append(int(entry.name))
    return found
