"""TinyTextEncoder: words of the grammar in, features for the transformer out. It stands where 2B has T5.

A prompt is its words, each with an id from `scenes.VOCABULARY`, and an end token (id 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatkv.checkpoint import read_tensors
from heatkv.config import ModelConfig
from heatkv.errors import CheckpointError
from heatkv.tiny.scenes import VOCABULARY, PromptError, caption_words, shortened

_NUM_LAYERS = 2
_NUM_HEADS = 4
_NEIGHBOURS = 7
_IDS = {word: index for index, word in enumerate(VOCABULARY, start=1)}

_EXAMPLE = "a red circle left of a blue square on a white background"


class TinyTextEncoder(nn.Module):
    """Word and position embeddings, and two bidirectional layers, trained together with the transformer.

    A layer first mixes neighbouring words by a convolution: which colour belongs to which shape, and which of the two
    comes first, is a matter of a few words' distance.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.text_width
        self.maxlen = config.text_maxlen
        self.words = nn.Embedding(1 + len(VOCABULARY), width)
        self.positions = nn.Embedding(config.text_maxlen, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(_NUM_LAYERS))
        self.norm = nn.LayerNorm(width)

    @classmethod
    def load(cls, path: Path, config: ModelConfig) -> TinyTextEncoder:
        """The trained encoder at `path`, in float32. Raises CheckpointError."""
        encoder, tensors = cls(config), read_tensors(path)
        expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            raise CheckpointError(
                f"{path}: not the text encoder of {config.name}: {wrong[0]} and {len(wrong) - 1} more differ"
            )
        encoder.load_state_dict(tensors)
        return encoder.requires_grad_(requires_grad=False).eval()

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Features of each prompt, [words + 1, text_width] float32; as `forward`, without gradients."""
        return [features.float() for features in self(prompts)]

    def forward(self, prompts: Sequence[str]) -> list[Tensor]:
        """Features of each prompt, [words + 1, text_width].

        Raises PromptError for a word that is not in the grammar, or too long a prompt.
        """
        ids = [self.token_ids(prompt) for prompt in prompts]
        lengths = [len(one) for one in ids]
        device = self.words.weight.device
        padded = nn.utils.rnn.pad_sequence([torch.tensor(one) for one in ids], batch_first=True).to(device)
        positions = torch.arange(padded.shape[1], device=device)
        seen = (positions < torch.tensor(lengths, device=device)[:, None])[:, None, None]  # [batch, 1, 1, words]
        x = self.words(padded) + self.positions(positions)
        for layer in self.layers:
            x = layer(x, seen)
        return [features[:length] for features, length in zip(self.norm(x), lengths, strict=True)]

    def check(self, prompts: Sequence[str]) -> None:
        """Raises PromptError for the first prompt that `encode` would refuse."""
        for prompt in prompts:
            self.token_ids(prompt)

    def token_ids(self, prompt: str) -> list[int]:
        """Ids of the words, then the end token."""
        words = caption_words(prompt)
        for word in words:
            if word not in _IDS:
                words_known = ", ".join(sorted(VOCABULARY))
                raise PromptError(
                    f"unknown word {shortened(word)!r} in prompt {shortened(prompt)!r}; infinity-tiny draws only such "
                    f"as {_EXAMPLE!r}, in these words: {words_known}"
                )
        if len(words) >= self.maxlen:
            raise PromptError(f"prompt has {len(words)} words, infinity-tiny takes at most {self.maxlen - 1}")
        return [*(_IDS[word] for word in words), 0]


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, _NEIGHBOURS, padding=_NEIGHBOURS // 2)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.mix((x * seen[:, 0, 0, :, None]).transpose(1, 2)).transpose(1, 2)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, _NUM_HEADS, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.proj(out.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]  # Module.__call__ is Any
