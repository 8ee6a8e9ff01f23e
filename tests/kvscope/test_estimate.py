from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from heatkv.config import model_config
from heatkv.policies.full import FullPolicy, keep_everything
from heatkv.schedule import PruningSchedule
from kvscope.errors import UsageError
from kvscope.estimate import estimate
from kvscope.trace import Trace

CONFIG = model_config("infinity-tiny")
SCALES = CONFIG.schedule_for(None)
L, H, S = CONFIG.num_layers, CONFIG.num_heads, SCALES.num_scales


@dataclass(frozen=True)
class _Header:
    bytes_per_token: int = 256

    def bytes_held(self, schedule: PruningSchedule) -> NDArray[np.int64]:
        return schedule.tokens_held() * self.bytes_per_token


@dataclass(frozen=True)
class Run:
    """A recorded run, made up: attention is spread evenly over what was read."""

    schedule: PruningSchedule
    done: int = S
    header: _Header = _Header()

    @property
    def read_tokens(self) -> NDArray[np.int64]:
        return self.schedule.read_tokens()[: self.done]

    @property
    def attention_mass(self) -> NDArray[np.float64]:
        seen = self.read_tokens > 0
        return np.where(seen, 1 / np.maximum(seen.sum(-1, keepdims=True), 1), np.nan)


def full() -> PruningSchedule:
    return FullPolicy().plan(CONFIG, SCALES)


def dropping(*cells: tuple[int, int, int, int]) -> PruningSchedule:
    """Everything kept but (layer, head, source scale), freed after a query scale."""
    drop_step = keep_everything(CONFIG, SCALES)
    for layer, head, source, after in cells:
        drop_step[layer, head, source] = after * L + layer
    return PruningSchedule(drop_step, CONFIG.name, SCALES, 1, "hand")


def test_the_same_schedule_loses_nothing() -> None:
    same = estimate(Run(full()), full())

    assert same.lost == 0
    assert same.unknown_cells == 0
    assert same.known_fraction == 1


def test_what_is_lost_is_the_mass_on_what_was_dropped_from_the_next_query_scale_on() -> None:
    dropped = estimate(Run(full()), dropping((2, 1, 3, 4)))

    assert dropped.lost_mass[4, 2, 1] == 0
    np.testing.assert_allclose(dropped.lost_mass[5, 2, 1], 1 / 6)
    np.testing.assert_allclose(dropped.lost_mass[6, 2, 1], 1 / 7)
    assert np.count_nonzero(dropped.lost_mass) == 2


def test_means_weigh_query_scales_by_their_queries() -> None:
    dropped = estimate(Run(full()), dropping((2, 1, 3, 4)))

    share = (SCALES.tokens[5] / 6 + SCALES.tokens[6] / 7) / SCALES.total_tokens
    assert dropped.lost == pytest.approx(share / (L * H))
    assert dropped.lost_by_head[2, 1] == pytest.approx(share)
    assert dropped.lost_by_layer[2] == pytest.approx(share / H)
    np.testing.assert_allclose(dropped.lost_by_scale[6], 1 / 7 / (L * H))


def test_where_the_recorded_run_had_dropped_what_is_now_kept_the_loss_is_unknown() -> None:
    looser = estimate(Run(dropping((2, 1, 3, 4), (0, 0, 4, 4))), dropping((2, 1, 3, 5)))

    assert looser.unknown_cells == 3  # one at scale 5; at 5 and 6 what was dropped from layer 0
    assert np.isnan(looser.lost_mass[5, 2, 1])
    assert np.isnan(looser.lost_mass[6, 0, 0])
    assert looser.lost_mass[6, 2, 1] == 0
    assert looser.known_fraction == 1 - 3 / (S * L * H)


def test_bytes_are_those_of_the_schedule() -> None:
    schedule = dropping((2, 1, 3, 4))
    limit = schedule.peak_tokens - 10

    known = estimate(Run(full()), schedule, limit_tokens=limit)

    np.testing.assert_array_equal(known.held_bytes, schedule.tokens_held() * 256)
    assert known.peak_bytes == schedule.peak_tokens * 256
    assert known.headroom_bytes == -10 * 256
    assert known.held_tokens[known.peak_step] == schedule.peak_tokens


def test_a_run_that_is_under_way_is_estimated_as_far_as_it_got() -> None:
    assert estimate(Run(full(), done=3), full()).lost_mass.shape == (3, L, H)
    assert np.isnan(estimate(Run(full(), done=0), full()).lost)


def test_without_measured_mass_nothing_is_known_but_bytes(tiny_full: Path) -> None:
    @dataclass(frozen=True)
    class Unmeasured(Run):
        @property
        def attention_mass(self) -> NDArray[np.float64]:
            return np.full((S, L, H, S), np.nan)

    unknown = estimate(Unmeasured(full()), dropping((2, 1, 3, 4)))

    assert np.isnan(unknown.lost)
    assert unknown.peak_bytes > 0


def test_a_schedule_for_other_scales_is_refused_with_the_attribute() -> None:
    other = model_config("infinity-2b")
    schedule = FullPolicy().plan(other, other.schedule_for("0.06M"))

    with pytest.raises(UsageError, match="the trace has model infinity-tiny, the schedule has infinity-2b"):
        estimate(Run(full()), schedule)


def test_a_recorded_trace_is_estimated_as_it_is(tiny_full: Path) -> None:
    with Trace.open(tiny_full) as trace:
        schedule = replace(trace.schedule, drop_step=dropping((2, 1, 3, 4)).drop_step, sink_scales=1)
        expected = np.float64(trace.attention_mass[5, 2, 1, 3])

        np.testing.assert_allclose(estimate(trace, schedule).lost_mass[5, 2, 1], expected)


@pytest.fixture(scope="module")
def tiny_full() -> Path:
    return Path(__file__).parents[2] / "traces" / "infinity-tiny-full.h5"


def test_what_codecs_lose_is_told_apart_from_what_dropping_loses() -> None:
    dropped, coarse = dropping((2, 1, 3, 4)), full().in_codec("int4")
    both = dropped.in_codec("int4")

    assert estimate(Run(full()), dropped).coarse_share == 0
    assert estimate(Run(full()), full()).coarse_share == 0
    assert estimate(Run(full()), coarse).coarse_share == pytest.approx(1)
    found = estimate(Run(full()), both)
    assert 0 < found.coarse_share < 1
    assert found.lost == pytest.approx(estimate(Run(full()), dropped).lost / (1 - found.coarse_share))


def test_from_a_run_in_the_same_codec_nothing_is_lost_to_it() -> None:
    coarse = full().in_codec("int4")

    assert estimate(Run(coarse), coarse).lost == 0
    assert estimate(Run(coarse), coarse).coarse_share == 0
