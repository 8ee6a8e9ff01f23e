"""Exports of traces, made in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvscope.export import write_export
from kvscope.export.content import Content
from kvscope.trace import Trace

Export = Callable[..., Path]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """`export(trace, format, redact=…, images=…, arrays=…)`: the path of the export."""

    def made(trace_path: Path, name: str, **options: bool) -> Path:
        out = tmp_path / f"export.{name}"
        with Trace.open(trace_path) as trace:
            write_export(Content(trace, **options), name, out)
        return out

    return made
