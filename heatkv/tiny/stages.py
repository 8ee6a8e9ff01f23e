"""What a part of infinity-tiny learns from, and by which loss: the protocol, the VAE's, and what both parts share.

Knows nothing of the loop, the log or files; `train` runs these. The other part is in `transformer_stage`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from heatkv.config import model_config
from heatkv.tiny.detect import align, mean_alignment
from heatkv.tiny.scenes import Scene, held_out_scenes, render, sample_scene, training_scenes
from heatkv.vae import BSQVAE, ResidualCodes

CONFIG = model_config("infinity-tiny")


class Stage(Protocol):
    """Something to train: a module, a random batch's loss, and held-out scores."""

    @property
    def module(self) -> nn.Module: ...

    def reseed(self, seed: int) -> None:
        """Start the stream of batches anew."""
        ...

    def loss(self) -> tuple[Tensor, dict[str, float]]:
        """Loss of the next batch, and numbers to log."""
        ...

    def scores(self) -> dict[str, float]: ...


class VaeStage:
    """Pictures to pixels, with bits in between.

    A flat background fills most of a picture and hides lost colours in any plain pixel loss, so pixels weigh by
    their chroma. The gradient passes the quantiser straight through; a commitment term keeps latents near codes.
    """

    def __init__(self, batch: int) -> None:
        self.module = BSQVAE(CONFIG.vae)
        self.batch = batch
        self.codes = ResidualCodes.of(CONFIG, CONFIG.schedule_for())
        self._scenes = training_scenes()
        self._rng = np.random.default_rng(0)

    def reseed(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def loss(self) -> tuple[Tensor, dict[str, float]]:
        scenes = [sample_scene(self._rng, self._scenes) for _ in range(self.batch)]
        images = to_tensor([render(scene, self._rng) for scene in scenes])
        latent = self.module.encode(images)
        with torch.no_grad():
            _, quantised = self.codes.quantise(latent)
        # The decoder alone, without the clamp of decode: a clamped pixel would have no gradient.
        decoded = self.module.decoder(latent + (quantised - latent).detach())
        difference = decoded - images
        weight = 1 + 4 * (images.amax(1, keepdim=True) - images.amin(1, keepdim=True)) / 2
        weight = weight / weight.mean()
        pixels = (weight * (difference.abs() + 2 * difference**2)).mean()
        commitment = F.mse_loss(latent, quantised)
        return pixels + 0.25 * commitment, {
            "loss": float(pixels.detach()),
            "commitment": float(commitment.detach()),
            "psnr": float(10 * torch.log10(4 / (difference.detach() ** 2).mean())),
        }

    @torch.inference_mode()
    def scores(self, count: int = 100) -> dict[str, float]:
        """The detector's view of reconstructions of held-out scenes."""
        scenes, rng = held_out_scenes(count), np.random.default_rng(1)
        images = [render(scene, rng) for scene in scenes]
        _, quantised = self.codes.quantise(self.module.encode(to_tensor(images)))
        decoded = self.module.decode(quantised)
        error = float(((decoded - to_tensor(images)) ** 2).mean())
        return {"psnr": 10 * float(np.log10(4 / error))} | alignment_scores(to_pictures(decoded), scenes)


def alignment_scores(pictures: NDArray[np.uint8], scenes: tuple[Scene, ...]) -> dict[str, float]:
    """Mean alignment of pictures [count, height, width, 3] with their scenes."""
    return mean_alignment(align(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)).to_json()


def to_tensor(pictures: list[NDArray[np.uint8]]) -> Tensor:
    """[count, 3, height, width] in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(images: Tensor) -> NDArray[np.uint8]:
    """[count, height, width, 3] from images in [-1, 1]."""
    return ((images + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def batched(scenes: Sequence[Scene], size: int) -> Iterator[Sequence[Scene]]:
    """The scenes in runs of `size`."""
    for begin in range(0, len(scenes), size):
        yield scenes[begin : begin + size]
