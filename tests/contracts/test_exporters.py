"""What every export of EXPORTERS promises; a new one is tested by being in the table, and by a reader here."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from heatkv.errors import UnknownNameError
from heatkv.schedule import PruningSchedule
from kvscope.analysis import Summary, summarize
from kvscope.errors import OutputError
from kvscope.export import EXPORTERS, FOLDERS, load_exporter, write_export
from kvscope.export.content import Content
from kvscope.recorder import Recorder
from kvscope.redact import REDACTED
from kvscope.trace import Trace
from kvscope.units import bytes_text, seconds_text

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "exports.md").read_text(encoding="utf-8")
STATES = ("empty", "live", "crashed", "failed", "done")
NUMBERS = ("accounted_peak_bytes", "storage_peak_bytes", "full_history_bytes", "budget_bytes", "seconds")

SECRETS = ("zebraquartz", "violetmoth", "mauvehost", "oliveuser", "tealfolder", "greyfile")
"""In the prompts, in paths, in the log, in the message, in the file's name."""


def fake_run() -> ModuleType:
    """tests/kvscope/fake_run.py, which no package holds."""
    if "fake_run" not in sys.modules:
        path = Path(__file__).parent.parent / "kvscope" / "fake_run.py"
        spec = importlib.util.spec_from_file_location("fake_run", path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["fake_run"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["fake_run"])
    return sys.modules["fake_run"]


@contextmanager
def trace_in(state: str, folder: Path) -> Iterator[Path]:
    """A trace in this state, full of SECRETS."""
    run, path = fake_run(), folder / "greyfile.h5"
    job = run.fake_job(
        negative_prompt="violetmoth",
        weights="/home/oliveuser/tealfolder/weights",
        orders="tealfolder/orders.json",
        schedule=r"C:\Users\oliveuser\tealfolder",
        parent="/tealfolder/parent.h5",
        attention_map="uint8",
    )
    object.__setattr__(job, "prompt", "a zebraquartz over a violetmoth")
    plan = run.fake_schedule()
    provenance = {"orders": "/home/oliveuser/tealfolder", "orders_sha256": "0" * 64, "nested": [{"by": "oliveuser"}]}
    schedule = PruningSchedule(plan.drop_step, plan.model, plan.scales, 1, plan.policy, plan.budget, provenance)
    recorder = Recorder(path, job, preview=run.fake_preview, control_socket="/run/user/oliveuser/tealfolder.sock")
    recorder.run_started(run.fake_start(schedule))
    recorder.log("info", "on mauvehost as oliveuser: zebraquartz from /home/oliveuser/tealfolder with spaces/x")
    scales = {"empty": 0, "done": 5}.get(state, 3)
    for scale in range(scales):
        run.run_scale(recorder, plan, scale)
    run.wait_for_scales(path, scales)
    if state == "crashed":
        live, path = path, folder / "copy-of-greyfile.h5"
        # A reader in the writer's own process sees a commit just before it is flushed to the file.
        run.wait_for(lambda: scales_in(shutil.copy(live, path)) == scales)
    elif state == "done":
        recorder.image_done(run.fake_image())
        recorder.finish()
    elif state == "failed":
        recorder.finish("failed", "OSError: mauvehost: cannot read /home/oliveuser/tealfolder for zebraquartz")
    yield path
    recorder.finish()


def scales_in(path: Path) -> int:
    with Trace.open(path) as trace:
        return trace.scales_done


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A trace in every state; the live one lives as long as the tests."""
    with ExitStack() as stack:
        yield {state: stack.enter_context(trace_in(state, tmp_path_factory.mktemp(state))) for state in STATES}


def export(path: Path, name: str, folder: Path, **options: bool) -> tuple[Path, Summary]:
    out = folder / f"export.{name}"
    with Trace.open(path) as trace:
        write_export(Content(trace, **options), name, out)
        return out, summarize(trace)


def csv_numbers(folder: Path) -> dict[str, float | None]:
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        found = {row["name"]: row["value"] for row in csv.DictReader(file)}
    return {name: float(found[name]) if found[name] else None for name in NUMBERS}


def json_numbers(path: Path) -> dict[str, float | None]:
    summary = json.loads(path.read_text())["summary"]
    return {name: summary[name] for name in NUMBERS}


def perfetto_numbers(path: Path) -> dict[str, float | None]:
    summary = json.loads(json.loads(path.read_text())["otherData"]["summary"])
    return {name: summary[name] for name in NUMBERS}


def netcdf_numbers(path: Path) -> dict[str, float | None]:
    with h5py.File(path) as file:
        found = {name: float(file[f"summary_{name}"][()]) for name in NUMBERS}
    return {name: None if np.isnan(value) else value for name, value in found.items()}


READERS: dict[str, Callable[[Path], dict[str, float | None]]] = {
    "csv": csv_numbers,
    "json": json_numbers,
    "netcdf": netcdf_numbers,
    "perfetto": perfetto_numbers,
}
"""How a test reads NUMBERS back; html has words, and a test of its own."""


def every_byte(out: Path) -> bytes:
    """All that an export holds, names and unpacked arrays included."""
    parts = [str(file.name).encode() + file.read_bytes() for file in ([out] if out.is_file() else out.iterdir())]
    if out.is_file() and h5py.is_hdf5(out):
        with h5py.File(out) as file:
            file.visititems(lambda name, dataset: parts.append(name.encode() + dataset[()].tobytes()))
            parts += [f"{key}{value}".encode() for key, value in file.attrs.items()]
    return b"".join(parts)


@pytest.mark.parametrize("name", EXPORTERS)
class TestEveryExporter:
    @pytest.mark.parametrize("state", STATES)
    def test_it_takes_a_trace_in_any_state_and_its_numbers_are_the_analysis_ones(
        self, name: str, state: str, traces: dict[str, Path], tmp_path: Path
    ) -> None:
        out, summary = export(traces[state], name, tmp_path)

        assert out.is_dir() == (name in FOLDERS)
        if name == "html":
            page = out.read_text()
            assert f"<strong>{summary.status}</strong>" in page
            if state != "empty":
                assert f">{bytes_text(summary.storage_peak_bytes)}<" in page
                assert f"of {seconds_text(summary.seconds)} from" in page
        else:
            assert READERS[name](out) == {number: getattr(summary, number) for number in NUMBERS}

    @pytest.mark.parametrize("state", STATES)
    def test_nothing_private_remains_in_its_bytes(
        self, name: str, state: str, traces: dict[str, Path], tmp_path: Path
    ) -> None:
        out, _ = export(traces[state], name, tmp_path)

        content = every_byte(out).lower()

        assert [secret for secret in SECRETS if secret.encode() in content] == []
        assert str(traces[state].parent).encode() not in content
        assert REDACTED.encode() in content

    def test_it_says_what_was_removed(self, name: str, traces: dict[str, Path], tmp_path: Path) -> None:
        out, _ = export(traces["failed"], name, tmp_path)

        content = every_byte(out)
        for words in (b"negative prompt", b"weights", b"control socket", b"pid", b"1 log line", b"message"):
            assert words in content

    def test_it_keeps_all_if_asked(self, name: str, traces: dict[str, Path], tmp_path: Path) -> None:
        out, _ = export(traces["failed"], name, tmp_path, redact=False)

        content = every_byte(out)
        assert REDACTED.encode() not in content
        assert all(secret.encode() in content for secret in ("zebraquartz", "violetmoth", "mauvehost", "tealfolder"))

    def test_it_replaces_nothing_unless_told_to(self, name: str, traces: dict[str, Path], tmp_path: Path) -> None:
        with Trace.open(traces["done"]) as trace:
            out = tmp_path / "there"
            write_export(Content(trace), name, out)
            before = every_byte(out)

            with pytest.raises(OutputError, match="exists"):
                write_export(Content(trace), name, out)
            write_export(Content(trace), name, out, overwrite=True)

        assert len(every_byte(out)) == len(before)
        assert [one.name for one in tmp_path.iterdir() if ".part" in one.name] == []

    def test_a_folder_that_is_missing_is_told(self, name: str, traces: dict[str, Path], tmp_path: Path) -> None:
        with Trace.open(traces["empty"]) as trace, pytest.raises(OutputError, match="does not exist"):
            write_export(Content(trace), name, tmp_path / "missing" / "out")

    def test_on_a_full_disk_it_leaves_nothing_and_says_so(
        self, name: str, traces: dict[str, Path], tmp_path: Path
    ) -> None:
        code = (
            "import resource, sys\n"
            "from kvscope.export import write_export\n"
            "from kvscope.export.content import Content\n"
            "from kvscope.trace import Trace\n"
            "with Trace.open(sys.argv[1]) as trace:\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "    write_export(Content(trace), sys.argv[2], __import__('pathlib').Path(sys.argv[3]))\n"
        )
        command = [sys.executable, "-c", code, str(traces["done"]), name, str(tmp_path / "out")]

        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

        assert done.returncode == 1
        assert "out: cannot be written (File too large); nothing was left behind" in done.stderr.splitlines()[-1]
        assert list(tmp_path.iterdir()) == []

    def test_it_is_documented_with_its_command(self, name: str) -> None:
        assert f"### {name}\n" in DOCUMENT
        assert f"| `{name}` |" in DOCUMENT
        assert re.search(rf"^kvscope export run\.h5 --format {name} -o ", DOCUMENT, re.MULTILINE)
        assert load_exporter(name).__doc__


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown export format 'netcdf4'; known, nearest first: netcdf, "):
        load_exporter("netcdf4")


def test_a_folder_keeps_what_else_is_in_it(traces: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")

    with Trace.open(traces["done"]) as trace:
        write_export(Content(trace), "csv", tmp_path / "out", overwrite=True)

    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "out" / "steps.csv").exists()


def test_a_file_where_a_folder_must_be_is_told(traces: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")

    with Trace.open(traces["empty"]) as trace, pytest.raises(OutputError, match="makes a folder"):
        write_export(Content(trace), "csv", tmp_path / "out", overwrite=True)
