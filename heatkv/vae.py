"""BSQ-VAE: the convolutional autoencoder, and the multi-scale residual bit codes between it and the transformer.

It knows pixels, latents, codes and bits; nothing of attention, caches or checkpoints' key names. Architecture:
FoundationVision/Infinity, infinity/models/bsq_vae/{vae,flux_vqgan,multiscale_bsq}.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatkv.config import ModelConfig, VAEConfig
from heatkv.scales import Grid, ScaleSchedule

_NORM_EPS = 1e-6


class BSQVAE(nn.Module):
    """Encoder and decoder between images [batch, 3, height, width] in [-1, 1] and latents.

    A latent is [batch, code_channels, height / patch_size, width / patch_size].
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)

    def encode(self, image: Tensor) -> Tensor:
        """The latent of an image, before quantisation."""
        return self.encoder(image)  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any

    def decode(self, latent: Tensor) -> Tensor:
        """The image of a latent, clamped to [-1, 1]."""
        return self.decoder(latent).clamp(-1, 1)  # type: ignore[no-any-return]  # as above

    @torch.inference_mode()
    def decode_rgb(self, latent: Tensor, *, most_cells: int | None = None) -> Tensor:
        """The image of a latent as uint8 RGB: [batch, height, width, 3], truncated as the official code does.

        One after the other: decoding an image takes many times the memory that it takes itself. `most_cells`: a small
        picture instead, of a latent shrunk to so many cells on its longer side.
        """
        latent = latent if most_cells is None else shrunk(latent, most_cells)
        return torch.cat([self._decode_one(one) for one in latent.split(1)])

    def _decode_one(self, latent: Tensor) -> Tensor:
        image = self.decode(latent.to(self.decoder.conv_in.weight.dtype)).float()
        return ((image + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1)


@dataclass(frozen=True, slots=True)
class ResidualCodes:
    """How the bits of successive scales add up to a latent, and what each scale gets to see of it.

    A code channel is ±1/sqrt(code_channels); each scale's codes are resized to the final grid and added. With
    `patchify` (8B) a transformer token carries a 2x2 patch of VAE cells, so every grid here is twice as large.
    """

    scales: ScaleSchedule
    channels: int
    patchify: bool = False

    @classmethod
    def of(cls, config: ModelConfig, scales: ScaleSchedule) -> ResidualCodes:
        return cls(scales, config.vae.code_channels, config.spatial_patchify)

    def grid(self, scale: int) -> Grid:
        """(height, width) of a scale in VAE cells."""
        height, width = self.scales.sizes[scale]
        return (2 * height, 2 * width) if self.patchify else (height, width)

    def zeros(self, batch: int, device: torch.device | str = "cpu") -> Tensor:
        """The sum before the first scale: [batch, channels, *final grid] float32."""
        return torch.zeros(batch, self.channels, *self.grid(-1), device=device)

    def codes(self, bits: Tensor, scale: int) -> Tensor:
        """Codes of one scale at its own grid, [batch, channels, height, width], from [batch, tokens, bits]."""
        height, width = self.scales.sizes[scale]
        cells = bits.reshape(bits.shape[0], height, width, -1).permute(0, 3, 1, 2)
        if self.patchify:
            cells = F.pixel_shuffle(cells, 2)
        return F.normalize((2.0 * cells - 1.0) / self.channels**0.5, dim=1)

    def add(self, summed: Tensor, bits: Tensor, scale: int) -> Tensor:
        """The sum with one more scale's bits: same shape as `summed`."""
        return summed + _resize(self.codes(bits, scale), self.grid(-1))

    def features(self, summed: Tensor, scale: int) -> Tensor:
        """Input of the transformer at `scale`: [batch, tokens, bits] from the codes of the scales before it."""
        cells = _resize(summed, self.grid(scale))
        if self.patchify:
            cells = F.pixel_unshuffle(cells, 2)
        return cells.flatten(2).transpose(1, 2)

    def quantise(self, latent: Tensor) -> tuple[list[Tensor], Tensor]:
        """Bits of every scale, each [batch, tokens, bits] uint8, and the latent that they add up to."""
        summed = torch.zeros_like(latent)
        all_bits = []
        for scale in range(self.scales.num_scales):
            bits = self.quantise_scale(latent - summed, scale)
            summed = self.add(summed, bits, scale)
            all_bits.append(bits)
        return all_bits, summed

    def quantise_scale(self, residual: Tensor, scale: int) -> Tensor:
        """Bits of what is still missing, [batch, tokens, bits] uint8: the sign after an area resize; 0 counts as -1."""
        cells = F.interpolate(residual, size=self.grid(scale), mode="area") if scale != self._last else residual
        if self.patchify:
            cells = F.pixel_unshuffle(cells, 2)
        return (cells > 0).to(torch.uint8).flatten(2).transpose(1, 2)

    @property
    def _last(self) -> int:
        return self.scales.num_scales - 1


def shrunk(latent: Tensor, most_cells: int) -> Tensor:
    """A latent [batch, channels, height, width] whose longer side is at most so many cells, of the same aspect."""
    height, width = latent.shape[-2:]
    ratio = min(1.0, most_cells / max(height, width))
    return F.interpolate(latent, size=(max(1, round(height * ratio)), max(1, round(width * ratio))), mode="area")


def _resize(cells: Tensor, grid: Grid) -> Tensor:
    # The official code resizes a (1, h, w) volume with 'trilinear', also downwards and without antialiasing; the
    # five-dimensional call keeps its rounding, which sampling is sensitive to.
    if tuple(cells.shape[-2:]) == grid:
        return cells
    return F.interpolate(cells.unsqueeze(2), size=(1, *grid), mode="trilinear").squeeze(2)


def _norm(channels: int, groups: int | None) -> nn.GroupNorm:
    official = 32 if channels % 32 == 0 else 24
    return nn.GroupNorm(groups or official, channels, eps=_NORM_EPS)


class _ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, groups: int | None) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]  # as above


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]  # as above


class _Level(nn.Module):
    """Residual blocks of one resolution, then the change of resolution if there is one."""

    def __init__(self, channels_in: int, channels_out: int, num_blocks: int, groups: int | None) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * num_blocks
        self.block = nn.ModuleList(_ResidualBlock(a, b, groups) for a, b in pairwise(widths))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.upsample(self.downsample(x))  # type: ignore[no-any-return]  # as above


class _Middle(nn.Module):
    def __init__(self, channels: int, groups: int | None) -> None:
        super().__init__()
        self.block_1 = _ResidualBlock(channels, channels, groups)
        self.block_2 = _ResidualBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))  # type: ignore[no-any-return]  # as above


class _Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = _level_widths(config)
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList()
        for index, (before, width) in enumerate(zip([config.base_channels, *widths], widths, strict=False)):
            level = _Level(before, width, config.encoder_blocks, config.norm_groups)
            if 2**index < config.patch_size:
                level.downsample = _Downsample(width)
            self.down.append(level)
        self.mid = _Middle(widths[-1], config.norm_groups)
        self.norm_out = _norm(widths[-1], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], config.code_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))  # type: ignore[no-any-return]  # as above


class _Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = _level_widths(config)
        self.conv_in = nn.Conv2d(config.code_channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], config.norm_groups)
        self.up = nn.ModuleList()
        for index, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            level = _Level(before, width, config.encoder_blocks + 1, config.norm_groups)
            if 1 < 2**index <= config.patch_size:
                level.upsample = _Upsample(width)
            self.up.append(level)
        self.norm_out = _norm(widths[0], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))  # type: ignore[no-any-return]  # as above


def _level_widths(config: VAEConfig) -> list[int]:
    return [config.base_channels * multiplier for multiplier in config.multipliers]
