"""Opening: what a hostile trace could do is refused in one line, and nothing outside the file is ever opened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from kvscope.analysis import summarize
from kvscope.errors import KVScopeError, TraceFormatError
from kvscope.info import describe, info_text
from kvscope.opening import is_league
from kvscope.recover import recover
from kvscope.report import summary_text
from kvscope.trace import Trace
from kvscope.validate import validate

Edit = Callable[[h5py.File], None]
TABLES = ("commit", "drop_step", "steps", "kept_tokens", "image", "attention_map")


@pytest.fixture
def hostile(tmp_path: Path, tiny_trace: Path) -> Callable[[Edit], Path]:
    """Makes a copy of a trace, changed with bad intent."""

    def change(edit: Edit) -> Path:
        path = Path(shutil.copy(tiny_trace, tmp_path / "hostile.h5"))
        with h5py.File(path, "r+") as file:
            edit(file)
        return path

    return change


def replaced(table: str, make: Callable[[h5py.File], object]) -> Edit:
    """Put something else in the place of a table."""

    def edit(file: h5py.File) -> None:
        del file[table]
        made = make(file)
        if made is not None:
            file[table] = made

    return edit


def read_all(path: Path) -> None:
    with Trace.open(path) as trace:
        for name in ("steps", "kept_tokens", "read_tokens", "attention_mass", "gpu", "cost", "log", "image"):
            getattr(trace, name)
        trace.attention_map(0, 0, 0)


def assert_refused(path: Path, message: str) -> None:
    """In one line, by whatever reads it all; the rest neither crashes nor hangs."""
    with pytest.raises(TraceFormatError, match=message) as caught:
        read_all(path)
    assert "\n" not in str(caught.value)
    for attempt in (validate, lambda path: recover(path, path.with_name("new.h5"))):
        try:
            attempt(path)
        except KVScopeError as error:
            assert "\n" not in str(error)  # noqa: PT017 - that there is one is not what is tested


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_file_is_no_league_and_says_so_without_a_word_of_hdf5(
    tiny_trace: Path, tmp_path: Path, seed: int
) -> None:
    damaged, rng = bytearray(tiny_trace.read_bytes()), np.random.default_rng(seed)
    for place in rng.integers(0, len(damaged), 200):
        damaged[place] = rng.integers(256)
    path = tmp_path / "damaged.h5"
    path.write_bytes(damaged)

    assert not is_league(path)


@pytest.mark.parametrize("table", TABLES)
def test_a_link_to_another_file_is_not_followed(
    tmp_path: Path, tiny_trace: Path, hostile: Callable[[Edit], Path], table: str
) -> None:
    # Opening the pipe would wait for a writer for ever.
    os.mkfifo(tmp_path / "pipe")
    for target in (tiny_trace, tmp_path / "pipe", Path("/etc/passwd")):
        path = hostile(replaced(table, lambda _, target=target: h5py.ExternalLink(target, f"/{table}")))

        assert_refused(path, f"{table} is a link to somewhere else")


@pytest.mark.parametrize("target", ["/steps", "/nowhere", "/itself"])
def test_a_soft_link_is_not_followed(hostile: Callable[[Edit], Path], target: str) -> None:
    def edit(file: h5py.File) -> None:
        file["itself"] = h5py.SoftLink("/itself")
        replaced("cost", lambda _: h5py.SoftLink(target))(file)

    assert_refused(hostile(edit), "cost is a link to somewhere else")


@pytest.mark.parametrize("table", ["kept_tokens", "steps"])
def test_a_table_that_is_stored_in_another_file_is_not_read(hostile: Callable[[Edit], Path], table: str) -> None:
    def external(file: h5py.File) -> None:
        shape, dtype = file[table].shape, file[table].dtype
        del file[table]
        file.create_dataset(table, shape, dtype, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])

    assert_refused(hostile(external), f"{table} is stored in another file")


def test_a_table_that_is_a_view_of_another_file_is_not_read(hostile: Callable[[Edit], Path], tiny_trace: Path) -> None:
    def virtual(file: h5py.File) -> None:
        shape, dtype = file["kept_tokens"].shape, file["kept_tokens"].dtype
        del file["kept_tokens"]
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource(tiny_trace, "kept_tokens", shape)
        file.create_virtual_dataset("kept_tokens", layout)

    assert_refused(hostile(virtual), "kept_tokens is a view of other tables")


def test_what_would_take_more_memory_than_the_file_has_reason_to_is_not_read(hostile: Callable[[Edit], Path]) -> None:
    def grown(file: h5py.File) -> None:
        file["gpu"].resize((1 << 40,))
        rows = file["commit"][...]
        rows["gpu_rows"] = (1 << 32) - 1
        file["commit"][...] = rows

    assert_refused(hostile(grown), "gpu would take .* bytes of memory")


def test_chunks_that_unpack_to_more_than_memory_are_not_read(hostile: Callable[[Edit], Path]) -> None:
    def coarse(file: h5py.File) -> None:
        dtype = file["image"].dtype
        del file["image"]
        file.create_dataset("image", (24, 24, 3), dtype, chunks=(1 << 15, 1 << 15, 3), maxshape=(None, None, 3))

    assert_refused(hostile(coarse), "image has chunks of")


def test_a_table_that_needs_an_unknown_filter_says_so(hostile: Callable[[Edit], Path]) -> None:
    def filtered(file: h5py.File) -> None:
        dtype = file["image"].dtype
        del file["image"]
        options = {"chunks": (24, 24, 3), "compression": 32099, "allow_unknown_filter": True}
        file.create_dataset("image", (24, 24, 3), dtype, **options)

    assert_refused(hostile(filtered), "image is stored with the filter .*32099")


@pytest.mark.parametrize(
    "content",
    [np.zeros((5, 3)), np.zeros((5, 3, 2, 5), "f2"), np.zeros((5, 3, 2, 7), "u2"), np.zeros((5, 3, 2, 5), "S2")],
)
def test_a_table_of_another_kind_is_refused(hostile: Callable[[Edit], Path], content: np.ndarray) -> None:
    assert_refused(hostile(replaced("kept_tokens", lambda _: content)), "kept_tokens (is|has)")


def test_a_table_that_holds_references_is_refused(hostile: Callable[[Edit], Path]) -> None:
    def references(file: h5py.File) -> None:
        file.create_dataset("kept_tokens", (5, 3, 2, 5), h5py.vlen_dtype(np.uint16))

    assert_refused(hostile(replaced("kept_tokens", references)), "kept_tokens (holds|is)")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_layers", np.int64(-1)),
        ("num_heads", np.int64(1 << 40)),
        ("rows", np.int64(0)),
        ("created_ns", np.int64(-(1 << 63))),
        ("versions", np.bytes_(b"[1]")),
        ("job", np.bytes_(b"[" * 60_000)),
        ("scales", np.bytes_(b'{"sizes": [[1, 1], [1e9, 1e9]], "rope_grid": [1, 1], "resolution": "", "aspect": 1}')),
        ("schedule", np.bytes_(b"[]")),
        ("model", np.arange(3)),
        ("model", h5py.Empty("S1")),
    ],
)
def test_a_header_that_cannot_be_is_refused(hostile: Callable[[Edit], Path], key: str, value: object) -> None:
    path = hostile(lambda file: file.attrs.__setitem__(key, value))

    with pytest.raises(TraceFormatError, match=r"hostile\.h5: damaged") as caught:
        Trace.open(path)
    assert "\n" not in str(caught.value)


def test_references_between_tables_and_axes_are_not_trusted(hostile: Callable[[Edit], Path]) -> None:
    # HDF5 crashes if it is asked for the dimension scales of such a table.
    def edit(file: h5py.File) -> None:
        for name in ("kept_tokens", "layer"):
            for key in ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS"):
                if key in file[name].attrs:
                    del file[name].attrs[key]
                    file[name].attrs[key] = np.arange(4)

    findings = {finding.where for finding in validate(hostile(edit))}

    assert findings == {"axis layer", "table kept_tokens"} | {where for where in findings if "table" in where}


def test_texts_of_a_trace_cannot_steer_the_terminal(hostile: Callable[[Edit], Path]) -> None:
    evil = b"\x1b[2J\x1b]0;owned\x07\r\n\xe2\x80\xae"

    def edit(file: h5py.File) -> None:
        for key in ("model", "device", "run_id", "attention", "gpu_unavailable"):
            file.attrs[key] = np.bytes_(evil)
        rows = file["commit"][...]
        rows["status"][-1] = 2
        rows["message"][-1] = np.frombuffer(evil.ljust(240, b"\0"), "S1")
        file["commit"][...] = rows

    path = hostile(edit)
    with Trace.open(path) as trace:
        texts = [info_text(describe(trace)), summary_text(summarize(trace))]

    for text in texts:
        assert "owned" in text
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)
