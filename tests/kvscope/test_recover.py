"""Recovery and snapshots: all that was committed, nothing made up, the original as it was, the truth on its face."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import xarray

from kvscope import recover as recover_module
from kvscope.errors import OutputError, TraceError, TraceFormatError
from kvscope.format import AXES, decode_text
from kvscope.recorder import Recorder
from kvscope.recover import recover, snapshot
from kvscope.trace import Trace
from kvscope.validate import validate

ARRAYS = ("steps", "kept_tokens", "read_tokens", "attention_mass", "scale_summary", "gpu", "allocator", "cost")


@pytest.fixture
def crashed_maps(tmp_path: Path, fake_run: ModuleType) -> Path:
    """A crashed trace of 4 of 5 scales, with attention mass, maps and previews."""
    path = tmp_path / "whole.h5"
    job = fake_run.fake_job(attention_map="uint8")
    with Recorder(path, job, preview=fake_run.fake_preview) as recorder:
        fake_run.run(recorder, scales=4)
        fake_run.wait_for_scales(path, 4)
        return Path(shutil.copy(path, tmp_path / "crashed.h5"))


def assert_same(left: Path, right: Path) -> None:
    """Both traces hold the same, but for log and commits."""
    with Trace.open(left) as one, Trace.open(right) as other:
        assert one.scales_done == other.scales_done
        for name in ARRAYS:
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), (
                name
            )  # bytes: NaN is not equal to NaN
        for scale in range(one.scales_done):
            np.testing.assert_array_equal(one.bits(scale), other.bits(scale))
            np.testing.assert_array_equal(one.preview(scale), other.preview(scale))
            np.testing.assert_array_equal(one.attention_map(scale, 1, 0), other.attention_map(scale, 1, 0))
        assert one.header.run_id == other.header.run_id
        assert one.header.job == other.header.job


def without_chunk(path: Path, table: str, index: int) -> None:
    """Overwrite one stored chunk of a table with zeros."""
    with h5py.File(path, "r", swmr=True) as file:
        chunk = file[table].id.get_chunk_info(index)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)


def test_a_crashed_trace_is_recovered_whole_and_says_that_it_was(tmp_path: Path, crashed_maps: Path) -> None:
    made = recover(crashed_maps, tmp_path / "new.h5")

    assert (made.scales_done, made.num_scales, made.lost) == (4, 5, ())
    assert_same(crashed_maps, tmp_path / "new.h5")
    assert validate(tmp_path / "new.h5") == []
    with Trace.open(tmp_path / "new.h5") as trace:
        assert trace.status == "failed"
        assert trace.message.startswith("recovered from crashed.h5 by kvscope ")
        assert trace.message.endswith("the run, or its recording, ended without saying so after 4 of 5 scales")
        assert decode_text(trace.log["text"][-1]) == trace.message


def test_the_original_is_not_touched(tmp_path: Path, crashed_maps: Path) -> None:
    before = crashed_maps.read_bytes(), crashed_maps.stat().st_mtime_ns

    recover(crashed_maps, tmp_path / "new.h5")

    assert (crashed_maps.read_bytes(), crashed_maps.stat().st_mtime_ns) == before


def test_a_recovered_trace_opens_with_others_readers(tmp_path: Path, crashed_maps: Path) -> None:
    recover(crashed_maps, tmp_path / "new.h5")

    with h5py.File(tmp_path / "new.h5") as file:
        assert file["steps"].shape == (12,)
    with xarray.open_dataset(tmp_path / "new.h5", engine="h5netcdf") as dataset:
        assert dataset.kept_tokens.dims == ("query_scale", "layer", "head", "source_scale")
        assert dataset.sizes.keys() == AXES.keys()


def test_the_commits_of_the_run_are_kept_and_one_is_added(tmp_path: Path, crashed_maps: Path) -> None:
    made = recover(crashed_maps, tmp_path / "new.h5")

    with Trace.open(crashed_maps) as trace, Trace.open(tmp_path / "new.h5") as copy:
        assert made.commits == len(trace.commits)
        np.testing.assert_array_equal(copy.commits[:-1], trace.commits)
        assert copy.committed_ns == trace.committed_ns


def test_a_socket_that_is_gone_is_left_out(tmp_path: Path, fake_run: ModuleType) -> None:
    with Recorder(tmp_path / "a.h5", fake_run.fake_job(), control_socket="/run/a.sock") as recorder:
        fake_run.run(recorder)

    snapshot(tmp_path / "a.h5", tmp_path / "new.h5")

    with Trace.open(tmp_path / "new.h5") as trace:
        assert trace.header.control_socket is None


# Damage.


def test_a_trace_that_was_cut_short_ends_with_the_last_commit_that_is_whole(tmp_path: Path, tiny_trace: Path) -> None:
    content = tiny_trace.read_bytes()
    recovered = []
    for cut in range(1, 16):
        (tmp_path / "cut.h5").write_bytes(content[: len(content) * cut // 16])
        with contextlib.suppress(TraceFormatError):  # too little is left
            recovered.append(recover(tmp_path / "cut.h5", tmp_path / "new.h5", overwrite=True))
            assert recovered[-1].lost
            assert validate(tmp_path / "new.h5") == []

    assert all(made.scales_done == 5 or made.status == "failed" for made in recovered)


def test_a_crashed_trace_without_its_last_scale_keeps_the_others(tmp_path: Path, crashed_maps: Path) -> None:
    without_chunk(crashed_maps, "kept_tokens", 3)

    made = recover(crashed_maps, tmp_path / "new.h5")

    assert made.scales_done == 3
    assert made.lost[0].startswith("scales: all after the first 3")
    assert made.message.endswith("the file is damaged after 3 of 5 scales")
    assert validate(tmp_path / "new.h5") == []


def test_what_is_lost_of_other_tables_costs_no_scale_and_is_not_made_up(tmp_path: Path, crashed_maps: Path) -> None:
    without_chunk(crashed_maps, "preview", 1)

    made = recover(crashed_maps, tmp_path / "new.h5")

    assert made.scales_done == 4
    assert [line.partition(":")[0] for line in made.lost] == ["preview"]
    with Trace.open(tmp_path / "new.h5") as trace:
        assert not trace.preview(1).any()
        assert trace.preview(2).any()


def test_attention_that_a_disk_lost_is_found_by_validation(tmp_path: Path, crashed_maps: Path) -> None:
    without_chunk(crashed_maps, "attention_mass", 2)

    recover(crashed_maps, tmp_path / "new.h5")

    assert any("attention_mass" in finding.where for finding in validate(tmp_path / "new.h5"))


def test_a_picture_that_is_damaged_is_left_out_and_told(tmp_path: Path, tiny_trace: Path) -> None:
    damaged = Path(shutil.copy(tiny_trace, tmp_path / "damaged.h5"))
    without_chunk(damaged, "image", 0)

    made = recover(damaged, tmp_path / "new.h5")

    assert made.status == "done"
    assert [line.partition(":")[0] for line in made.lost] == ["image"]
    with Trace.open(tmp_path / "new.h5") as trace:
        assert trace.image is None
        assert trace.message.endswith("without image")
    assert validate(tmp_path / "new.h5") == []


def test_a_commit_that_was_not_written_is_no_commit(tmp_path: Path, crashed_maps: Path) -> None:
    # What a writer leaves that dies between lengthening the table and writing the row.
    made = recover(crashed_maps, tmp_path / "closed.h5")
    with h5py.File(tmp_path / "closed.h5", "r+") as file:
        file["commit"].resize((len(file["commit"]) + 1,))

    with Trace.open(tmp_path / "closed.h5") as trace:
        assert (trace.scales_done, trace.status) == (4, "failed")
    assert recover(tmp_path / "closed.h5", tmp_path / "again.h5").commits == made.commits + 1


def test_a_table_of_a_later_version_is_recovered_too(tmp_path: Path, tiny_trace: Path) -> None:
    newer = Path(shutil.copy(tiny_trace, tmp_path / "newer.h5"))
    with h5py.File(newer, "r+") as file:
        file["flow"] = np.arange(15, dtype="f4").reshape(5, 3)
        for index, axis in enumerate(("query_scale", "layer")):
            file["flow"].dims[index].attach_scale(file[axis])

    recover(newer, tmp_path / "new.h5")

    with xarray.open_dataset(tmp_path / "new.h5", engine="h5netcdf") as dataset:
        assert dataset.flow.dims == ("query_scale", "layer")
        assert dataset.flow.values.sum() == sum(range(15))


def test_what_is_beyond_recovery_is_one_line(tmp_path: Path, crashed_maps: Path) -> None:
    content = crashed_maps.read_bytes()
    for left in (b"hello", content[:60], content[:2000]):
        (tmp_path / "bad.h5").write_bytes(left)

        with pytest.raises(TraceError) as caught:
            recover(tmp_path / "bad.h5", tmp_path / "new.h5")

        assert "\n" not in str(caught.value)
        assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".part") == []
        assert not (tmp_path / "new.h5").exists()


# Outputs.


def test_an_output_that_exists_is_not_replaced(tmp_path: Path, crashed_maps: Path) -> None:
    (tmp_path / "new.h5").write_text("mine", encoding="utf-8")

    with pytest.raises(OutputError, match="exists"):
        recover(crashed_maps, tmp_path / "new.h5")

    assert (tmp_path / "new.h5").read_text(encoding="utf-8") == "mine"


def test_the_original_is_never_the_output(tmp_path: Path, crashed_maps: Path) -> None:
    (tmp_path / "link.h5").hardlink_to(crashed_maps)

    for path in (crashed_maps, tmp_path / "link.h5"):
        with pytest.raises(OutputError, match="never changed"):
            recover(crashed_maps, path, overwrite=True)


def test_a_disk_without_room_is_one_line_and_leaves_nothing(
    tmp_path: Path, crashed_maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover_module, "_ROOM_BYTES", 1 << 62)

    with pytest.raises(OutputError, match="nothing was left behind"):
        recover(crashed_maps, tmp_path / "new.h5")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["crashed.h5", "whole.h5"]


# Live.


def test_a_live_trace_is_not_recovered_but_copied(tmp_path: Path, live_trace: Path) -> None:
    with pytest.raises(TraceError, match="is being recorded; `kvscope trace snapshot`"):
        recover(live_trace, tmp_path / "new.h5")

    made = snapshot(live_trace, tmp_path / "new.h5")

    assert made.message == f"snapshot of live.h5 by {made.message.split(' by ')[1].split(',')[0]}, " + (
        "after 3 of 5 scales; the run went on"
    )
    assert_same(live_trace, tmp_path / "new.h5")
    assert validate(tmp_path / "new.h5") == []
    with Trace.open(tmp_path / "new.h5") as trace:
        assert trace.status == "cancelled"


def test_a_crashed_trace_has_no_snapshot(tmp_path: Path, crashed_maps: Path) -> None:
    with pytest.raises(TraceError, match="`kvscope trace recover`"):
        snapshot(crashed_maps, tmp_path / "new.h5")


def test_a_snapshot_of_a_trace_that_ended_is_a_copy(tmp_path: Path, tiny_trace: Path) -> None:
    made = snapshot(tiny_trace, tmp_path / "new.h5")

    assert (made.status, made.message, made.lost) == ("done", "", ())
    assert_same(tiny_trace, tmp_path / "new.h5")


SLOW_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import fake_run
from kvscope.recorder import Recorder
fake_run.STEP_S = 0.1
with Recorder(Path(sys.argv[2]), fake_run.fake_job(attention_map="uint8")) as recorder:
    fake_run.run(recorder)
"""


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[Path]:
    """A trace that another process records, a step every tenth of a second."""
    command = [sys.executable, "-c", SLOW_RUN, str(Path(__file__).parent), str(tmp_path / "live.h5")]
    with subprocess.Popen(command) as process:
        yield tmp_path / "live.h5"
        assert process.wait(60) == 0


def test_snapshots_of_another_processs_run_are_whole_and_do_not_disturb_it(
    tmp_path: Path, writing: Path, fake_run: ModuleType
) -> None:
    fake_run.wait_for(writing.exists)
    done = []
    while not done or done[-1].status != "done":
        made = snapshot(writing, tmp_path / f"{len(done)}.h5")
        assert validate(made.path) == []
        done.append(made)

    scales = [made.scales_done for made in done]
    assert scales == sorted(scales)
    assert len(set(scales)) > 2
    assert validate(writing) == []
