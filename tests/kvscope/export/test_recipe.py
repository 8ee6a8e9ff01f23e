"""The recipe of docs/exports.md, run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvscope.export import write_export
from kvscope.export.content import Content
from kvscope.trace import Trace

ROOT = Path(__file__).resolve().parents[3]
CHECKS = """
assert runs.kept_tokens.dims == ("run", "query_scale", "layer", "head", "source_scale"), runs.kept_tokens.dims
assert runs.sizes["run"] == 3
assert sorted(runs.budget.values) == [0.1, 0.2, 0.5]
assert list(by_budget.index) == [0.1, 0.2, 0.5]
assert by_budget.is_monotonic_increasing
"""


def recipe() -> str:
    document = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    return block


def run(code: str, folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", code + CHECKS]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_recipe_opens_the_traces_of_this_repository_as_one_dataset() -> None:
    run(recipe(), ROOT)


def test_it_opens_redacted_exports_as_well(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    for path in (ROOT / "traces").glob("*-heatkv-*.h5"):
        with Trace.open(path) as trace:
            write_export(Content(trace), "netcdf", tmp_path / "traces" / f"{path.stem}.nc")
    code = recipe()
    assert '"*-heatkv-*.h5"))  # or "*.nc"' in code

    run(code.replace('"*-heatkv-*.h5"', '"*.nc"'), tmp_path)


@pytest.mark.parametrize("name", ["kept_tokens", "attention_mass"])
def test_the_recipe_uses_names_that_both_have(name: str) -> None:
    assert name in recipe()
