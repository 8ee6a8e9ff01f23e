"""What calibration measures, worked out again in float64 from the queries, keys and values of a whole run at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from heatkv.calibrate import measure, measure_prompt
from heatkv.generate import Sampling, generate
from heatkv.kernels import grouped
from heatkv.kernels.statistics import column_variance, selectivity, similarity
from heatkv.measurements import AXES, measurement_names
from heatkv.scas import ScasAccumulator
from heatkv.text_encoder import RandomTextEncoder
from heatkv.transformer import Infinity, Rope
from heatkv.vae import ResidualCodes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.scales import ScaleSchedule

PROMPTS = ("a red cat", "two dogs beside one very small house")
SINKS = 1


@pytest.fixture(scope="module")
def encoder(small_model: Infinity) -> RandomTextEncoder:
    return RandomTextEncoder(small_model.config)


@pytest.fixture(scope="module")
def runs(small_model: Infinity, encoder: RandomTextEncoder, small_scales: ScaleSchedule) -> list[_Seen]:
    """Of each prompt, with seed 0 and 1."""
    return [_seen(small_model, encoder, small_scales, prompt, seed) for seed, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def masses(runs: list[_Seen]) -> list[NDArray[np.float64]]:
    """Of each prompt's conditional row."""
    return [_direct_mass(seen) for seen in runs]


@pytest.fixture(scope="module")
def measured(
    small_model: Infinity, encoder: RandomTextEncoder, small_scales: ScaleSchedule
) -> dict[str, NDArray[np.float32]]:
    """Of the first prompt."""
    return measure(small_model, encoder.encode(PROMPTS[:1])[0], small_scales, seed=0)


class _Seen:
    """Attention over all scales at once; keeps what it saw, in float64."""

    def __init__(self, scales: ScaleSchedule) -> None:
        self.levels = torch.repeat_interleave(torch.arange(scales.num_scales), torch.tensor(scales.tokens))
        self.mask = self.levels[:, None] >= self.levels
        self.layers: list[tuple[Tensor, Tensor, Tensor]] = []
        """q, k, v [R, H, T, D] of each layer."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.layers.append((q.double(), k.double(), v.double()))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=1.0)

    def attention(self, layer: int, *, without: int | None = None) -> tuple[Tensor, Tensor]:
        """Probabilities and outputs of a layer, of heads that do not see one source scale in later ones."""
        q, k, v = self.layers[layer]
        hidden = (self.levels == without) & (self.levels[:, None] > self.levels) if without is not None else ~self.mask
        probabilities = (q @ k.transpose(-1, -2)).masked_fill(~self.mask | hidden, -torch.inf).softmax(dim=-1)
        return probabilities, probabilities @ v


def _seen(model: Infinity, encoder: RandomTextEncoder, scales: ScaleSchedule, prompt: str, seed: int) -> _Seen:
    """Of the run of a prompt, all scales in one pass."""
    texts = encoder.encode([prompt])
    bits = generate(model, texts, scales, seed=seed).bits
    context = model.encode_text(texts, None, guided=True)
    codes = ResidualCodes.of(model.config, scales)
    summed, inputs = codes.zeros(1), [model.start_tokens(context)]
    for scale in range(1, scales.num_scales):
        summed = codes.add(summed, bits[scale - 1], scale - 1)
        inputs.append(model.embed(codes.features(summed, scale)).repeat(2, 1, 1))
    seen = _Seen(scales)
    rope = Rope.of(scales, model.config.head_dim)
    model.trunk(torch.cat(inputs, dim=1), seen.levels, context, rope, seen)
    return seen


def _direct_mass(seen: _Seen, *, row: int = 0) -> NDArray[np.float64]:
    """Mean over queries of the mass on each source scale: [query_scale, layer, head, source_scale]."""
    probabilities = np.stack([seen.attention(layer)[0][row].numpy() for layer in range(len(seen.layers))])
    levels = seen.levels.numpy()
    every = range(int(levels[-1]) + 1)
    rows = [
        [probabilities[:, :, levels == query][..., levels == source].sum(-1).mean(-1) for source in every]
        for query in every
    ]
    return np.array(rows).transpose(0, 2, 3, 1)


def _direct_error(seen: _Seen, model: Infinity, *, row: int) -> NDArray[np.float64]:
    """[query_scale, layer, head, source_scale]; NaN where the source is no earlier scale."""
    config, num_scales = model.config, int(seen.levels[-1]) + 1
    error = np.full((num_scales, config.num_layers, config.num_heads, num_scales), np.nan)
    for layer, source in np.ndindex(config.num_layers, num_scales - 1):
        weight = model.layers[layer].attention.proj.weight.double()
        out = seen.attention(layer)[1][row]
        without = seen.attention(layer, without=source)[1][row]
        whole = (out.transpose(0, 1).flatten(1) @ weight.T).square().sum(-1)
        for head in range(config.num_heads):
            change = torch.zeros_like(out)
            change[head] = out[head] - without[head]
            squared = (change.transpose(0, 1).flatten(1) @ weight.T).square().sum(-1)
            for query in range(source + 1, num_scales):
                of_scale = seen.levels == query
                error[query, layer, head, source] = float(squared[of_scale].mean() / whole[of_scale].mean())
    return error


def _direct_scores(masses: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean over later query scales, then over prompts; NaN for sinks and the last scale: [layer, head, source]."""
    mean = np.mean(masses, axis=0)
    scores = np.full(mean.shape[1:], np.nan)
    for source in range(SINKS, len(mean) - 1):
        scores[:, :, source] = mean[source + 1 :, :, :, source].mean(axis=0)
    return scores


def test_the_scores_of_merged_prompts_are_s_cas(
    small_model: Infinity,
    encoder: RandomTextEncoder,
    small_scales: ScaleSchedule,
    masses: list[NDArray[np.float64]],
) -> None:
    config = small_model.config
    together = ScasAccumulator(config.num_layers, config.num_heads, small_scales.num_scales, SINKS)

    for seed, prompt in enumerate(PROMPTS):
        together.merge(measure_prompt(small_model, encoder, small_scales, prompt, seed=seed, sink_scales=SINKS))

    assert together.prompts == 2
    np.testing.assert_allclose(together.scores().scores, _direct_scores(masses), rtol=0, atol=1e-6)


def test_so_are_those_measured_by_adding_up_partial_attentions(
    small_model: Infinity,
    encoder: RandomTextEncoder,
    small_scales: ScaleSchedule,
    masses: list[NDArray[np.float64]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grouped, "_MERGE_QUERIES", 4)
    monkeypatch.setattr(grouped, "_MERGE_TOKENS", 1)

    measured = measure_prompt(small_model, encoder, small_scales, PROMPTS[0], seed=0, sink_scales=SINKS)

    # Of so few queries flash attention's logsumexp, with its approximate exponentials, averages to less than that.
    np.testing.assert_allclose(measured.scores().scores, _direct_scores(masses[:1]), rtol=0, atol=1e-5)


def test_one_prompt_and_no_sinks_are_s_cas_too(
    small_model: Infinity, encoder: RandomTextEncoder, small_scales: ScaleSchedule, masses: list[NDArray[np.float64]]
) -> None:
    measured = measure_prompt(small_model, encoder, small_scales, PROMPTS[0], seed=0, sink_scales=0)

    scores = measured.scores().scores
    np.testing.assert_allclose(scores[:, :, 0], masses[0][1:, :, :, 0].mean(axis=0), rtol=0, atol=1e-6)
    assert np.isnan(scores[:, :, -1]).all()


@pytest.mark.parametrize("row", [0, 1])
def test_mass_and_output_error_are_those_of_a_run_at_once(
    small_model: Infinity, measured: dict[str, NDArray[np.float32]], runs: list[_Seen], row: int
) -> None:
    mass, error = (measured[name + "_uncond" * row] for name in ("attention_mass", "output_error"))

    # [query_scale, source_scale]
    unseen = np.broadcast_to(~np.tri(5, dtype=bool)[:, None, None], mass.shape)
    np.testing.assert_array_equal(np.isnan(mass), unseen)
    np.testing.assert_allclose(mass[~unseen], _direct_mass(runs[0], row=row)[~unseen], rtol=0, atol=1e-6)
    np.testing.assert_allclose(error, _direct_error(runs[0], small_model, row=row), rtol=1e-3, atol=1e-7)


def test_the_other_numbers_are_of_the_conditional_row_at_their_scale(
    measured: dict[str, NDArray[np.float32]], runs: list[_Seen], small_scales: ScaleSchedule
) -> None:
    offsets, sizes = small_scales.offsets, small_scales.sizes

    assert np.isnan(measured["selectivity"][0]).all()
    assert np.isnan(measured["kv_similarity"][:, 0]).all()
    for layer, (q, k, v) in enumerate(runs[0].layers):
        last = slice(offsets[4], offsets[5])
        expected = column_variance(q[0, :, last], k[0])
        np.testing.assert_allclose(measured["column_variance"][layer], expected, rtol=1e-4)
        for scale in range(1, 5):
            begin, end, tokens = offsets[scale], offsets[scale + 1], small_scales.tokens[scale]
            share = selectivity(q[0, :, begin:end], k[0, :, :end], num_current=tokens)
            assert measured["selectivity"][scale, layer] == pytest.approx(float(share), rel=1e-4)
            cosines = [
                similarity(
                    one[0, :, begin:end],
                    one[0, :, offsets[scale - 1] : begin],
                    grid=sizes[scale],
                    grid_before=sizes[scale - 1],
                )
                for one in (k, v)
            ]
            assert measured["kv_similarity"][layer, scale] == pytest.approx(float(sum(cosines)) / 2, abs=1e-5)


def test_the_mass_alone_is_the_same_mass(
    small_model: Infinity,
    encoder: RandomTextEncoder,
    small_scales: ScaleSchedule,
    measured: dict[str, NDArray[np.float32]],
) -> None:
    alone = measure(small_model, encoder.encode(PROMPTS[:1])[0], small_scales, seed=0, only_mass=True)

    assert list(alone) == ["attention_mass"]
    np.testing.assert_array_equal(alone["attention_mass"], measured["attention_mass"])


def test_without_guidance_there_is_nothing_of_the_unconditional_row(
    small_model: Infinity, encoder: RandomTextEncoder, small_scales: ScaleSchedule
) -> None:
    text = encoder.encode(PROMPTS[:1])[0]

    found = measure(small_model, text, small_scales, seed=0, sampling=Sampling(cfg=1.0))

    assert tuple(found) == measurement_names(guided=False)
    assert set(AXES) - set(found) == {"attention_mass_uncond", "output_error_uncond"}


def test_sampling_is_passed_on(small_model: Infinity, encoder: RandomTextEncoder, small_scales: ScaleSchedule) -> None:
    first, second = (
        measure_prompt(
            small_model, encoder, small_scales, PROMPTS[0], seed=0, sink_scales=SINKS, sampling=Sampling(cfg=cfg)
        ).sums
        for cfg in (1.0, 5.0)
    )

    assert np.abs(first - second).max() > 1e-4
