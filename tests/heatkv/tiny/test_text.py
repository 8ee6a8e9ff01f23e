"""The tiny text encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from heatkv.config import model_config
from heatkv.errors import CheckpointError
from heatkv.tiny.scenes import PromptError, held_out_scenes
from heatkv.tiny.text import TinyTextEncoder

CONFIG = model_config("infinity-tiny")


def test_features_have_one_row_per_word_and_one_for_the_end() -> None:
    prompts = [scene.caption for scene in held_out_scenes(8)]

    features = TinyTextEncoder(CONFIG).encode(prompts)

    assert [tuple(one.shape) for one in features] == [(len(p.split()) + 1, CONFIG.text_width) for p in prompts]


def test_a_prompt_has_the_same_features_in_any_batch() -> None:
    encoder = TinyTextEncoder(CONFIG)
    short, long = "a red circle at the top on a gray background", max((s.caption for s in held_out_scenes()), key=len)

    together, alone = encoder.encode([short, long])[0], encoder.encode([short])[0]

    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)  # padding changes the order of float sums only


def test_the_order_of_words_matters() -> None:
    encoder = TinyTextEncoder(CONFIG)

    first, second = encoder.encode(["red circle left of blue square", "blue circle left of red square"])

    assert not torch.allclose(first[-1], second[-1])


def test_the_longest_prompt_of_the_grammar_fits() -> None:
    encoder = TinyTextEncoder(CONFIG)

    assert max(len(encoder.token_ids(scene.caption)) for scene in held_out_scenes()) <= CONFIG.text_maxlen


def test_words_outside_the_grammar_and_endless_prompts_are_refused() -> None:
    encoder = TinyTextEncoder(CONFIG)

    with pytest.raises(PromptError, match=r"unknown word .astronaut.*a red circle"):
        encoder.encode(["a red astronaut"])
    with pytest.raises(PromptError, match="at most 31"):
        encoder.encode(["a " * 40])


def test_saved_weights_are_loaded_strictly(tmp_path: Path) -> None:
    encoder = TinyTextEncoder(CONFIG)
    tensors = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    save_file(tensors, tmp_path / "good.safetensors")
    save_file({**tensors, "words.weight": tensors["words.weight"][:-1].clone()}, tmp_path / "bad.safetensors")

    loaded = TinyTextEncoder.load(tmp_path / "good.safetensors", CONFIG)

    assert torch.equal(loaded.encode(["red"])[0], encoder.eval().encode(["red"])[0])
    with pytest.raises(CheckpointError, match=r"words\.weight"):
        TinyTextEncoder.load(tmp_path / "bad.safetensors", CONFIG)
