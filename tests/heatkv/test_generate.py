"""generate gives the reference's bits, obeys the schedule exactly, and tells the probe what really happened."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import heatkv.generate
from heatkv.cache import KVCache
from heatkv.errors import HeatKVError, ScheduleError
from heatkv.generate import Generation, Sampling, StepClock, generate, sample_bits
from heatkv.orders import HeadOrders
from heatkv.policies.full import FullPolicy
from heatkv.policies.heatkv import HeatKVPolicy
from heatkv.probe import Capture, StepInfo
from heatkv.scales import ScaleSchedule
from heatkv.transformer import Infinity, Rope
from heatkv.vae import ResidualCodes
from tests.heatkv.conftest import Recording, lively, random_schedule

if TYPE_CHECKING:
    from heatkv.config import ModelConfig
    from heatkv.schedule import PruningSchedule
    from heatkv.vae import BSQVAE
    from tests.heatkv.conftest import Golden

CASES = [
    *(("golden_small", case) for case in ("main", "midlayer", "both", "negative", "nocfg", "greedy", "batch2")),
    *(("golden_patchify", case) for case in ("main", "batch2")),
]
UNGUIDED = Sampling(cfg=1.0)
EVERYTHING = Capture(mass=True, unconditional=True, maps=True)


@pytest.fixture(scope="session")
def small_bits(small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule) -> tuple[Tensor, ...]:
    """Two images' bits, to force."""
    return generate(small_model, small_texts, small_scales, seed=11).bits


class TestReference:
    """Float32 on a CPU: the reference's smallest sampling margins are above its own rounding."""

    @pytest.mark.parametrize(("model", "case"), CASES)
    def test_a_seed_gives_the_reference_bits_and_codes(
        self, model: str, case: str, request: pytest.FixtureRequest
    ) -> None:
        reference: Golden = request.getfixturevalue(model)

        made = _reference_run(reference, case, seed=reference.cases[case]["seed"])

        np.testing.assert_array_equal(torch.cat(made.bits, dim=1), reference.outputs[f"{case}/bits"])
        np.testing.assert_allclose(made.codes, reference.outputs[f"{case}/summed_codes"], rtol=0, atol=2e-6)

    @pytest.mark.parametrize(("model", "case"), CASES)
    def test_forced_bits_give_the_reference_logits(self, model: str, case: str, request: pytest.FixtureRequest) -> None:
        reference: Golden = request.getfixturevalue(model)
        heard = Recording()

        made = _reference_run(reference, case, forced_bits=reference.bits(case), probe=heard)

        np.testing.assert_allclose(heard.logits, reference.outputs[f"{case}/logits_cfg"], rtol=0, atol=2e-4)
        np.testing.assert_allclose(made.codes, reference.outputs[f"{case}/summed_codes"], rtol=0, atol=2e-6)

    def test_the_image_is_the_reference_one(self, golden_small: Golden) -> None:
        made = _reference_run(golden_small, "main", seed=1, vae=golden_small.vae)

        assert made.image is not None
        expected = golden_small.outputs["main/image_uint8_bgr"][..., ::-1].astype(int)
        difference = np.abs(made.image.numpy().astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3


def _reference_run(reference: Golden, case: str, **how: Any) -> Generation:  # Any: generate's keywords
    return generate(
        reference.transformer,
        reference.texts(case),
        reference.scales,
        sampling=reference.sampling(case),
        negatives=reference.negatives(case),
        **how,
    )


def _planned(config: ModelConfig, scales: ScaleSchedule, budget: float, *, sink_scales: int = 1) -> PruningSchedule:
    """HeatKV's schedule from random orders."""
    slots = config.num_layers * config.num_heads
    random = np.random.default_rng(7)
    sources = scales.num_scales - 1 - sink_scales
    ranked = np.array([random.permutation(slots) for _ in range(sources)], dtype=np.int32)
    orders = HeadOrders(ranked, sink_scales, config.num_layers, config.num_heads)
    return HeatKVPolicy(orders).plan(config, scales, budget=budget, sink_scales=sink_scales)


class _Masked:
    """Attention over all scales in one pass, where what the schedule has dropped is masked."""

    def __init__(self, schedule: PruningSchedule) -> None:
        scales = schedule.scales
        self.levels = torch.repeat_interleave(torch.arange(scales.num_scales), torch.tensor(scales.tokens))
        visible = np.stack([schedule.visible(query_scale) for query_scale in range(scales.num_scales)])
        by_head = torch.tensor(visible).permute(1, 2, 0, 3)  # [layer, head, query_scale, source_scale]
        self.mask = by_head[:, :, self.levels][..., self.levels]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[layer], scale=1.0)


def _masked_logits(
    model: Infinity, texts: list[Tensor], schedule: PruningSchedule, bits: tuple[Tensor, ...], sampling: Sampling
) -> Tensor:
    """Guided logits of all scales, [batch, tokens, 2 * bits], from one masked pass without any cache."""
    scales, batch = schedule.scales, len(texts)
    context = model.encode_text(texts, None, guided=sampling.guided)
    codes = ResidualCodes.of(model.config, scales)
    summed, inputs = codes.zeros(batch), [model.start_tokens(context)]
    for scale in range(1, scales.num_scales):
        summed = codes.add(summed, bits[scale - 1], scale - 1)
        inputs.append(model.embed(codes.features(summed, scale)).repeat(context.rows // batch, 1, 1))
    attend = _Masked(schedule)
    rope = Rope.of(scales, model.config.head_dim)
    logits = model.bit_logits(model.trunk(torch.cat(inputs, dim=1), attend.levels, context, rope, attend), context)
    if not sampling.guided:
        return logits
    strength = sampling.cfg_at(0)
    return strength * logits[:batch] + (1 - strength) * logits[batch:]


class TestSchedule:
    def test_keeping_everything_is_bit_equal_to_no_schedule(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        plain, kept = Recording(), Recording()
        schedule = FullPolicy().plan(small_model.config, small_scales)

        first = generate(small_model, small_texts, small_scales, seed=3, probe=plain)
        second = generate(small_model, small_texts, small_scales, seed=3, probe=kept, schedule=schedule)

        assert all(torch.equal(*pair) for pair in zip(first.bits, second.bits, strict=True))
        assert torch.equal(plain.logits, kept.logits)

    @pytest.mark.parametrize("sampling", [Sampling(cfg=2.5), UNGUIDED], ids=["guided", "unguided"])
    @pytest.mark.parametrize("budget", [1 / 27, 0.1, 0.3, 0.6, 1.0])
    def test_a_pruned_run_equals_the_model_with_those_keys_masked(
        self,
        budget: float,
        sampling: Sampling,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        small_bits: tuple[Tensor, ...],
    ) -> None:
        schedule, heard = _planned(small_model.config, small_scales, budget), Recording()

        generate(
            small_model,
            small_texts,
            small_scales,
            schedule=schedule,
            sampling=sampling,
            forced_bits=small_bits,
            probe=heard,
        )

        masked = _masked_logits(small_model, small_texts, schedule, small_bits, sampling)
        torch.testing.assert_close(heard.logits, masked, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("seed", range(3))
    def test_so_does_a_run_whose_head_scales_leave_at_any_step(
        self,
        seed: int,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        small_bits: tuple[Tensor, ...],
    ) -> None:
        schedule, heard = random_schedule(small_model.config, small_scales, seed=seed), Recording()

        generate(small_model, small_texts, small_scales, schedule=schedule, forced_bits=small_bits, probe=heard)

        masked = _masked_logits(small_model, small_texts, schedule, small_bits, Sampling())
        torch.testing.assert_close(heard.logits, masked, rtol=0, atol=1e-5)

    def test_pruning_is_felt(
        self,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        small_bits: tuple[Tensor, ...],
    ) -> None:
        """Else the two tests above would show nothing."""
        pruned, full = (
            _planned(small_model.config, small_scales, 0.3),
            FullPolicy().plan(small_model.config, small_scales),
        )

        difference = (
            _masked_logits(small_model, small_texts, pruned, small_bits, Sampling())
            - _masked_logits(small_model, small_texts, full, small_bits, Sampling())
        ).abs()

        assert difference[:, -30:].mean() > 0.1

    @pytest.mark.parametrize("budget", [0.1, 0.4, 1.0])
    def test_steps_report_what_the_schedule_says(
        self, budget: float, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        schedule, heard = _planned(small_model.config, small_scales, budget), Recording()

        generate(small_model, small_texts, small_scales, schedule=schedule, seed=0, probe=heard)

        shape = schedule.kept_tokens().shape
        kept, read = (
            np.stack([getattr(step, name) for step in heard.steps]).reshape(shape)
            for name in ("kept_tokens", "read_tokens")
        )
        bytes_per_token = small_model.config.kv_bytes_per_token(dtype_bytes=4, rows=4)
        np.testing.assert_array_equal(kept, schedule.kept_tokens())
        np.testing.assert_array_equal(read, schedule.read_tokens())
        assert [step.accounted_bytes for step in heard.steps] == (schedule.tokens_held() * bytes_per_token).tolist()
        capacity = schedule.peak_tokens
        assert heard.starts[0].capacity_tokens == capacity
        for step in heard.steps:  # the pool from the first step on, and a number of four bytes per slot at the most
            assert capacity * bytes_per_token <= step.storage_bytes <= capacity * (bytes_per_token + 4)
        offered = [tokens * small_model.config.num_heads for tokens in (*small_scales.tokens[:-1], 0)]
        freed = sum(step.evicted_tokens for step in heard.steps)
        assert sum(offered) * small_model.config.num_layers - freed == schedule.tokens_held()[-1]

    def test_positions_are_the_run_s_own_even_if_the_plan_names_another_rope_grid(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        elsewhere = dataclasses.replace(small_scales, rope_grid=(5, 6))
        planned = FullPolicy().plan(small_model.config, elsewhere)
        own, other, heard = Recording(), Recording(), Recording()

        generate(small_model, small_texts, small_scales, seed=0, probe=own)
        generate(small_model, small_texts, elsewhere, seed=0, probe=other)
        generate(small_model, small_texts, small_scales, seed=0, schedule=planned, probe=heard)

        assert torch.equal(heard.logits, own.logits)
        assert not torch.equal(other.logits[:, 1:5], own.logits[:, 1:5])
        assert heard.starts[0].scales == small_scales

    def test_a_schedule_for_another_model_or_other_scales_is_refused(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        schedule = FullPolicy().plan(small_model.config, ScaleSchedule.custom(small_scales.sizes[:-1]))

        with pytest.raises(ScheduleError, match="plan it again for these scales"):
            generate(small_model, small_texts, small_scales, schedule=schedule)


class TestSeedsAndBits:
    def test_the_same_seed_gives_the_same_bits_and_image(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule, small_vae: BSQVAE
    ) -> None:
        first, second = (
            generate(small_model, small_texts, small_scales, seed=5, vae=small_vae, schedule=schedule)
            for schedule in (None, None)
        )

        assert first.image is not None
        assert second.image is not None
        assert first.image.shape == (2, 20, 24, 3)
        assert torch.equal(first.image, second.image)
        assert all(torch.equal(*pair) for pair in zip(first.bits, second.bits, strict=True))

    def test_another_seed_gives_other_bits(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        first, second = (generate(small_model, small_texts, small_scales, seed=seed) for seed in (5, 6))

        assert not torch.equal(first.bits[-1], second.bits[-1])

    def test_a_seed_leaves_the_global_generator_alone_and_none_uses_it(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(9)
            before = torch.get_rng_state()
            seeded = generate(small_model, small_texts, small_scales, seed=9)
            assert torch.equal(torch.get_rng_state(), before)

            unseeded = generate(small_model, small_texts, small_scales)

        assert all(torch.equal(*pair) for pair in zip(seeded.bits, unseeded.bits, strict=True))

    def test_bits_have_a_row_per_token_of_their_scale(
        self, small_bits: tuple[Tensor, ...], small_scales: ScaleSchedule, small_config: ModelConfig
    ) -> None:
        assert [tuple(bits.shape) for bits in small_bits] == [(2, tokens, 8) for tokens in small_scales.tokens]
        assert {bits.dtype for bits in small_bits} == {torch.uint8}

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64])
    def test_forced_bits_are_fed_exactly(
        self,
        dtype: torch.dtype,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        small_bits: tuple[Tensor, ...],
    ) -> None:
        free, forced = Recording(), Recording()
        sampled = generate(small_model, small_texts, small_scales, seed=11, probe=free)

        made = generate(
            small_model,
            small_texts,
            small_scales,
            forced_bits=[bits.to(dtype) for bits in small_bits],
            probe=forced,
        )

        assert all(torch.equal(*pair) for pair in zip(made.bits, small_bits, strict=True))
        assert torch.equal(made.codes, sampled.codes)
        assert torch.equal(forced.logits, free.logits)

    def test_one_image_of_a_batch_is_as_if_alone(
        self,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        small_bits: tuple[Tensor, ...],
    ) -> None:
        both, alone = Recording(), Recording()

        generate(small_model, small_texts, small_scales, forced_bits=small_bits, probe=both)
        bits = [one[1:] for one in small_bits]
        generate(small_model, small_texts[1:], small_scales, forced_bits=bits, probe=alone)

        torch.testing.assert_close(both.logits[1:], alone.logits, rtol=0, atol=1e-5)


class TestSampling:
    LOGITS = torch.tensor([[[0.0, 1.0, 2.0, 2.0, 0.0, 3.6, 0.0, 3.4]]])

    def _share_of_ones(self, sampling: Sampling) -> list[float]:
        generator = torch.Generator().manual_seed(0)
        draws = sample_bits(self.LOGITS.expand(1, 4000, -1), sampling, generator)
        return draws.float().mean(dim=1)[0].tolist()

    def test_bits_follow_their_probabilities(self) -> None:
        shares = self._share_of_ones(Sampling(top_k=0, top_p=0))

        # Three standard deviations of 4000 draws are below 0.025.
        assert shares == pytest.approx([0.731, 0.5, 0.973, 0.968], abs=0.025)
        assert shares[2] < 1

    def test_top_p_removes_an_outcome_of_at_most_its_complement(self) -> None:
        shares = self._share_of_ones(Sampling(top_p=0.97))

        assert shares[2] == 1  # 0.027 is at most 0.03
        assert 0 < shares[3] < 1  # 0.032 is not

    def test_top_k_of_one_is_greedy_and_leaves_ties_to_chance(self) -> None:
        shares = self._share_of_ones(Sampling(top_k=1, top_p=0))

        assert (shares[0], shares[2], shares[3]) == (1, 1, 1)
        assert shares[1] == pytest.approx(0.5, abs=0.025)

    def test_top_k_above_one_is_off(self) -> None:
        assert self._share_of_ones(Sampling(top_k=900, top_p=0)) == self._share_of_ones(Sampling(top_k=0, top_p=0))


class TestGuidance:
    def test_cfg_of_one_has_no_unconditional_rows(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        guided, plain, listed = Recording(), Recording(), Recording()

        for sampling, probe in ((Sampling(cfg=3.0), guided), (UNGUIDED, plain), (Sampling(cfg=(1.0,) * 5), listed)):
            generate(small_model, small_texts, small_scales, seed=0, sampling=sampling, probe=probe)

        assert [heard.starts[0].rows for heard in (guided, plain, listed)] == [4, 2, 2]
        assert guided.steps[-1].accounted_bytes == 2 * plain.steps[-1].accounted_bytes
        assert torch.equal(plain.logits, listed.logits)

    def test_a_scale_with_cfg_one_is_the_conditional_row_alone(
        self,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        small_bits: tuple[Tensor, ...],
    ) -> None:
        mixed, plain = Recording(), Recording()

        for cfg, probe in (((3.0, 1.0, 1.0, 1.0, 3.0), mixed), (1.0, plain)):
            sampling = Sampling(cfg=cfg)
            generate(small_model, small_texts, small_scales, sampling=sampling, forced_bits=small_bits, probe=probe)

        for scale, same in enumerate((False, True, True, True, False)):
            difference = (mixed.scales[scale].logits - plain.scales[scale].logits).abs().max()
            assert (difference <= 1e-5) == same

    def test_insertion_layers_act_on_scales_with_guidance_and_on_no_other(
        self,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        small_bits: tuple[Tensor, ...],
    ) -> None:
        last, heard = small_scales.offsets[-2], Recording()
        sampling = Sampling(cfg=(1.0, 1.0, 1.0, 1.0, 3.0), cfg_insertion_layers=(0, -2))

        def mix_last_scale(module: object, given: object, out: Tensor) -> Tensor:
            conditional, unconditional = out[:, last:].chunk(2)
            return torch.cat((out[:, :last], (3 * conditional - 2 * unconditional).repeat(2, 1, 1)), dim=1)

        generate(small_model, small_texts, small_scales, sampling=sampling, forced_bits=small_bits, probe=heard)
        hook = small_model.layers[2].register_forward_hook(mix_last_scale)
        full = FullPolicy().plan(small_model.config, small_scales)
        expected = _masked_logits(small_model, small_texts, full, small_bits, Sampling(cfg=3.0))
        hook.remove()

        torch.testing.assert_close(heard.logits[:, last:], expected[:, last:], rtol=0, atol=1e-4)

    def test_a_negative_prompt_changes_the_image(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        learned, negative = Recording(), Recording()

        generate(small_model, small_texts[:1], small_scales, seed=0, probe=learned)
        generate(small_model, small_texts[:1], small_scales, seed=0, negatives=small_texts[1:], probe=negative)

        assert not torch.equal(learned.logits, negative.logits)

    def test_temperature_divides_the_logits(
        self,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        small_bits: tuple[Tensor, ...],
    ) -> None:
        one, listed = Recording(), Recording()

        generate(small_model, small_texts, small_scales, forced_bits=small_bits, probe=one)
        sampling = Sampling(tau=(1.0, 0.5, 1.0, 1.0, 2.0))
        generate(small_model, small_texts, small_scales, sampling=sampling, forced_bits=small_bits, probe=listed)

        for scale, factor in enumerate((1, 2, 1, 1, 0.5)):
            expected = one.scales[scale].logits * factor
            torch.testing.assert_close(listed.scales[scale].logits, expected, rtol=0, atol=1e-4)


class TestProbe:
    def test_hears_the_run_then_each_step_then_each_scale_in_order(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        heard = Recording()

        generate(small_model, small_texts, small_scales, seed=0, probe=heard)

        expected = ["run"]
        for scale in range(5):
            expected += [*(f"step {scale} {layer}" for layer in range(4)), f"scale {scale}"]
        assert heard.order == expected

    def test_knows_the_run_before_its_first_step(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        schedule, heard = random_schedule(small_model.config, small_scales, seed=1), Recording()

        generate(small_model, small_texts, small_scales, seed=0, schedule=schedule, probe=heard)

        start = heard.starts[0]
        assert (start.model, start.num_layers, start.num_heads, start.head_dim) == ("small", 4, 4, 16)
        assert (start.rows, start.bits_per_token, start.dtype, start.dtype_bytes) == (4, 8, "float32", 4)
        assert (start.device, start.scales, start.schedule) == ("cpu", small_scales, schedule)
        assert start.attention == "grouped (CPU: heads that keep equally many tokens share one call)"
        assert start.capacity_tokens == schedule.peak_tokens

    def test_knows_the_way_of_attention_that_was_asked_for(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        heard = Recording()

        generate(small_model, small_texts, small_scales, seed=0, probe=heard, attention="plain")

        assert heard.starts[0].attention == "plain (as asked for)"

    def test_hears_bits_logits_and_codes_of_each_scale(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        heard = Recording()

        made = generate(small_model, small_texts, small_scales, seed=0, probe=heard)

        assert all(torch.equal(one.bits, bits) for one, bits in zip(heard.scales, made.bits, strict=True))
        assert [tuple(one.logits.shape) for one in heard.scales] == [(2, n, 16) for n in small_scales.tokens]
        assert torch.equal(heard.scales[-1].codes, made.codes)
        assert heard.scales[0].codes.shape == made.codes.shape == (2, 8, 5, 6)
        assert all(one.logits.dtype == torch.float32 for one in heard.scales)

    def test_steps_follow_each_other_in_time(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        heard = Recording()

        generate(small_model, small_texts, small_scales, seed=0, probe=heard)

        times = [time for step in heard.steps for time in (step.begin_ns, step.end_ns)]
        assert times == sorted(times)

    def test_the_cache_is_released_when_a_probe_fails_even_while_its_traceback_is_kept(
        self,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        made = []

        class Cache(KVCache):
            def __init__(self, *given: Any, **how: Any) -> None:
                super().__init__(*given, **how)
                made.append(self)

        class Failing(Recording):
            def step_done(self, step: StepInfo) -> None:
                if step.query_scale == 2:
                    raise KeyboardInterrupt

        monkeypatch.setattr(heatkv.generate, "KVCache", Cache)

        with pytest.raises(KeyboardInterrupt) as raised:
            generate(small_model, small_texts, small_scales, seed=0, probe=Failing())

        assert raised.traceback
        assert (made[0].pool.nbytes, made[0].accounted_bytes) == (0, 0)


class TestCapture:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("attention", ["grouped", "plain"])
    def test_exactly_done_it_changes_neither_bits_nor_image(
        self,
        attention: str,
        dtype: torch.dtype,
        small_config: ModelConfig,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        small_vae: BSQVAE,
    ) -> None:
        model = lively(small_config).cast_layers(dtype)
        schedule = random_schedule(small_config, small_scales, seed=2)
        heard = [Recording(), Recording(EVERYTHING)]

        without, with_capture = (
            generate(
                model,
                small_texts,
                small_scales,
                seed=0,
                schedule=schedule,
                probe=probe,
                vae=small_vae,
                attention=attention,
            )
            for probe in heard
        )

        assert torch.equal(heard[0].logits, heard[1].logits)
        assert all(torch.equal(*pair) for pair in zip(without.bits, with_capture.bits, strict=True))
        assert without.image is not None
        assert with_capture.image is not None
        assert torch.equal(without.image, with_capture.image)

    def test_tells_nothing_that_was_not_asked_for(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        for capture in (Capture(), Capture(mass=True), Capture(unconditional=True), Capture(maps=True)):
            heard = Recording(capture)

            generate(small_model, small_texts, small_scales, seed=0, probe=heard)

            for step in heard.steps:
                told = (step.attention_mass, step.attention_mass_uncond, step.attention_map)
                asked = (capture.mass, capture.unconditional, capture.maps)
                assert tuple(one is not None for one in told) == asked

    @pytest.mark.parametrize("capture", [Capture(mass=True), Capture(mass=True, bit_exact=False)], ids=str)
    def test_the_mass_of_a_head_sums_to_one_and_is_nan_where_it_cannot_see(
        self, capture: Capture, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        schedule, heard = random_schedule(small_model.config, small_scales, seed=2), Recording(capture)

        generate(small_model, small_texts, small_scales, seed=0, schedule=schedule, probe=heard)

        for step in heard.steps:
            assert step.attention_mass is not None
            assert (step.attention_mass.dtype, step.attention_mass.shape) == (torch.float32, (4, 5))
            np.testing.assert_allclose(step.attention_mass.nansum(dim=-1), 1, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(step.attention_mass.isnan(), step.read_tokens == 0)

    def test_maps_have_a_number_for_every_token_so_far_that_sum_to_the_mass(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        schedule, heard = random_schedule(small_model.config, small_scales, seed=2), Recording(EVERYTHING)
        offsets = small_scales.offsets

        generate(small_model, small_texts, small_scales, seed=0, schedule=schedule, probe=heard)

        for step in heard.steps:
            assert step.attention_map is not None
            assert step.attention_mass is not None
            assert step.attention_map.shape == (4, offsets[step.query_scale + 1])
            for source in range(step.query_scale + 1):
                received = step.attention_map[:, offsets[source] : offsets[source + 1]]
                # NaN where unseen, in both.
                np.testing.assert_allclose(received.sum(-1), step.attention_mass[:, source], rtol=0, atol=1e-6)

    def test_mass_is_that_of_the_conditional_rows(
        self,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        small_bits: tuple[Tensor, ...],
    ) -> None:
        guided, plain = Recording(EVERYTHING), Recording(EVERYTHING)

        for sampling, probe in ((Sampling(), guided), (UNGUIDED, plain)):
            generate(small_model, small_texts, small_scales, sampling=sampling, forced_bits=small_bits, probe=probe)

        for step, alone in zip(guided.steps, plain.steps, strict=True):
            torch.testing.assert_close(step.attention_mass, alone.attention_mass, rtol=0, atol=1e-6, equal_nan=True)
            torch.testing.assert_close(step.attention_map, alone.attention_map, rtol=0, atol=1e-6, equal_nan=True)

    def test_unconditional_mass_is_that_of_the_negative_prompt_alone(
        self,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        small_bits: tuple[Tensor, ...],
    ) -> None:
        guided, negative = Recording(EVERYTHING), Recording(EVERYTHING)
        bits = [one[:1] for one in small_bits]

        generate(small_model, small_texts[:1], small_scales, forced_bits=bits, negatives=small_texts[1:], probe=guided)
        generate(small_model, small_texts[1:], small_scales, sampling=UNGUIDED, forced_bits=bits, probe=negative)

        for step, alone in zip(guided.steps, negative.steps, strict=True):
            wanted = alone.attention_mass
            torch.testing.assert_close(step.attention_mass_uncond, wanted, rtol=0, atol=1e-6, equal_nan=True)
            assert alone.attention_mass_uncond is None
        last = guided.steps[-1]
        assert last.attention_mass is not None
        assert last.attention_mass_uncond is not None
        assert not torch.allclose(last.attention_mass, last.attention_mass_uncond, rtol=0, atol=1e-3)


class _Event:
    """An event of a device whose time stands still unless a test moves it."""

    now_ms = 0.0

    def record(self) -> None:
        self.recorded_ms = _Event.now_ms

    def elapsed_time(self, end: _Event) -> float:
        return end.recorded_ms - self.recorded_ms


class TestStepClock:
    def _step(self, clock: StepClock, layer: int) -> tuple[StepInfo, list[StepInfo]]:
        """A step of 5 ms and a pause of 1 ms; with the steps that the clock lets out between them."""
        clock.begin()
        _Event.now_ms += 5
        begin_ns, end_ns = clock.end()
        tokens = np.zeros((1, 2), np.int64)
        step = StepInfo(0, layer, begin_ns, end_ns, None, 0, 0, 0, tokens, tokens)
        told = clock.step_done(step)
        _Event.now_ms += 1
        return step, told

    def test_on_the_cpu_a_step_is_told_at_once_and_host_time_is_its_time(self) -> None:
        clock = StepClock("cpu")

        step, told = self._step(clock, 0)

        assert told == [step]
        assert step.device_ns is None
        assert step.begin_ns <= step.end_ns
        assert clock.scale_done() == []

    def test_with_a_device_steps_wait_for_their_scale_and_have_its_times(self) -> None:
        clock = StepClock("cuda", new_event=_Event)  # type: ignore[arg-type]  # what it uses of an event
        for _ in range(2):
            steps = [self._step(clock, layer) for layer in range(3)]

            told = clock.scale_done()

            assert [early for _, early in steps] == [[]] * 3
            assert [step.layer for step in told] == [0, 1, 2]
            assert [step.device_ns for step in told] == [5_000_000] * 3
            assert [step.begin_ns for step in told] == [step.begin_ns for step, _ in steps]


class TestBfloat16:
    def test_keys_and_values_are_held_in_bfloat16_and_logits_stay_near(
        self,
        small_config: ModelConfig,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        small_bits: tuple[Tensor, ...],
    ) -> None:
        rounded = lively(small_config).cast_layers(torch.bfloat16)
        heard, exact = Recording(Capture(mass=True)), Recording()

        generate(rounded, small_texts, small_scales, forced_bits=small_bits, probe=heard)
        generate(small_model, small_texts, small_scales, forced_bits=small_bits, probe=exact)

        assert (heard.starts[0].dtype, heard.starts[0].dtype_bytes) == ("bfloat16", 2)
        assert 2 * heard.steps[-1].accounted_bytes == exact.steps[-1].accounted_bytes
        assert heard.logits.dtype == torch.float32
        # bfloat16 has 8 bits; the logits' standard deviation is about 3.
        assert (heard.logits - exact.logits).abs().mean() < 0.1 * exact.logits.std()

    def test_a_bfloat16_run_is_repeatable(
        self, small_config: ModelConfig, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        rounded = lively(small_config).cast_layers(torch.bfloat16)

        first, second = (generate(rounded, small_texts, small_scales, seed=0) for _ in range(2))

        assert all(torch.equal(*pair) for pair in zip(first.bits, second.bits, strict=True))


class TestRefusal:
    @pytest.mark.parametrize(
        ("attention", "message"),
        [
            ("grouped with", "unknown attention path 'grouped with'; known, nearest first: grouped,"),
            ("triton", "attention path triton cannot be used here: needs CUDA, not cpu; use auto, or plain"),
            ("varlen", "attention path varlen cannot be used here: needs CUDA, not cpu; use auto, or plain"),
        ],
    )
    def test_a_way_of_attention_that_is_unknown_or_not_here(
        self,
        attention: str,
        message: str,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
    ) -> None:
        with pytest.raises(HeatKVError, match=message):
            generate(small_model, small_texts, small_scales, attention=attention)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"cfg": (1.0, 2.0)}, "cfg list has 2 values, this run has 5 scales"),
            ({"tau": (1.0,) * 6}, "tau list has 6 values, this run has 5 scales"),
            ({"tau": ()}, "tau list has 0 values"),
            ({"cfg_insertion_layers": (0, -4)}, "cfg insertion layer -4 is before layer 1 of 4"),
        ],
    )
    def test_sampling_that_does_not_fit_the_run(
        self,
        wrong: dict[str, Any],
        message: str,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
    ) -> None:
        with pytest.raises(HeatKVError, match=message):
            generate(small_model, small_texts, small_scales, sampling=Sampling(**wrong))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"tau": 0.0}, "temperature 0.0 is not possible"),
            ({"tau": (1.0, -1.0)}, "temperature -1.0 is not possible"),
            ({"tau": math.nan}, "temperature nan is not possible"),
            ({"tau": math.inf}, "temperature inf is not possible"),
            ({"cfg": math.nan}, "cfg nan is not possible"),
            ({"cfg": (1.0, math.inf)}, "cfg inf is not possible"),
            ({"cfg_insertion_layers": (0, 1)}, "cfg insertion layer 1 is not possible"),
        ],
    )
    def test_sampling_that_fits_no_run(self, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(HeatKVError, match=message):
            Sampling(**wrong)

    @pytest.mark.parametrize("lengths", [(17,), (0,), (5, 17)])
    def test_prompts_that_are_empty_or_longer_than_the_model_reads(
        self, lengths: tuple[int, ...], small_model: Infinity, small_scales: ScaleSchedule
    ) -> None:
        texts = [torch.zeros(length, 256) for length in lengths]

        with pytest.raises(HeatKVError, match=r"shape \[\d+, 256\]; small takes 1 to 16 tokens of 256 channels"):
            generate(small_model, texts, small_scales)
        with pytest.raises(HeatKVError, match="small takes 1 to 16 tokens"):
            generate(small_model, [torch.zeros(3, 256)] * len(texts), small_scales, negatives=texts)

    def test_prompts_of_another_width_or_none(self, small_model: Infinity, small_scales: ScaleSchedule) -> None:
        with pytest.raises(HeatKVError, match=r"shape \[3, 128\]; small takes 1 to 16 tokens of 256 channels"):
            generate(small_model, [torch.zeros(3, 128)], small_scales)
        with pytest.raises(HeatKVError, match=r"shape \[1, 3, 256\]"):
            generate(small_model, [torch.zeros(1, 3, 256)], small_scales)
        with pytest.raises(HeatKVError, match="no prompts"):
            generate(small_model, [], small_scales)

    def test_another_number_of_negative_prompts(
        self, small_model: Infinity, small_texts: list[Tensor], small_scales: ScaleSchedule
    ) -> None:
        with pytest.raises(HeatKVError, match="1 negative prompts for 2 prompts; give one each"):
            generate(small_model, small_texts, small_scales, negatives=small_texts[:1])

    @pytest.mark.parametrize("wrong", ["fewer scales", "one image", "other width"])
    def test_forced_bits_of_other_shapes(
        self,
        wrong: str,
        small_model: Infinity,
        small_texts: list[Tensor],
        small_scales: ScaleSchedule,
        small_bits: tuple[Tensor, ...],
    ) -> None:
        bits = {
            "fewer scales": list(small_bits[:-1]),
            "one image": [one[:1] for one in small_bits],
            "other width": [one[..., :4] for one in small_bits],
        }[wrong]

        with pytest.raises(HeatKVError, match="forced bits have shapes") as raised:
            generate(small_model, small_texts, small_scales, forced_bits=bits)
        assert "\n" not in str(raised.value)

    def test_more_scales_than_the_model_has_embeddings(self, small_model: Infinity, small_texts: list[Tensor]) -> None:
        scales = ScaleSchedule.custom(((1, 1),) * 16)

        with pytest.raises(HeatKVError, match="16 scales; Infinity knows at most 15"):
            generate(small_model, small_texts, scales)
