from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import pytest

from kvscope.arguments import check_outputs, fraction, number, whole
from kvscope.cli import main
from kvscope.errors import OutputError


def test_a_fraction_is_a_number_or_percent() -> None:
    assert fraction("0.2") == fraction("20%") == 0.2


@pytest.mark.parametrize(("kind", "text"), [(fraction, "abc"), (number, "three"), (number, "20%"), (whole, "3.5")])
def test_what_is_no_number_is_told_with_an_example(kind: type, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected one like"):
        kind(text)


def test_an_output_that_is_an_input_is_refused_by_any_name(tmp_path: Path) -> None:
    trace, link = tmp_path / "a.h5", tmp_path / "b.h5"
    trace.write_text("x")
    os.link(trace, link)

    for output in (trace, link):
        with pytest.raises(OutputError, match="--output is also what is read; choose another name"):
            check_outputs(argparse.Namespace(trace=trace, output=output))
    check_outputs(argparse.Namespace(trace=trace, output=tmp_path / "c.h5"))
    check_outputs(argparse.Namespace(trace=None, output=trace, image=tmp_path / "c.png"))


@pytest.mark.parametrize(
    "command",
    [
        "screen {0} --format svg -o {0} --overwrite",
        "tune {0} --target-bytes 300KiB --verify 0 -o {0} --overwrite",
        "replay {0} --schedule s.json -o {0} --overwrite",
        "export {0} --format json -o {0} --overwrite",
    ],
)
def test_no_command_overwrites_what_it_reads(
    command: str, tmp_path: Path, tiny_trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = Path(shutil.copy(tiny_trace, tmp_path / "a.h5"))
    before = trace.read_bytes()

    assert main(command.format(trace).split()) == 6
    assert trace.read_bytes() == before
    assert len(capsys.readouterr().err.splitlines()) == 1
