"""`kvscope export` and `kvscope runs` as commands."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from heatkv.errors import UnknownNameError
from kvscope.commands import export, runs
from kvscope.errors import OutputError, TraceError, UsageError


def run(command: ModuleType, *arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_export_names_its_files_on_stdout_and_what_it_removed_on_stderr(
    tiny_trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.html"

    assert run(export, tiny_trace, "--format", "html", "-o", out) == 0

    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert printed.err.startswith("kvscope: redacted: prompt, pid, ")
    assert "pictures are in it" in printed.err


def test_export_json_is_one_object(tiny_trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(export, tiny_trace, "--format", "csv", "-o", tmp_path / "run", "--json") == 0

    record = json.loads(capsys.readouterr().out)
    assert record["format"] == "csv"
    assert str(tmp_path / "run" / "steps.csv") in record["files"]
    assert "prompt" in record["redacted"]


def test_without_pictures_there_is_no_warning_of_them(
    tiny_trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(export, tiny_trace, "--format", "html", "-o", tmp_path / "run.html", "--no-image")

    assert "pictures" not in capsys.readouterr().err


def test_unredacted_is_said(tiny_trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(export, tiny_trace, "--format", "json", "-o", tmp_path / "run.json", "--no-redact")

    assert capsys.readouterr().err == "kvscope: not redacted: prompts, paths and log lines are in it\n"
    assert "a red circle" in (tmp_path / "run.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--format", "xml"), UnknownNameError),
        (("--format", "html", "--arrays"), UsageError),
    ],
)
def test_what_makes_no_sense_is_refused_before_reading(
    arguments: tuple[str, ...], error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error):
        run(export, tmp_path / "missing.h5", "-o", tmp_path / "out", *arguments)


def test_a_trace_is_never_the_output(tiny_trace: Path) -> None:
    before = tiny_trace.read_bytes()

    with pytest.raises(OutputError, match="is the trace itself"):
        run(export, tiny_trace, "--format", "json", "-o", tiny_trace, "--overwrite")

    assert tiny_trace.read_bytes() == before


def test_what_is_no_trace_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TraceError):
        run(export, tmp_path / "missing.h5", "--format", "json", "-o", tmp_path / "out")

    assert list(tmp_path.iterdir()) == []


def test_runs_prints_a_table_or_one_object(tiny_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(runs, tiny_trace.parent) == 0
    assert "tiny.h5" in capsys.readouterr().out

    assert run(runs, tiny_trace.parent, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in record["runs"]] == ["tiny.h5"]


@pytest.mark.parametrize("command", ["export", "runs"])
def test_a_command_loads_nothing_heavy_before_it_runs(command: str) -> None:
    code = (
        f"import sys, kvscope.commands.{command}\n"
        "print([name for name in ('numpy', 'h5py', 'torch', 'textual') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "[]\n"
