"""The transformer gives the reference's numbers from text to logits, and RoPE its positions."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from heatkv.checkpoint import random_transformer
from heatkv.config import MODELS, ModelConfig
from heatkv.errors import HeatKVError
from heatkv.scales import TEMPLATES, ScaleSchedule
from heatkv.transformer import Infinity, Rope, TextContext, initialise, rope_positions
from heatkv.vae import ResidualCodes
from tests.heatkv.conftest import lively

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.heatkv.conftest import Golden


class _EarlierScales:
    """All scales in one pass: each token attends to its own scale and those before. Keeps what it was given."""

    def __init__(self, scales: ScaleSchedule) -> None:
        self.levels = torch.repeat_interleave(torch.arange(scales.num_scales), torch.tensor(scales.tokens))
        self.mask = self.levels[:, None] >= self.levels
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.keys.append(k)
        self.values.append(v)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=1.0)


@dataclasses.dataclass
class _Pass:
    """What one teacher-forced pass over the reference's main case computes inside."""

    reference: Golden
    context: TextContext
    attended: _EarlierScales
    inside: dict[str, Tensor]
    logits: Tensor

    def differs(self, name: str, found: Tensor) -> float:
        return float(np.abs(found.numpy() - self.reference.outputs[f"main/{name}"]).max())


@pytest.fixture(scope="module", params=["golden_small", "golden_patchify"])
def main_pass(request: pytest.FixtureRequest) -> _Pass:
    return _run_main_case(request.getfixturevalue(request.param))


@torch.inference_mode()
def _run_main_case(reference: Golden) -> _Pass:
    model, scales = reference.transformer, reference.scales
    inside: dict[str, list[Tensor]] = {}
    layers: Any = model.layers
    watched = {"text_norm": model.text_norm, "text_proj": model.text_proj}
    for index, layer in enumerate(layers):
        watched |= {f"L{index}": layer, f"L{index}_sa": layer.attention.proj, f"L{index}_ca": layer.cross}
        watched |= {f"L{index}_ffn": layer.ffn}

    def keep(name: str) -> Callable[[object, tuple[Tensor, ...], Tensor], None]:
        def hook(module: object, given: tuple[Tensor, ...], out: Tensor) -> None:
            inside.setdefault(f"{name}_in", []).append(given[0])
            inside.setdefault(f"{name}_out", []).append(out)

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in watched.items()]
    try:
        context = model.encode_text(reference.texts("main"), None, guided=True)
        attended = _EarlierScales(scales)
        rope = Rope.of(scales, reference.config.head_dim)
        hidden = model.trunk(_inputs(reference, context), attended.levels, context, rope, attended)
    finally:
        for hook in hooks:
            hook.remove()
    whole = {name: torch.cat(calls) for name, calls in inside.items()}
    return _Pass(reference, context, attended, whole, model.bit_logits(hidden, context))


def _inputs(reference: Golden, context: TextContext) -> Tensor:
    """[2, tokens of all scales, C] of the main case, from the reference's bits."""
    codes = ResidualCodes.of(reference.config, reference.scales)
    summed, inputs = codes.zeros(1), [reference.transformer.start_tokens(context)]
    for scale, bits in enumerate(reference.bits("main")[:-1]):
        summed = codes.add(summed, bits, scale)
        inputs.append(reference.transformer.embed(codes.features(summed, scale + 1)).repeat(2, 1, 1))
    return torch.cat(inputs, dim=1)


class TestReference:
    """Teacher-forced, float32 on a CPU, all scales in one pass: the reference takes one scale at a time."""

    def test_text_path(self, main_pass: _Pass) -> None:
        assert main_pass.differs("text_norm_out", main_pass.inside["text_norm_out"]) <= 1e-5
        assert main_pass.differs("cond_BD", main_pass.context.pooled) <= 1e-5
        assert main_pass.differs("ca_kv", main_pass.inside["text_proj_out"].flatten(0, 1)) <= 1e-5
        assert main_pass.differs("cond_gss", main_pass.context.modulation) <= 1e-5

    def test_keys_and_values_of_layer_1(self, main_pass: _Pass) -> None:
        assert main_pass.differs("k_cache_L1", main_pass.attended.keys[1][:1, :2]) <= 1e-5
        assert main_pass.differs("v_cache_L1", main_pass.attended.values[1][:1, :2]) <= 1e-5

    def test_keys_and_values_of_every_layer(self, main_pass: _Pass) -> None:
        found = torch.stack([torch.stack(main_pass.attended.keys), torch.stack(main_pass.attended.values)], dim=1)
        outputs = main_pass.reference.outputs
        stats = torch.stack([found, found.abs(), found**2], dim=-1).double().mean(dim=(4, 5))
        tokens = torch.tensor(outputs["main/kv_sample_tokens"])

        assert tuple(found.shape[2:]) == tuple(outputs["main/kv_shape"])
        assert main_pass.differs("kv_samples", found[..., tokens, :8]) <= 1e-5
        # The reference saved sums over tokens and channels.
        per_value = found.shape[4] * found.shape[5]
        np.testing.assert_allclose(stats, outputs["main/kv_stats"] / per_value, rtol=0, atol=1e-5)

    def test_layers_inside(self, main_pass: _Pass) -> None:
        inside, last = main_pass.inside, main_pass.reference.config.num_layers - 1

        assert main_pass.differs("block0_in", inside["L0_in"][:1]) <= 1e-5
        assert main_pass.differs("L0_sa_out", inside["L0_sa_out"]) <= 1e-4
        assert main_pass.differs("L0_ca_out", inside["L0_ca_out"][:1]) <= 1e-4
        assert main_pass.differs("L0_ffn_out", inside["L0_ffn_out"][1:, :121]) <= 1e-4
        assert main_pass.differs("L0_out", inside["L0_out"][:1]) <= 1e-4
        assert main_pass.differs(f"L{last}_out", inside[f"L{last}_out"]) <= 2e-4

    def test_logits_of_both_rows(self, main_pass: _Pass) -> None:
        assert main_pass.differs("logits_raw", main_pass.logits) <= 2e-4


class TestRope:
    @pytest.mark.parametrize("aspect", TEMPLATES)
    def test_positions_of_every_template_are_the_reference_ones(self, aspect: float, golden: Path) -> None:
        expected = json.loads((golden / "infinity_rope_indices.json").read_text())[str(aspect)]
        scales = ScaleSchedule.named("1M", aspect=aspect)

        found = [[side.tolist() for side in rope_positions(size, scales.rope_grid)] for size in scales.sizes]

        assert found == [[one["rows"], one["cols"]] for one in expected]

    def test_angles_are_the_reference_ones(self, golden_small: Golden) -> None:
        rope = Rope.of(golden_small.scales, golden_small.config.head_dim)

        np.testing.assert_allclose(
            torch.stack([rope.cos, rope.sin]), golden_small.outputs["rope_cos_sin"], rtol=0, atol=1e-6
        )

    def test_halves_round_to_even(self) -> None:
        rows, _ = rope_positions((24, 24), (60, 60))  # 2.5 cells a row

        assert rows[:6].tolist() == [0, 2, 5, 8, 10, 12]

    def test_positions_are_multiplied_in_float32(self) -> None:
        """27 * (111 / 54) is a half in exact numbers; float32 and float64 fall on different sides of it."""
        rows, _ = rope_positions((54, 18), (111, 37))
        exact = torch.tensor([round(row * (111 / 54)) for row in range(54)])

        assert (rows != exact).nonzero().flatten().tolist() == [27]

    def test_every_resolution_shares_the_positions_of_its_template(self) -> None:
        small, large = ScaleSchedule.named("0.06M", aspect=1.5), ScaleSchedule.named("1M", aspect=1.5)

        assert torch.equal(Rope.of(small, 32).cos, Rope.of(large, 32).tokens(0, small.total_tokens).cos)

    def test_rotation_keeps_lengths_and_depends_on_distance_only(self) -> None:
        rope = Rope.of(ScaleSchedule.custom(((1, 1), (4, 4))), 16).tokens(1, 17)
        q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).unbind()

        rotated_q, rotated_k = rope.rotate(q.expand(1, 1, 16, 16)), rope.rotate(k.expand(1, 1, 16, 16))
        scores = (rotated_q @ rotated_k.transpose(-1, -2)).view(4, 4, 4, 4)

        torch.testing.assert_close(rotated_q.norm(dim=-1), q.norm(dim=-1).expand(1, 1, 16))
        torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 1, 3, 3])
        assert abs(scores[0, 0, 1, 2] - scores[0, 0, 2, 1]) > 1e-3

    def test_first_half_of_the_pairs_turns_with_the_row(self) -> None:
        rope = Rope.of(ScaleSchedule.custom(((1, 1), (3, 3))), 16).tokens(1, 10)
        angles = torch.atan2(rope.sin, rope.cos).view(3, 3, 8)

        assert torch.equal(angles[1, 0], angles[1, 2]) is False
        assert torch.equal(angles[1, 0, :4], angles[1, 2, :4])
        assert torch.equal(angles[0, 1, 4:], angles[2, 1, 4:])


class TestText:
    def test_unconditional_rows_are_as_long_as_their_prompt(
        self, small_model: Infinity, small_texts: list[Tensor]
    ) -> None:
        context = small_model.encode_text(small_texts, None, guided=True)

        assert context.rows == 4
        assert context.mask is not None
        assert context.mask.sum(dim=-1).flatten().tolist() == [5, 3, 5, 3]

    def test_a_row_does_not_depend_on_longer_rows_beside_it(
        self, small_model: Infinity, small_texts: list[Tensor]
    ) -> None:
        x = torch.randn(2, 7, small_model.config.width, generator=torch.Generator().manual_seed(0))
        together = small_model.encode_text(small_texts, None, guided=False)
        alone = small_model.encode_text(small_texts[1:], None, guided=False)

        cross: Any = small_model.layers[2].cross
        beside = cross(x, together.keys_values[2], together.mask)[1]

        torch.testing.assert_close(together.pooled[1], alone.pooled[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(beside, cross(x[1:], alone.keys_values[2], None)[0], rtol=0, atol=1e-5)

    def test_negative_prompts_take_the_unconditional_rows(
        self, small_model: Infinity, small_texts: list[Tensor]
    ) -> None:
        negative = small_texts[1]

        context = small_model.encode_text(small_texts[:1], [negative], guided=True)

        expected = small_model.encode_text([negative], None, guided=False).pooled
        torch.testing.assert_close(context.pooled[1:], expected, rtol=0, atol=1e-5)

    def test_unguided_text_has_one_row_a_prompt(self, small_model: Infinity, small_texts: list[Tensor]) -> None:
        assert small_model.encode_text(small_texts, None, guided=False).rows == 2


def _trunk(model: Infinity, texts: list[Tensor], *, guided: bool, guidance: dict[int, float] | None = None) -> Tensor:
    """Two scales of four tokens, from fixed noise."""
    scales = ScaleSchedule.custom(((2, 2), (2, 2)))
    context = model.encode_text(texts, None, guided=guided)
    noise = torch.Generator().manual_seed(3)
    x = torch.randn(1, 8, model.config.width, generator=noise).repeat(context.rows, 1, 1)
    attended = _EarlierScales(scales)
    rope = Rope.of(scales, model.config.head_dim)
    return model.trunk(x, attended.levels, context, rope, attended, guidance=guidance)


def _zero(*tensors: Tensor) -> None:
    for tensor in tensors:
        tensor.zero_()


class TestTrunk:
    def test_keys_have_unit_length_and_queries_their_head_scale(
        self, small_model: Infinity, small_texts: list[Tensor]
    ) -> None:
        attention: Any = small_model.layers[0].attention
        rope = Rope.of(ScaleSchedule.custom(((1, 1), (2, 2))), small_model.config.head_dim).tokens(1, 5)
        x = torch.randn(1, 4, small_model.config.width, generator=torch.Generator().manual_seed(0))
        original = attention.log_scale.clone()

        attention.log_scale[0, 1] = 10.0
        q, k, _ = attention.project(x, rope)
        attention.log_scale.copy_(original)

        torch.testing.assert_close(q.norm(dim=-1)[0, :, 0], torch.tensor([4.0, 100.0, 4.0, 4.0]))
        torch.testing.assert_close(k.norm(dim=-1), torch.ones(1, 4, 4))

    def test_tokens_in_several_parts_are_the_tokens_at_once(
        self, small_model: Infinity, small_texts: list[Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scales = ScaleSchedule.custom(((1, 1), (3, 5)))
        rope = Rope.of(scales, small_model.config.head_dim).tokens(1, 16)
        context = small_model.encode_text(small_texts[:1], None, guided=True)
        x = torch.randn(2, 15, small_model.config.width, generator=torch.Generator().manual_seed(0))
        levels = torch.ones(15, dtype=torch.long)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)

        at_once = small_model.trunk(x, levels, context, rope, attend)
        monkeypatch.setattr("heatkv.transformer._TOKENS_AT_ONCE", 4)
        in_parts = small_model.trunk(x, levels, context, rope, attend)

        torch.testing.assert_close(in_parts, at_once, rtol=0, atol=1e-5)

    def test_level_embedding_is_added_once_or_before_every_chunk(
        self, small_config: ModelConfig, small_texts: list[Tensor]
    ) -> None:
        first = lively(small_config)
        every = lively(dataclasses.replace(small_config, level_embed_every_chunk=True))
        seen: dict[str, list[Tensor]] = {"first": [], "every": []}

        for name, model in (("first", first), ("every", every)):
            layers: Any = model.layers
            for layer in layers:
                _zero(layer.modulation, layer.cross.proj.weight, layer.cross.proj.bias)
            _zero(model.modulation.weight, model.modulation.bias)
            hooks = [
                layer.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0]))
                for layer in model.layers
            ]
            _trunk(model, small_texts[:1], guided=False)
            for hook in hooks:
                hook.remove()

        # With every gate shut, a layer's input changes by level embeddings alone.
        level = first.level_embed.weight[torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])]
        assert torch.equal(seen["first"][0], seen["first"][3])
        torch.testing.assert_close(seen["every"][2] - seen["every"][1], level[None], rtol=0, atol=1e-5)
        assert torch.equal(seen["every"][0], seen["every"][1])
        assert torch.equal(seen["every"][2], seen["every"][3])

    def test_guidance_after_the_last_layer_makes_both_rows_their_mix(
        self, small_model: Infinity, small_texts: list[Tensor]
    ) -> None:
        plain = _trunk(small_model, small_texts, guided=True)
        guided = _trunk(small_model, small_texts, guided=True, guidance={3: 2.5})

        mix = 2.5 * plain[:2] - 1.5 * plain[2:]
        assert torch.equal(guided[:2], guided[2:])
        torch.testing.assert_close(guided[:2], mix, rtol=0, atol=1e-5)

    def test_layers_are_reported_in_order(self, small_model: Infinity, small_texts: list[Tensor]) -> None:
        done: list[int] = []
        scales = ScaleSchedule.custom(((1, 1), (1, 1)))
        context = small_model.encode_text(small_texts, None, guided=False)
        attended = _EarlierScales(scales)
        x = torch.zeros(2, 2, small_model.config.width)

        rope = Rope.of(scales, small_model.config.head_dim)
        small_model.trunk(x, attended.levels, context, rope, attended, after_layer=done.append)

        assert done == [0, 1, 2, 3]


class TestShape:
    @pytest.mark.parametrize(
        ("name", "parameters"),
        [
            ("infinity-2b", 2_204_564_032),
            ("infinity-8b", 8_375_791_824),
            ("infinity-125m", 125_148_800),
            ("infinity-layer16", 361_578_464),
            ("infinity-layer24", 940_871_072),
            ("infinity-layer32", 2_256_595_040),
            ("infinity-layer40", 4_716_292_832),
            ("infinity-layer48", 8_767_037_216),
        ],
    )
    def test_parameter_counts_are_the_official_ones(self, name: str, parameters: int) -> None:
        with torch.device("meta"):
            model = Infinity(MODELS[name])

        assert sum(parameter.numel() for parameter in model.parameters()) == parameters

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"width": 48, "num_heads": 8}, "48 is not a multiple of 32"),
            ({"num_heads": 5}, "64 is not a multiple of 20"),
            ({"num_chunks": 3}, "layers, in chunks: 4 is not a multiple of 3"),
            ({"text_width": 384}, "64 is not a multiple of 3"),
        ],
    )
    def test_a_shape_that_cannot_be_is_refused(
        self, changes: dict[str, Any], message: str, small_config: ModelConfig
    ) -> None:
        with torch.device("meta"), pytest.raises(HeatKVError, match=message):
            Infinity(dataclasses.replace(small_config, **changes))

    def test_only_matrices_of_the_layers_are_cast(self, small_config: ModelConfig) -> None:
        model = random_transformer(small_config, dtype=torch.bfloat16, device="cpu", seed=0)

        rounded = {name for name, tensor in model.named_parameters() if tensor.dtype == torch.bfloat16}

        assert model.kv_dtype == torch.bfloat16
        assert {name.split(".", 2)[2] for name in rounded} == {
            "attention.qkv.weight",
            "attention.proj.weight",
            "attention.proj.bias",
            "cross.q.weight",
            "cross.q.bias",
            "cross.kv.weight",
            "cross.proj.weight",
            "cross.proj.bias",
            "ffn.fc1.weight",
            "ffn.fc1.bias",
            "ffn.fc2.weight",
            "ffn.fc2.bias",
        }
        assert all(name.startswith("layers.") for name in rounded)


class TestRandomWeights:
    def test_a_seed_gives_the_same_weights_and_another_seed_others(self, small_config: ModelConfig) -> None:
        first, same, other = (
            random_transformer(small_config, dtype=torch.float32, device="cpu", seed=seed).state_dict()
            for seed in (1, 1, 2)
        )

        assert all(torch.equal(first[name], same[name]) for name in first)
        assert not torch.equal(first["head.weight"], other["head.weight"])

    def test_queries_keys_and_values_of_infinity_2b_have_weights_of_their_own(self) -> None:
        width = MODELS["infinity-2b"].width
        projection = torch.nn.Linear(width, 3 * width, bias=False)

        initialise(projection, seed=0)

        q, k, v = projection.weight.detach().chunk(3)
        assert (q * k).mean().abs() < 0.1 * q.var()
        assert (q * v).mean().abs() < 0.1 * q.var()
        assert (k * v).mean().abs() < 0.1 * q.var()

    def test_layers_differ_and_norms_biases_and_scales_start_neutral(self, small_config: ModelConfig) -> None:
        weights = random_transformer(small_config, dtype=torch.float32, device="cpu", seed=1).state_dict()

        assert not torch.equal(weights["layers.0.ffn.fc1.weight"], weights["layers.1.ffn.fc1.weight"])
        assert (weights["layers.2.cross_norm.weight"] == 1).all()
        assert not weights["layers.2.attention.k_bias"].any()
        assert (weights["layers.2.attention.log_scale"] == math.log(4)).all()
        assert all(tensor.isfinite().all() for tensor in weights.values())
