"""What is written: never over what is read or over another output, and nothing is left of a command that failed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvscope.cli import main
from kvscope.ledger import measure
from kvscope.trace import Trace

TRACES = Path(__file__).resolve().parents[2] / "traces"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a recorded run, and a plan that changes it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(TRACES / "infinity-tiny-full.h5", "full.h5")
    edits = ["--edit", "policy heatkv", "--edit", "budget 10%"]
    assert main(["plan", "--from", "full.h5", *edits, "--save-plan", "plan.json"]) == 0
    return tmp_path


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("apply plan.json -o full.h5 --overwrite", 6, "is the recorded run itself"),
        ("apply plan.json -o plan.json --overwrite", 6, "is also what is read"),
        ("apply plan.json --mode foo", 2, "expected one of free, forced"),
        ("apply plan.json --device cuda:9 -o new.h5", 2, "use --device cpu"),
        ("plan --budget 0.1 --save-plan new.json", 2, "give --from TRACE"),
        ("plan --from full.h5 --edit sinks --save-plan new.json", 2, "is no edit"),
        ("plan --from full.h5 --edit drop_s5 -o new.json --save-plan new.json", 6, "for --output and for --save-plan"),
        ("plan --from full.h5 --script full.h5 -o new.json", 2, "not text"),
        ("screen full.h5 --screen compare --with absent.h5 -o new.svg", 5, "absent.h5: no such file"),
        ("run --random-weights --keymap keys.toml -o new.h5", 2, "give --open too"),
        ("tune full.h5 --max-loss 0 --verify 0 -o new.json", 2, "nothing but the full history loses so little"),
        ("league run --policies full --held-out 1 -o .", 6, "is a folder"),
        ("capacity --model infinity-tiny --memory 1GiB --resolution 1M", 2, "unknown resolution of infinity-tiny"),
        ("ledger full.h5 --device cuda", 2, "says what --device would"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_the_folder_as_it_was(
    command: str, code: int, says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()

    try:
        found = main([word.replace("drop_s5", "drop s5") for word in command.split()])
    except SystemExit as stopped:
        found = stopped.code

    assert found == code
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith("kvscope: error: ")
    assert says in complaint
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_league_pages_have_a_name_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    league = str(TRACES / "leagues" / "infinity-tiny-fifth.h5")

    assert main(["league", "show", league, "--csv", "a.csv", "--html", "./a.csv", "--overwrite"]) == 6

    assert "named for --csv and for --html" in capsys.readouterr().err
    assert not (folder / "a.csv").exists()


def test_a_run_of_a_gpu_is_run_again_on_the_cpu(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = str(TRACES / "infinity-tiny-h100.h5")

    assert main(["replay", recorded, "--policy", "full", "--device", "cpu", "--threads", "1", "-o", "again.h5"]) == 0

    with Trace.open(folder / "again.h5") as again:
        assert again.header.device == "cpu"
        assert again.header.job.parent == recorded


def test_a_stopped_runs_ledger_predicts_as_far_as_it_came() -> None:
    with Trace.open(TRACES / "infinity-tiny-full.h5") as trace:
        whole = measure(trace).run.line("kept")
        stopped = measure(_Until(trace, 2)).run.line("kept")  # type: ignore[arg-type]  # a trace, but for its end

    assert whole.difference == 0
    assert stopped.difference == 0
    assert (stopped.predicted.num_bytes or 0) < (whole.predicted.num_bytes or 0) / 10


class _Until:
    """A trace of a run that stopped after some scales."""

    def __init__(self, trace: Trace, scales: int) -> None:
        self._trace, self.scales_done, self.status = trace, scales, "cancelled"

    def __getattr__(self, name: str) -> object:
        return getattr(self._trace, name)
