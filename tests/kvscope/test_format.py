"""The trace format: rules that HDF5 needs and does not enforce, and its documentation."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatkv.config import model_config
from kvscope.format import (
    AXES,
    COMMIT,
    GPU_FIELDS,
    TABLES,
    TEXT_BYTES,
    Reason,
    Table,
    decode_text,
    map_table,
    text_field,
)
from kvscope.job import MAP_KINDS, MapKind
from kvscope.schema import BEGIN_MARK, schema_text, with_generated_part

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "trace-format.md"


def test_the_documentation_is_what_the_code_generates() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")

    assert BEGIN_MARK in text
    assert with_generated_part(text) == text, "run: python -m kvscope.format docs/trace-format.md"


def test_the_examples_run_one_after_the_other(
    maps_trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    shutil.copy(maps_trace, tmp_path / "run.h5")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}

    for example in examples:
        exec(example, names)

    assert len(examples) == 4
    assert capsys.readouterr().out.startswith("done ")
    np.testing.assert_allclose(names["attention"], names["decoded"], rtol=1e-6)  # by hand, and by kvscope


def test_the_schema_names_every_table_and_column() -> None:
    text = schema_text()

    for table in TABLES.values():
        assert f"`{table.name}`" in text
        assert all(f"`{column.name}`" in text for column in table.columns)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_every_table_is_chunked_with_named_axes_units_and_plain_types(table: Table) -> None:
    assert len(table.chunk) == len(table.axes)
    assert all(axis in AXES for axis in table.axes)
    types = [column.field[1] for column in table.columns] or [table.dtype]
    # No bool, no float16, no variable-length text: each breaks some reader, or live reading.
    assert {np.dtype(one).kind for one in types} <= set("iufS")
    assert "f2" not in types
    assert all(column.unit and column.meaning for column in table.columns)
    assert table.columns or table.unit


@pytest.mark.parametrize("table", [one for one in TABLES.values() if one.compressed], ids=lambda table: table.name)
def test_compressed_tables_grow_by_whole_chunks(table: Table) -> None:
    if table.axes[0] == "query_scale":
        assert table.chunk[0] == 1
    else:
        assert table.name == "image"  # written once


@pytest.mark.parametrize("kind", MAP_KINDS)
@pytest.mark.parametrize("model", ["infinity-2b", "infinity-8b"])
def test_a_chunk_of_maps_is_small_enough_to_read_one_and_large_enough_to_write_all(kind: MapKind, model: str) -> None:
    config, table = model_config(model), map_table(kind)
    scales = config.schedule_for("1M").num_scales

    chunk_bytes = config.num_heads * scales * 16 * 16 * table.stored_dtype.itemsize

    assert table.chunk == (1, 1, 0, 0, 0, 0)
    assert 32 << 10 <= chunk_bytes <= 512 << 10


def test_commit_counts_every_table_that_grows() -> None:
    columns = {column.name for column in COMMIT.columns}

    for table in TABLES.values():
        if not table.fixed and table is not COMMIT:
            assert table.count_name in columns


def test_every_gpu_value_has_a_reason_beside_it() -> None:
    columns = {column.name for column in TABLES["gpu"].columns}

    assert {f"{name}_reason" for name, _, _ in GPU_FIELDS} < columns
    assert all(reason.text for reason in Reason)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_text_column_keeps_what_fits_and_cuts_between_characters(text: str) -> None:
    stored = decode_text(text_field(text))

    if len(text.encode()) <= TEXT_BYTES:
        assert stored == text
    else:
        assert stored.endswith("…")
        assert text.startswith(stored[:-1])
