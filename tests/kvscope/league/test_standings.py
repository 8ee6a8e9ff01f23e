"""Means and intervals are of prompts; differences are paired; reports say all of it."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heatkv.config import model_config
from heatkv.errors import UnknownNameError
from kvscope.cli import main
from kvscope.league.chart import curves_svg
from kvscope.league.page import league_page
from kvscope.league.reference import CAVEATS, LABEL, reference_bytes
from kvscope.league.report import command, league_text, rows_csv
from kvscope.league.standings import EQUAL_DB, mean_over_prompts, quantile, standings
from kvscope.league.table import League, as_arrays, from_arrays

Measured = tuple[League, Path]


@pytest.mark.parametrize(("freedom", "exact"), [(3, 3.182), (9, 2.262), (29, 2.045), (99, 1.984)])
def test_students_quantile_is_near_the_tables(freedom: int, exact: float) -> None:
    assert quantile(freedom) == pytest.approx(exact, abs=0.01)


def test_a_mean_is_over_prompts_and_its_interval_counts_a_prompt_once() -> None:
    values = {(prompt, seed): float(prompt) for prompt in range(4) for seed in range(5)}

    mean = mean_over_prompts(values | {(9, 0): math.nan})

    assert mean is not None
    assert mean.value == 1.5
    assert mean.prompts == 4
    assert mean.half == pytest.approx(quantile(3) * np.std(range(4), ddof=1) / 2)
    assert mean_over_prompts({(0, 0): math.nan}) is None
    assert math.isnan(mean_over_prompts({(0, 0): 1.0}).half)  # type: ignore[union-attr]


def test_a_paired_difference_is_sharper_than_the_means(made_up: League) -> None:
    other = next(one for one in standings(made_up, against="heatkv") if one.entrant.policy == "other")

    assert other.differences["kl"].value == pytest.approx(0.01)
    assert other.differences["kl"].half < 1e-9 < other.means["kl"].half
    assert other.time_ratio == 2.0


def test_only_the_same_target_is_compared_and_an_unknown_policy_refused(made_up: League) -> None:
    table = standings(made_up, against="heatkv")

    assert {one.entrant.policy for one in table if one.differences} == {"other"}
    with pytest.raises(UnknownNameError, match="unknown policy of this league 'hack'"):
        standings(made_up, against="hack")


def test_equal_pictures_keep_the_mean_finite(made_up: League) -> None:
    full = standings(made_up)[0]

    assert full.means["psnr"].value == EQUAL_DB


def test_rows_survive_their_table(made_up: League) -> None:
    assert from_arrays(*as_arrays(made_up.rows, 7)) == made_up.rows


def test_the_table_tells_bytes_both_ways_and_what_cannot_be_met(measured: Measured) -> None:
    league, _ = measured

    text = league_text(league, standings(league), against=None)

    assert "1,198,080 bytes: bfloat16 keys and values of all scales but the last" in text
    assert re.search(r"585 KiB \(50\.0 %\) +heatkv +579 KiB .*1\.1 % below", text)
    assert re.search(r"23\.4 KiB \(2\.00 %\) +heatkv +45\.0 KiB +- .*cannot: minimum", text)
    assert "not measured: lpips=FILE" in text


def test_the_csv_has_each_row_with_its_command(measured: Measured) -> None:
    league, _ = measured

    *rows, unreachable = csv.DictReader(io.StringIO(rows_csv(league)))

    assert (unreachable["policy"], unreachable["remark"]) == ("heatkv", "cannot: minimum")
    assert len(rows) == len(league.rows)
    for row, kept in zip(rows, league.rows, strict=True):
        assert row["command"] == command(league.settings, league.entrants[kept.entrant], kept.prompt, kept.seed)
        assert float(row["kl [nat/bit]"]) == kept.numbers["kl"]
        assert row["lpips [1]"] == ""


def test_a_prompt_that_a_spreadsheet_would_run_is_only_shown(made_up: League) -> None:
    hostile = replace(made_up, settings=replace(made_up.settings, prompts=("=1+1", *made_up.settings.prompts[1:])))

    assert "'=1+1" in {row["prompt"] for row in csv.DictReader(io.StringIO(rows_csv(hostile)))}


def test_a_chart_tells_policies_apart_without_colour(made_up: League) -> None:
    drawn = ET.fromstring(curves_svg(made_up.settings, standings(made_up), "kl"))

    texts = [element.text or "" for element in drawn.iter() if element.tag.endswith("text")]
    marks = [element for element in drawn.iter() if any(child.tag.endswith("title") for child in element)][1:]
    shapes = {re.sub(r"^M\S+ [\d.]+", "", mark.attrib["d"]) for mark in marks}
    assert {"heatkv", "other"} <= set(texts)
    assert len(marks) == 4
    assert len(shapes) == 2
    assert texts.count(LABEL) == 1
    assert " ".join(texts).count(CAVEATS[2]) == 1


@pytest.mark.parametrize("measure", ["kl", "psnr", "all_right"])
def test_a_chart_of_nothing_says_so(made_up: League, measure: str) -> None:
    empty = replace(made_up, rows=())

    assert "nothing measured" in curves_svg(empty.settings, standings(empty), measure)


def test_the_reference_line_is_one_bit_a_coordinate_and_no_limit(made_up: League) -> None:
    settings = replace(made_up.settings, model="infinity-2b", resolution="1M")

    assert reference_bytes(settings) == 64 * 2**20
    assert model_config("infinity-2b").head_dim >= math.log2(settings.scales.tokens[-1])
    assert "limit" not in " ".join((LABEL, *CAVEATS))


def test_the_page_stands_alone_and_shows_foreign_text_as_text(made_up: League) -> None:
    hostile = replace(made_up, settings=replace(made_up.settings, prompts=("<script>", *made_up.settings.prompts[1:])))

    page = league_page(hostile, standings(hostile, against="heatkv"), against="heatkv")

    assert "<script>" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("<svg") == 2  # KL and PSNR
    assert "Against heatkv, prompt by prompt" in page
    assert "+0.0100" in page


def test_show_prints_json_and_writes_every_form(
    measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = {name: tmp_path / f"league.{name}" for name in ("csv", "html", "svg")}
    options = [word for name, path in outputs.items() for word in (f"--{name}", str(path))]

    assert main(["league", "show", str(measured[1]), "--json", "--against", "full", *options]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == found["rows_wanted"] == 6
    assert found["history_bytes"] == 1_198_080
    assert [one["is_reachable"] for one in found["standings"]] == [True, True, True, False]
    assert found["standings"][2]["means"]["kl"]["prompts"] == 2
    assert len(found["standings"][2]["kl_by_scale"]) == 7
    assert all(path.stat().st_size for path in outputs.values())


def test_show_refuses_a_trace(tiny_trace: Path) -> None:
    assert main(["league", "show", str(tiny_trace)]) == 5


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--held-out", "1", "--budgets", "lots"], 2, "--budgets 'lots'"),
        (["--held-out", "1"], 2, "no budgets; give --budgets"),
        (["--held-out", "0", "--budgets", "10%"], 2, "infinity-tiny alone has held-out captions"),
        (["--budgets", "10%"], 2, "either --prompts FILE or --held-out N"),
        (["--held-out", "1", "--budgets", "10%", "--jobs", "0"], 2, "--jobs 0; expected 1 to"),
        (["--held-out", "1", "--budgets", "10%", "--metric", "lpips=none.pt"], 2, "metric lpips reads weights"),
        (["--held-out", "1", "--budgets", "10%", "--metric", "fid=x"], 2, "unknown metric 'fid'"),
        (["--held-out", "1", "--budgets", "10%", "--against", "h2o"], 2, "unknown policy of this league 'h2o'"),
        (["--held-out", "1", "--budgets", "10%", "--measure", "fid"], 2, "unknown measure 'fid'"),
        (["--held-out", "1", "--budgets", "10%", "--seeds", "1", "1"], 2, "seeds are given twice"),
        (["--held-out", "1", "--budgets", "10%", "0.1"], 2, "targets are given twice: 119808 119808"),
        (["--held-out", "1", "--budgets", "10%", "--model", "infinity-2b"], 2, "infinity-tiny alone"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(
    options: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "league.h5"

    assert main(["league", "run", "--policies", "heatkv", *options, "-o", str(out)]) == code

    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
