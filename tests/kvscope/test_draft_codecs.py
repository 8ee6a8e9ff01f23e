"""Codecs in a draft: chosen by hand within the pins, or by the knapsack; always within the budget in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heatkv.bundled import bundled_calibration
from heatkv.codecs import CODECS
from heatkv.schedule import PruningSchedule
from kvscope.draft import Draft, Ground, ground_of, measured_by
from kvscope.errors import UsageError
from kvscope.estimate import estimate
from kvscope.journal import History, replayed
from kvscope.trace import Trace
from kvscope.tui.lanes import CODEC_LETTERS, Change, changes, fate_words

TRACES = Path(__file__).parents[2] / "traces"


@pytest.fixture(scope="module")
def trace() -> Iterator[Trace]:
    with Trace.open(TRACES / "infinity-tiny-full.h5") as opened:
        yield opened


@pytest.fixture(scope="module")
def ground(trace: Trace) -> Ground:
    return ground_of(trace.header, trace.attention_mass)


@pytest.fixture
def start(trace: Trace, ground: Ground) -> Draft:
    return Draft.of(trace.schedule, ground)


def edited(start: Draft, *lines: str) -> History:
    return replayed(start, lines, source="test")


def allowed(draft: Draft) -> int:
    assert draft.limit_tokens is not None
    return draft.limit_tokens * draft.ground.bytes_per_token


def test_what_is_meant_is_stored_so_and_nothing_else(start: Draft) -> None:
    schedule = edited(start, "codec int4 l1-2 h0 s3-4").draft.schedule

    stored = schedule.stored_in()
    assert (stored[1:3, 0, 3:5] == "int4").all()
    assert (stored == "int4").sum() == 4
    assert (schedule.drop_step == start.schedule.drop_step).all()
    assert schedule.policy == "full+edits"
    assert fate_words(schedule, 1, 0, 3).endswith("stored in int4")
    assert PruningSchedule.from_json(schedule.to_json()) == schedule


def test_sinks_and_the_last_scale_are_passed_by(start: Draft) -> None:
    draft = edited(start, "codec int2 l*").draft

    stored = draft.schedule.stored_in()
    assert (stored[:, :, : draft.sink_scales] == "model").all()
    assert (stored[:, :, draft.sink_scales : -1] == "int2").all()
    with pytest.raises(UsageError, match="only sink scales"):
        edited(start, "codec int2 s0")


def test_taking_it_back_undoing_and_clearing_give_what_was_there(start: Draft) -> None:
    for lines in (["codec model l*"], ["clear l*"], ["undo"]):
        draft = edited(start, "codec int4 l* s3", *lines).draft
        assert draft.schedule.codec is None
        assert not draft.is_changed
    assert edited(start, "codec int4 s3", "undo", "redo").draft.is_changed


def test_an_unknown_codec_is_refused_with_its_line(start: Draft) -> None:
    with pytest.raises(UsageError, match=r"test, line 1: unknown KV codec 'int5'; known, nearest first"):
        edited(start, "codec int5 l*")


@pytest.mark.parametrize("target", ["l*", "l0-2", "s2-5"])
@pytest.mark.parametrize("name", ["int8", "k4v2"])
def test_a_policy_keeps_what_the_bytes_saved_have_room_for(start: Draft, target: str, name: str) -> None:
    plain = edited(start, "policy heatkv", "budget 20%").draft

    draft = edited(start, "policy heatkv", "budget 20%", f"codec {name} {target}").draft

    assert draft.problem is None
    assert draft.schedule.peak_tokens > plain.schedule.peak_tokens
    assert 0.9 * allowed(draft) < draft.ground.peak_bytes(draft.schedule) <= allowed(draft)


@pytest.mark.parametrize("text", ["knapsack", "knapsack:codecs=int4", "knapsack:codecs=int4+k4v2"])
def test_the_knapsack_fills_in_round_pins_within_the_budget(start: Draft, text: str) -> None:
    draft = edited(start, "budget 20%", f"policy {text}", "pin l1 h1 s4", "drop l2 h0 s3").draft

    assert draft.problem is None
    assert draft.schedule.policy == "knapsack+edits"
    assert draft.schedule.drop_step[1, 1, 4] == draft.ground.last_step
    assert draft.schedule.drop_step[2, 0, 3] == 3 * 6 + 2
    assert draft.ground.peak_bytes(draft.schedule) <= allowed(draft)
    assert bool(draft.schedule.codecs) == ("codecs" in text)


def test_the_knapsack_weighs_by_a_calibration_where_there_is_one(trace: Trace, start: Draft, ground: Ground) -> None:
    of_trace = measured_by(None, ground.config, ground.scales, trace.attention_mass)
    bundled = measured_by(bundled_calibration(ground.config), ground.config, ground.scales, trace.attention_mass)
    assert of_trace is not None
    assert bundled is not None
    assert bundled.output_error is not None
    lines = ("budget 15%", "policy knapsack")

    by_mass = edited(replace(start, ground=replace(ground, measurements=of_trace)), *lines).draft.schedule
    calibrated = edited(replace(start, ground=replace(ground, measurements=bundled)), *lines).draft.schedule

    assert by_mass != calibrated
    assert edited(start, *lines).draft.schedule == by_mass


def test_without_attention_the_knapsack_says_what_it_needs(start: Draft, ground: Ground) -> None:
    with pytest.raises(UsageError, match="policy knapsack needs attention mass"):
        edited(replace(start, ground=replace(ground, measurements=None)), "policy knapsack")
    with pytest.raises(UsageError, match="unknown parameter"):
        edited(start, "policy knapsack:code=int4")


def test_a_coarser_codec_is_estimated_to_lose_more_but_less_than_dropping(trace: Trace, start: Draft) -> None:
    lost = [
        estimate(trace, edited(start, line).draft.schedule).lost
        for line in ("codec int8 s4", "codec int4 s4", "codec k4v2 s4", "codec int2 s4", "drop s4")
    ]

    assert lost[0] > 0
    assert lost == sorted(lost)
    assert lost[-2] < lost[-1] / 5


def test_every_codec_but_the_model_s_has_a_letter_of_its_own() -> None:
    assert {"model", *CODEC_LETTERS} == set(CODECS)
    assert len(set(CODEC_LETTERS.values())) == len(CODEC_LETTERS)
    assert np.all([len(letter) == 1 for letter in CODEC_LETTERS.values()])


def test_the_schedule_screen_marks_what_is_stored_otherwise(start: Draft) -> None:
    draft = edited(start, "codec k4v2 l0 h0-1 s4", "pin l0 h1 s4").draft

    found = changes(draft)
    assert found[0, 0, 4] == Change.RECODED
    assert found[0, 1, 4] == Change.PINNED_KEPT
    assert (found[1:] == Change.SAME).all()
