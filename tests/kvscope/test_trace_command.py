"""`kvscope trace`: its verbs from the command line; text for people, JSON for programs, exit codes for scripts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import pytest

from kvscope.cli import main


@pytest.fixture
def broken_trace(tmp_path: Path, tiny_trace: Path) -> Path:
    """A readable trace that breaks one of its rules."""
    path = Path(shutil.copy(tiny_trace, tmp_path / "broken.h5"))
    with h5py.File(path, "r+") as file:
        file["bits"][0, 0, 0] = 7
    return path


def test_a_clean_trace_is_said_to_be(tiny_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "validate", str(tiny_trace)]) == 0

    assert capsys.readouterr().out == f"{tiny_trace}: clean (done, 5 of 5 scales)\n"


def test_every_finding_is_a_line_and_the_exit_code_is_8(
    broken_trace: Path, tiny_trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "validate", str(broken_trace), str(tiny_trace)]) == 8

    assert capsys.readouterr().out.splitlines() == [
        f"{broken_trace}: bits of scale 0: 7; expected 0 or 1",
        f"{tiny_trace}: clean (done, 5 of 5 scales)",
    ]


def test_a_file_that_is_no_trace_makes_it_5_and_the_others_are_checked(
    tmp_path: Path, broken_trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.h5").write_bytes(b"hello")

    assert main(["trace", "validate", str(tmp_path / "a.h5"), str(broken_trace)]) == 5

    lines = capsys.readouterr().out.splitlines()
    assert "not an HDF5 file" in lines[0]
    assert "expected 0 or 1" in lines[1]


def test_findings_are_json_if_asked(broken_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "validate", str(broken_trace), "--json"]) == 8

    assert json.loads(capsys.readouterr().out) == {
        "clean": False,
        "traces": [
            {
                "trace": str(broken_trace),
                "error": None,
                "reach": "done, 5 of 5 scales",
                "findings": [{"where": "bits of scale 0", "found": "7", "expected": "0 or 1"}],
            }
        ],
    }


def test_a_crashed_trace_is_recovered(tmp_path: Path, crashed_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "recover", str(crashed_trace), "-o", str(tmp_path / "new.h5")]) == 0

    assert capsys.readouterr().out.startswith(f"{tmp_path / 'new.h5'}: failed, 3 of 5 scales, ")
    assert main(["trace", "validate", str(tmp_path / "new.h5")]) == 0


def test_a_live_trace_has_a_snapshot(tmp_path: Path, live_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "snapshot", str(live_trace), "-o", str(tmp_path / "new.h5"), "--json"]) == 0

    made = json.loads(capsys.readouterr().out)
    assert (made["status"], made["scales_done"], made["lost"], made["findings"]) == ("cancelled", 3, [], [])
    assert made["path"] == str(tmp_path / "new.h5")


@pytest.mark.parametrize("verb", ["recover", "snapshot"])
def test_nothing_is_replaced_unless_asked(
    tmp_path: Path, tiny_trace: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new.h5").write_text("mine", encoding="utf-8")

    assert main(["trace", verb, str(tiny_trace), "-o", str(tmp_path / "new.h5")]) == 6
    assert "exists" in capsys.readouterr().err
    assert main(["trace", verb, str(tiny_trace), "-o", str(tmp_path / "new.h5"), "--overwrite"]) == 0


def test_what_is_recovered_of_a_broken_trace_says_that_it_is(
    tmp_path: Path, broken_trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "recover", str(broken_trace), "-o", str(tmp_path / "new.h5")]) == 8

    assert "not as it should be: bits of scale 0: 7; expected 0 or 1" in capsys.readouterr().out


def test_info_tells_the_header_the_tables_and_the_cost(tiny_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "info", str(tiny_trace)]) == 0

    text = capsys.readouterr().out
    for words in (
        "done, 5 of 5 scales",
        "a red circle — ünïcode",
        "fake custom",
        "kept_tokens",
        "gzip",
        "samples dropped",
    ):
        assert words in text


def test_info_is_json_if_asked(tiny_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "info", str(tiny_trace), "--json"]) == 0

    info = json.loads(capsys.readouterr().out)
    tables = {table["name"]: table for table in info["tables"]}
    assert (info["status"], info["scales_done"], info["model"]) == ("done", 5, "fake")
    assert tables["kept_tokens"]["shape"] == [5, 3, 2, 5]
    assert tables["kept_tokens"]["axes"] == ["query_scale", "layer", "head", "source_scale"]
    assert tables["kept_tokens"]["plain_bytes"] == 5 * 3 * 2 * 5 * 2
    assert info["file_bytes"] == tiny_trace.stat().st_size


@pytest.mark.parametrize(
    "arguments", [["info"], ["validate"], ["recover", "-o", "new.h5"], ["snapshot", "-o", "new.h5"]]
)
def test_a_file_that_is_not_there_is_an_error_of_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(["trace", *arguments, "missing.h5"]) == 5
    assert list(tmp_path.iterdir()) == []
