"""The command line as a user meets it: main() in this process, and real processes where signals or terminals matter."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from heatkv.config import model_config
from heatkv.orders import HeadOrders
from heatkv.schedule import PruningSchedule
from kvscope.cli import COMMANDS, EXIT_CODES, main
from kvscope.trace import Trace

TINY_RUN = ["run", "--model", "infinity-tiny", "--random-weights", "--seed", "5", "--threads", "1"]
RUN_KEYS = {
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
}


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random head orders for infinity-tiny, in the official format."""
    config = model_config("infinity-tiny")
    random, slots = np.random.default_rng(0), config.num_layers * config.num_heads
    sources = config.schedule_for().num_scales - 1 - config.sink_scales
    ranked = np.array([random.permutation(slots) for _ in range(sources)], np.int32)
    made = HeadOrders(ranked, config.sink_scales, config.num_layers, config.num_heads, "random")
    record = {"metadata": made.shape_metadata(), "orders": made.to_lists()}
    path = tmp_path_factory.mktemp("orders") / "tiny.json"
    path.write_text(json.dumps(record))
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, orders: Path) -> Path:
    """A HeatKV run of infinity-tiny at 20 %, made through the CLI."""
    out = tmp_path_factory.mktemp("recorded") / "run.h5"
    assert main([*TINY_RUN, "--orders", str(orders), "--budget", "0.2", "-o", str(out)]) == 0
    return out


def test_run_json_is_one_object_with_the_documented_keys(
    tmp_path: Path, orders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.h5"

    code = main([*TINY_RUN, "--orders", str(orders), "--budget", "0.1", "--json", "-o", str(out)])

    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert code == 0
    assert summary.keys() >= RUN_KEYS
    assert summary["status"] == "done"
    assert summary["policy"] == "heatkv"
    assert "scale" in printed.err


def test_stats_prints_the_numbers_of_run(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(recorded), "--json"]) == 0

    summary = json.loads(capsys.readouterr().out)

    assert summary.keys() >= RUN_KEYS
    assert summary["accounted_peak_bytes"] <= summary["budget_bytes"] < summary["full_history_bytes"]
    assert summary["storage_peak_bytes"] <= 1.05 * summary["budget_bytes"]  # the index beside tokens of 256 bytes


def test_stats_text_shows_budget_accounted_and_stored(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(recorded)]) == 0

    text = capsys.readouterr().out

    for word in ("full history", "budget", "accounted peak", "stored peak", "measured", "last scale excluded"):
        assert word in text


def test_the_trace_holds_what_the_plan_says_at_every_step(recorded: Path) -> None:
    with Trace.open(recorded) as trace:
        schedule = trace.schedule
        np.testing.assert_array_equal(trace.kept_tokens, schedule.kept_tokens())
        np.testing.assert_array_equal(trace.read_tokens, schedule.read_tokens())
        held_bytes = schedule.tokens_held() * trace.header.bytes_per_token
        np.testing.assert_array_equal(trace.steps["accounted_bytes"], held_bytes)
        pool_bytes = trace.header.capacity_tokens * trace.header.bytes_per_token
        assert pool_bytes >= held_bytes.max()
        assert (trace.steps["storage_bytes"] >= pool_bytes).all()


def test_plan_and_run_agree_on_the_schedule(tmp_path: Path, orders: Path, recorded: Path) -> None:
    saved = tmp_path / "schedule.json"
    options = ["--orders", str(orders), "--budget", "0.2", "-o", str(saved)]

    assert main(["plan", "--model", "infinity-tiny", *options]) == 0

    with Trace.open(recorded) as trace:
        assert PruningSchedule.load(saved).content_hash == trace.schedule.content_hash


def test_a_saved_schedule_runs_like_the_options_it_was_planned_from(
    tmp_path: Path, orders: Path, recorded: Path
) -> None:
    saved, out = tmp_path / "schedule.json", tmp_path / "again.h5"
    main(["plan", "--model", "infinity-tiny", "--orders", str(orders), "--budget", "0.2", "-o", str(saved)])

    assert main([*TINY_RUN, "--schedule", str(saved), "-o", str(out)]) == 0

    with Trace.open(recorded) as first, Trace.open(out) as second:
        for scale in range(first.scales_done):
            np.testing.assert_array_equal(first.bits(scale), second.bits(scale))
        assert first.image is not None
        assert second.image is not None
        np.testing.assert_array_equal(first.image, second.image)


def test_plan_json_names_bytes_denominator_and_minimum(orders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "infinity-tiny", "--orders", str(orders), "--budget", "0.1", "--json"]) == 0

    plan = json.loads(capsys.readouterr().out)

    assert plan["planned_peak_bytes"] <= plan["budget_bytes"]
    assert plan["minimum_budget"] == pytest.approx(5 / 130)
    assert plan["tag"] == "estimated"
    assert "last scale excluded" in plan["denominator"]


def test_the_picture_is_written_as_png(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"

    assert main([*TINY_RUN, "-o", str(tmp_path / "run.h5"), "--image", str(picture)]) == 0

    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "tiers", "kind"),
    [
        ([], ("occupancy", "mass"), None),
        (["--no-attention-mass"], ("occupancy",), None),
        (["--attention-uncond", "--attention-map"], ("occupancy", "mass", "mass_uncond", "maps"), "uint8"),
        (["--no-attention-mass", "--attention-map", "float32", "--fast-capture"], ("occupancy", "maps"), "float32"),
    ],
)
def test_tiers_are_recorded_as_asked_for(
    tmp_path: Path, options: list[str], tiers: tuple[str, ...], kind: str | None
) -> None:
    assert main([*TINY_RUN, *options, "-o", str(tmp_path / "run.h5")]) == 0

    with Trace.open(tmp_path / "run.h5") as trace:
        assert trace.header.tiers == tiers
        assert trace.header.job.attention_map == kind
        assert trace.header.job.bit_exact is ("--fast-capture" not in options)
        assert np.isnan(trace.attention_mass).all() == ("mass" not in tiers)
        assert np.isnan(trace.attention_mass_uncond).all() == ("mass_uncond" not in tiers)
        assert np.isnan(trace.attention_map(6, 0, 0)).all() == ("maps" not in tiers)


def test_a_run_says_once_how_attention_is_computed_and_how_large_its_cache_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY_RUN, "-o", str(tmp_path / "run.h5")]) == 0

    lines = capsys.readouterr().err.splitlines()
    with Trace.open(tmp_path / "run.h5") as trace:
        assert lines.count(f"kvscope: attention: {trace.header.attention}") == 1
        assert sum(f"cache: room for {trace.header.capacity_tokens:,} head-tokens" in line for line in lines) == 1


def bad_files(folder: Path, orders: Path) -> dict[str, Path]:
    """Files that are wrong in one way each."""
    lists = json.loads(orders.read_text())["orders"]
    swapped = [[[head + 6, layer] for head, layer in one] for one in lists]
    duplicated = [[one[1], *one[1:]] for one in lists]
    contents = {
        "duplicates.json": json.dumps(duplicated),
        "swapped.json": json.dumps(swapped),
        "short.json": json.dumps([one[:-1] for one in lists]),
        "text.json": "not json at all",
        "text.h5": "not a trace",
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    with h5py.File(folder / "other.h5", "w") as file:
        file["x"] = [1, 2]
    (folder / "empty").mkdir()
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run", "--model", "infinity-3b"], 2, "infinity-2b"),
        (["run", "--policy", "heatvk", "--random-weights"], 2, "heatkv"),
        (["run", "--model", "infinity-2b", "--resolution", "1.0M"], 2, "1M"),
        (["run", "--resolution", "1M"], 2, "native"),
        (["run", "--model", "infinity-2b"], 2, "--random-weights"),
        (["run", "--model", "infinity-2b", "--weights", "{folder}/absent"], 4, "no such folder"),
        (["run", "--model", "infinity-2b", "--weights", "{folder}/empty"], 4, "transformer"),
        (["plan", "--model", "infinity-2b", "--budget", "0.2"], 2, "--orders"),
        (["run", "--random-weights", "--budget", "0.01", "--orders", "{orders}"], 3, "minimum"),
        (["run", "--random-weights", "--budget", "1.5", "--orders", "{orders}"], 2, "fraction"),
        (["run", "--random-weights", "--budget", "ten"], 2, "ten"),
        (["run", "--random-weights", "--budget", "0.2", "--orders", "{folder}/duplicates.json"], 2, "2 times"),
        (["run", "--random-weights", "--budget", "0.2", "--orders", "{folder}/swapped.json"], 2, "swapped.json"),
        (["run", "--random-weights", "--budget", "0.2", "--orders", "{folder}/short.json"], 2, "36"),
        (["run", "--random-weights", "--budget", "0.2", "--orders", "{folder}/text.json"], 2, "not JSON"),
        (["run", "--random-weights", "--budget", "0.2", "--orders", "{folder}/absent.json"], 2, "absent.json"),
        (["plan", "--model", "infinity-2b", "--budget", "0.2", "--orders", "{orders}"], 2, "tiny"),
        (["plan", "--aspect", "inf"], 2, "aspect"),
        (["plan", "--model", "infinity-2b", "--aspect", "1e9"], 2, "0.333 to 3"),
        (["plan", "--aspect", "2"], 2, "aspect of infinity-tiny"),
        (["plan", "--model", "infinity-2b", "--resolution", ""], 2, "0.06M"),
        (["plan", "--dtype", "float16"], 2, "bfloat16"),
        (["run", "--random-weights", "--weights", "{folder}/empty"], 2, "--weights"),
        (["run", "--random-weights", "--orders", "{orders}"], 2, "--budget"),
        (["run", "--schedule", "x.json", "--policy", "full", "--sink-scales", "2"], 2, "--sink-scales"),
        (["run", "--random-weights", "--seed", "18446744073709551616"], 2, "seed"),
        (["run", "--random-weights", "--seed=-1"], 2, "seed"),
        (["run", "--random-weights", "--attention-map", "float16"], 2, "uint8, float32"),
        (["run", "--random-weights", "--attention-uncond", "--cfg", "1"], 2, "--cfg 1"),
        (["run", "--random-weights", "--no-attention-mass", "--fast-capture"], 2, "--fast-capture"),
        (["run", "--random-weights", "--threads", "99999"], 2, "threads"),
        (["run", "--random-weights", "--cfg", "nan"], 2, "guidance"),
        (["run", "--random-weights", "--tau", "inf"], 2, "temperature"),
        (["run", "--random-weights", "--device", "cuda:7"], 2, "--device cpu"),
        (["run", "--random-weights", "--device", "mps"], 2, "cpu"),
        (["run", "--random-weights", "--prompt", "\udcff"], 2, "UTF-8"),
        (["run", "--random-weights", "-o", "{folder}/a.h5", "--image", "{folder}/a.h5"], 6, "two names"),
        (["run", "--random-weights", "--image", "{folder}/nowhere/a.png"], 6, "nowhere"),
        (["run", "--random-weights", "--image", "{folder}/empty"], 6, "empty"),
        (["calibrate", "--prompts", "{folder}/absent.txt", "-o", "{folder}/c.h5"], 2, "absent.txt"),
        (["run", "--random-weights", "--schedule", "{folder}/text.json"], 2, "not JSON"),
        (["run", "--random-weights", "--schedule", "x.json", "--budget", "0.2"], 2, "--schedule"),
        (["run", "--random-weights", "--aspect", "0"], 2, "aspect"),
        (["run", "--random-weights", "--dtype", "float8"], 2, "bfloat16"),
        (["run", "--random-weights", "--device", "tpu"], 2, "cpu"),
        (["run", "--random-weights", "--threads", "0"], 2, "threads"),
        (["run", "--random-weights", "--tau", "0"], 2, "temperature"),
        (["run", "--random-weights", "-o", "{folder}/text.h5"], 6, "exists"),
        (["run", "--random-weights", "-o", "{folder}/nowhere/run.h5"], 6, "nowhere"),
        (["run", "--random-weights", "--image", "{folder}/text.h5"], 6, "exists"),
        (["stats", "{folder}/text.h5"], 5, "not an HDF5 file"),
        (["stats", "{folder}/other.h5"], 5, "not a trace"),
        (["stats", "{folder}/absent.h5"], 5, "absent.h5"),
        (["stats", "{folder}"], 5, "`kvscope runs FOLDER` lists its traces"),
        (["stats", "n" * 300], 5, "File name too long"),
        (["calibrate", "--prompts", "n" * 300, "-o", "{folder}/c.h5"], 1, "File name too long"),
        (["run", "--weights", "n" * 300, "-o", "{folder}/c.h5"], 1, "File name too long"),
        (["open", "{folder}/other.h5"], 7, "terminal"),
    ],
)  # fmt: skip
def test_bad_input_gives_one_line_and_its_exit_code_and_leaves_nothing(
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    orders: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad_files(tmp_path, orders)
    before = {path.name for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)
    filled = [one.format(folder=tmp_path, orders=orders) for one in arguments]

    try:
        found = main(filled)
    except SystemExit as stopped:
        found = stopped.code

    printed = capsys.readouterr()
    complaint = printed.err.strip().splitlines()[-1]
    assert found == code
    assert code in EXIT_CODES
    assert complaint.startswith("kvscope: error: ")
    assert says in complaint
    assert printed.out == ""
    assert {path.name for path in tmp_path.rglob("*")} == before


def test_a_newer_format_is_refused_with_both_versions(
    tmp_path: Path, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = tmp_path / "newer.h5"
    newer.write_bytes(recorded.read_bytes())
    with h5py.File(newer, "r+") as file:
        file.attrs.modify("format_version", np.bytes_(b"9.0"))

    assert main(["stats", str(newer)]) == 5

    assert re.search(r"9\.0.*1", capsys.readouterr().err)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_closes_its_trace_as_cancelled(tmp_path: Path, stop: signal.Signals) -> None:
    out = tmp_path / "run.h5"
    slow = ["run", "--model", "infinity-125m", "--random-weights", "--resolution", "0.25M", "--threads", "1"]
    run = subprocess.Popen(
        [sys.executable, "-m", "kvscope", *slow, "-o", str(out)], stderr=subprocess.PIPE, text=True, env=_one_thread()
    )
    deadline = time.monotonic() + 120
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.05)

    run.send_signal(stop)
    _, said = run.communicate(timeout=60)

    assert run.returncode == 130
    assert said.splitlines()[-1] == "kvscope: stopped"
    with Trace.open(out) as trace:
        assert trace.status == "cancelled"
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "2>&1 >/dev/null | head -1"])
def test_narration_that_nobody_takes_ends_no_run(tmp_path: Path, stderr: str) -> None:
    out = tmp_path / "run.h5"

    subprocess.run(
        f"{sys.executable} -m kvscope {' '.join(TINY_RUN)} -o {out} {stderr}",
        shell=True,
        capture_output=True,
        check=False,
    )

    with Trace.open(out) as trace:
        assert trace.status == "done"


def test_stdout_stays_json_when_stderr_is_closed(tmp_path: Path, orders: Path) -> None:
    plan = f"{sys.executable} -m kvscope plan --orders {orders} --budget 0.2 -o {tmp_path / 's.json'} --json 2>&-"

    done = subprocess.run(plan, shell=True, stdout=subprocess.PIPE, check=True)

    assert json.loads(done.stdout)["budget"] == 0.2


def test_a_full_stdout_is_an_error_of_one_line(recorded: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m kvscope stats {recorded} > /dev/full",
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert done.returncode == 6
    assert done.stderr == "kvscope: error: stdout: cannot be written (No space left on device)\n"


def test_a_trace_moved_during_the_run_is_told(tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    slow = ["run", "--model", "infinity-125m", "--random-weights", "--resolution", "0.06M", "--threads", "1"]
    run = subprocess.Popen(
        [sys.executable, "-m", "kvscope", *slow, "-o", str(out)], stderr=subprocess.PIPE, text=True, env=_one_thread()
    )
    deadline = time.monotonic() + 120
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.05)

    out.rename(tmp_path / "moved.h5")
    _, said = run.communicate(timeout=120)

    assert run.returncode == 6
    assert said.splitlines()[-1].startswith("kvscope: error: ")
    assert "moved during the run" in said.splitlines()[-1]


def test_output_to_a_closed_pipe_is_no_error(recorded: Path) -> None:
    shown = subprocess.run(
        f"{sys.executable} -m kvscope stats {recorded} | head -c 1", shell=True, capture_output=True, check=False
    )

    assert b"Traceback" not in shown.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])

    assert stopped.value.code == 0
    assert COMMANDS[name].example in capsys.readouterr().out


def _one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_without_a_command_and_a_terminal_help_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "COMMAND" in said.err
