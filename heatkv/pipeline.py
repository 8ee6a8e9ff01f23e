"""Pipeline: transformer, VAE and text encoder of one model, loaded together, ready for prompts.

It knows where weights come from: a folder of official files, those that come with heatkv, or random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from heatkv.bundled import bundled_weights
from heatkv.checkpoint import find_weights, load_transformer, load_vae, random_transformer, random_vae
from heatkv.config import ModelConfig
from heatkv.errors import CheckpointError, OptionError, UnknownNameError
from heatkv.generate import Generation, Sampling, generate
from heatkv.online import OnlinePlan
from heatkv.probe import Probe
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from heatkv.text_encoder import RandomTextEncoder, T5TextEncoder, TextEncoder
from heatkv.transformer import Infinity
from heatkv.vae import BSQVAE

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""Names of the dtypes a model can run in."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One loaded model."""

    config: ModelConfig
    transformer: Infinity
    vae: BSQVAE
    encoder: TextEncoder
    weights: str
    """Where the weights came from, as one line."""

    @classmethod
    def load(
        cls, config: ModelConfig, weights: Path | None, *, dtype: str = "bfloat16", device: str = "cpu"
    ) -> Pipeline:
        """The model from a weights folder, or the bundled weights if `weights` is None. Raises CheckpointError."""
        folder = weights or bundled_weights(config)
        if folder is None:
            raise CheckpointError(f"{config.name} has no bundled weights; give a weights folder, or use random weights")
        files, number, where = find_weights(folder), _dtype(dtype), _device(device)
        return cls(
            config,
            load_transformer(files.transformer, config, dtype=number, device=where),
            load_vae(files.vae, config, dtype=number, device=where),
            _text_encoder(config, files.text_encoder, folder, where),
            str(folder) if weights else "bundled",
        )

    @classmethod
    def random(cls, config: ModelConfig, *, dtype: str = "bfloat16", device: str = "cpu") -> Pipeline:
        """The model with random weights and text features: true time and memory, images without meaning."""
        number, where = _dtype(dtype), _device(device)
        return cls(
            config,
            random_transformer(config, dtype=number, device=where, seed=0),
            random_vae(config, dtype=number, device=where, seed=1),
            RandomTextEncoder(config),
            "random",
        )

    @property
    def device(self) -> torch.device:
        return self.transformer.start_embed.device

    def generate(
        self,
        prompts: Sequence[str],
        scales: ScaleSchedule | None = None,
        *,
        negative_prompts: Sequence[str] | None = None,
        sampling: Sampling | None = None,
        schedule: PruningSchedule | None = None,
        online: OnlinePlan | None = None,
        seed: int | None = None,
        forced_bits: Sequence[Tensor] | None = None,
        probe: Probe | None = None,
    ) -> Generation:
        """Images of prompts; see heatkv.generate.generate. Default sampling: the model's own cfg and tau."""
        if isinstance(prompts, str) or isinstance(negative_prompts, str):
            raise OptionError("prompts is one text; give a list of texts, one image each")
        return generate(
            self.transformer,
            self.encoder.encode(prompts),
            scales or self.config.schedule_for(),
            sampling=sampling or Sampling(cfg=self.config.cfg, tau=self.config.tau),
            schedule=schedule,
            online=online,
            seed=seed,
            forced_bits=forced_bits,
            negatives=None if negative_prompts is None else self.encoder.encode(negative_prompts),
            vae=self.vae,
            probe=probe,
        )


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UnknownNameError("dtype", name, DTYPES)
    return DTYPES[name]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UnknownNameError("device", name, ["cpu", "cuda", "cuda:0"])
    num_cuda = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_cuda:
        found = f"torch {torch.__version__} finds {num_cuda} CUDA devices here"
        raise OptionError(f"device {name}: {found}; use --device cpu")
    return device


def _text_encoder(config: ModelConfig, folder: Path | None, weights: Path, device: torch.device) -> TextEncoder:
    if config.text_encoder == "tiny":
        # Deferred: only the tiny model needs its vocabulary.
        from heatkv.tiny.text import TinyTextEncoder

        return TinyTextEncoder.load(weights / "text_encoder.safetensors", config)
    if folder is None:
        raise CheckpointError(f"{weights}: no text encoder; expected a folder with 't5' in its name (flan-t5-xl)")
    encoder = T5TextEncoder(folder, device=device)
    if encoder.width != config.text_width:
        reads = f"{config.name} reads {config.text_width}"
        raise CheckpointError(f"{folder}: its features have {encoder.width} channels, {reads}")
    return encoder
