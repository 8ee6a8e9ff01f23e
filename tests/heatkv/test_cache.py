"""The cache holds exactly what the schedule says, in memory of its own, and really lets go of the rest."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heatkv.cache import KVCache
from heatkv.config import ModelConfig, VAEConfig
from heatkv.orders import HeadOrders
from heatkv.policies.full import FullPolicy
from heatkv.policies.heatkv import HeatKVPolicy
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule, minimum_budget
from tests.heatkv.conftest import random_schedule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from heatkv.attention import Segment

ROWS, DIM = 2, 8
BYTES_PER_TOKEN = 2 * ROWS * DIM * 4  # K and V, float32
SCALES = ScaleSchedule.custom(((1, 1), (2, 2), (2, 3), (4, 4)))


def _config(num_layers: int, num_heads: int) -> ModelConfig:
    return ModelConfig("cached", num_layers, DIM * num_heads, num_heads, num_layers, VAEConfig(8, 4), sink_scales=1)


def _projection(schedule: PruningSchedule, query_scale: int, layer: int) -> Tensor:
    """[3, R, H, L, D]: q, k and v as views of one tensor, as a layer makes them; each step has its own numbers."""
    tokens = schedule.scales.tokens[query_scale]
    generator = torch.Generator().manual_seed(1000 * query_scale + layer)
    whole = torch.randn(ROWS, tokens, 3 * schedule.num_heads * DIM, generator=generator)
    return whole.view(ROWS, tokens, 3, schedule.num_heads, DIM).permute(2, 0, 3, 1, 4)


def _run(schedule: PruningSchedule) -> Iterator[tuple[int, KVCache, int]]:
    """(step, cache, tokens freed) after every step's read, write and eviction."""
    cache = KVCache(schedule)
    for step in range(schedule.num_steps):
        query_scale, layer = divmod(step, schedule.num_layers)
        _, keys, values = _projection(schedule, query_scale, layer)
        freed = cache.append(layer, query_scale=query_scale, keys=keys, values=values) + cache.evict(step)
        yield step, cache, freed


@st.composite
def schedules(draw: st.DrawFn) -> PruningSchedule:
    """Planned by HeatKV from random orders, or with any drop steps at all."""
    config = _config(draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    sides = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    scales = ScaleSchedule.custom(tuple((side, side) for side in sides))
    sinks, seed = draw(st.integers(0, len(sides) - 1)), draw(st.integers(0, 2**16))
    if draw(st.booleans()):
        return random_schedule(config, scales, seed=seed, sink_scales=sinks)
    slots = config.num_layers * config.num_heads
    random = np.random.default_rng(seed)
    ranked = np.array([random.permutation(slots) for _ in range(len(sides) - 1 - sinks)], dtype=np.int32)
    orders = HeadOrders(ranked.reshape(-1, slots), sinks, config.num_layers, config.num_heads)
    least = minimum_budget(scales, sinks)
    budget = least + (1 - least) * draw(st.sampled_from([0.0, 0.1, 0.4, 0.8, 1.0]))
    return HeatKVPolicy(orders).plan(config, scales, budget=budget, sink_scales=sinks)


class TestObedience:
    @given(schedule=schedules())
    @settings(deadline=None, max_examples=40)
    def test_holds_the_scheduled_tokens_after_every_step_in_exactly_their_bytes(
        self, schedule: PruningSchedule
    ) -> None:
        kept, held = schedule.kept_tokens(), schedule.tokens_held()

        for step, cache, _ in _run(schedule):
            query_scale, layer = divmod(step, schedule.num_layers)
            np.testing.assert_array_equal(cache.kept_tokens(layer), kept[query_scale, layer])
            assert sum(cache.kept_tokens(one).sum() for one in range(schedule.num_layers)) == held[step]
            assert cache.accounted_bytes == held[step] * BYTES_PER_TOKEN
            assert cache.storage_bytes == cache.accounted_bytes

    @given(schedule=schedules())
    @settings(deadline=None, max_examples=20)
    def test_reads_the_scheduled_head_scales_as_they_were_written(self, schedule: PruningSchedule) -> None:
        cache, read_tokens = KVCache(schedule), schedule.read_tokens()

        for step in range(schedule.num_steps):
            query_scale, layer = divmod(step, schedule.num_layers)
            _, keys, values = _projection(schedule, query_scale, layer)
            segments = cache.read(layer, query_scale=query_scale, keys=keys, values=values)

            read = np.zeros((schedule.num_heads, schedule.scales.num_scales), dtype=np.int64)
            for segment in segments:
                _, written_keys, written_values = _projection(schedule, segment.source_scale, layer)
                read[list(segment.heads), segment.source_scale] = segment.num_tokens
                assert torch.equal(segment.keys, written_keys[:, list(segment.heads)])
                assert torch.equal(segment.values, written_values[:, list(segment.heads)])
            np.testing.assert_array_equal(read, read_tokens[query_scale, layer])
            assert [one.source_scale for one in segments] == sorted(one.source_scale for one in segments)

            cache.append(layer, query_scale=query_scale, keys=keys, values=values)
            cache.evict(step)

    @given(schedule=schedules())
    @settings(deadline=None, max_examples=20)
    def test_tokens_freed_are_those_offered_and_not_held(self, schedule: PruningSchedule) -> None:
        held, before = schedule.tokens_held(), 0

        for step, _, freed in _run(schedule):
            query_scale = step // schedule.num_layers
            is_last = query_scale == schedule.scales.num_scales - 1
            offered = 0 if is_last else schedule.scales.tokens[query_scale] * schedule.num_heads
            assert freed == before + offered - held[step]
            before = held[step]

    def test_the_last_scale_is_never_stored(self) -> None:
        config = _config(2, 3)

        last = [cache for _, cache, _ in _run(FullPolicy().plan(config, SCALES))][-1]

        assert last.accounted_bytes == SCALES.history_tokens * 2 * 3 * BYTES_PER_TOKEN
        assert not last.kept_tokens(1)[:, -1].any()


class TestMemory:
    def test_a_stored_head_does_not_keep_the_projection_alive(self) -> None:
        schedule = FullPolicy().plan(_config(1, 3), SCALES)
        cache = KVCache(schedule)
        projection = _projection(schedule, 1, 0)
        whole = weakref.ref(projection.untyped_storage())
        keys, values = projection[1:]

        cache.append(0, query_scale=1, keys=keys, values=values)
        del projection, keys, values
        gc.collect()

        assert whole() is None
        assert cache.accounted_bytes == 4 * 3 * BYTES_PER_TOKEN

    def test_what_is_dropped_is_gone_and_what_stays_is_moved_out_of_it(self) -> None:
        drop_step = np.full((1, 3, 4), 3, dtype=np.int16)
        drop_step[0, :, 1] = (1, 2, 3)  # one head never stored, one dropped a scale later, one kept
        schedule = _with(drop_step)
        cache = KVCache(schedule)
        for step in range(2):
            _, keys, values = _projection(schedule, step, 0)
            cache.append(0, query_scale=step, keys=keys, values=values)
            cache.evict(step)
        stored = _stored(cache, 1)
        refs = [weakref.ref(tensor) for tensor in (stored.keys, stored.values)]
        assert stored.heads == (1, 2)
        before = cache.storage_bytes

        del stored
        freed = cache.evict(2)
        gc.collect()

        assert freed == 4
        assert before - cache.storage_bytes == 4 * BYTES_PER_TOKEN
        assert [ref() for ref in refs] == [None, None]
        assert _stored(cache, 1).keys.untyped_storage().nbytes() == 4 * ROWS * DIM * 4

    def test_what_is_read_once_and_never_kept_is_never_stored(self) -> None:
        drop_step = np.full((1, 3, 4), 3, dtype=np.int16)
        drop_step[0, :2, 1] = 1
        cache = KVCache(_with(drop_step))
        _, keys, values = _projection(cache.schedule, 1, 0)

        freed = cache.append(0, query_scale=1, keys=keys, values=values)

        assert freed == 2 * 4
        assert cache.storage_bytes == 4 * BYTES_PER_TOKEN

    def test_early_activation_frees_layers_that_have_not_run_yet(self) -> None:
        drop_step = np.full((2, 2, 4), 7, dtype=np.int16)
        drop_step[:, :, 3] = (6,), (7,)
        drop_step[1, 0, 1] = 4  # layer 1 at query scale 2 would read it at step 5
        schedule = _with(drop_step)

        held = {step: cache.kept_tokens(1)[0, 1] for step, cache, _ in _run(schedule)}

        assert (held[3], held[4]) == (4, 0)

    def test_one_tensor_given_as_keys_and_values_is_stored_twice(self) -> None:
        schedule = FullPolicy().plan(_config(1, 2), SCALES)
        cache = KVCache(schedule)
        _, keys, _ = _projection(schedule, 1, 0)
        cache.append(0, query_scale=1, keys=keys, values=keys)

        assert cache.storage_bytes == cache.accounted_bytes == 2 * 4 * 2 * ROWS * DIM * 4

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_bytes_follow_the_dtype(self, dtype: torch.dtype) -> None:
        schedule = FullPolicy().plan(_config(1, 2), SCALES)
        cache = KVCache(schedule)
        _, keys, values = _projection(schedule, 1, 0).to(dtype)

        cache.append(0, query_scale=1, keys=keys, values=values)

        assert cache.storage_bytes == 4 * 2 * 2 * ROWS * DIM * dtype.itemsize

    def test_clear_releases_everything(self) -> None:
        cache = [cache for _, cache, _ in _run(FullPolicy().plan(_config(2, 2), SCALES))][-1]
        assert cache.storage_bytes > 0

        cache.clear()

        assert (cache.storage_bytes, cache.accounted_bytes, cache.kept_tokens(0).sum()) == (0, 0, 0)


def _with(drop_step: NDArray[np.int16]) -> PruningSchedule:
    num_layers, num_heads, _ = drop_step.shape
    return PruningSchedule(drop_step, _config(num_layers, num_heads).name, SCALES, 1, "by hand")


def _stored(cache: KVCache, source_scale: int) -> Segment:
    """What layer 0 holds of one scale."""
    nothing = torch.zeros(ROWS, cache.schedule.num_heads, 1, DIM)
    segments = cache.read(0, query_scale=3, keys=nothing, values=nothing)
    return next(segment for segment in segments if segment.source_scale == source_scale)
