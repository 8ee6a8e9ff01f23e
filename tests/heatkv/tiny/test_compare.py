"""The policy table's measures, on a model with random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heatkv.checkpoint import random_transformer, random_vae
from heatkv.config import model_config
from heatkv.orders import HeadOrders
from heatkv.pipeline import Pipeline
from heatkv.tiny.compare import Row, compare, rankings, reference_runs
from heatkv.tiny.evaluate import uniform_distance
from heatkv.tiny.scenes import held_out_scenes
from heatkv.tiny.text import TinyTextEncoder

CONFIG = model_config("infinity-tiny")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    return Pipeline(
        CONFIG,
        random_transformer(CONFIG, dtype=torch.float32, device="cpu", seed=0),
        random_vae(CONFIG, dtype=torch.float32, device="cpu", seed=1),
        TinyTextEncoder(CONFIG).requires_grad_(requires_grad=False),
        "random",
    )


def some_orders() -> HeadOrders:
    num_slots = CONFIG.num_layers * CONFIG.num_heads
    rng, num_sources = np.random.default_rng(99), len(CONFIG.scales) - 1 - CONFIG.sink_scales
    slots = np.stack([rng.permutation(num_slots) for _ in range(num_sources)]).astype(np.int32)
    return HeadOrders(slots, CONFIG.sink_scales, CONFIG.num_layers, CONFIG.num_heads)


@pytest.fixture(scope="module")
def rows(pipeline: Pipeline) -> dict[tuple[str, float | None], Row]:
    batches = reference_runs(pipeline, held_out_scenes(3), seed=0)
    made = compare(pipeline, batches, some_orders(), budgets=[0.5, 0.1], num_random=1)
    return {(row.ranking, row.budget): row for row in made}


def test_the_full_cache_agrees_with_itself(rows: dict[tuple[str, float | None], Row]) -> None:
    full = rows["full", None].measures

    assert (full["agreement_free"] == 1).all()
    assert (full["agreement_forced"] == 1).all()
    assert (full["chance_change_forced"] == 0).all()
    assert (full["psnr"] > 60).all()


def test_every_ranking_gets_the_same_bytes_within_one_per_cent(rows: dict[tuple[str, float | None], Row]) -> None:
    for budget in (0.5, 0.1):
        peaks = [row.peak_bytes for (_, of), row in rows.items() if of == budget]

        assert len(peaks) == 3
        assert max(peaks) <= 1.01 * min(peaks)


def test_no_ranking_exceeds_its_budget(rows: dict[tuple[str, float | None], Row]) -> None:
    full = CONFIG.history_bytes(CONFIG.schedule_for(), dtype_bytes=4)

    assert rows["full", None].peak_bytes == full
    assert all(row.peak_bytes <= row.budget * full * (1 + 1e-9) for row in rows.values() if row.budget is not None)


def test_less_cache_changes_more(rows: dict[tuple[str, float | None], Row]) -> None:
    changes = [rows["heatkv", budget].measures["chance_change_forced"].mean() for budget in (0.5, 0.1)]

    assert 0 < changes[0] < changes[1]


def test_a_row_is_written_with_the_half_width_of_its_interval() -> None:
    row = Row("heatkv", 0.5, 10, {"psnr": np.array([1.0, 3.0])})

    assert row.to_json() == {"ranking": "heatkv", "budget": 0.5, "peak_bytes": 10, "psnr": [2.0, 1.96]}


def test_rankings_are_permutations_of_the_same_heads() -> None:
    named = rankings(some_orders(), num_random=2)

    assert list(named) == ["heatkv", "reversed", "random-0", "random-1"]
    assert (named["reversed"].slots == some_orders().slots[:, ::-1]).all()
    assert (named["random-0"].slots != named["random-1"].slots).any()


def test_random_weights_attend_nearly_uniformly(pipeline: Pipeline) -> None:
    distance = uniform_distance(pipeline, held_out_scenes(2))

    assert distance.shape == (CONFIG.num_layers, CONFIG.num_heads)
    assert ((distance >= 0) & (distance < 0.15)).all()
