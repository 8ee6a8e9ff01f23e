"""Prompts → features for the transformer: flan-t5-xl from a local folder, or stand-ins that say what they are."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from heatkv.config import ModelConfig
from heatkv.errors import CheckpointError

_MAX_TOKENS = 512


class TextEncoder(Protocol):
    """Features of each prompt: [tokens, text_width] float32, the end token included, padding not."""

    def encode(self, prompts: Sequence[str]) -> list[Tensor]: ...


class T5TextEncoder:
    """The encoder half of flan-t5-xl, through transformers; never touches the network.

    float16 on a GPU, as the official code; bfloat16 on a CPU, which computes float16 far more slowly.
    """

    def __init__(self, folder: Path, *, device: torch.device | str) -> None:
        # Deferred: transformers takes seconds to import, and only real weights need it.
        from transformers import AutoTokenizer, T5EncoderModel

        dtype = torch.bfloat16 if torch.device(device).type == "cpu" else torch.float16
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)  # Any: untyped library
            model: Any = T5EncoderModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{folder}: not a T5 encoder folder ({reason}); expected flan-t5-xl") from None
        self._model = model.to(device).eval()
        self._device = device

    @property
    def width(self) -> int:
        """Channels of the features."""
        return int(self._model.config.d_model)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        tokens = self._tokenizer(
            list(prompts), max_length=_MAX_TOKENS, padding="max_length", truncation=True, return_tensors="pt"
        )
        mask = tokens["attention_mask"]
        features = self._model(
            input_ids=tokens["input_ids"].to(self._device), attention_mask=mask.to(self._device)
        ).last_hidden_state.float()
        return [row[:length] for row, length in zip(features, mask.sum(dim=1).tolist(), strict=True)]


class RandomTextEncoder:
    """Normal numbers in place of features, for random-weight runs: seeded by the prompt, one row per word and end."""

    def __init__(self, config: ModelConfig) -> None:
        self._width = config.text_width

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        return [self._features(prompt) for prompt in prompts]

    def _features(self, prompt: str) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        return torch.randn(len(prompt.split()) + 1, self._width, generator=generator)
