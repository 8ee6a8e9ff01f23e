"""ModelConfig and the MODELS table: the shape of every model that heatkv can run.

Pure Python. A new size is a new row; nothing else in the code names a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from heatkv.errors import UnknownNameError
from heatkv.scales import Grid, ScaleSchedule


@dataclass(frozen=True, slots=True)
class VAEConfig:
    """Shape of a BSQ-VAE: a convolutional autoencoder whose latent is `code_channels` signs per cell."""

    code_channels: int
    patch_size: int
    base_channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    encoder_blocks: int = 2
    """Residual blocks per encoder level; a decoder level has one more."""
    norm_groups: int | None = None
    """Groups of every group norm; None: the official 32, or 24 where 32 does not divide the channels."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of one Infinity transformer with its VAE, and the defaults it is run with."""

    name: str
    num_layers: int
    width: int
    num_heads: int
    num_chunks: int
    """Official checkpoints store the layers in this many equal chunks."""
    vae: VAEConfig
    text_width: int = 2048
    text_maxlen: int = 512
    ffn_ratio: float = 4.0
    spatial_patchify: bool = False
    """8B: a transformer token carries a 2x2 patch of VAE cells."""
    level_embed_every_chunk: bool = False
    text_encoder: Literal["t5", "tiny"] = "t5"
    sink_scales: int = 3
    """Default number of first scales that are never evicted."""
    cfg: float = 3.0
    tau: float = 1.0
    scales: tuple[Grid, ...] = field(default=())
    """The only schedule of a model trained for one; empty: the official resolutions."""
    rope_grid: Grid | None = None
    """What RoPE positions are normalised to with `scales`; None: its last grid."""

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def ffn_width(self) -> int:
        """Hidden width of the feed-forward layers; Python's round (ties to even), as the official code."""
        return round(self.width * self.ffn_ratio / 256) * 256 or round(self.width * self.ffn_ratio)

    @property
    def bits_per_token(self) -> int:
        return self.vae.code_channels * (4 if self.spatial_patchify else 1)

    @property
    def pool_heads(self) -> int:
        """Heads of the attention that pools the text into one vector."""
        return max(1, self.text_width // (64 if self.width > 4096 else 128))

    def kv_bytes_per_token(self, *, dtype_bytes: int = 2, rows: int = 2) -> int:
        """Bytes that one token's K and V take in one head of one layer, for all rows (2 with guidance)."""
        return 2 * self.head_dim * dtype_bytes * rows

    def history_bytes(self, scales: ScaleSchedule, *, dtype_bytes: int = 2, rows: int = 2) -> int:
        """Bytes of the full history (all scales but the last): what a budget of 1.0 means."""
        slots = self.num_layers * self.num_heads
        return scales.history_tokens * slots * self.kv_bytes_per_token(dtype_bytes=dtype_bytes, rows=rows)

    def image_size(self, scales: ScaleSchedule) -> Grid:
        """(height, width) in pixels of an image of these scales."""
        height, width = scales.sizes[-1]
        pixels = self.vae.patch_size * (2 if self.spatial_patchify else 1)
        return height * pixels, width * pixels

    def schedule_for(self, resolution: str | None = None, *, aspect: float = 1.0) -> ScaleSchedule:
        """The scales of one image: by resolution and aspect, or the model's only schedule."""
        if not self.scales:
            return ScaleSchedule.named("1M" if resolution is None else resolution, aspect=aspect)
        native = replace(ScaleSchedule.custom(self.scales, rope_grid=self.rope_grid), resolution="native")
        if resolution not in (None, "native"):
            raise UnknownNameError(f"resolution of {self.name}", resolution, ["native"])
        if aspect not in (1.0, native.aspect):
            raise UnknownNameError(f"aspect of {self.name}", aspect, [native.aspect])
        return native


_D16 = VAEConfig(code_channels=16, patch_size=16)
_D32 = VAEConfig(code_channels=32, patch_size=16)
_D14_F8 = VAEConfig(code_channels=14, patch_size=8, multipliers=(1, 2, 4, 4))

# One channel a group would take each channel's mean away, and colours with it: hence groups of 4 and 8.
_TINY_VAE = VAEConfig(16, 4, base_channels=32, multipliers=(1, 2, 2), encoder_blocks=1, norm_groups=8)
_TINY = ModelConfig(
    "infinity-tiny",
    num_layers=6,
    width=192,
    num_heads=6,
    num_chunks=2,
    vae=_TINY_VAE,
    text_width=128,
    text_maxlen=32,
    text_encoder="tiny",
    sink_scales=2,
    scales=tuple((side, side) for side in (1, 2, 3, 4, 6, 8, 10)),
    # Far finer than its last grid: with few positions most of a head's 32 channels would hardly turn, and the tokens
    # of the first scales, which differ in nothing else, would take long to tell apart.
    rope_grid=(640, 640),
)

_ROWS = (
    _TINY,
    ModelConfig("infinity-2b", 32, 2048, 16, 8, _D32),
    ModelConfig("infinity-8b", 40, 3584, 28, 8, _D14_F8, spatial_patchify=True),
    ModelConfig("infinity-125m", 12, 768, 8, 4, _D16),
    ModelConfig("infinity-layer16", 16, 1152, 12, 4, _D16),
    ModelConfig("infinity-layer24", 24, 1536, 16, 4, _D16),
    ModelConfig("infinity-layer32", 32, 2080, 20, 4, _D16),
    ModelConfig("infinity-layer40", 40, 2688, 24, 4, _D16),
    ModelConfig("infinity-layer48", 48, 3360, 28, 4, _D16),
)

MODELS: dict[str, ModelConfig] = {row.name: row for row in _ROWS}
"""Every known model by name."""

ALIASES: dict[str, str] = {"infinity-layer12": "infinity-125m"}
"""Other names in use for a row of MODELS."""


def model_config(name: str) -> ModelConfig:
    """The row of MODELS with this name. Raises UnknownNameError listing the known, nearest first."""
    config = MODELS.get(ALIASES.get(name, name))
    if config is None:
        raise UnknownNameError("model", name, MODELS)
    return config
