"""The forecast is heatkv's doing to the byte: compared with the real cache and the real model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import heatkv.generate
from heatkv.attention import Attended
from heatkv.budget import minimum_budget
from heatkv.cache import KVCache
from heatkv.checkpoint import random_transformer
from heatkv.codecs import CODECS
from heatkv.config import MODELS, ModelConfig, VAEConfig
from heatkv.generate import generate
from heatkv.kernels import grouped
from heatkv.online import OnlinePlan, plan_in_codec
from heatkv.orders import HeadOrders
from heatkv.policies.full import FullPolicy
from heatkv.policies.heatkv import HeatKVPolicy
from heatkv.policies.window import WindowPolicy
from heatkv.pool import Slots
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from heatkv.token_cache import TokenCache
from heatkv.transformer import _ALL_ROWS_AT_ONCE, _TOKENS_AT_ONCE, Infinity
from heatkv.vae import BSQVAE
from kvscope import forecast
from tests.benchmarks.memory import most_tensor_bytes

SCALES = ScaleSchedule.custom(((1, 1), (2, 2), (2, 3), (3, 3), (4, 4)))
CONFIG = ModelConfig("planned", 3, 32, 4, 3, VAEConfig(8, 4), sink_scales=1)
ROWS, DTYPE_BYTES = 2, 4
TOKEN_BYTES = CONFIG.kv_bytes_per_token(dtype_bytes=DTYPE_BYTES, rows=ROWS)


def planned(fraction: float, *, sinks: int, seed: int) -> PruningSchedule:
    random, least = np.random.default_rng(seed), minimum_budget(SCALES, sinks)
    slots = [random.permutation(CONFIG.num_layers * CONFIG.num_heads) for _ in range(SCALES.num_scales - 1 - sinks)]
    orders = HeadOrders(np.array(slots, np.int32), sinks, CONFIG.num_layers, CONFIG.num_heads)
    return HeatKVPolicy(orders).plan(CONFIG, SCALES, budget=least + (1 - least) * fraction, sink_scales=sinks)


def any_drops(seed: int, sinks: int) -> PruningSchedule:
    """Drop steps that no planner would give."""
    random, last = np.random.default_rng(seed), CONFIG.num_layers * SCALES.num_scales - 1
    written = np.arange(CONFIG.num_layers)[:, None, None] + np.arange(SCALES.num_scales) * CONFIG.num_layers
    drop_step = random.integers(np.broadcast_to(written, (3, 4, SCALES.num_scales)), last + 1)
    drop_step[:, :, :sinks] = last
    drop_step[:, :, -1] = written[:, :, -1]
    return PruningSchedule(drop_step, CONFIG.name, SCALES, sinks, "any")


def any_codecs(seed: int) -> PruningSchedule:
    """Any drop steps, any codecs."""
    schedule, names = any_drops(seed, seed % 3), ("int8", "model", "int2")
    codec = np.random.default_rng(seed).integers(0, len(names), schedule.drop_step.shape)
    return replace(schedule, codec=codec, codecs=names)


SCHEDULES = [
    FullPolicy().plan(CONFIG, SCALES),
    *(planned(fraction, sinks=sinks, seed=sinks) for fraction in (0.0, 0.1, 0.5, 1.0) for sinks in (1, 2)),
    *(any_drops(seed, seed % 3) for seed in range(12)),
    *(any_codecs(seed) for seed in range(6)),
    *(FullPolicy().plan(CONFIG, SCALES).in_codec(name) for name in CODECS),
    *(planned(0.3, sinks=sinks, seed=9).in_codec("int4") for sinks in (1, 2)),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_stored_bytes_are_those_of_the_real_cache_after_every_step(schedule: PruningSchedule) -> None:
    cache = KVCache(schedule, rows=ROWS, head_dim=CONFIG.head_dim, dtype=torch.float32)
    held = []
    for step in range(schedule.num_steps):
        query_scale, layer = divmod(step, schedule.num_layers)
        keys = torch.zeros(ROWS, CONFIG.num_heads, SCALES.tokens[query_scale], CONFIG.head_dim)
        cache.store(layer, query_scale=query_scale, keys=keys, values=keys)
        held.append(cache.storage_bytes)

    predicted = forecast.stored_bytes(schedule, CONFIG.head_dim, rows=ROWS, dtype_bytes=DTYPE_BYTES)

    assert predicted.tolist() == held
    if schedule.codec is None:
        assert predicted.max() == schedule.peak_tokens * (TOKEN_BYTES + forecast.SLOT_NUMBER_BYTES)


@dataclass(frozen=True)
class Carrying(WindowPolicy):
    """A policy whose tokens carry a number each."""

    carries: ClassVar[bool] = True


@dataclass(frozen=True)
class Sharing(WindowPolicy):
    """A policy whose heads share the capacity of their layer."""

    shares_layer: ClassVar[bool] = True


def choices(plan: OnlinePlan, scale: int, layer: int, counts: list[int], rng: np.random.Generator) -> list[Tensor]:
    """Any tokens of each head, other ones in each row, as many as the plan lets stay."""
    capacity = plan.capacity[scale, layer]
    if plan.policy.shares_layer:
        left, least = int(capacity.sum()), min(plan.scales.offsets[plan.sink_scales], min(counts))
        kept = [least] * len(counts)
        for head in rng.permutation(len(counts)):
            kept[head] += min(counts[head] - least, left - sum(kept))
    else:
        kept = [min(int(most), count) for most, count in zip(capacity, counts, strict=True)]
    return [
        torch.stack([torch.from_numpy(np.sort(rng.permutation(count)[:stay])) for _ in range(ROWS)])
        for count, stay in zip(counts, kept, strict=True)
    ]


@pytest.mark.parametrize("policy", [WindowPolicy(), Carrying(), Sharing()], ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("budget", [0.1, 0.35, 0.7, 1.0])
@pytest.mark.parametrize("codec", ["model", "int4"])
def test_stored_bytes_are_those_of_the_real_cache_of_an_online_policy(
    policy: WindowPolicy, budget: float, codec: str
) -> None:
    plan = plan_in_codec(policy, codec, CONFIG, SCALES, budget=budget, sink_scales=1, dtype_bytes=DTYPE_BYTES)
    rng, sizes = np.random.default_rng(0), {"rows": ROWS, "dtype_bytes": DTYPE_BYTES}
    cache = TokenCache(plan, rows=ROWS, head_dim=CONFIG.head_dim, dtype=torch.float32)
    held, accounted = [], []
    for scale, layer in np.ndindex(SCALES.num_scales, CONFIG.num_layers):
        if scale < SCALES.num_scales - 1:
            keys = torch.zeros(ROWS, CONFIG.num_heads, SCALES.tokens[scale], CONFIG.head_dim)
            candidates = cache.candidates(layer, query_scale=scale, keys=keys, values=keys)
            if policy.carries:
                candidates = [replace(one, carried=torch.zeros(one.tokens.shape)) for one in candidates]
            counts = {head: one.tokens.shape[2] for one in candidates for head in one.heads}
            keep = choices(plan, scale, layer, [counts[head] for head in range(CONFIG.num_heads)], rng)
            cache.store(
                layer,
                [(one.of([at]), keep[head][:, None]) for one in candidates for at, head in enumerate(one.heads)],
            )
        held.append(cache.storage_bytes)
        accounted.append(cache.accounted_bytes)

    assert plan.bound().bytes_held(CONFIG.head_dim, **sizes).tolist() == accounted
    assert forecast.stored_bytes(plan.bound(), CONFIG.head_dim, **sizes).tolist() == held


@pytest.mark.parametrize("config", MODELS.values(), ids=list(MODELS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_weights_are_those_of_the_real_transformer(config: ModelConfig, dtype: torch.dtype) -> None:
    with torch.device("meta"):
        model = Infinity(config).cast_layers(dtype)
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))

    assert forecast.weight_bytes(config, dtype.itemsize) == held


@pytest.mark.parametrize("name", MODELS)
def test_the_vae_weighs_what_its_parameters_do(name: str) -> None:
    config = MODELS[name].vae
    with torch.device("meta"):
        model = BSQVAE(config).to(torch.bfloat16)

    assert forecast.vae_weight_bytes(config, 2) == sum(parameter.nbytes for parameter in model.parameters())


def test_constants_are_heatkvs() -> None:
    assert grouped.GATHER_BYTES == forecast.GATHER_BYTES
    assert (_TOKENS_AT_ONCE, _ALL_ROWS_AT_ONCE) == (forecast.TOKENS_AT_ONCE, forecast.ALL_ROWS_AT_ONCE)
    assert np.empty(1, Slots.__args__[1].__args__[0]).nbytes == forecast.SLOT_NUMBER_BYTES


def transients(schedule: PruningSchedule, query_scale: int, attention: str = "grouped") -> forecast.Transients:
    return forecast.transients(schedule, CONFIG, query_scale, rows=ROWS, dtype_bytes=DTYPE_BYTES, attention=attention)


@pytest.mark.parametrize("side", [24, 32, 48])
@pytest.mark.parametrize(("batch", "dtype"), [(1, torch.bfloat16), (12, torch.bfloat16), (1, torch.float32)], ids=str)
def test_a_layers_tensors_are_those_that_a_run_has_at_most(
    side: int, batch: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of attention its output alone, as where a kernel reads everything in place."""
    monkeypatch.setattr(heatkv.generate, "attend", lambda q, *_, **__: Attended(torch.zeros_like(q)))
    config = ModelConfig("wide", 1, 512, 4, 1, VAEConfig(8, 4), text_width=64, text_maxlen=8, sink_scales=1)
    scales = ScaleSchedule.custom(((1, 1), (side, side)))
    schedule = FullPolicy().plan(config, scales)
    model = random_transformer(config, dtype=dtype, device="cpu", seed=0)
    texts = [torch.zeros(2, 64)] * batch
    sizes = {"rows": 2 * batch, "dtype_bytes": dtype.itemsize}

    most = most_tensor_bytes(lambda: generate(model, texts, scales, schedule=schedule, seed=0))

    layer = forecast.transients(schedule, config, 1, **sizes, attention="triton").total_bytes
    assert 0.93 < layer / (most - schedule.capacity_bytes(config.head_dim, **sizes)) < 1.01


def test_a_layers_tensors_are_counted_in_full() -> None:
    found = transients(FullPolicy().plan(CONFIG, SCALES), 4)

    numbers = ROWS * 16 * 32
    assert found.gathered_bytes == 4 * SCALES.total_tokens * TOKEN_BYTES
    assert found.attending_bytes == 4 * numbers * 4 + found.gathered_bytes
    assert found.logits_bytes == 2 * numbers * 4 + ROWS * 16 * 2 * 8 * 4
    parts = (found.projecting_bytes, found.attending_bytes, found.feeding_bytes, found.logits_bytes)
    assert found.total_bytes == found.input_bytes + max(parts)


def test_no_more_is_gathered_than_allowed_but_at_least_one_head(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = FullPolicy().plan(CONFIG, SCALES)
    head_bytes = SCALES.total_tokens * TOKEN_BYTES

    for allowed, heads in ((head_bytes * 3 + 1, 3), (head_bytes // 2, 1)):
        monkeypatch.setattr(forecast, "GATHER_BYTES", allowed)
        assert transients(schedule, 4).gathered_bytes == heads * head_bytes


def test_nothing_is_gathered_where_there_is_no_history_or_a_kernel_reads_in_place() -> None:
    schedule = FullPolicy().plan(CONFIG, SCALES)

    assert transients(schedule, 0).gathered_bytes == 0
    assert transients(schedule, 4, "triton").gathered_bytes == 0
    assert transients(schedule, 4, "varlen").gathered_bytes == 4 * SCALES.total_tokens * TOKEN_BYTES
