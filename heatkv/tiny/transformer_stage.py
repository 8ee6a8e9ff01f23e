"""What transformer and text encoder of infinity-tiny learn from, by which loss, and from which start.

Knows nothing of the loop, the log or files; `train` runs it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from heatkv.tiny.scenes import Scene, held_out_scenes, render, sample_scene, training_scenes
from heatkv.tiny.stages import CONFIG, alignment_scores, batched, to_tensor
from heatkv.tiny.text import TinyTextEncoder
from heatkv.transformer import Infinity, Rope, TextContext
from heatkv.vae import BSQVAE, ResidualCodes

_POOL_SCENES = 20_000
_MOST_FLIPS = 0.2
_TEXT_DROPPED = 0.1
_SMALL_TOKENS = 66
# Standard deviation of initial weights, times sqrt(inputs); 0.6 elsewhere.
_GAINS = {"cross.q": 2.0, "cross.kv": 1.0, "text_proj": 1.5, "text_pool.kv": 1.0}

Pool = tuple[list[Scene], Tensor]
"""Scenes, and the latents [scenes, code_channels, height, width] of one picture of each: float16, drawn once."""


class TinyModel(nn.Module):
    """What the second part trains: the transformer and its text encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = Infinity(CONFIG)
        self.text = TinyTextEncoder(CONFIG)
        _initialise(self.transformer)


class TransformerStage:
    """Captions to bits: all bits of all scales at once, each scale seeing itself and the scales before it.

    Bits are flipped at random before they are added up, and the next scale's labels are what repairs the damage
    (Infinity's bitwise self-correction). A scale counts in proportion to its side. One text in ten is dropped.
    """

    def __init__(
        self, batch: int, num_scales: int, *, vae_weights: dict[str, Tensor], pool: Pool | None = None
    ) -> None:
        self.module = TinyModel()
        self.batch = batch
        self.num_scales = num_scales
        self.scales = CONFIG.schedule_for()
        self.codes = ResidualCodes.of(CONFIG, self.scales)
        self.vae = BSQVAE(CONFIG.vae).requires_grad_(requires_grad=False)
        self.vae.load_state_dict(vae_weights)
        self._scenes = training_scenes()
        self._rng = np.random.default_rng(0)
        self.pool = pool

    def reseed(self, seed: int) -> None:
        """Start the stream of batches anew; the pool is drawn now unless there is one."""
        self._rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.pool = self.pool or self._draw_pool()

    def loss(self) -> tuple[Tensor, dict[str, float]]:
        assert self.pool is not None, "reseed comes first"
        scenes, latents = self.pool
        chosen = self._rng.integers(len(scenes), size=self.batch)
        labels, features = self._corrupted(latents[chosen].float())
        # The fused CPU attention is slow in its backward at these sizes.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            logits = self._logits([scenes[index].caption for index in chosen], features)
        entropy = F.cross_entropy(logits.flatten(0, 2), labels.flatten().long(), reduction="none").view(labels.shape)
        per_scale = torch.stack([part.mean() for part in entropy.split(self._tokens, dim=1)])
        right = (logits.argmax(-1) == labels).float().split(self._tokens, dim=1)
        sides = torch.tensor([float(height) for height, _ in self.scales.sizes[: self.num_scales]])
        loss = (per_scale * sides).sum() / sides.sum()
        metrics = {"loss": float(loss.detach()), "accuracy": float(torch.cat(right, 1).mean())}
        for side, one, hits in zip(sides, per_scale.detach(), right, strict=True):
            metrics |= {f"loss_{side:.0f}": float(one), f"accuracy_{side:.0f}": float(hits.mean())}
        return loss, metrics

    @torch.inference_mode()
    def scores(self, count: int = 64, *, cfg: float = 3.0) -> dict[str, float]:
        """The detector's view of pictures generated from held-out captions, with the scales learnt so far."""
        self.module.eval()
        scenes = held_out_scenes(count)
        pictures = []
        generator = torch.Generator().manual_seed(0)
        for part in batched(scenes, 32):
            summed = self._sample([scene.caption for scene in part], cfg, generator)
            pictures.append(self.vae.decode_rgb(summed).numpy())
        self.module.train()
        return alignment_scores(np.concatenate(pictures), scenes)

    def _draw_pool(self) -> Pool:
        scenes = [sample_scene(self._rng, self._scenes) for _ in range(_POOL_SCENES)]
        return scenes, torch.cat([self._latents(part) for part in batched(scenes, 64)])

    @property
    def _tokens(self) -> list[int]:
        return list(self.scales.tokens[: self.num_scales])

    @torch.inference_mode()
    def _latents(self, scenes: Sequence[Scene]) -> Tensor:
        return self.vae.encode(to_tensor([render(scene, self._rng) for scene in scenes])).half()

    @torch.no_grad()
    def _corrupted(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Labels [batch, tokens, bits] and input features [batch, tokens - 1, bits] of all scales but the first."""
        summed = self.codes.zeros(len(latents))
        labels, features = [], []
        for scale in range(self.num_scales):
            if scale:
                features.append(self.codes.features(summed, scale))
            bits = self.codes.quantise_scale(latents - summed, scale)
            rate = _MOST_FLIPS * torch.rand(len(bits), 1, 1)
            summed = self.codes.add(summed, bits ^ (torch.rand(bits.shape) < rate), scale)
            labels.append(bits)
        return torch.cat(labels, 1), torch.cat(features, 1)

    def _logits(self, captions: Sequence[str], features: Tensor) -> Tensor:
        """[batch, tokens, bits, 2] float32, some texts replaced by the unconditional one."""
        model = self.module.transformer
        texts = self.module.text(captions)
        for index in np.flatnonzero(self._rng.random(len(texts)) < _TEXT_DROPPED):
            texts[index] = model.unconditional_text[: len(texts[index])]
        context = model.encode_text(texts, None, guided=False)
        return self._forward(context, features, self.num_scales)

    def _forward(self, context: TextContext, features: Tensor, num_scales: int) -> Tensor:
        model, end = self.module.transformer, self.scales.offsets[num_scales]
        x = torch.cat((model.start_tokens(context), model.embed(features)), dim=1)
        levels = torch.repeat_interleave(torch.tensor(self.scales.tokens[:num_scales]))
        rope = Rope.of(self.scales, CONFIG.head_dim).tokens(0, end)
        hidden = model.trunk(x, levels, context, rope, BlockCausal(self.scales.offsets[: num_scales + 1]))
        logits = model.bit_logits(hidden, context).float()
        return logits.unflatten(-1, (-1, 2))  # type: ignore[no-any-return]  # Tensor.unflatten is unannotated

    def _sample(self, captions: Sequence[str], cfg: float, generator: torch.Generator) -> Tensor:
        """Summed codes of one picture per caption, without a cache: every scale computes the whole sequence anew."""
        context = self.module.transformer.encode_text(self.module.text(captions), None, guided=True)
        summed = self.codes.zeros(len(captions))
        features = torch.empty(len(captions), 0, CONFIG.bits_per_token)
        for scale in range(self.num_scales):
            if scale:
                features = torch.cat((features, self.codes.features(summed, scale)), dim=1)
            logits = self._forward(context, features.repeat(2, 1, 1), scale + 1)[:, -self.scales.tokens[scale] :]
            conditional, unconditional = logits.chunk(2)
            chance = (cfg * conditional + (1 - cfg) * unconditional).softmax(-1)[..., 1]
            chance = torch.where((chance - 0.5).abs() > 0.47, chance.round(), chance)  # top-p of 0.97
            bits = (torch.rand(chance.shape, generator=generator) < chance).to(torch.uint8)
            summed = self.codes.add(summed, bits, scale)
        return summed


class BlockCausal:
    """Attention of all scales at once: a token sees its own scale and those before it.

    One product per query scale, which no mask is needed for and no work is wasted in; the first scales are so small
    that one masked product is faster.
    """

    def __init__(self, offsets: Sequence[int]) -> None:
        self.small = next((end for end in reversed(offsets) if end <= _SMALL_TOKENS), offsets[1])
        self.blocks = [(a, b) for a, b in itertools.pairwise(offsets) if a >= self.small]
        scale = torch.repeat_interleave(torch.tensor([b - a for a, b in itertools.pairwise(offsets)]))
        hidden = scale[: self.small, None] < scale[None, : self.small]
        self.mask = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        del layer  # all attend alike
        first = slice(0, self.small)
        out = [_attention(q[:, :, first], k[:, :, first], v[:, :, first], self.mask)]
        out += [_attention(q[:, :, a:b], k[:, :, :b], v[:, :, :b], None) for a, b in self.blocks]
        return torch.cat(out, dim=2)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return scores.softmax(-1).to(v.dtype) @ v


def _initialise(model: Infinity) -> None:
    """Random weights to train from: gates open, residual branches small, attention scales at 10.

    Text comes in strongly, and cross attention starts out choosy: which word a token needs is slow to be found by an
    attention that begins as the mean of all words.
    """
    shrink = (2 * CONFIG.num_layers) ** -0.5
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("bias"):
                tensor.zero_()
            elif name.endswith("log_scale"):
                tensor.fill_(math.log(10))
            elif "norm" in name:
                tensor.fill_(1)
            elif name == "text_pool.query":
                tensor.normal_()
            else:
                gain = next((gain for part, gain in _GAINS.items() if part in name), 0.6)
                tensor.normal_(std=0.02 if tensor.ndim > 2 or "embed" in name else gain * tensor.shape[-1] ** -0.5)
            if name.endswith(("attention.proj.weight", "fc2.weight")):
                tensor.mul_(shrink)
            if name.endswith("modulation") and tensor.ndim == 4:
                tensor[:, :, :2] += 1  # the two gates
            if name.endswith("odulation.weight"):
                tensor.mul_(0.1)
