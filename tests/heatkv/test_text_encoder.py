"""T5 gives each prompt exactly its own rows, offline; a folder that is no whole T5 is refused."""

from __future__ import annotations

import json
import shutil
import socket
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from heatkv.config import MODELS, ModelConfig
from heatkv.errors import CheckpointError
from heatkv.text_encoder import RandomTextEncoder, T5TextEncoder
from tests.heatkv.conftest import save_tiny_t5

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

WIDTH = 16


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_t5(tmp_path_factory.mktemp("weights") / "tiny-t5", width=WIDTH)


@pytest.fixture(scope="module")
def encoder(t5_folder: Path) -> T5TextEncoder:
    return T5TextEncoder(t5_folder, device="cpu")


class TestT5:
    def test_each_prompt_has_a_row_per_token_and_the_end_token(self, encoder: T5TextEncoder) -> None:
        features = encoder.encode(["a red cat", "cat", ""])

        assert [tuple(one.shape) for one in features] == [(4, WIDTH), (2, WIDTH), (1, WIDTH)]
        assert {one.dtype for one in features} == {torch.float32}
        assert encoder.width == WIDTH

    def test_a_prompt_does_not_depend_on_its_padding_or_its_neighbours(self, encoder: T5TextEncoder) -> None:
        ids = torch.tensor([[3, 4, 5, 1]])
        with torch.inference_mode():
            unpadded = encoder._model(input_ids=ids).last_hidden_state.float()[0]

        alone, beside = encoder.encode(["a red cat"])[0], encoder.encode(["cat", "a red cat"])[1]

        # bfloat16 on a CPU: a few units in its last place.
        torch.testing.assert_close(alone, beside, rtol=0, atol=0.05)
        torch.testing.assert_close(alone, unpadded, rtol=0, atol=0.05)

    def test_a_long_prompt_is_cut_at_512_tokens(self, encoder: T5TextEncoder) -> None:
        assert len(encoder.encode(["cat " * 600])[0]) == 512

    def test_the_network_is_never_asked(self, t5_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the network was asked")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)

        assert len(T5TextEncoder(t5_folder, device="cpu").encode(["cat"])) == 1


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _half_the_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    held = {name: tensor for name, tensor in tensors.items() if "encoder.block.1" not in name}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])


def _damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def _cut_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text()[:200])


def _config_of_no_model(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def _another_architecture(folder: Path) -> None:
    # Deferred: transformers takes seconds to import.
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(folder)


def _a_config_that_does_not_fit(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 3}))


class TestWrongFolder:
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (_no_config, "config.json: cannot be read (No such file or directory); expected the folder of a T5"),
            (_no_tokenizer, "no tokenizer; expected tokenizer.json or spiece.model"),
            (_no_weights, "cannot be read as a T5 encoder (Error no file named model.safetensors"),
            (_half_the_weights, "8 encoder weights are missing (encoder.block.1"),
            (_a_config_that_does_not_fit, "8 encoder weights are missing (encoder.block.2"),
            (_cut_weights, "cannot be read as a T5 encoder"),
            (_damaged_tokenizer, "cannot be read as a T5 encoder"),
            (_cut_tokenizer, "cannot be read as a T5 encoder"),
            (_config_of_no_model, "config.json says model_type None; expected t5"),
            (_another_architecture, "config.json says model_type 'bert'; expected t5"),
        ],
    )
    def test_is_refused_with_one_line_that_names_it(
        self, damage: Callable[[Path], None], message: str, t5_folder: Path, tmp_path: Path
    ) -> None:
        folder = shutil.copytree(t5_folder, tmp_path / "t5")
        damage(folder)

        with pytest.raises(CheckpointError) as raised:
            T5TextEncoder(folder, device="cpu")

        assert str(folder) in str(raised.value)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_an_absent_one_too(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="expected the folder of a T5 encoder"):
            T5TextEncoder(tmp_path / "absent", device="cpu")


class TestRandom:
    def _features(self, prompt: str, config: ModelConfig = MODELS["infinity-2b"]) -> Tensor:
        return RandomTextEncoder(config).encode([prompt])[0]

    def test_a_prompt_has_a_row_per_word_and_the_end(self) -> None:
        assert self._features("a red cat").shape == (4, 2048)

    def test_the_same_prompt_has_the_same_features_and_another_has_others(self) -> None:
        assert torch.equal(self._features("a red cat"), self._features("a red cat"))
        assert not torch.equal(self._features("a red cat"), self._features("a red dog"))

    def test_a_long_prompt_is_cut_where_the_model_reads_no_further(self, small_config: ModelConfig) -> None:
        assert len(self._features("cat " * 600, small_config)) == small_config.text_maxlen
