"""A schedule with codecs counts true bytes, survives a file, and leaves schedules without any as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.codecs import CODECS, MODEL
from heatkv.config import MODELS
from heatkv.errors import ScheduleError
from heatkv.head_codecs import tokens_bought
from heatkv.online import plan_in_codec
from heatkv.policies.full import FullPolicy
from heatkv.policies.window import WindowPolicy
from heatkv.schedule import PruningSchedule
from tests.heatkv.conftest import random_schedule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TINY = MODELS["infinity-tiny"]
SCALES = TINY.schedule_for()
SIZES: dict[str, int] = {"rows": 2, "dtype_bytes": 2}
NAMES = ("model", "int8", "int2")


def mixed(seed: int, names: tuple[str, ...] = NAMES) -> PruningSchedule:
    """Any drop steps, any codecs."""
    schedule = random_schedule(TINY, SCALES, seed=seed, sink_scales=seed % 3)
    codec = np.random.default_rng(seed).integers(0, len(names), schedule.drop_step.shape)
    return replace(schedule, codec=codec, codecs=names)


def full() -> PruningSchedule:
    return FullPolicy().plan(TINY, SCALES)


class TestBytes:
    @given(seed=st.integers(0, 999))
    @settings(max_examples=20)
    def test_are_the_tokens_of_each_codec_times_its_bytes(self, seed: int) -> None:
        schedule = mixed(seed)

        by_codec = schedule.tokens_held_by_codec()

        assert tuple(by_codec) == NAMES
        assert sum(by_codec.values()).tolist() == schedule.tokens_held().tolist()
        per_token = {name: CODECS[name].bytes_per_token(TINY.head_dim, **SIZES) for name in NAMES}
        held = sum(tokens * per_token[name] for name, tokens in by_codec.items())
        assert schedule.bytes_held(TINY.head_dim, **SIZES).tolist() == held.tolist()
        assert schedule.peak_bytes(TINY.head_dim, **SIZES) == held.max()
        room = sum(int(tokens.max()) * per_token[name] for name, tokens in by_codec.items())
        assert schedule.capacity_bytes(TINY.head_dim, **SIZES) == room >= held.max()

    def test_without_codecs_are_the_model_s(self) -> None:
        schedule = full()

        assert list(schedule.tokens_held_by_codec()) == [MODEL]
        held = schedule.bytes_held(TINY.head_dim, **SIZES)
        assert held.tolist() == (schedule.tokens_held() * TINY.kv_bytes_per_token()).tolist()
        assert schedule.peak_bytes(TINY.head_dim, **SIZES) == TINY.history_bytes(SCALES)

    def test_one_codec_leaves_the_sinks_as_the_model_made_them(self) -> None:
        schedule = full().in_codec("int4")

        slots, sinks = TINY.num_layers * TINY.num_heads, sum(SCALES.tokens[: full().sink_scales])
        peaks = {name: int(held.max()) for name, held in schedule.tokens_held_by_codec().items()}
        assert peaks == {MODEL: slots * sinks, "int4": slots * (SCALES.history_tokens - sinks)}
        assert schedule.capacity_bytes(TINY.head_dim, **SIZES) == schedule.peak_bytes(TINY.head_dim, **SIZES)
        assert schedule.resident_scales == full().sink_scales

    def test_in_the_model_s_codec_it_is_what_it_was(self) -> None:
        assert full().in_codec("int4").in_codec(MODEL) == full()

    @pytest.mark.parametrize("name", CODECS)
    @given(allowed=st.integers(0, 5000), sinks=st.integers(0, 500))
    @settings(max_examples=20)
    def test_a_budget_buys_as_many_tokens_as_fit_and_no_more(self, name: str, allowed: int, sinks: int) -> None:
        tokens = tokens_bought(allowed, sinks, name, head_dim=32, dtype_bytes=2)

        plain, coded = (CODECS[one].bytes_per_token(32, **SIZES) for one in (MODEL, name))
        if allowed < sinks:
            assert tokens == allowed
        else:
            assert sinks * plain + (tokens - sinks) * coded <= allowed * plain
            assert sinks * plain + (tokens + 1 - sinks) * coded > allowed * plain


class TestOnline:
    """An online policy's tokens, sinks too, are all in one codec."""

    def bound(self) -> PruningSchedule:
        return plan_in_codec(
            WindowPolicy(), "int4", TINY, SCALES, budget=0.3, sink_scales=2, dtype_bytes=SIZES["dtype_bytes"]
        ).bound()

    def test_bytes_are_the_tokens_held_times_those_of_its_codec(self) -> None:
        bound, each = self.bound(), CODECS["int4"].bytes_per_token(TINY.head_dim, **SIZES)

        assert bound.tokens_held_by_codec()["int4"].tolist() == bound.tokens_held().tolist()
        assert bound.bytes_held(TINY.head_dim, **SIZES).tolist() == (bound.tokens_held() * each).tolist()
        assert bound.capacity_bytes(TINY.head_dim, **SIZES) == bound.peak_tokens * each

    def test_survives_a_file_with_its_codec_and_its_tokens(self, tmp_path: Path) -> None:
        again = PruningSchedule.load(self.bound().save(tmp_path / "bound.json"))

        assert again == self.bound()
        assert again.online
        assert again.codecs == ("int4",)

    def test_another_codec_or_other_tokens_make_it_another(self) -> None:
        bound = self.bound()
        assert bound.layer_tokens is not None
        others = [bound.in_codec(MODEL), bound.in_codec("int8"), replace(bound, layer_tokens=bound.layer_tokens // 2)]

        assert bound.in_codec("int4") == bound
        assert len({one.content_hash for one in (bound, *others)}) == 4

    def test_two_codecs_are_refused(self) -> None:
        bound = self.bound()

        with pytest.raises(ScheduleError, match=r"codecs are model, int4; expected one where an online policy chooses"):
            replace(bound, codecs=("model", "int4"))


class TestFile:
    @given(seed=st.integers(0, 99))
    @settings(max_examples=10)
    def test_is_read_as_it_was_written(self, seed: int) -> None:
        schedule = mixed(seed)

        read = PruningSchedule.from_json(json.loads(json.dumps(schedule.to_json())))

        assert read == schedule
        assert (read.codecs, read.content_hash) == (schedule.codecs, schedule.content_hash)
        assert read.codec is not None
        assert read.codec.tolist() == schedule.codec.tolist()  # type: ignore[union-attr]  # mixed has one

    def test_without_codecs_it_is_what_older_versions_read_and_wrote(self) -> None:
        record = full().to_json()

        assert record["version"] == 1
        assert not {"codec", "codecs"} & record.keys()
        assert PruningSchedule.from_json(record) == full()
        # Of the version before codecs, which hashed the same.
        assert full().content_hash == "a4b4b09283daa496c88181cdcd4696920e826a39c30ca367788ffbc76918159b"

    def test_with_codecs_older_versions_refuse_it(self) -> None:
        assert mixed(0).to_json()["version"] == 2

    def test_codecs_are_part_of_the_content(self) -> None:
        schedules = [full(), full().in_codec("int8"), full().in_codec("int4")]

        assert len({one.content_hash for one in schedules}) == len(set(schedules)) == 3

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda record: record | {"codecs": ["model", "int5", "int2"]}, "KV codec 'int5' is unknown; known: model"),
            (lambda record: record | {"codecs": "model"}, "codecs is 'model'; expected a list of names"),
            (lambda record: record | {"codecs": ["model", "int8"]}, "expected indices of 2 codecs"),
            (lambda record: record | {"codecs": ["int8", "int8", "int2"]}, "expected 1 to 10 different names"),
            (lambda record: record | {"codec": [["01"]]}, r"codec is uint8 of shape \[1, 1, 2\]"),
            (lambda record: record | {"codec": [["0x"]]}, "codec is damaged"),
            (lambda record: record | {"codec": [["0", "01"]]}, "codec is damaged"),
            (lambda record: record | {"codec": 7}, "codec is damaged"),
        ],
    )
    def test_a_damaged_file_is_told_apart(
        self, tmp_path: Path, spoil: Callable[[dict[str, Any]], object], message: str
    ) -> None:
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(spoil(mixed(1).to_json())))

        with pytest.raises(ScheduleError, match=message) as caught:
            PruningSchedule.load(path)

        assert str(path) in str(caught.value)

    def test_a_budget_that_its_bytes_exceed_is_refused(self, tmp_path: Path) -> None:
        within = replace(full().in_codec("int4"), budget=0.6)

        assert PruningSchedule.load(within.save(tmp_path / "within.json")).budget == 0.6

        beyond = replace(within, budget=0.1)
        with pytest.raises(ScheduleError, match=r"the budget 0.1 allows \d+ bytes a row of float32, but the peak is"):
            PruningSchedule.load(beyond.save(tmp_path / "beyond.json"))
