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
from heatkv.files import read_json

_MAX_TOKENS = 512
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model")


class TextEncoder(Protocol):
    """Features of each prompt: [tokens, text_width] float32, the end token included, padding not."""

    def encode(self, prompts: Sequence[str]) -> list[Tensor]: ...

    def check(self, prompts: Sequence[str]) -> None:
        """Raises a HeatKVError for a prompt that encode would refuse; quick, so that many can be checked first."""
        ...


class T5TextEncoder:
    """The encoder half of flan-t5-xl, through transformers; never touches the network.

    float16 on a GPU, as the official code; bfloat16 on a CPU, which computes float16 far more slowly.
    """

    def __init__(self, folder: Path, *, device: torch.device | str) -> None:
        # Deferred: transformers takes seconds to import, and only real weights need it.
        from transformers import AutoTokenizer, T5EncoderModel

        dtype = torch.bfloat16 if torch.device(device).type == "cpu" else torch.float16
        _check_folder(folder)
        model: Any  # untyped library
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model, loading = T5EncoderModel.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # any type, Exception itself too: so tokenizers and transformers fail
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise CheckpointError(f"{folder}: cannot be read as a T5 encoder ({reason}); expected flan-t5-xl") from None
        missing = sorted(loading["missing_keys"])
        if missing:  # transformers fills them with random numbers and goes on
            raise CheckpointError(f"{folder}: {len(missing)} encoder weights are missing ({missing[0]}, …)")
        self._model = model.to(device).eval()
        self._device = device

    @property
    def width(self) -> int:
        """Channels of the features."""
        return int(self._model.config.d_model)

    def check(self, prompts: Sequence[str]) -> None:
        """Any text will do."""

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


def _check_folder(folder: Path) -> None:
    """transformers itself would load weights of another architecture, or go on with an empty vocabulary."""
    config = read_json(folder / "config.json", expected="the folder of a T5 encoder", error=CheckpointError)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "t5":
        raise CheckpointError(f"{folder}: config.json says model_type {kind!r}; expected t5 (flan-t5-xl)")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(f"{folder}: no tokenizer; expected {' or '.join(_TOKENIZER_FILES)}")


class RandomTextEncoder:
    """Normal numbers in place of features, for random-weight runs: seeded by the prompt, one row per word and end.

    Cut at the model's longest text, as T5's are.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._width, self._maxlen = config.text_width, config.text_maxlen

    def check(self, prompts: Sequence[str]) -> None:
        """Any text will do."""

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        return [self._features(prompt) for prompt in prompts]

    def _features(self, prompt: str) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        return torch.randn(min(len(prompt.split()) + 1, self._maxlen), self._width, generator=generator)
