"""A run that is revised obeys one schedule: the old one before the boundary, the new one after, and nothing returns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.attention import choose_path
from heatkv.cache import KVCache
from heatkv.config import ModelConfig, VAEConfig
from heatkv.errors import ScheduleError
from heatkv.generate import Run, Sampling
from heatkv.policies.full import FullPolicy
from heatkv.probe import NullProbe, PoolStart, RunStart, ScaleInfo, StepInfo
from heatkv.revision import check_room, leaving, revised
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from heatkv.transformer import Infinity
from tests.heatkv.conftest import random_schedule

ROWS, DIM = 2, 4
SCALES = ScaleSchedule.custom(((1, 1), (2, 2), (2, 3), (4, 4), (5, 5)))
CONFIG = ModelConfig("revised", 3, DIM * 2, 2, 3, VAEConfig(8, 4), sink_scales=1)


def possible(current: PruningSchedule, wanted: PruningSchedule, query_scale: int) -> PruningSchedule:
    """`wanted`, without what has left by then."""
    before, last = query_scale * current.num_layers - 1, current.num_steps - 1
    gone = (current.drop_step <= before) & (current.drop_step < last)
    return replace(wanted, drop_step=np.where(gone, np.minimum(wanted.drop_step, current.drop_step), wanted.drop_step))


def plan(seed: int, sink_scales: int = 1) -> PruningSchedule:
    return random_schedule(CONFIG, SCALES, seed=seed, sink_scales=sink_scales)


def coded(schedule: PruningSchedule, seed: int, *names: str) -> PruningSchedule:
    """The same with head-scales stored in these codecs by chance; all of the last scale in the first."""
    codec = np.random.default_rng(seed).integers(0, len(names), schedule.drop_step.shape)
    codec[..., -1] = 0
    return replace(schedule, codec=codec.astype(np.uint8), codecs=names)


def rooms(cache: KVCache) -> tuple[PoolStart, ...]:
    return tuple(PoolStart(pool.codec.name, pool.bytes_per_slot, pool.num_slots) for pool in cache.pools)


@settings(max_examples=60)
@given(st.integers(0, 999), st.integers(0, 999), st.integers(0, 4), st.booleans())
def test_the_cache_holds_what_the_revised_plan_says_at_every_step(
    seed: int, other: int, query_scale: int, full: bool
) -> None:
    current = FullPolicy().plan(CONFIG, SCALES) if full else plan(seed)
    now = revised(current, possible(current, plan(other, sink_scales=0 if full else 1), query_scale), query_scale)
    peak = int(now.tokens_held()[query_scale * 3 :].max())
    if peak > current.peak_tokens:
        with pytest.raises(ScheduleError, match="bytes too many"):
            check_room(now, query_scale, [PoolStart("model", 1, current.peak_tokens)])
        return
    cache, gone, in_force = KVCache(current, rows=ROWS, head_dim=DIM, dtype=torch.float32), 0, current

    for step in range(now.num_steps):
        scale, layer = divmod(step, 3)
        if step == query_scale * 3:
            cache.revise(now, query_scale)
            in_force = now
        tensor = torch.zeros(ROWS, 2, SCALES.tokens[scale], DIM)
        gone += cache.store(layer, query_scale=scale, keys=tensor, values=tensor)

        assert np.array_equal(cache.kept_tokens(layer), in_force.kept_tokens()[scale, layer])
        assert cache.accounted_bytes == in_force.tokens_held()[step] * cache.pool.bytes_per_slot
        assert cache.accounted_bytes <= cache.pool.keys.nbytes + cache.pool.values.nbytes
        slots = [one for held in cache._held for one in held.values()]
        assert len(np.unique(np.concatenate(slots or [np.empty(0)]))) == sum(map(len, slots))
        written = sum(SCALES.tokens[:scale]) * 6 + (SCALES.tokens[scale] * 2 * (layer + 1) if scale < 4 else 0)
        assert gone + sum(map(len, slots)) == written


@settings(max_examples=60)
@given(st.integers(0, 999), st.integers(0, 999), st.integers(0, 4))
def test_what_is_stored_keeps_its_codec_and_what_comes_has_the_new_one(seed: int, other: int, query_scale: int) -> None:
    current = coded(plan(seed), seed, "model", "int8", "int4")
    wanted = coded(possible(current, plan(other), query_scale), other, "int4", "int8", "model")
    now = revised(current, wanted, query_scale)
    cache = KVCache(current, rows=ROWS, head_dim=DIM, dtype=torch.float32)
    held = now.tokens_held_by_codec()
    if any(held[room.codec][query_scale * 3 :].max() > room.capacity_tokens for room in rooms(cache)):
        with pytest.raises(ScheduleError, match=r"head-tokens in (model|int8|int4), and .* bytes too many"):
            check_room(now, query_scale, rooms(cache))
        return
    check_room(now, query_scale, rooms(cache))
    in_force = current

    for step in range(now.num_steps):
        scale, layer = divmod(step, 3)
        if step == query_scale * 3:
            cache.revise(now, query_scale)
            in_force = now
        tensor = torch.zeros(ROWS, 2, SCALES.tokens[scale], DIM)
        cache.store(layer, query_scale=scale, keys=tensor, values=tensor)

        assert cache.accounted_bytes == in_force.bytes_held(DIM, rows=ROWS, dtype_bytes=4)[step]
    written = slice(0, query_scale)
    assert np.array_equal(now.stored_in()[..., written], current.stored_in()[..., written])
    assert np.array_equal(now.stored_in()[..., query_scale:-1], wanted.stored_in()[..., query_scale:-1])


def test_a_codec_that_the_run_has_no_room_for_is_named() -> None:
    full = FullPolicy().plan(CONFIG, SCALES)

    with pytest.raises(ScheduleError, match="it stores in int4, and the run's cache has room for model alone"):
        revised(full, coded(full, 3, "model", "int4"), 2)
    with pytest.raises(ScheduleError, match="it stores in model, and the run's cache has room for int8 alone"):
        revised(coded(full, 3, "int8"), full, 2)
    # What is stored already keeps its codec, so a schedule that differs there alone is no other.
    assert revised(coded(full, 3, "int8"), full, 4).codecs == ("int8",)


def test_what_should_have_left_earlier_leaves_at_the_boundary() -> None:
    full = FullPolicy().plan(CONFIG, SCALES)
    drop_step = full.drop_step.copy()
    drop_step[1, 0, 1] = 4  # written at step 4, should leave right then; the run is past step 8
    wanted = replace(full, drop_step=drop_step, policy="mine")

    now = revised(full, wanted, 3)

    assert now.drop_step[1, 0, 1] == 8
    assert np.count_nonzero(now.drop_step != full.drop_step) == 1
    assert np.argwhere(leaving(full, now, 3)).tolist() == [[1, 0, 1]]
    assert now.policy == "mine"
    assert revised(now, wanted, 4) == now


def test_what_has_left_cannot_come_back_and_the_first_such_cell_is_named() -> None:
    full = FullPolicy().plan(CONFIG, SCALES)
    drop_step = full.drop_step.copy()
    drop_step[2, 1, 1] = drop_step[2, 1, 2] = 8
    pruned = replace(full, drop_step=drop_step)

    with pytest.raises(ScheduleError, match=r"layer 2, head 1, source scale 1 left after scale 2 layer 2.*nor can 1 "):
        revised(pruned, full, 3)
    assert np.array_equal(revised(pruned, full, 2).drop_step, full.drop_step)


def test_a_schedule_for_another_run_or_after_the_last_scale_is_refused() -> None:
    full = FullPolicy().plan(CONFIG, SCALES)
    other = FullPolicy().plan(replace(CONFIG, name="other"), SCALES)
    grids = ScaleSchedule.custom(((1, 1), (2, 2), (3, 2), (4, 4), (5, 5)))

    with pytest.raises(ScheduleError, match=r"for other \(3 layers, 2 heads, 5 scales\), the run is revised"):
        revised(full, other, 1)
    with pytest.raises(ScheduleError, match="other token grids"):
        revised(full, FullPolicy().plan(CONFIG, grids), 1)
    with pytest.raises(ScheduleError, match="no scale 5 follows"):
        revised(full, full, 5)


def test_a_budget_is_claimed_only_if_the_whole_run_keeps_to_it() -> None:
    full = FullPolicy().plan(CONFIG, SCALES)
    small = replace(plan(3), budget=0.9)

    assert revised(full, small, 0).budget == 0.9
    assert revised(full, possible(full, small, 4), 4).budget is None


def test_what_was_held_before_the_boundary_counts_against_the_budget() -> None:
    full = FullPolicy().plan(CONFIG, SCALES)
    drop_step = full.drop_step.copy()
    drop_step[:, :, 1:-1] = np.arange(3)[:, None, None] + np.arange(1, 4) * 3  # read at their own step only
    tight = replace(full, drop_step=drop_step, budget=0.9, sink_scales=1)

    assert revised(tight, tight, 3).budget == 0.9
    assert revised(full, tight, 3).budget is None


class Reviser(NullProbe):
    """Revises before a scale, and remembers what steps say."""

    def __init__(self, wanted: PruningSchedule, query_scale: int) -> None:
        self.wanted, self.query_scale = wanted, query_scale
        self.steps: list[StepInfo] = []

    def run_started(self, start: RunStart) -> None:
        assert start.revise is not None
        self.revise = start.revise

    def step_done(self, step: StepInfo) -> None:
        self.steps.append(step)

    def scale_done(self, scale: ScaleInfo) -> None:
        if scale.query_scale == self.query_scale - 1:
            self.now = self.revise(self.wanted, self.query_scale)


@pytest.mark.parametrize("codecs", [(), ("int8", "int4")])
def test_a_run_that_is_revised_computes_what_its_revised_plan_alone_would(
    small_model: Infinity, small_texts: list[torch.Tensor], small_scales: ScaleSchedule, codecs: tuple[str, ...]
) -> None:
    config = small_model.config
    full = FullPolicy().plan(config, small_scales)
    wanted = random_schedule(config, small_scales, seed=5)
    if codecs:
        full, wanted = coded(full, 1, *codecs), coded(wanted, 1, *codecs)
    text = small_model.encode_text(small_texts[:1], None, guided=True)

    def bits(schedule: PruningSchedule, probe: NullProbe) -> list[torch.Tensor]:
        path = choose_path(text.pooled.device, dtype=small_model.kv_dtype, head_dim=config.head_dim)
        run = Run(small_model, text, small_scales, schedule, Sampling(), path, probe)
        with torch.inference_mode():
            return list(run.all_scales(1, 3, None)[0])

    reviser = Reviser(wanted, 2)
    found = bits(full, reviser)

    for one, other in zip(found, bits(reviser.now, NullProbe()), strict=True):
        assert torch.equal(one, other)
    dtype_bytes = small_model.kv_dtype.itemsize
    held = reviser.now.bytes_held(config.head_dim, rows=text.rows, dtype_bytes=dtype_bytes)
    after = [step for step in reviser.steps if step.query_scale >= 2]
    assert [step.accounted_bytes for step in after] == [
        held[step.query_scale * config.num_layers + step.layer] for step in after
    ]
    assert all(
        np.array_equal(step.read_tokens, reviser.now.read_tokens()[step.query_scale, step.layer]) for step in after
    )
