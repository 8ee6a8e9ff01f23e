"""Spool: a trace for a network file system is recorded beside, followed through a link, and moved at the end."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

from kvscope.errors import OutputError
from kvscope.format import decode_text
from kvscope.recorder import Recorder
from kvscope.spool import NETWORK, Spool, file_system_of, is_network, spool_for
from kvscope.trace import Trace


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is, by the table of mounts, on NFS; the temporary folder is not."""
    for name in ("share", "local"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "local"))
    (tmp_path / "mounts").write_text(mounts(**{"/": "ext4", str(tmp_path / "share"): "nfs4"}))
    return tmp_path / "share"


def mounts(**kinds: str) -> str:
    """A table as the system writes it: mount point → type."""
    lines = [
        f"{index} 1 8:1 / {point.replace(' ', chr(92) + '040')} rw shared:1 - {kind} server:/x rw"
        for index, (point, kind) in enumerate(kinds.items(), 20)
    ]
    return "\n".join(lines) + "\n"


def recorder_for(folder: Path, fake_run: ModuleType, said: list[str] | None = None, **options: object) -> Recorder:
    narrate = [].append if said is None else said.append
    return Recorder(
        folder / "a.h5", fake_run.fake_job(), mounts=folder.parent / "mounts", narrate=narrate, **options  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kinds", "path", "kind"),
    [
        ({"/": "ext4", "/data": "nfs4"}, "/data/runs", "nfs4"),
        ({"/": "ext4", "/data": "nfs4"}, "/database", "ext4"),
        ({"/": "nfs", "/data": "xfs"}, "/data", "xfs"),
        ({"/": "ext4", "/my data": "cifs"}, "/my data/a", "cifs"),
        ({"/": "ext4", "/mnt/c": "9p", "/mnt/c/local": "tmpfs"}, "/mnt/c/x", "9p"),
        ({}, "/data", ""),
    ],
)
def test_a_folder_is_on_what_the_longest_mount_point_above_it_says(
    tmp_path: Path, kinds: dict[str, str], path: str, kind: str
) -> None:
    (tmp_path / "mounts").write_text(mounts(**kinds))

    assert file_system_of(Path(path), mounts=tmp_path / "mounts") == kind


def test_what_is_mounted_last_on_one_point_counts(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text(mounts(**{"/data": "autofs"}) + mounts(**{"/data": "nfs4"}))

    assert file_system_of(Path("/data/x"), mounts=tmp_path / "mounts") == "nfs4"


def test_without_a_table_of_mounts_nothing_is_known(tmp_path: Path) -> None:
    assert file_system_of(Path("/"), mounts=tmp_path / "none") == ""


@pytest.mark.parametrize("kind", [*sorted(NETWORK), "fuse.sshfs", "fuse.rclone"])
def test_network_file_systems_are_known(kind: str) -> None:
    assert is_network(kind)


@pytest.mark.parametrize("kind", ["", "ext4", "btrfs", "tmpfs", "overlay", "zfs", "lustre", "gpfs", "ceph", "fuse.x"])
def test_other_file_systems_are_recorded_to_directly(kind: str) -> None:
    assert not is_network(kind)


def test_this_machines_own_table_can_be_read(tmp_path: Path) -> None:
    spool = spool_for(tmp_path / "a.h5")

    assert spool is None or is_network(spool.kind)


def test_a_temporary_folder_that_is_no_better_is_not_used(folder: Path) -> None:
    (folder.parent / "mounts").write_text(mounts(**{"/": "nfs"}))

    assert spool_for(folder / "a.h5", mounts=folder.parent / "mounts") is None


def test_a_run_is_followed_through_a_link_and_moved_when_it_ends(folder: Path, fake_run: ModuleType) -> None:
    said: list[str] = []
    with recorder_for(folder, fake_run, said) as recorder:
        fake_run.run(recorder)
        assert recorder.file.spool is not None
        local = recorder.file.spool.path
        assert (folder / "a.h5").readlink() == local
        assert recorder.is_in_place
        with Trace.open(folder / "a.h5") as trace:
            assert trace.status == "live"

    assert (recorder.failed, recorder.problem) == (None, None)
    assert recorder.is_in_place
    assert not (folder / "a.h5").is_symlink()
    assert not local.parent.exists()
    assert [path.name for path in folder.iterdir()] == ["a.h5"]
    with Trace.open(folder / "a.h5") as trace:
        assert (trace.status, trace.scales_done) == ("done", 5)
        assert str(local) in decode_text(trace.log["text"][0])
    assert said == [f"{folder / 'a.h5'} is on nfs4: recording to {local}, to be moved there when the run ends"]


def test_a_viewer_that_followed_the_link_sees_the_end(folder: Path, fake_run: ModuleType) -> None:
    with recorder_for(folder, fake_run) as recorder:
        fake_run.run(recorder)
        trace = Trace.open(folder / "a.h5")

    assert trace.refresh()
    assert trace.status == "done"
    trace.close()


def test_without_links_the_trace_still_arrives(
    folder: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    with recorder_for(folder, fake_run) as recorder:
        fake_run.run(recorder)
        assert not (folder / "a.h5").exists()

    assert recorder.problem is None
    with Trace.open(folder / "a.h5") as trace:
        assert trace.status == "done"


def test_a_file_that_took_the_name_stays_and_the_trace_stays_on_the_spool(folder: Path, fake_run: ModuleType) -> None:
    with recorder_for(folder, fake_run) as recorder:
        fake_run.run(recorder)
        (folder / "a.h5").unlink()
        (folder / "a.h5").write_text("another")

    assert (folder / "a.h5").read_text() == "another"
    assert recorder.file.spool is not None
    local = recorder.file.spool.path
    assert recorder.problem == f"{folder / 'a.h5'}: the trace could not be moved there (File exists); it is {local}"
    with Trace.open(local) as trace:
        assert trace.status == "done"


def test_a_server_that_went_away_costs_nothing_but_the_move(
    folder: Path, fake_run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_spool: Spool, _content: bytes | None) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Spool, "deliver", gone)
    with recorder_for(folder, fake_run) as recorder:
        fake_run.run(recorder)

    assert recorder.problem is not None
    assert "Stale file handle" in recorder.problem
    with Trace.open(folder / "a.h5") as trace:  # through the link
        assert trace.status == "done"


def test_an_existing_trace_is_replaced_only_when_told_to(folder: Path, fake_run: ModuleType) -> None:
    (folder / "a.h5").write_text("old")
    with pytest.raises(OutputError, match="exists"):
        recorder_for(folder, fake_run)

    with recorder_for(folder, fake_run, overwrite=True) as recorder:
        fake_run.run(recorder)

    with Trace.open(folder / "a.h5") as trace:
        assert trace.status == "done"


def test_a_name_that_is_taken_before_the_run_starts_is_refused_and_nothing_is_left(
    folder: Path, fake_run: ModuleType
) -> None:
    recorder = recorder_for(folder, fake_run)
    (folder / "a.h5").write_text("another")

    with pytest.raises(OutputError, match="exists"), recorder:
        fake_run.run(recorder)

    assert (folder / "a.h5").read_text() == "another"
    assert list((folder.parent / "local").iterdir()) == []
