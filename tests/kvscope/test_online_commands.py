"""Commands on policies that choose during the run: plan, ledger, capacity, replay, compare; and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heatkv.schedule import PruningSchedule
from kvscope import cli
from kvscope.trace import Trace
from kvscope.validate import validate

TRACES = Path(__file__).parents[2] / "traces"
FULL, CHOSEN = TRACES / "infinity-tiny-full.h5", TRACES / "infinity-tiny-snapkv-10.h5"
SNAPKV = ("--policy", "snapkv:window=4", "--sink-scales", "2", "--budget", "0.1")

Told = Callable[..., Any]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Runs a command that succeeds and gives its JSON object."""

    def run(*arguments: object) -> Any:
        code = cli.main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def text(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that succeeds and gives what it prints, on one line."""

    def run(*arguments: object) -> str:
        assert cli.main(list(map(str, arguments))) == 0
        return " ".join(capsys.readouterr().out.split())

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that is refused, and gives its one line."""

    def run(*arguments: object) -> str:
        assert cli.main(list(map(str, arguments))) != 0
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kvscope: error: ")]
        assert len(lines) == 1
        return lines[0]

    return run


class TestBeforeTheRun:
    def test_a_plan_says_what_each_layer_holds_instead_of_what_drops(self, told: Told) -> None:
        plan = told("plan", *SNAPKV)

        assert plan["online"]
        assert plan["head_scales_dropped"] is None
        assert [sum(layers) for layers in plan["capacity_tokens"]] == [36, 180, *[468] * 5]
        assert plan["planned_peak_tokens"] == 468

    def test_a_plan_in_words_has_no_head_scales_that_leave(self, text: Callable[..., str]) -> None:
        words = text("plan", *SNAPKV)

        assert "which tokens stay is chosen during the run by snapkv; how many is planned:" in words
        assert "after scale 1: 30 head-tokens a layer, 180 head-tokens in all" in words
        assert "prunable" not in words

    def test_the_ledger_predicts_to_the_byte_what_the_run_measured(self, told: Told) -> None:
        predicted, measured = told("ledger", *SNAPKV), told("ledger", CHOSEN)

        for before, after in zip(_lines(predicted), _lines(measured), strict=True):
            for name in ("kept", "capacity", "stored"):
                assert before[name]["predicted"]["num_bytes"] == after[name]["measured"]["num_bytes"]

    def test_capacity_counts_the_index_of_an_online_policy(self, told: Told) -> None:
        common = ("capacity", "--memory", "1GiB", "--model", "infinity-tiny", "--budget", "0.1", "--device", "cpu")
        planned, online = (
            told(*common, *policy)["cells"][0]["predicted"] for policy in ((), ("--policy", "snapkv:window=4"))
        )

        assert planned["cache_bytes"] == 468 * (planned["images"] * 256 + 4)
        assert online["cache_bytes"] == 468 * (online["images"] * (256 + 2 * 2) + 4)


class TestReplay:
    def test_forced_under_an_online_policy_measures_kl_and_every_heads_error(self, told: Told, tmp_path: Path) -> None:
        made = told("replay", FULL, *SNAPKV, "--mode", "forced", "-o", tmp_path / "forced.h5", "--threads", 1)

        assert made["as_planned"]
        assert made["steps_as_estimated"] == made["steps_compared"] == 42
        assert made["lost"] is None
        assert made["why_no_lost"] == "snapkv chose during the run which tokens stay"
        assert 0 < made["kl"] < 1
        assert all(0 < error < 1 for error in made["attention_error_by_layer"])
        assert validate(tmp_path / "forced.h5") == []

    def test_a_codec_is_the_replay_s_own(self, told: Told, tmp_path: Path) -> None:
        made = tmp_path / "int4.h5"
        told("replay", FULL, *SNAPKV, "--kv-codec", "int4", "--mode", "free", "-o", made, "--threads", 1)
        told("replay", made, *SNAPKV, "--mode", "free", "-o", tmp_path / "plain.h5", "--threads", 1)

        with Trace.open(made) as coded, Trace.open(tmp_path / "plain.h5") as plain:
            assert coded.schedule.codecs == ("int4",)
            assert coded.schedule.peak_tokens > plain.schedule.peak_tokens
            assert plain.schedule.codec is None
            assert not validate(coded.path)

    def test_free_gives_the_image_that_the_policy_gives(self, told: Told, tmp_path: Path) -> None:
        told("replay", FULL, *SNAPKV, "--mode", "free", "-o", tmp_path / "free.h5", "--threads", 1)

        with Trace.open(tmp_path / "free.h5") as free, Trace.open(CHOSEN) as before:
            assert free.schedule == before.schedule
            assert free.header.parent_run_id is not None

    def test_a_run_of_an_online_policy_is_a_parent_too(self, told: Told, tmp_path: Path) -> None:
        made = told("replay", CHOSEN, "--policy", "full", "-o", tmp_path / "full.h5", "--threads", 1)

        assert made["kl"] > 0
        assert made["lost"] is None

    def test_something_to_replay_under_must_be_given_once(self, refused: Callable[..., str], tmp_path: Path) -> None:
        assert "--schedule FILE, or --policy P" in refused("replay", FULL)
        assert "give one or the other" in refused("replay", FULL, "--schedule", tmp_path / "s.json", *SNAPKV)


class TestWhatNeedsAPlan:
    @pytest.mark.parametrize(
        "arguments",
        [
            ("plan", "--from", CHOSEN, "--edit", "drop l1 h1 s4"),
            ("tune", CHOSEN, "--max-loss", "0.1"),
            ("fidelity", CHOSEN, CHOSEN, "-o", "x.json"),
        ],
        ids=["edit", "tune", "fidelity"],
    )
    def test_is_refused_with_what_to_do(self, refused: Callable[..., str], arguments: tuple[object, ...]) -> None:
        words = refused(*arguments)

        assert "snapkv" in words
        assert "full" in words

    def test_a_saved_plan_is_no_schedule_to_obey_nor_orders(self, refused: Callable[..., str], tmp_path: Path) -> None:
        path = tmp_path / "plan.json"
        assert cli.main(["plan", *SNAPKV, "-o", str(path), "--json"]) == 0

        assert PruningSchedule.load(path).peak_tokens == 468
        assert "give --policy snapkv" in refused("replay", FULL, "--schedule", path)
        assert "no orders" in refused("plan", *SNAPKV, "--official", tmp_path / "official")


def test_a_comparison_says_whose_tokens_are_counted(text: Callable[..., str]) -> None:
    words = text("compare", FULL, CHOSEN)

    assert "note: B: snapkv chose single tokens during the run" in words
    assert "-89.8 % stored bytes" in words


def test_stats_say_that_tokens_were_chosen(text: Callable[..., str]) -> None:
    assert "snapkv chose single tokens during the run; kept and read tokens are counted in the first row" in text(
        "stats", CHOSEN
    )
    assert "chose" not in text("stats", FULL)


def test_head_scales_in_csv_have_a_planned_step_only_where_there_is_a_plan(tmp_path: Path) -> None:
    assert cli.main(["export", str(CHOSEN), "--format", "csv", "-o", str(tmp_path / "csv")]) == 0

    rows = (tmp_path / "csv" / "head_scales.csv").read_text().splitlines()
    steps = {int(row.split(",")[3]): row.split(",")[4] for row in rows[1:]}
    assert steps == {0: "41", 1: "41", 2: "", 3: "", 4: "", 5: "", 6: "41"}


def test_a_report_says_that_tokens_were_chosen(tmp_path: Path) -> None:
    assert cli.main(["export", str(CHOSEN), "--format", "html", "-o", str(tmp_path / "a.html")]) == 0

    page = (tmp_path / "a.html").read_text()
    assert "Which tokens stay was chosen during the run by snapkv" in page
    assert "heads keep some of it" in page


def _lines(ledger: Any) -> list[dict[str, Any]]:
    """Of the run and of each scale, line by its key."""
    return [{line["key"]: line for line in sheet["lines"]} for sheet in (ledger["run"], *ledger["scales"])]
