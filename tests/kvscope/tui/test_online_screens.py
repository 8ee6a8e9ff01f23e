"""Screens of a trace whose policy chose single tokens during the run: true words and cells for what is kept in part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from textual.widgets._toast import Toast

from kvscope.job import Job
from kvscope.runner import run_job
from kvscope.trace import Trace
from kvscope.tui.cursor import Cursor
from kvscope.tui.editing import EditOptions
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.history import (
    NOBODY_LOOKED,
    Fate,
    history_of,
    lost_words,
    observed_words,
    planned_words,
    rule_words,
    size_words,
)
from kvscope.tui.metrics import CHOSEN, Cell, cell_text, volume_of, why
from kvscope.tui.screens import SCREENS
from kvscope.tui.shot import Look, shoot
from tests.kvscope.tui.conftest import Drive, Viewer

TRACES = Path(__file__).parents[3] / "traces"
TRACE = TRACES / "infinity-tiny-snapkv-10.h5"
SMALL = Look(width=80, height=24, plain=True, colours="none")
LARGE = Look(width=120, height=36, glyphs=True, colours="none")

BY_PLAN = ("kept to the end", "dropped after", "never kept", "as planned", "will be dropped")
"""What no screen may say of what an online policy chose."""


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    with Trace.open(TRACE) as trace:
        return take_snapshot(TRACE, trace, None)


@pytest.fixture(scope="module")
def partial(snapshot: Snapshot) -> Cursor:
    """A head-scale of which some tokens are kept after the last but one scale."""
    tokens = np.array(snapshot.schedule.scales.tokens)
    kept = snapshot.kept_tokens[5]
    layer, head, source = np.argwhere((kept > 0) & (kept < tokens))[0].tolist()
    return Cursor(query_scale=5, layer=layer, head=head, source_scale=source)


@pytest.mark.parametrize("screen", [name for name in SCREENS if name != "runs"])
@pytest.mark.parametrize("look", [SMALL, LARGE], ids=["80x24", "120x36"])
def test_no_screen_says_that_a_plan_drops_or_keeps(screen: str, look: Look) -> None:
    text = shoot(TRACE, "text", look, other=TRACES / "infinity-tiny-full.h5", screen=screen, place="q5 l3 h3 s5")

    assert not [words for words in BY_PLAN if words in text]


def test_every_head_scale_is_told_of_without_a_plan(snapshot: Snapshot) -> None:
    for layer, head, source in np.ndindex(snapshot.schedule.drop_step.shape):
        history = history_of(snapshot, layer, head, source)
        if history.fate is not Fate.CHOSEN:
            assert source in (0, 1, 6)
            continue
        words = [planned_words(history), observed_words(history), size_words(history), lost_words(history)]
        words += [why(snapshot, Cursor(scale, layer, head, source)) for scale in range(source, 7)]
        assert not [one for one in words if any(part in one for part in BY_PLAN)]
        assert not history.unplanned


def test_a_cell_says_how_many_of_its_tokens_are_there(snapshot: Snapshot, partial: Cursor) -> None:
    place = partial.query_scale, partial.layer, partial.head, partial.source_scale
    kept, tokens = int(snapshot.kept_tokens[place]), snapshot.schedule.scales.tokens[partial.source_scale]

    assert cell_text(snapshot, "kept", partial).startswith(f"{kept} of {tokens} tokens = ")
    assert cell_text(snapshot, "kept", partial, brief=True) == f"{kept} of {tokens} tokens"
    assert why(snapshot, partial) == f"chosen during the run by snapkv: {kept} of {tokens} tokens kept after scale 5"


def test_when_it_is_dropped_is_known_of_sinks_alone(snapshot: Snapshot, partial: Cursor) -> None:
    cells = volume_of(snapshot, "drop_step").cells[6, 0, 0].tolist()

    assert cells == [Cell.VALUE, Cell.VALUE, *[Cell.UNKNOWN] * 4, Cell.VALUE]
    assert cell_text(snapshot, "drop_step", partial) == CHOSEN


def test_the_story_names_policy_rows_and_what_is_kept_after_each_scale(snapshot: Snapshot, partial: Cursor) -> None:
    history = history_of(snapshot, partial.layer, partial.head, partial.source_scale)
    place = f"map q5 l{partial.layer} h{partial.head} s{partial.source_scale}"

    words, text = rule_words(snapshot, history), shoot(TRACE, "text", LARGE, place=place, presses=["enter"])

    assert words.startswith("Chosen by the policy snapkv:window=4,kernel=5 with a budget of 10.0 %: token by token")
    assert "other rows may keep other tokens" in words
    for moment in history.moments:
        if moment.kept_tokens:
            assert f"{moment.kept_tokens} of {history.tokens}" in text


def test_what_is_lost_of_a_part_is_not_guessed(snapshot: Snapshot) -> None:
    stories = [history_of(snapshot, *place) for place in np.ndindex(snapshot.schedule.drop_step.shape)]
    part = next(one for one in stories if one.fate is Fate.CHOSEN and 0 < one.moments[-1].kept_tokens < one.tokens)
    gone = next(one for one in stories if one.fate is Fate.CHOSEN and one.is_gone)

    assert lost_words(part).endswith(NOBODY_LOOKED)
    assert "the last to read the tokens left of it" in lost_words(gone)


def test_a_part_never_looks_whole_on_the_map(snapshot: Snapshot) -> None:
    tokens = np.array(snapshot.schedule.scales.tokens)

    for query, source in [(2, 1), (3, 2), (4, 3), (5, 5)]:
        text = shoot(TRACE, "text", LARGE, place=f"map q{query} l0 h0 s{source}")
        lines = [line[5:23] for line in text.splitlines()[4:10]]
        whole = snapshot.kept_tokens[query, :, :, source] == tokens[source]
        assert "█ whole" in text
        for layer in range(6):
            drawn = [lines[layer][3 * head + 1] for head in range(6)]
            assert [sign == "█" for sign in drawn] == whole[layer].tolist()


def test_the_schedule_is_a_table_of_what_each_layer_holds() -> None:
    text = shoot(TRACE, "text", LARGE, screen="schedule", place="q5 l3")
    lines = text.splitlines()

    assert "Which tokens stay is chosen during the run by snapkv, each row its own" in text
    assert sum(line.split()[1:] == ["6", "30", *["78"] * 5] for line in lines if line[1:2] == "L") == 6
    assert "drop step" not in text
    assert "head-scales dropped" not in text


def test_the_schedules_numbers_are_what_each_layer_holds(snapshot: Snapshot) -> None:
    records = json.loads(shoot(TRACE, "json", LARGE, screen="schedule"))

    assert len(records) == 7 * 6
    assert records[8] == {"query_scale": 1, "layer": 2, "tokens": 30, "bytes": 30 * snapshot.header.bytes_per_token}


REASON = "policy snapkv chooses single tokens during the run: no plan says which ones leave"


def test_the_plan_screen_says_why_there_is_no_plan() -> None:
    text = " ".join(shoot(TRACE, "text", LARGE, screen="plan").split())

    assert REASON in text
    assert "record a run with --policy full" in text


@pytest.mark.parametrize("edit", [None, EditOptions(TRACE)], ids=["read-only", "--edit"])
def test_a_key_that_edits_says_why_it_does_nothing(drive: Drive, edit: EditOptions | None) -> None:
    async def script(viewer: Viewer) -> None:
        await viewer.press("5", "d")
        await viewer.until(lambda: any(REASON in str(toast.render()) for toast in viewer.app.screen.query(Toast)))
        assert viewer.app.view.edit is None

    drive(TRACE, script, edit=edit)

    assert not TRACE.with_suffix(".kvs").exists()


def test_edits_of_a_script_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="snapkv chooses single tokens during the run"):
        shoot(TRACE, "text", LARGE, screen="plan", edits=("drop l1 h1 s4",))


def test_a_map_of_attention_says_how_many_of_its_cells_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "maps.h5"
    run_job(Job("a red circle", "infinity-tiny", "snapkv:window=4", budget=0.1, attention_map="uint8"), path)
    with Trace.open(path) as trace:
        read = trace.read_tokens[4, :, :, 3]
        layer, head = np.argwhere((read > 0) & (read < 16))[0].tolist()

    text = shoot(path, "text", Look(width=160, height=44, colours="none"), place=f"mass q4 l{layer} h{head} s3")

    assert f"a token · {16 - read[layer, head]} of 16 cells gone" in text
