"""Writing what is on a screen to a file: the picture of it as SVG, its numbers as csv or JSON."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from kvscope.units import printable

if TYPE_CHECKING:
    from kvscope.tui.app import KVScopeApp
    from kvscope.tui.screens.base import Record, TraceScreen

FORMS = ("svg", "csv", "json")


def write_screen(app: KVScopeApp, screen: TraceScreen, form: str) -> str:
    """Write the screen in the current folder, under a name that is free; returns the name. Raises OSError."""
    # Deferred: it imports what is here.
    from kvscope.tui.shot import screen_svg

    view = app.view
    text = screen_svg(app) if form == "svg" else records_text(screen.records(view), form)
    stem = f"kvscope-{printable(Path(view.name).stem)}-{view.screen}" if view.name else f"kvscope-{view.screen}"
    return _write_new(stem, form, text)


def records_text(records: list[Record], form: str) -> str:
    """Records as csv with a line of titles, or as a JSON list."""
    if form == "json":
        return json.dumps(records, indent=2, allow_nan=False) + "\n"
    lines = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(lines, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return lines.getvalue()


def _write_new(stem: str, suffix: str, text: str) -> str:
    number = 1
    while True:
        path = Path(f"{stem}-{number}.{suffix}")
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            number += 1
        else:
            return path.name
