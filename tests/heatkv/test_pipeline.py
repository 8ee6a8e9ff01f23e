"""A pipeline is the parts that a folder holds, or random ones, and says plainly when it cannot be made."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from heatkv.checkpoint import official_tensors, random_transformer, random_vae
from heatkv.config import MODELS, ModelConfig
from heatkv.errors import CheckpointError, HeatKVError, UnknownNameError
from heatkv.generate import Sampling
from heatkv.pipeline import Pipeline
from heatkv.policies.full import FullPolicy
from heatkv.text_encoder import T5TextEncoder
from heatkv.tiny.scenes import PromptError
from heatkv.tiny.text import TinyTextEncoder
from tests.heatkv.conftest import Recording, save_tiny_t5

if TYPE_CHECKING:
    from pathlib import Path

    from heatkv.scales import ScaleSchedule
    from heatkv.transformer import Infinity
    from heatkv.vae import BSQVAE


@pytest.fixture(scope="module")
def weights(
    tmp_path_factory: pytest.TempPathFactory, small_model: Infinity, small_vae: BSQVAE, small_config: ModelConfig
) -> Path:
    """A folder with everything: transformer, VAE and T5."""
    folder = tmp_path_factory.mktemp("small")
    save_file(official_tensors(small_model), folder / "infinity_small.safetensors")
    torch.save({"vae": official_tensors(small_vae)}, folder / "infinity_vae.pth")
    save_tiny_t5(folder / "flan-t5-tiny", width=small_config.text_width)
    return folder


@pytest.fixture(scope="module")
def pipeline(weights: Path, small_config: ModelConfig) -> Pipeline:
    return Pipeline.load(small_config, weights, dtype="float32")


class TestLoaded:
    def test_holds_the_parts_of_the_folder(self, pipeline: Pipeline, weights: Path, small_model: Infinity) -> None:
        assert torch.equal(pipeline.transformer.head.weight, small_model.head.weight)
        assert isinstance(pipeline.encoder, T5TextEncoder)
        assert pipeline.weights == str(weights)
        assert pipeline.device == torch.device("cpu")

    def test_makes_an_image_per_prompt(self, pipeline: Pipeline, small_scales: ScaleSchedule) -> None:
        made = pipeline.generate(["a red cat", "a cat"], small_scales, seed=1)

        assert made.image is not None
        assert made.image.shape == (2, 20, 24, 3)
        assert not torch.equal(made.bits[-1][0], made.bits[-1][1])

    def test_samples_as_the_model_is_configured_unless_told_otherwise(
        self, pipeline: Pipeline, small_scales: ScaleSchedule
    ) -> None:
        heard = [Recording() for _ in range(3)]
        unguided = dataclasses.replace(pipeline, config=dataclasses.replace(pipeline.config, cfg=1.0))

        pipeline.generate(["a cat"], small_scales, seed=1, probe=heard[0])
        unguided.generate(["a cat"], small_scales, seed=1, probe=heard[1])
        pipeline.generate(["a cat"], small_scales, seed=1, sampling=Sampling(cfg=1.0), probe=heard[2])

        assert [one.starts[0].rows for one in heard] == [2, 1, 1]
        assert torch.equal(heard[1].logits, heard[2].logits)

    def test_passes_negative_prompts_bits_and_schedule_on(
        self, pipeline: Pipeline, small_scales: ScaleSchedule
    ) -> None:
        schedule, heard = FullPolicy().plan(pipeline.config, small_scales), [Recording(), Recording()]
        bits = pipeline.generate(["a cat"], small_scales, seed=1, probe=heard[0]).bits

        made = pipeline.generate(
            ["a cat"], small_scales, negative_prompts=["red"], forced_bits=bits, schedule=schedule, probe=heard[1]
        )

        assert all(torch.equal(*pair) for pair in zip(made.bits, bits, strict=True))
        assert heard[1].starts[0].schedule is schedule
        assert not torch.equal(heard[0].logits, heard[1].logits)

    def test_uses_the_model_s_only_scales_if_it_has_some(self, pipeline: Pipeline, small_scales: ScaleSchedule) -> None:
        config = dataclasses.replace(pipeline.config, scales=small_scales.sizes)
        heard = Recording()

        dataclasses.replace(pipeline, config=config).generate(["a cat"], seed=1, probe=heard)

        assert heard.starts[0].scales.sizes == small_scales.sizes


class TestTiny:
    def test_reads_prompts_with_its_own_encoder(self, tmp_path: Path) -> None:
        config = MODELS["infinity-tiny"]
        transformer = random_transformer(config, dtype=torch.float32, device="cpu", seed=0)
        save_file(official_tensors(transformer), tmp_path / "transformer.safetensors")
        vae = random_vae(config, dtype=torch.float32, device="cpu", seed=1)
        save_file(official_tensors(vae), tmp_path / "vae.safetensors")
        encoder = TinyTextEncoder(config).state_dict()
        save_file(encoder, tmp_path / "text_encoder.safetensors")

        pipeline = Pipeline.load(config, tmp_path, dtype="float32")

        assert isinstance(pipeline.encoder, TinyTextEncoder)
        with pytest.raises(PromptError, match="xylophone"):
            pipeline.encoder.encode(["xylophone"])

    def test_its_encoder_is_looked_for_beside_the_others(self, tmp_path: Path) -> None:
        config = MODELS["infinity-tiny"]
        transformer = random_transformer(config, dtype=torch.float32, device="cpu", seed=0)
        save_file(official_tensors(transformer), tmp_path / "transformer.safetensors")
        vae = random_vae(config, dtype=torch.float32, device="cpu", seed=1)
        save_file(official_tensors(vae), tmp_path / "vae.safetensors")

        with pytest.raises(CheckpointError, match=r"text_encoder\.safetensors: no such checkpoint"):
            Pipeline.load(config, tmp_path)


class TestRandom:
    def test_is_the_same_every_time_and_says_what_it_is(
        self, small_config: ModelConfig, small_scales: ScaleSchedule
    ) -> None:
        first, second = (Pipeline.random(small_config) for _ in range(2))

        images = [one.generate(["a red cat"], small_scales, seed=4).image for one in (first, second)]

        assert first.weights == "random"
        assert first.transformer.kv_dtype == torch.bfloat16
        assert images[0] is not None
        assert images[1] is not None
        assert torch.equal(images[0], images[1])

    def test_takes_prompts_of_any_length(self, small_config: ModelConfig, small_scales: ScaleSchedule) -> None:
        made = Pipeline.random(small_config).generate(["a red cat " * 300], small_scales, seed=4)

        assert made.image is not None


class TestRefusal:
    def test_a_model_without_bundled_weights_needs_a_folder(self, small_config: ModelConfig) -> None:
        with pytest.raises(CheckpointError, match="small has no bundled weights; give a weights folder, or use random"):
            Pipeline.load(small_config, None)

    def test_a_folder_without_a_text_encoder(self, tmp_path: Path, weights: Path, small_config: ModelConfig) -> None:
        for path in weights.iterdir():
            if path.is_file():
                (tmp_path / path.name).write_bytes(path.read_bytes())

        with pytest.raises(CheckpointError, match="no text encoder; expected a folder with 't5' in its name"):
            Pipeline.load(small_config, tmp_path)

    def test_a_text_encoder_of_another_width(self, weights: Path, small_config: ModelConfig, tmp_path: Path) -> None:
        for path in weights.iterdir():
            if path.is_file():
                (tmp_path / path.name).write_bytes(path.read_bytes())
        save_tiny_t5(tmp_path / "t5", width=16)

        with pytest.raises(CheckpointError, match="t5: its features have 16 channels, small reads 256"):
            Pipeline.load(small_config, tmp_path)

    def test_another_model_s_weights(self, weights: Path, small_config: ModelConfig) -> None:
        with pytest.raises(CheckpointError, match=r"infinity_small\.safetensors: does not fit other"):
            Pipeline.load(dataclasses.replace(small_config, name="other", num_layers=6), weights)

    def test_unknown_dtypes_and_devices(self, small_config: ModelConfig) -> None:
        with pytest.raises(UnknownNameError, match=r"unknown dtype 'float16'; known, nearest first: "):
            Pipeline.random(small_config, dtype="float16")
        for device in ("gpu", "meta", "mps"):
            with pytest.raises(UnknownNameError, match=f"unknown device '{device}'; known, nearest first: "):
                Pipeline.random(small_config, device=device)

    def test_a_device_that_is_not_there(self, small_config: ModelConfig) -> None:
        with pytest.raises(
            HeatKVError, match=r"device cuda:99: torch .* finds \d+ CUDA devices here; use --device cpu"
        ):
            Pipeline.random(small_config, device="cuda:99")
