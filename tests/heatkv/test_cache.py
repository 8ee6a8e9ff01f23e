"""The cache holds exactly what the schedule says, in one pool as large as the schedule's peak and never larger."""

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

from heatkv.budget import minimum_budget
from heatkv.cache import KVCache
from heatkv.config import ModelConfig, VAEConfig
from heatkv.orders import HeadOrders
from heatkv.policies.full import FullPolicy
from heatkv.policies.heatkv import HeatKVPolicy
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from tests.heatkv.conftest import LargestTensor, random_schedule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from heatkv.visible import Visible

ROWS, DIM = 2, 8
BYTES_PER_TOKEN = 2 * ROWS * DIM * 4  # K and V, float32
BYTES_PER_SLOT_NUMBER = 4
SCALES = ScaleSchedule.custom(((1, 1), (2, 2), (2, 3), (4, 4)))


def _config(num_layers: int, num_heads: int) -> ModelConfig:
    return ModelConfig("cached", num_layers, DIM * num_heads, num_heads, num_layers, VAEConfig(8, 4), sink_scales=1)


def _cache(schedule: PruningSchedule, *, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(schedule, rows=ROWS, head_dim=DIM, dtype=dtype)


def _projection(schedule: PruningSchedule, query_scale: int, layer: int) -> Tensor:
    """[3, R, H, L, D]: q, k and v as views of one tensor, as a layer makes them; each step has its own numbers."""
    tokens = schedule.scales.tokens[query_scale]
    generator = torch.Generator().manual_seed(1000 * query_scale + layer)
    whole = torch.randn(ROWS, tokens, 3 * schedule.num_heads * DIM, generator=generator)
    return whole.view(ROWS, tokens, 3, schedule.num_heads, DIM).permute(2, 0, 3, 1, 4)


def _store(cache: KVCache, step: int) -> int:
    query_scale, layer = divmod(step, cache.schedule.num_layers)
    _, keys, values = _projection(cache.schedule, query_scale, layer)
    return cache.store(layer, query_scale=query_scale, keys=keys, values=values)


def _run(schedule: PruningSchedule) -> Iterator[tuple[int, KVCache, int]]:
    """(step, cache, tokens gone) after every step's eviction and write."""
    cache = _cache(schedule)
    for step in range(schedule.num_steps):
        yield step, cache, _store(cache, step)


def _visible(cache: KVCache, step: int) -> Visible:
    query_scale, layer = divmod(step, cache.schedule.num_layers)
    _, keys, values = _projection(cache.schedule, query_scale, layer)
    return cache.visible(layer, query_scale=query_scale, keys=keys, values=values)


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
    @settings(max_examples=40)
    def test_holds_the_scheduled_tokens_after_every_step_in_exactly_their_bytes(
        self, schedule: PruningSchedule
    ) -> None:
        kept, held = schedule.kept_tokens(), schedule.tokens_held()

        for step, cache, _ in _run(schedule):
            query_scale, layer = divmod(step, schedule.num_layers)
            np.testing.assert_array_equal(cache.kept_tokens(layer), kept[query_scale, layer])
            assert sum(cache.kept_tokens(one).sum() for one in range(schedule.num_layers)) == held[step]
            assert cache.accounted_bytes == held[step] * BYTES_PER_TOKEN

    @given(schedule=schedules())
    @settings(max_examples=20)
    def test_shows_the_scheduled_head_scales_as_they_were_written(self, schedule: PruningSchedule) -> None:
        cache, read_tokens = _cache(schedule), schedule.read_tokens()

        for step in range(schedule.num_steps):
            query_scale, layer = divmod(step, schedule.num_layers)
            visible = _visible(cache, step)

            np.testing.assert_array_equal(
                visible.read_tokens(schedule.scales.num_scales), read_tokens[query_scale, layer]
            )
            for head in range(schedule.num_heads):
                sources = [source for source, _ in visible.sources[head]]
                written = [_projection(schedule, source, layer)[:, :, head] for source in sources]
                expected = torch.cat([torch.empty(3, ROWS, 0, DIM), *written], dim=2)
                assert sources == sorted(sources)
                assert torch.equal(cache.pool.keys[:, visible.slots[head]], expected[1])
                assert torch.equal(cache.pool.values[:, visible.slots[head]], expected[2])

            _store(cache, step)

    @given(schedule=schedules())
    @settings(max_examples=20)
    def test_tokens_gone_are_those_offered_and_not_held(self, schedule: PruningSchedule) -> None:
        held, before = schedule.tokens_held(), 0

        for step, _, gone in _run(schedule):
            query_scale = step // schedule.num_layers
            is_last = query_scale == schedule.scales.num_scales - 1
            offered = 0 if is_last else schedule.scales.tokens[query_scale] * schedule.num_heads
            assert gone == before + offered - held[step]
            before = held[step]

    def test_the_last_scale_is_shown_and_never_stored(self) -> None:
        cache = _cache(FullPolicy().plan(_config(2, 3), SCALES))
        for step in range(6):
            _store(cache, step)
        before = cache.pool.keys.clone()

        visible = _visible(cache, 6)
        _store(cache, 6)

        assert visible.keys.shape[2] == SCALES.tokens[-1]
        assert torch.equal(cache.pool.keys, before)
        assert not cache.kept_tokens(0)[:, -1].any()
        assert cache.capacity_tokens == SCALES.history_tokens * 2 * 3

    def test_early_activation_frees_layers_that_have_not_run_yet(self) -> None:
        drop_step = np.full((2, 2, 4), 7, dtype=np.int16)
        drop_step[:, :, 3] = (6,), (7,)
        drop_step[1, 0, 1] = 4  # layer 1 at query scale 2 would read it at step 5
        schedule = _with(drop_step)

        held = {step: cache.kept_tokens(1)[0, 1] for step, cache, _ in _run(schedule)}

        assert (held[3], held[4]) == (4, 0)

    def test_a_slot_that_one_layer_gives_up_serves_another(self) -> None:
        drop_step = np.full((2, 1, 3), 5, dtype=np.int16)
        drop_step[:, :, 2] = (4,), (5,)
        drop_step[0, 0, 1] = 3  # leaves just before layer 1 keeps its own
        schedule = _with(drop_step, scales=ScaleSchedule.custom(SCALES.sizes[:3]))
        cache = _cache(schedule)
        for step in range(3):
            _store(cache, step)
        given_up = _visible(cache, 4).slots[0][1:]

        _store(cache, 3)

        assert set(_visible(cache, 5).slots[0][1:]) == set(given_up)


class TestMemory:
    @given(schedule=schedules())
    @settings(max_examples=40)
    def test_never_holds_more_than_the_peak_s_bytes_and_a_number_per_slot(self, schedule: PruningSchedule) -> None:
        peak = schedule.peak_tokens
        cache = _cache(schedule)
        assert cache.storage_bytes >= peak * BYTES_PER_TOKEN

        for step in range(schedule.num_steps):
            _store(cache, step)
            assert cache.capacity_tokens == peak
            assert peak * BYTES_PER_TOKEN <= cache.storage_bytes
            assert cache.storage_bytes <= peak * (BYTES_PER_TOKEN + BYTES_PER_SLOT_NUMBER)

    @given(schedule=schedules())
    @settings(max_examples=20)
    def test_allocates_nothing_for_keys_and_values_after_it_was_made(self, schedule: PruningSchedule) -> None:
        cache = _cache(schedule)
        addresses = cache.pool.keys.data_ptr(), cache.pool.values.data_ptr()

        for step in range(schedule.num_steps):
            _store(cache, step)

        assert (cache.pool.keys.data_ptr(), cache.pool.values.data_ptr()) == addresses
        assert cache.pool.keys.shape == (ROWS, schedule.peak_tokens, DIM)

    @given(schedule=schedules())
    @settings(max_examples=20)
    def test_every_slot_number_held_is_counted(self, schedule: PruningSchedule) -> None:
        for _, cache, _ in _run(schedule):
            arrays = [*cache.pool._returned, cache._resident, *(one for held in cache._held for one in held.values())]
            owners = {id(owner): owner for one in arrays for owner in (one if one.base is None else one.base,)}
            numbers = sum(owner.nbytes for owner in owners.values())
            assert cache.storage_bytes == cache.capacity_tokens * BYTES_PER_TOKEN + numbers

    @given(schedule=schedules())
    @settings(max_examples=20)
    def test_scales_that_no_head_lets_go_lie_dense_in_the_first_slots(self, schedule: PruningSchedule) -> None:
        stays = (schedule.drop_step[:, :, :-1] == schedule.num_steps - 1).all(axis=(0, 1)).tolist()
        resident = stays.index(False) if False in stays else len(stays)
        tokens = sum(schedule.scales.tokens[:resident])
        last_scale = schedule.num_steps - schedule.num_layers

        cache = next(cache for step, cache, _ in _run(schedule) if step == last_scale - 1)

        assert resident >= schedule.sink_scales
        slots = [_visible(cache, last_scale + layer).slots for layer in range(schedule.num_layers)]
        first = np.array([[each[:tokens] for each in heads] for heads in slots])
        np.testing.assert_array_equal(first.ravel(), np.arange(first.size))

    def test_stored_heads_do_not_keep_the_projection_alive(self) -> None:
        cache = _cache(FullPolicy().plan(_config(1, 3), SCALES))
        projection = _projection(cache.schedule, 1, 0)
        whole = weakref.ref(projection.untyped_storage())
        keys, values = projection[1:]

        cache.store(0, query_scale=1, keys=keys, values=values)
        del projection, keys, values
        gc.collect()

        assert whole() is None
        assert cache.accounted_bytes == 4 * 3 * BYTES_PER_TOKEN

    @pytest.mark.parametrize(("dropped", "copied"), [(0, 3), (1, 2), (3, 0)])
    def test_storing_copies_the_kept_heads_and_nothing_of_the_others(self, dropped: int, copied: int) -> None:
        drop_step = np.full((1, 3, 4), 3, dtype=np.int16)
        drop_step[0, :dropped, 1] = 1
        cache = _cache(_with(drop_step))
        _, keys, values = _projection(cache.schedule, 1, 0)

        with LargestTensor() as made:
            gone = cache.store(0, query_scale=1, keys=keys, values=values)

        assert gone == dropped * 4
        assert made.num_bytes <= copied * 4 * BYTES_PER_TOKEN // 2  # keys and values one after the other
        assert cache.accounted_bytes == copied * 4 * BYTES_PER_TOKEN

    def test_one_tensor_given_as_keys_and_values_is_stored_twice(self) -> None:
        cache = _cache(FullPolicy().plan(_config(1, 2), SCALES))
        _, keys, _ = _projection(cache.schedule, 1, 0)

        cache.store(0, query_scale=1, keys=keys, values=keys)

        assert cache.accounted_bytes == 4 * 2 * BYTES_PER_TOKEN
        slots = cache.visible(0, query_scale=2, keys=keys, values=keys).slots[1]
        assert torch.equal(cache.pool.keys[:, slots], keys[:, 1])
        assert torch.equal(cache.pool.values[:, slots], keys[:, 1])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_bytes_follow_the_dtype(self, dtype: torch.dtype) -> None:
        cache = _cache(FullPolicy().plan(_config(1, 2), SCALES), dtype=dtype)
        _, keys, values = _projection(cache.schedule, 1, 0).to(dtype)

        cache.store(0, query_scale=1, keys=keys, values=values)

        assert cache.accounted_bytes == 4 * 2 * 2 * ROWS * DIM * dtype.itemsize
        assert cache.pool.nbytes == SCALES.history_tokens * 2 * 2 * ROWS * DIM * dtype.itemsize

    def test_a_schedule_that_keeps_nothing_has_no_pool(self) -> None:
        scales = ScaleSchedule.custom(SCALES.sizes[:2])
        schedule = _with(np.array([[[0, 1], [0, 1]]], dtype=np.int16), scales=scales, sink_scales=0)

        for step, cache, gone in _run(schedule):
            assert gone == (2, 0)[step]
            assert (cache.capacity_tokens, cache.storage_bytes, cache.accounted_bytes) == (0, 0, 0)

    def test_clear_frees_everything_while_the_cache_itself_is_held(self) -> None:
        cache = [cache for _, cache, _ in _run(FullPolicy().plan(_config(2, 2), SCALES))][-1]
        memory = [weakref.ref(tensor.untyped_storage()) for tensor in (cache.pool.keys, cache.pool.values)]
        assert cache.accounted_bytes > 0

        cache.clear()
        gc.collect()

        assert [one() for one in memory] == [None, None]
        assert (cache.accounted_bytes, cache.kept_tokens(0).sum(), cache.kept_tokens(1).sum()) == (0, 0, 0)
        assert cache.storage_bytes == 0


def _with(drop_step: NDArray[np.int16], *, scales: ScaleSchedule = SCALES, sink_scales: int = 1) -> PruningSchedule:
    num_layers, num_heads, _ = drop_step.shape
    return PruningSchedule(drop_step, _config(num_layers, num_heads).name, scales, sink_scales, "by hand")
