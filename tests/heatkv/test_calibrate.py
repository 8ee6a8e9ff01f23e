"""What calibration measures is S-CAS as the paper defines it, worked out again in float64 from queries and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from heatkv.calibrate import MassProbe, measure_prompt
from heatkv.generate import Sampling, generate
from heatkv.kernels import grouped
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
def masses(small_model: Infinity, encoder: RandomTextEncoder, small_scales: ScaleSchedule) -> list[NDArray[np.float64]]:
    """Of each prompt, with seed 0 and 1."""
    return [_direct_mass(small_model, encoder, small_scales, prompt, seed) for seed, prompt in enumerate(PROMPTS)]


class _Probabilities:
    """Attention over all scales at once; keeps the conditional row's softmax in float64."""

    def __init__(self, scales: ScaleSchedule) -> None:
        self.levels = torch.repeat_interleave(torch.arange(scales.num_scales), torch.tensor(scales.tokens))
        self.mask = self.levels[:, None] >= self.levels
        self.kept: list[NDArray[np.float64]] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q[0].double() @ k[0].double().transpose(-1, -2)).masked_fill(~self.mask, -torch.inf)
        self.kept.append(scores.softmax(dim=-1).numpy())
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=1.0)


def _direct_mass(
    model: Infinity, encoder: RandomTextEncoder, scales: ScaleSchedule, prompt: str, seed: int
) -> NDArray[np.float64]:
    """Mean over queries of the mass on each source scale: [query_scale, layer, head, source_scale]."""
    texts = encoder.encode([prompt])
    bits = generate(model, texts, scales, seed=seed).bits
    context = model.encode_text(texts, None, guided=True)
    codes = ResidualCodes.of(model.config, scales)
    summed, inputs = codes.zeros(1), [model.start_tokens(context)]
    for scale in range(1, scales.num_scales):
        summed = codes.add(summed, bits[scale - 1], scale - 1)
        inputs.append(model.embed(codes.features(summed, scale)).repeat(2, 1, 1))
    attend = _Probabilities(scales)
    rope = Rope.of(scales, model.config.head_dim)
    model.trunk(torch.cat(inputs, dim=1), attend.levels, context, rope, attend)
    probabilities, levels = np.stack(attend.kept), attend.levels.numpy()
    every = range(scales.num_scales)
    rows = [
        [probabilities[:, :, levels == query][..., levels == source].sum(-1).mean(-1) for source in every]
        for query in every
    ]
    return np.array(rows).transpose(0, 2, 3, 1)


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


def test_the_mass_probe_keeps_every_step(
    small_model: Infinity, encoder: RandomTextEncoder, small_scales: ScaleSchedule, masses: list[NDArray[np.float64]]
) -> None:
    probe = MassProbe(masses[0].shape)

    generate(small_model, encoder.encode([PROMPTS[0]]), small_scales, seed=0, probe=probe)

    later = np.arange(5)[None, :] > np.arange(5)[:, None]  # [query_scale, source_scale]
    unseen = np.broadcast_to(later[:, None, None], masses[0].shape)
    np.testing.assert_array_equal(np.isnan(probe.mass), unseen)
    np.testing.assert_allclose(probe.mass[~unseen], masses[0][~unseen], rtol=0, atol=1e-6)


def test_sampling_is_passed_on(small_model: Infinity, encoder: RandomTextEncoder, small_scales: ScaleSchedule) -> None:
    first, second = (
        measure_prompt(
            small_model, encoder, small_scales, PROMPTS[0], seed=0, sink_scales=SINKS, sampling=Sampling(cfg=cfg)
        ).sums
        for cfg in (1.0, 5.0)
    )

    assert np.abs(first - second).max() > 1e-4
