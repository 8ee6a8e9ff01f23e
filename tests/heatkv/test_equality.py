"""Whole runs, every way of attention that a CPU has: equal to a model that keeps everything and masks what was pruned.

The twin has no cache, no pool and no groups: plain tensors of all keys and values so far, and a boolean mask made of
PruningSchedule.visible. Bits are forced, so that both see the same inputs at every scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import heatkv.generate
from heatkv.attention import Attended, attend
from heatkv.config import ModelConfig, VAEConfig
from heatkv.generate import Sampling, generate
from heatkv.kernels import grouped
from heatkv.policies.full import FullPolicy
from heatkv.probe import Capture
from heatkv.scales import TEMPLATES, ScaleSchedule
from heatkv.transformer import Rope
from heatkv.vae import ResidualCodes
from tests.heatkv.conftest import Recording, lively, random_schedule

if TYPE_CHECKING:
    from heatkv.schedule import PruningSchedule
    from heatkv.transformer import Infinity
    from heatkv.visible import Visible

PATHS_ON_CPU = ("grouped", "plain")
CAPTURES = {
    "nothing": Capture(),
    "mass, exactly": Capture(mass=True),
    "mass, fast": Capture(mass=True, bit_exact=False),
    "everything": Capture(mass=True, unconditional=True, maps=True),
}
SAMPLINGS = {
    "no guidance": Sampling(cfg=1.0),
    "logits": Sampling(cfg=2.5),
    "hidden state": Sampling(cfg=2.5, cfg_insertion_layers=(-2,)),
    "both": Sampling(cfg=2.5, cfg_insertion_layers=(0, -1)),
    "lists": Sampling(cfg=(1.0, 2.0, 1.0, 3.0, 2.5), tau=(1.0, 0.5, 2.0, 1.0, 0.9), cfg_insertion_layers=(0, -3)),
    "below one": Sampling(cfg=(0.0, 0.5, 1.0, 1.0, 0.5)),
}

BFLOAT16 = {True: 4e-3, False: 6e-3}
"""By bit_exact: largest error of an attention output in units of the largest value. The softmax and its product are
rounded to 8 bits, each by at most 0.002, and partial attentions, which the fast way of capturing adds up, once more."""

BATCH = 3
TINY_VAE = VAEConfig(4, 4, base_channels=8, multipliers=(1, 2, 1), encoder_blocks=1, norm_groups=4)
TINY = ModelConfig("aspects", 2, 32, 2, 1, TINY_VAE, text_width=128, text_maxlen=8, sink_scales=1)


@dataclass
class MaskedTwin:
    """Generates as the model does, over the full history of each layer, with a mask."""

    model: Infinity
    schedule: PruningSchedule
    sampling: Sampling
    query_scale: int = 0
    keys: dict[int, Tensor] = field(default_factory=dict)
    """Per layer, [R, H, tokens so far, D]."""
    values: dict[int, Tensor] = field(default_factory=dict)

    def logits(self, texts: list[Tensor], negatives: list[Tensor] | None, bits: list[Tensor]) -> Tensor:
        """After temperature and guidance: [batch, tokens of all scales, 2 * bits]."""
        scales, batch = self.schedule.scales, len(texts)
        context = self.model.encode_text(texts, negatives, guided=self.sampling.guided)
        rope = Rope.of(scales, self.model.config.head_dim)
        codes = ResidualCodes.of(self.model.config, scales)
        summed, every = codes.zeros(batch), []
        for scale in range(scales.num_scales):
            self.query_scale, strength = scale, self.sampling.cfg_at(scale)
            x = self.model.start_tokens(context)
            if scale > 0:
                x = self.model.embed(codes.features(summed, scale)).repeat(context.rows // batch, 1, 1)
            levels = torch.full((scales.tokens[scale],), scale)
            layers = [self.model.config.num_layers + item for item in self.sampling.cfg_insertion_layers if item < 0]
            guidance = {} if strength == 1 else dict.fromkeys(layers, strength)
            part = rope.tokens(*scales.offsets[scale : scale + 2])
            hidden = self.model.trunk(x, levels, context, part, self, guidance=guidance)
            logits = self.model.bit_logits(hidden, context) / self.sampling.tau_at(scale)
            conditional, others = logits[:batch], logits[batch:]
            guided = strength != 1 and 0 in self.sampling.cfg_insertion_layers
            every.append(strength * conditional + (1 - strength) * others if guided else conditional)
            summed = codes.add(summed, bits[scale], scale)
        return torch.cat(every, dim=1)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for history, new in ((self.keys, k), (self.values, v)):
            history[layer] = torch.cat((history[layer], new), dim=2) if layer in history else new
        mask = seen_tokens(self.schedule, self.query_scale, layer)
        return masked_attention(q, self.keys[layer], self.values[layer], mask).to(q.dtype)


def seen_tokens(schedule: PruningSchedule, query_scale: int, layer: int) -> Tensor:
    """bool [H, tokens of scales 0 to query_scale]."""
    seen = schedule.visible(query_scale)[layer, :, : query_scale + 1]
    return torch.from_numpy(np.repeat(seen, schedule.scales.tokens[: query_scale + 1], axis=1))


def masked_attention(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Dense, in float64."""
    scores = q.double() @ keys.double().transpose(-1, -2)
    return scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1) @ values.double()


def _bits(config: ModelConfig, scales: ScaleSchedule, *, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(batch, tokens, config.bits_per_token) for tokens in scales.tokens]
    return [torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8) for shape in shapes]


def _texts(config: ModelConfig, *, batch: int, lengths: tuple[int, ...] = (5, 3, 7)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randn(length, config.text_width, generator=generator) for length in lengths[:batch]]


def _largest_difference(model: Infinity, schedule: PruningSchedule, **how: Any) -> float:  # Any: what _both takes
    run, twin = _both(model, schedule, **how)
    return float((run - twin).abs().max())


@torch.inference_mode()
def _both(
    model: Infinity,
    schedule: PruningSchedule,
    *,
    path: str = "grouped",
    capture: Capture | None = None,
    sampling: Sampling | None = None,
    batch: int = 1,
    negatives: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits of a run, and of the twin."""
    config, scales = model.config, schedule.scales
    texts, bits = _texts(config, batch=batch), _bits(config, scales, batch=batch)
    sampling, heard = sampling or Sampling(), Recording(capture or Capture())
    generate(
        model,
        texts,
        scales,
        schedule=schedule,
        sampling=sampling,
        forced_bits=bits,
        negatives=negatives,
        probe=heard,
        attention=path,
    )
    return heard.logits, MaskedTwin(model, schedule, sampling).logits(texts, negatives, bits)


@pytest.fixture
def merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way of capturing wherever there is something to add up, as only large scales have it."""
    monkeypatch.setattr(grouped, "_MERGE_QUERIES", 1)
    monkeypatch.setattr(grouped, "_MERGE_TOKENS", 3)


@pytest.mark.parametrize("path", PATHS_ON_CPU)
class TestLogits:
    """In float32: 1e-5, of logits with a standard deviation of about 3."""

    @given(seed=st.integers(0, 2**16), sink_scales=st.integers(0, 4), batch=st.integers(1, BATCH))
    @settings(max_examples=12)
    def test_any_schedule(
        self,
        seed: int,
        sink_scales: int,
        batch: int,
        path: str,
        small_model: Infinity,
        small_scales: ScaleSchedule,
    ) -> None:
        schedule = random_schedule(small_model.config, small_scales, seed=seed, sink_scales=sink_scales)

        assert _largest_difference(small_model, schedule, path=path, batch=batch) <= 1e-5

    def test_everything_kept(self, path: str, small_model: Infinity, small_scales: ScaleSchedule) -> None:
        schedule = FullPolicy().plan(small_model.config, small_scales)

        assert _largest_difference(small_model, schedule, path=path, batch=2) <= 1e-5

    @pytest.mark.parametrize("capture", CAPTURES)
    @pytest.mark.parametrize("sampling", SAMPLINGS)
    def test_every_kind_of_guidance_and_capture(
        self,
        sampling: str,
        capture: str,
        path: str,
        small_model: Infinity,
        small_scales: ScaleSchedule,
        merging: None,
    ) -> None:
        schedule = random_schedule(small_model.config, small_scales, seed=4)

        difference = _largest_difference(
            small_model, schedule, path=path, sampling=SAMPLINGS[sampling], capture=CAPTURES[capture], batch=2
        )

        assert difference <= 1e-5

    @pytest.mark.parametrize("lengths", [(1, 1, 1), (9, 2, 16), (7, 3, 5)], ids=str)
    def test_negative_prompts_of_any_length(
        self, lengths: tuple[int, ...], path: str, small_model: Infinity, small_scales: ScaleSchedule
    ) -> None:
        schedule = random_schedule(small_model.config, small_scales, seed=5)
        negatives = _texts(small_model.config, batch=BATCH, lengths=lengths)

        assert _largest_difference(small_model, schedule, path=path, batch=BATCH, negatives=negatives) <= 1e-5

    @pytest.mark.parametrize("aspect", sorted(TEMPLATES))
    def test_every_aspect(self, aspect: float, path: str, tiny_model: Infinity) -> None:
        scales = ScaleSchedule.named("0.06M", aspect=aspect)
        schedule = random_schedule(TINY, scales, seed=6)

        assert _largest_difference(tiny_model, schedule, path=path) <= 1e-5


@pytest.fixture(scope="module")
def tiny_model() -> Infinity:
    """Small enough for the grids of every aspect."""
    return lively(TINY)


def test_pruning_is_felt(small_model: Infinity, small_scales: ScaleSchedule) -> None:
    """Else the tests above would show nothing."""
    pruned = random_schedule(small_model.config, small_scales, seed=4)
    full = FullPolicy().plan(small_model.config, small_scales)

    (run, _), (_, unpruned) = _both(small_model, pruned), _both(small_model, full)

    assert (run - unpruned)[:, -small_scales.tokens[-1] :].abs().mean() > 1e-2


@dataclass
class CheckedAttend:
    """Attention of a run, compared at every step with masked dense attention of the same queries, keys and values.

    Errors of bfloat16 are so kept from adding up over layers and scales.
    """

    schedule: PruningSchedule
    history: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)
    """Per step, in units of the largest value."""

    def __call__(self, q: Tensor, visible: Visible, scales: ScaleSchedule, **how: Any) -> Attended:  # Any: attend's
        layer = len(self.errors) % self.schedule.num_layers
        new = visible.keys, visible.values
        keys, values = new if layer not in self.history else map(_joined, self.history[layer], new)
        self.history[layer] = keys, values
        attended = attend(q, visible, scales, **how)
        seen = seen_tokens(self.schedule, visible.query_scale, layer)
        error = (attended.out.double() - masked_attention(q, keys, values, seen)).abs().max()
        self.errors.append(float(error / values.double().abs().max()))
        return attended


def _joined(history: Tensor, new: Tensor) -> Tensor:
    return torch.cat((history, new), dim=2)


class TestBfloat16:
    @pytest.mark.parametrize("path", PATHS_ON_CPU)
    @pytest.mark.parametrize("capture", CAPTURES)
    @pytest.mark.parametrize("seed", range(2))
    def test_every_step_equals_masked_dense_attention(
        self,
        seed: int,
        capture: str,
        path: str,
        small_config: ModelConfig,
        small_scales: ScaleSchedule,
        merging: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        model = lively(small_config).cast_layers(torch.bfloat16)
        checked = CheckedAttend(random_schedule(small_config, small_scales, seed=seed))
        monkeypatch.setattr(heatkv.generate, "attend", checked)

        generate(
            model,
            _texts(small_config, batch=2),
            small_scales,
            schedule=checked.schedule,
            forced_bits=_bits(small_config, small_scales, batch=2),
            probe=Recording(CAPTURES[capture]),
            attention=path,
        )

        assert len(checked.errors) == checked.schedule.num_steps
        assert max(checked.errors) <= BFLOAT16[CAPTURES[capture].bit_exact]

    @pytest.mark.parametrize("aspect", sorted(TEMPLATES))
    def test_in_every_aspect(self, aspect: float, monkeypatch: pytest.MonkeyPatch) -> None:
        model, scales = lively(TINY).cast_layers(torch.bfloat16), ScaleSchedule.named("0.06M", aspect=aspect)
        checked = CheckedAttend(random_schedule(TINY, scales, seed=8))
        monkeypatch.setattr(heatkv.generate, "attend", checked)

        generate(
            model,
            _texts(TINY, batch=1),
            scales,
            schedule=checked.schedule,
            forced_bits=_bits(TINY, scales, batch=1),
            probe=Recording(CAPTURES["mass, fast"]),
        )

        assert max(checked.errors) <= BFLOAT16[False]
