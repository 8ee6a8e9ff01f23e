"""The folder of tables."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from kvscope.export.values import harmless
from kvscope.format import TABLES
from kvscope.trace import Trace


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_titles_carry_the_units_of_the_trace_format(tiny_trace: Path, export: Callable[..., Path]) -> None:
    folder = export(tiny_trace, "csv")

    first = (folder / "steps.csv").read_text().partition("\n")[0].split(",")
    assert first[:3] == ["query_scale", "layer", "begin_ns [ns]"]
    assert len(first) == len(TABLES["steps"].columns)


def test_rows_of_steps_are_those_of_the_trace(tiny_trace: Path, export: Callable[..., Path]) -> None:
    rows = rows_of(export(tiny_trace, "csv") / "steps.csv")

    with Trace.open(tiny_trace) as trace:
        assert [int(row["storage_bytes [bytes]"]) for row in rows] == trace.steps["storage_bytes"].tolist()
    assert {row["device_ns [ns]"] for row in rows} == {""}  # not measured


def test_head_scales_hold_every_written_cell_of_the_arrays(tiny_trace: Path, export: Callable[..., Path]) -> None:
    rows = rows_of(export(tiny_trace, "csv") / "head_scales.csv")

    with Trace.open(tiny_trace) as trace:
        kept, mass = trace.kept_tokens, trace.attention_mass
    assert len(rows) == 3 * 2 * (1 + 2 + 3 + 4 + 5)
    assert sum(int(row["kept_tokens [tokens]"]) for row in rows) == kept.sum()
    one = next(row for row in rows if [row[axis] for axis in TABLES["kept_tokens"].axes] == ["3", "1", "0", "1"])
    assert float(one["attention_mass"]) == pytest.approx(float(mass[3, 1, 0, 1]), rel=1e-6)
    assert one["attention_mass_uncond"] == ""


def test_the_summary_says_how_each_number_is_known(tiny_trace: Path, export: Callable[..., Path]) -> None:
    rows = {row["name"]: row for row in rows_of(export(tiny_trace, "csv") / "summary.csv")}

    assert rows["budget_bytes"]["tag"] == "defined"
    assert (rows["seconds"]["tag"], rows["seconds"]["unit"]) == ("measured", "s")
    assert rows["recorder.file_bytes"]["unit"] == "bytes"


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@x", "\tx"])
def test_a_text_cannot_be_a_formula(text: str) -> None:
    assert harmless(text) == f"'{text}"
    assert harmless(-3) == -3
