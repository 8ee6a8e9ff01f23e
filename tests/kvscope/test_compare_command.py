"""`kvscope compare` as a user meets it, on the traces of the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvscope.analysis import summarize
from kvscope.cli import EXIT_CODES, main
from kvscope.commands.compare import CONDITION_HOLDS
from kvscope.trace import Trace

TRACES = Path(__file__).resolve().parents[2] / "traces"
FULL, HALF, TENTH = (str(TRACES / f"infinity-tiny-{name}.h5") for name in ("full", "heatkv-50", "heatkv-10"))


def test_the_numbers_of_compare_are_those_of_stats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", FULL, TENTH, "--json", "--largest", "3"]) == 0

    printed = json.loads(capsys.readouterr().out)
    (one,) = printed["comparisons"]
    with Trace.open(FULL) as a, Trace.open(TENTH) as b:
        peaks = summarize(a).storage_peak_bytes, summarize(b).storage_peak_bytes
    assert (one["totals"]["storage_peak_bytes"]["a"], one["totals"]["storage_peak_bytes"]["b"]) == peaks
    assert one["verdict"].startswith("B: -90.0 % stored bytes, PSNR to A 27.7 dB")
    assert len(one["largest"]) == 3
    assert one["conditions_held"] == []
    assert [scale["query_scale"] for scale in one["scales"]] == list(range(7))


def test_text_is_at_most_eighty_columns_wide(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(TRACES.parent)

    assert main(["compare", *(f"traces/{Path(name).name}" for name in (FULL, TENTH))]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("stored peak" in line and "-90.0 %" in line and "measured" in line for line in lines)


def test_several_traces_are_compared_with_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", FULL, HALF, TENTH]) == 0

    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    changes = {row[0]: row[3] for row in rows if row and row[0] in ("B", "C") and row[-1] == "%"}
    assert changes == {"B": "-50.5", "C": "-90.0"}


def test_a_condition_that_holds_is_said_and_is_exit_code_nine(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["compare", FULL, TENTH, "--fail-if", "psnr<30", "--fail-if", "storage_peak_bytes>+2%"])

    printed = capsys.readouterr()
    assert code == CONDITION_HOLDS == 9
    assert code in EXIT_CODES
    assert "psnr<30 holds: 27.7 dB" in printed.err
    assert "storage_peak_bytes" not in printed.err
    assert "B: -90.0 % stored bytes" in printed.out


def test_a_condition_holds_if_it_does_for_one_of_several(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", FULL, HALF, TENTH, "--fail-if", "psnr<30", "--json"]) == CONDITION_HOLDS

    record = json.loads(capsys.readouterr().out)
    assert [one["conditions_held"] for one in record["comparisons"]] == [[], ["psnr<30"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fail-if", "peak>1"], "no field peak"),
        (["--largest", "-1"], "--largest -1; expected 0 or more"),
        (["--fail-if", "allocator_peak_bytes>1"], "allocator_peak_bytes is not known"),
    ],
)
def test_options_that_make_no_sense_are_one_line_and_exit_code_two(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", FULL, TENTH, *options]) == 2

    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""


def test_a_file_that_is_no_trace_is_exit_code_five(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.h5").write_text("no trace")

    assert main(["compare", FULL, str(tmp_path / "no.h5")]) == 5
    assert "no.h5" in capsys.readouterr().err
