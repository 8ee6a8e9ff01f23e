"""A pruning schedule says what is written, read and held at every step, survives a file, and defines the budget."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.budget import (
    budget_bytes,
    budget_from_bytes,
    budget_from_tokens,
    budget_tokens,
    check_budget,
    full_history_tokens,
    minimum_budget,
)
from heatkv.config import MODELS, ModelConfig, VAEConfig
from heatkv.errors import BudgetError, OutputError, ScheduleError
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

SCALES = ScaleSchedule.custom(((1, 1), (1, 2), (2, 2), (2, 4)))
SMALL = ModelConfig("small", num_layers=2, width=32, num_heads=2, num_chunks=2, vae=VAEConfig(16, 16))

# Steps: scale * 2 + layer, 0 to 7. One sink scale. Scales hold 1, 2, 4 and 8 tokens.
KEPT, LAST = 7, (6, 7)


def _drop_step() -> NDArray[np.int16]:
    """Layer 0 loses (head 0, scale 1) after its own step 2; layer 1 loses (head 1, scale 1) early, after step 4."""
    drop_step = np.full((2, 2, 4), KEPT, dtype=np.int16)
    drop_step[:, :, 3] = np.array(LAST)[:, None]
    drop_step[0, 0, 1] = 2
    drop_step[1, 1, 1] = 4
    return drop_step


def _schedule(drop_step: Any = None, **changes: Any) -> PruningSchedule:  # Any: also what must be refused
    values: dict[str, Any] = {"model": "small", "scales": SCALES, "sink_scales": 1, "policy": "by hand"}
    return PruningSchedule(_drop_step() if drop_step is None else drop_step, **(values | changes))


@st.composite
def schedules(draw: st.DrawFn) -> PruningSchedule:
    num_layers, num_heads = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    sides = draw(st.lists(st.integers(1, 5), min_size=2, max_size=5))
    scales = ScaleSchedule.custom(tuple((side, side) for side in sides))
    sinks = draw(st.integers(0, len(sides) - 1))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    last_step = num_layers * len(sides) - 1
    own = np.arange(num_layers)[:, None, None] + num_layers * np.arange(len(sides))
    drop_step = random.integers(np.broadcast_to(own, (num_layers, num_heads, len(sides))), last_step, endpoint=True)
    drop_step[:, :, :sinks] = last_step
    drop_step[:, :, -1:] = own[:, :, -1:]
    free = PruningSchedule(drop_step.astype(np.int16), "random", scales, sinks, "random")
    least = free.peak_tokens / free.history_tokens
    return dataclasses.replace(free, budget=draw(st.none() | st.floats(least, 1)))


class TestMeaning:
    def test_a_head_scale_is_read_until_its_drop_step_and_held_before_it(self) -> None:
        schedule = _schedule()

        assert schedule.visible(1)[0, 0].tolist() == [True, True, False, False]
        assert schedule.visible(2)[0, 0].tolist() == [True, False, True, False]
        assert schedule.kept_tokens()[1, 0, 0].tolist() == [1, 0, 0, 0]
        assert schedule.read_tokens()[1, 0, 0].tolist() == [1, 2, 0, 0]

    def test_early_activation_hides_a_head_scale_before_its_own_layer_reads_it(self) -> None:
        schedule = _schedule()

        assert schedule.kept_tokens()[1, 1, 1].tolist() == [1, 2, 0, 0]
        assert schedule.visible(2)[1, 1].tolist() == [True, False, True, False]

    def test_the_current_scale_is_always_read_and_the_last_never_held(self) -> None:
        schedule = _schedule()

        assert schedule.read_tokens()[3, :, :, 3].tolist() == [[8, 8], [8, 8]]
        assert not schedule.kept_tokens()[..., 3].any()

    def test_what_is_kept_to_the_end_is_still_held_after_the_last_step(self) -> None:
        schedule = _schedule()

        assert schedule.kept_tokens()[3, 1].tolist() == [[1, 2, 4, 0], [1, 0, 4, 0]]

    def test_tokens_held_counts_the_whole_model_after_each_step(self) -> None:
        schedule = _schedule()

        assert schedule.tokens_held().tolist() == [2, 4, 6, 10, 16, 24, 24, 24]
        assert (schedule.peak_tokens, schedule.history_tokens) == (24, 28)

    def test_evictions_name_each_freed_head_scale_once(self) -> None:
        schedule = _schedule()

        assert [index.tolist() for index in schedule.evictions(2)] == [[0], [0], [1]]
        assert [index.tolist() for index in schedule.evictions(4)] == [[1], [1], [1]]
        assert all(len(schedule.evictions(step)[0]) == 0 for step in (0, 1, 3, 5, 6, 7))

    @given(schedule=schedules())
    @settings(max_examples=60)
    def test_writing_and_evicting_step_by_step_gives_the_tables(self, schedule: PruningSchedule) -> None:
        tokens = np.array(schedule.scales.tokens)
        held = np.zeros(schedule.drop_step.shape, dtype=bool)
        tables = schedule.kept_tokens(), schedule.read_tokens(), schedule.tokens_held()

        for step in range(schedule.num_steps):
            query_scale, layer = divmod(step, schedule.num_layers)
            readable = held[layer].copy()
            readable[:, query_scale] = True
            if query_scale < schedule.scales.num_scales - 1:
                held[layer, :, query_scale] = True
            held[schedule.evictions(step)] = False

            np.testing.assert_array_equal(tables[0][query_scale, layer], held[layer] * tokens)
            np.testing.assert_array_equal(tables[1][query_scale, layer], readable * tokens)
            assert tables[2][step] == (held * tokens).sum()

    @given(schedules())
    @settings(max_examples=30)
    def test_what_leaves_after_each_step_is_what_the_evictions_name(self, schedule: PruningSchedule) -> None:
        tokens = np.array(schedule.scales.tokens)
        named = [int(tokens[schedule.evictions(step)[2]].sum()) for step in range(schedule.num_steps)]

        assert schedule.evicted_tokens().tolist() == named


class TestOnline:
    """A schedule of an online policy: how many tokens each layer holds, not which."""

    LAYER_TOKENS = ((2, 2), (5, 4), (6, 6), (6, 6))

    def schedule(self, layer_tokens: Any = LAYER_TOKENS) -> PruningSchedule:  # Any: also what must be refused
        drop_step = np.full((2, 2, 4), KEPT, dtype=np.int16)
        drop_step[:, :, 3] = np.array(LAST)[:, None]
        return _schedule(drop_step, layer_tokens=layer_tokens)

    def test_counts_what_its_layers_hold(self) -> None:
        schedule = self.schedule()

        assert schedule.tokens_held().tolist() == [2, 4, 7, 9, 10, 12, 12, 12]
        assert schedule.evicted_tokens().tolist() == [0, 0, 1, 2, 7, 6, 0, 0]
        assert schedule.peak_tokens == 12

    def test_promises_no_scale_but_the_sinks(self) -> None:
        assert self.schedule().resident_scales == 1
        assert not self.schedule().keeps_everything
        assert dataclasses.replace(self.schedule(), layer_tokens=None).keeps_everything

    def test_survives_a_file(self, tmp_path: Path) -> None:
        path = self.schedule().save(tmp_path / "schedule.json")

        assert PruningSchedule.load(path) == self.schedule()
        assert PruningSchedule.load(path).online

    @pytest.mark.parametrize(
        "layer_tokens",
        [((2, 2), (5, 4), (6, 6)), ((3, 2), (5, 4), (6, 6), (6, 6)), ((2, 2), (5, 4), (6, -1), (6, 6))],
        ids=["a scale too few", "more than was written", "below nothing"],
    )
    def test_impossible_numbers_are_refused(self, layer_tokens: Any) -> None:  # Any: as `schedule`
        with pytest.raises(ScheduleError, match=r"layer_tokens of shape"):
            self.schedule(layer_tokens)

    def test_a_file_with_other_things_is_refused(self) -> None:
        record = self.schedule().to_json() | {"layer_tokens": [[2.5, 2], [5, 4], [6, 6], [6, 6]]}

        with pytest.raises(ScheduleError, match=r"something else than whole numbers"):
            PruningSchedule.from_json(record)


class TestIdentity:
    def test_equal_by_content(self) -> None:
        other = _drop_step()
        other[0, 0, 1] = 3

        assert _schedule() == _schedule()
        assert hash(_schedule()) == hash(_schedule())
        assert _schedule() != _schedule(other)
        assert _schedule() != _schedule(policy="else")

    def test_content_hash_sees_what_a_run_can_notice_and_nothing_else(self) -> None:
        other = _drop_step()
        other[0, 0, 1] = 3

        assert _schedule().content_hash == _schedule(policy="else", budget=0.5).content_hash
        assert _schedule().content_hash != _schedule(other).content_hash
        assert _schedule().content_hash != _schedule(sink_scales=0).content_hash

    def test_the_array_is_a_copy_and_read_only(self) -> None:
        given = _drop_step()
        schedule = _schedule(given)

        given[0, 0, 1] = 3

        assert schedule.drop_step[0, 0, 1] == 2
        assert schedule.drop_step.dtype == np.int16
        with pytest.raises(ValueError, match="read-only"):
            schedule.drop_step[0, 0, 1] = 3

    def test_an_edit_is_a_new_schedule(self) -> None:
        edited = _drop_step()
        edited[0, 0, 2] = 5

        assert dataclasses.replace(_schedule(), drop_step=edited).peak_tokens == 20


class TestRefusal:
    @pytest.mark.parametrize(
        ("place", "step", "message"),
        [
            ((0, 0, 1), 1, r"drop_step is 1 at layer 0, head 0, source scale 1; expected 2 to 7"),
            ((1, 0, 2), 8, r"drop_step is 8 at layer 1, head 0, source scale 2; expected 5 to 7"),
            ((1, 1, 0), 5, r"source scale 0; expected 7, as sink scales are never evicted"),
            ((0, 1, 3), 7, r"source scale 3; expected 6, as the last scale is never cached"),
        ],
    )
    def test_a_step_out_of_range_is_named(self, place: tuple[int, int, int], step: int, message: str) -> None:
        drop_step = _drop_step()
        drop_step[place] = step

        with pytest.raises(ScheduleError, match=message):
            _schedule(drop_step)

    def test_another_shape_or_kind_is_refused(self) -> None:
        with pytest.raises(ScheduleError, match=r"shape \[2, 2, 3\]; expected \[layer, head, 4 source scales\]"):
            _schedule(_drop_step()[:, :, :3])
        with pytest.raises(ScheduleError, match="whole numbers"):
            _schedule(_drop_step().astype(float))
        with pytest.raises(ScheduleError, match="16-bit"):
            _schedule(_drop_step().astype(np.int64) + 2**16)

    def test_all_scales_as_sinks_are_refused(self) -> None:
        with pytest.raises(ScheduleError, match="4 sink scales; expected 0 to 3"):
            _schedule(sink_scales=4)

    def test_another_model_or_other_scales_are_refused(self) -> None:
        schedule = _schedule()
        schedule.validate(SMALL, SCALES)

        with pytest.raises(ScheduleError, match=r"for small \(2 layers, 2 heads\), the run is infinity-2b"):
            schedule.validate(MODELS["infinity-2b"], SCALES)
        with pytest.raises(ScheduleError, match="for 4 scales up to 2x4, the run has 7 scales up to 16x16"):
            schedule.validate(SMALL, ScaleSchedule.named("0.06M"))

    def test_another_model_of_the_same_shape_is_refused(self) -> None:
        with pytest.raises(ScheduleError, match=r"for other \(2 layers, 2 heads\), the run is small \(2 layers, 2"):
            _schedule(model="other").validate(SMALL, SCALES)


class TestFile:
    @given(schedule=schedules())
    @settings(max_examples=20)
    def test_round_trip(self, tmp_path_factory: pytest.TempPathFactory, schedule: PruningSchedule) -> None:
        path = schedule.save(tmp_path_factory.mktemp("schedule") / "plan.json")

        assert PruningSchedule.load(path) == schedule

    def test_the_file_lists_what_a_reader_needs(self, tmp_path: Path) -> None:
        path = _schedule(budget=0.9, provenance={"orders": "2b.json"}).save(tmp_path / "plan.json")

        record = json.loads(path.read_text())

        assert (record["format"], record["version"], record["model"]) == ("heatkv.schedule", 1, "small")
        assert (record["sink_scales"], record["policy"], record["budget"]) == (1, "by hand", 0.9)
        assert record["provenance"] == {"orders": "2b.json"}
        assert record["drop_step"][1][1] == [7, 4, 7, 7]
        assert ScaleSchedule.from_json(record["scales"]) == SCALES

    def test_an_existing_file_is_not_overwritten(self, tmp_path: Path) -> None:
        path = _schedule().save(tmp_path / "plan.json")

        with pytest.raises(OutputError, match="exists"):
            _schedule().save(path)
        _schedule().save(path, overwrite=True)

    def test_a_budget_that_the_steps_do_not_keep_is_refused(self, tmp_path: Path) -> None:
        peak = _schedule().peak_tokens / _schedule().history_tokens
        PruningSchedule.load(_schedule(budget=peak).save(tmp_path / "true.json"))
        false = _schedule(budget=peak - 1e-6).save(tmp_path / "false.json")

        with pytest.raises(
            ScheduleError, match=r"false\.json: the budget 0\.857\d* allows 23 tokens, .* is 24; plan it"
        ):
            PruningSchedule.load(false)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda record: [record], "not a pruning schedule"),
            (lambda record: record | {"format": "else"}, "not a pruning schedule"),
            (lambda record: record | {"version": 3}, "format version 3, this heatkv reads 1 to 2; upgrade"),
            (lambda record: {key: record[key] for key in record if key != "scales"}, "lacks scales"),
            (lambda record: record | {"drop_step": [[1], [2, 3]]}, "ragged|shape"),
            (lambda record: record | {"drop_step": "steps"}, "whole numbers"),
            (lambda record: record | {"drop_step": [[[2**80] * 4]]}, "whole numbers"),
            (lambda record: record | {"sink_scales": "one"}, "sink_scales is 'one'"),
            (lambda record: record | {"budget": 2}, "budget is 2; expected null or a fraction"),
            (lambda record: record | {"scales": {}}, "scales record is damaged"),
        ],
    )
    def test_a_damaged_file_is_told_apart(
        self, tmp_path: Path, spoil: Callable[[dict[str, Any]], object], message: str
    ) -> None:
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(spoil(_schedule().to_json())))

        with pytest.raises(ScheduleError, match=message) as caught:
            PruningSchedule.load(path)

        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


class TestBudget:
    TWO_B = MODELS["infinity-2b"]
    ONE_M = ScaleSchedule.named("1M")

    def test_one_is_the_history_of_all_layers_and_heads(self) -> None:
        assert budget_tokens(1.0, self.TWO_B, self.ONE_M) == 6425 * 512
        assert budget_bytes(1.0, self.TWO_B, self.ONE_M) == self.TWO_B.history_bytes(self.ONE_M)
        assert budget_tokens(0.1, self.TWO_B, self.ONE_M) == 328960

    @given(tokens=st.integers(1, 6425 * 512))
    def test_a_budget_from_tokens_allows_exactly_those(self, tokens: int) -> None:
        budget = budget_from_tokens(tokens, self.TWO_B, self.ONE_M)

        assert budget_tokens(budget, self.TWO_B, self.ONE_M) == tokens

    @given(num_bytes=st.integers(0, 5 * 10**9), dtype_bytes=st.sampled_from([2, 4]), rows=st.integers(1, 8))
    def test_a_budget_from_bytes_fits_in_those_bytes(self, num_bytes: int, dtype_bytes: int, rows: int) -> None:
        budget = budget_from_bytes(num_bytes, self.TWO_B, self.ONE_M, dtype_bytes=dtype_bytes, rows=rows)
        spent = budget_bytes(budget, self.TWO_B, self.ONE_M, dtype_bytes=dtype_bytes, rows=rows)
        per_token = self.TWO_B.kv_bytes_per_token(dtype_bytes=dtype_bytes, rows=rows)

        assert spent <= num_bytes
        assert budget == 1.0 or num_bytes - spent < per_token

    def test_more_than_the_history_is_a_budget_of_one(self) -> None:
        assert budget_from_tokens(10**12, self.TWO_B, self.ONE_M) == 1.0
        assert full_history_tokens(self.TWO_B, self.ONE_M) == 3289600

    @pytest.mark.parametrize(("sinks", "expected"), [(0, 0.0), (3, 21 / 6425), (4, 57 / 6425), (12, 1.0)])
    def test_the_minimum_is_the_share_of_the_sinks(self, sinks: int, expected: float) -> None:
        assert minimum_budget(self.ONE_M, sinks) == expected

    def test_a_budget_below_the_minimum_is_told_in_fraction_percent_and_tokens(self) -> None:
        with pytest.raises(BudgetError) as caught:
            check_budget(0.003, self.ONE_M, 3)

        assert caught.value.minimum == 21 / 6425
        assert str(caught.value) == (
            "budget 0.003 is below the minimum 0.00326849 (0.326849 %): the 3 sink scales are never evicted and take "
            "21 of 6425 history tokens in every head; raise the budget or lower the sink scales"
        )
        assert check_budget(0.00326849, self.ONE_M, 3) == 0.00326849

    @pytest.mark.parametrize("budget", [-0.1, 1.1, float("nan"), float("inf"), None])
    def test_a_budget_that_is_no_fraction_is_refused(self, budget: float | None) -> None:
        with pytest.raises(BudgetError, match=r"expected a fraction of history, 0\.00326849 \(0\.326849 %\) to 1"):
            check_budget(budget, self.ONE_M, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", "a\nb"), ("model", 5), ("policy", "\x1b[2J"), ("version", "1\n"), ("version", "x" * 1000)],
)
def test_a_name_in_a_file_is_one_line_or_refused_in_one(key: str, value: object) -> None:
    record = _schedule().to_json() | {key: value}

    with pytest.raises(ScheduleError) as caught:
        PruningSchedule.from_json(record)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_a_long_text_among_the_steps_is_refused_without_taking_its_length_for_every_step() -> None:
    steps: list[list[list[object]]] = [[[0, 1]] * 200 for _ in range(200)]
    steps[3] = [["x" * 100_000, 1]] * 200

    with pytest.raises(ScheduleError, match="something else than 16-bit whole numbers"):
        PruningSchedule(steps, "m", ScaleSchedule(((1, 1), (2, 2)), (2, 2)), 1, "p")  # type: ignore[arg-type]
