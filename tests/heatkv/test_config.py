"""Every row of MODELS is consistent, and the published ones have the published shapes."""

from __future__ import annotations

import pytest

from heatkv.config import ALIASES, MODELS, ModelConfig, model_config
from heatkv.errors import UnknownNameError

# name → layers, width, heads, head_dim, FFN width, blocks per chunk
_PUBLISHED = {
    "infinity-2b": (32, 2048, 16, 128, 8192, 4),
    "infinity-8b": (40, 3584, 28, 128, 14336, 5),
    "infinity-layer12": (12, 768, 8, 96, 3072, 3),
    "infinity-layer16": (16, 1152, 12, 96, 4608, 4),
    "infinity-layer24": (24, 1536, 16, 96, 6144, 6),
    "infinity-layer32": (32, 2080, 20, 104, 8192, 8),
    "infinity-layer40": (40, 2688, 24, 112, 10752, 10),
    "infinity-layer48": (48, 3360, 28, 120, 13312, 12),
}


@pytest.mark.parametrize("config", MODELS.values(), ids=list(MODELS))
def test_every_row_is_consistent(config: ModelConfig) -> None:
    assert MODELS[config.name] is config
    assert config.num_heads * config.head_dim == config.width
    assert config.num_layers % config.num_chunks == 0
    assert config.width % config.pool_heads == 0
    assert 0 < config.sink_scales < config.schedule_for().num_scales


@pytest.mark.parametrize("name", _PUBLISHED)
def test_published_models_have_the_published_shapes(name: str) -> None:
    config = model_config(name)

    blocks = config.num_layers // config.num_chunks
    shape = (config.num_layers, config.width, config.num_heads, config.head_dim, config.ffn_width, blocks)

    assert shape == _PUBLISHED[name]


def test_bits_per_token_count_the_patch() -> None:
    assert model_config("infinity-2b").bits_per_token == 32
    assert model_config("infinity-8b").bits_per_token == 56


def test_history_bytes_equal_the_published_cache_sizes() -> None:
    config = model_config("infinity-2b")
    scales = config.schedule_for("1M")

    assert config.history_bytes(scales) == 6425 * 32 * 2 * 8192
    assert config.history_bytes(scales) / 2**30 == pytest.approx(3.137, abs=5e-4)


def test_aliases_and_unknown_models() -> None:
    assert all(target in MODELS for target in ALIASES.values())
    assert model_config("infinity-layer12") is MODELS["infinity-125m"]
    with pytest.raises(UnknownNameError, match="unknown model 'infinity-3b'; known, nearest first: infinity-"):
        model_config("infinity-3b")


def test_a_model_of_one_schedule_refuses_other_resolutions() -> None:
    tiny = model_config("infinity-tiny")

    assert tiny.schedule_for() == tiny.schedule_for("native")
    with pytest.raises(UnknownNameError, match="native"):
        tiny.schedule_for("1M")
