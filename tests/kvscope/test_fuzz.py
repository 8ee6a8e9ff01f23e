"""Damaged and hostile traces, schedules, jobs and orders: no crash, no hang, no traceback.

`python -m tests.fuzz --cases 10000` tries many more.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.bases import make_bases

CASES = range(20_000, 20_150)


@pytest.mark.slow
def test_every_damaged_file_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    make_bases(tmp_path)

    results = list(fuzz(CASES, tmp_path))

    assert [result for result in results if result["outcome"] == "bug"] == []
    assert {result["outcome"] for result in results} == {"read", "refused"}
