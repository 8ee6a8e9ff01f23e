"""The trace format: rules that HDF5 needs and does not enforce, and its documentation."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvscope.format import AXES, COMMIT, GPU_FIELDS, TABLES, TEXT_BYTES, Reason, Table, decode_text, text_field
from kvscope.schema import BEGIN_MARK, schema_text, with_generated_part

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "trace-format.md"


def test_the_documentation_is_what_the_code_generates() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")

    assert BEGIN_MARK in text
    assert with_generated_part(text) == text, "run: python -m kvscope.format docs/trace-format.md"


def test_the_examples_run_one_after_the_other(
    tiny_trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    shutil.copy(tiny_trace, tmp_path / "run.h5")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}

    for example in examples:
        exec(example, names)

    assert len(examples) == 3
    assert capsys.readouterr().out.startswith("done ")


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
