"""A cache of several codecs holds exactly the bytes that its schedule says, and shows what each codec keeps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heatkv.cache import KVCache
from heatkv.codecs import CODECS
from heatkv.packing import decode, encode
from heatkv.probe import PoolStart
from heatkv.schedule import PruningSchedule
from tests.heatkv.test_schedule_codecs import SCALES, TINY, full, mixed

ROWS, DIM, DTYPE = 2, TINY.head_dim, torch.bfloat16
SIZES = {"rows": ROWS, "dtype_bytes": DTYPE.itemsize}
SLOT_NUMBER_BYTES = 4


def _cache(schedule: PruningSchedule) -> KVCache:
    return KVCache(schedule, rows=ROWS, head_dim=DIM, dtype=DTYPE)


def _keys_values(schedule: PruningSchedule, step: int) -> tuple[Tensor, Tensor]:
    """[R, H, L, D] each; every step has its own numbers."""
    query_scale, layer = divmod(step, schedule.num_layers)
    shape = ROWS, schedule.num_heads, schedule.scales.tokens[query_scale], DIM
    keys, values = torch.randn(2, *shape, generator=torch.Generator().manual_seed(step)).to(DTYPE)
    return torch.nn.functional.normalize(keys, dim=-1), values * (1 + layer)


def _stored(schedule: PruningSchedule, layer: int, head: int, source_scale: int) -> tuple[Tensor, Tensor]:
    """What a head-scale decodes to: [R, L, D]."""
    codec = CODECS["model" if schedule.codec is None else schedule.codecs[schedule.codec[layer, head, source_scale]]]
    written = _keys_values(schedule, source_scale * schedule.num_layers + layer)
    keys, values = (
        decode(packing, encode(packing, one[:, head]), DIM, DTYPE)
        for packing, one in zip((codec.keys, codec.values), written, strict=True)
    )
    return keys, values


@given(seed=st.integers(0, 999))
@settings(max_examples=12)
def test_bytes_after_every_step_are_those_of_the_schedule(seed: int) -> None:
    schedule = mixed(seed)
    cache, held = _cache(schedule), schedule.bytes_held(DIM, **SIZES)
    capacity = schedule.capacity_bytes(DIM, **SIZES)

    for step in range(schedule.num_steps):
        query_scale, layer = divmod(step, schedule.num_layers)
        keys, values = _keys_values(schedule, step)
        cache.store(layer, query_scale=query_scale, keys=keys, values=values)

        assert cache.accounted_bytes == held[step]
        tensors = sum(one.untyped_storage().nbytes() for pool in cache.pools for one in (pool.keys, pool.values))
        assert tensors == capacity
        assert tensors <= cache.storage_bytes <= tensors + SLOT_NUMBER_BYTES * cache.capacity_tokens


@given(seed=st.integers(0, 999))
@settings(max_examples=6)
def test_shows_the_scheduled_head_scales_as_their_codecs_keep_them(seed: int) -> None:
    schedule = mixed(seed)
    cache, reads = _cache(schedule), schedule.read_tokens()

    for step in range(schedule.num_steps):
        query_scale, layer = divmod(step, schedule.num_layers)
        keys, values = _keys_values(schedule, step)
        visible = cache.visible(layer, query_scale=query_scale, keys=keys, values=values)

        np.testing.assert_array_equal(visible.read_tokens(SCALES.num_scales), reads[query_scale, layer])
        for head, (slots, sources) in enumerate(zip(visible.slots, visible.sources, strict=True)):
            read = visible.pool.read(slots)
            ends = np.cumsum([0, *(tokens for _, tokens in sources)]).tolist()
            for (source, _), (begin, end) in zip(sources, pairwise(ends), strict=True):
                for have, want in zip(read, _stored(schedule, layer, head, source), strict=True):
                    assert torch.equal(have[:, begin:end], want)
        cache.store(layer, query_scale=query_scale, keys=keys, values=values)


def test_a_codec_for_all_says_so_at_the_start() -> None:
    schedule = full().in_codec("int4")

    starts = _cache(schedule).pool_starts

    peaks = {name: int(held.max()) for name, held in schedule.tokens_held_by_codec().items()}
    assert starts == (PoolStart("model", 256, peaks["model"]), PoolStart("int4", 80, peaks["int4"]))
    assert _cache(full()).pool_starts == ()


def test_a_cleared_cache_holds_nothing() -> None:
    schedule = mixed(3)
    cache = _cache(schedule)
    for step in range(8):
        query_scale, layer = divmod(step, schedule.num_layers)
        keys, values = _keys_values(schedule, step)
        cache.store(layer, query_scale=query_scale, keys=keys, values=values)

    cache.clear()

    assert (cache.accounted_bytes, cache.storage_bytes, cache.capacity_tokens) == (0, 0, 0)
