"""docs/tuning.md says what is so: its grammar parses, and its schedules are the ones that its edits lead to."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from heatkv.bundled import bundled_calibration
from heatkv.config import model_config
from kvscope.draft import Draft, ground_of
from kvscope.edits import parse_edit
from kvscope.journal import REDO, UNDO, replayed
from kvscope.plan import load_orders
from kvscope.trace import Trace

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
GRAMMAR = PAGE.split("## The grammar of edits")[1].split("\n## ")[0]
LINES = [line for row in re.findall(r"^\| (`.+?`) \|", GRAMMAR, re.MULTILINE) for line in re.findall(r"`(.+?)`", row)]


@pytest.mark.parametrize("line", LINES)
def test_every_line_of_the_grammar_is_an_edit(line: str) -> None:
    assert line in (UNDO, REDO) or parse_edit(line) is not None


def test_the_grammar_has_every_verb() -> None:
    assert {line.split()[0] for line in LINES} == {
        *("budget", "sinks", "policy", "drop", "pin", "codec", "clear"),
        UNDO,
        REDO,
    }


def test_the_edits_lead_to_the_schedule_that_the_page_shows() -> None:
    script = (ROOT / "traces" / "edits.kvs").read_text(encoding="utf-8")
    with Trace.open(ROOT / "traces" / "infinity-tiny-full.h5") as trace:
        ground = ground_of(trace.header)
        orders = load_orders(bundled_calibration(model_config("infinity-tiny")), ground.config)
        draft = Draft.of(trace.schedule, replace(ground, orders=orders))
        schedule = replayed(draft, script.splitlines(), source="edits.kvs").draft.schedule

    assert script in PAGE
    assert f"schedule        {schedule.content_hash[:12]}, as asked for" in PAGE


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((.+?)\)", PAGE)

    assert len(pictures) == 3
    assert all((ROOT / "docs" / name).is_file() for name in pictures)
