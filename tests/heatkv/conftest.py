"""A small model that runs in milliseconds, and the reference's small models where their numbers are at hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from heatkv.checkpoint import load_transformer, load_vae, random_transformer, random_vae
from heatkv.config import ModelConfig, VAEConfig
from heatkv.generate import Sampling
from heatkv.probe import Capture
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from heatkv.steps import own_steps

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from heatkv.probe import RunStart, ScaleInfo, StepInfo
    from heatkv.transformer import Infinity
    from heatkv.vae import BSQVAE


@dataclass
class Recording:
    """A probe that keeps what it is told."""

    capture: Capture = field(default_factory=Capture)
    starts: list[RunStart] = field(default_factory=list)
    steps: list[StepInfo] = field(default_factory=list)
    scales: list[ScaleInfo] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def run_started(self, start: RunStart) -> None:
        self.starts.append(start)
        self.order.append("run")

    def step_done(self, step: StepInfo) -> None:
        self.steps.append(step)
        self.order.append(f"step {step.query_scale} {step.layer}")

    def scale_done(self, scale: ScaleInfo) -> None:
        self.scales.append(scale)
        self.order.append(f"scale {scale.query_scale}")

    @property
    def logits(self) -> Tensor:
        """[batch, tokens of all scales, 2 * bits]."""
        return torch.cat([scale.logits for scale in self.scales], dim=1)


class LargestTensor(TorchDispatchMode):
    """Listens to PyTorch and knows the bytes of the largest floating-point tensor that one call of it allocated."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # PyTorch's
        known = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple) else (result,):
            if isinstance(one, Tensor) and one.is_floating_point():
                storage = one.untyped_storage()
                self.num_bytes = max(self.num_bytes, 0 if storage.data_ptr() in known else storage.nbytes())
        return result


@dataclass(frozen=True)
class Golden:
    """One of the reference's small models: its weights, inputs, and every number that it gave."""

    config: ModelConfig
    transformer: Infinity
    vae: BSQVAE
    scales: ScaleSchedule
    cases: dict[str, dict[str, Any]]  # Any: JSON values
    inputs: dict[str, NDArray[Any]]  # Any: arrays of several types
    outputs: dict[str, NDArray[Any]]

    def texts(self, case: str) -> list[Tensor]:
        return [torch.tensor(self.inputs[f"text_{index}"]) for index in self.cases[case]["prompts"]]

    def negatives(self, case: str) -> list[Tensor] | None:
        return [torch.tensor(self.inputs["negative_0"])] if self.cases[case]["neg"] else None

    def sampling(self, case: str) -> Sampling:
        values = self.cases[case]
        lists = {key: tuple(values[key]) if isinstance(values[key], list) else values[key] for key in ("cfg", "tau")}
        insertion = tuple(values["cfg_insertion_layer"])
        return Sampling(**lists, top_k=values["top_k"], top_p=values["top_p"], cfg_insertion_layers=insertion)

    def bits(self, case: str) -> list[Tensor]:
        """The reference's bits, one tensor per scale."""
        return list(torch.tensor(self.outputs[f"{case}/bits"]).split(self.scales.tokens, dim=1))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small gain nothing from threads, and on a busy machine lose much."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_small(golden: Path) -> Golden:
    return _golden_model(golden / "infinity_small")


@pytest.fixture(scope="session")
def golden_patchify(golden: Path) -> Golden:
    """With the options of 8B: spatial patchify, and the level embedding before every chunk."""
    return _golden_model(golden / "infinity_small_patchify")


@pytest.fixture(scope="session")
def small_config() -> ModelConfig:
    vae = VAEConfig(8, 4, base_channels=8, multipliers=(1, 2, 1), encoder_blocks=1, norm_groups=4)
    return ModelConfig("small", 4, 64, 4, 2, vae, text_width=256, text_maxlen=16, sink_scales=1)


@pytest.fixture(scope="session")
def small_scales() -> ScaleSchedule:
    return ScaleSchedule.custom(((1, 1), (2, 2), (2, 3), (4, 4), (5, 6)), rope_grid=(20, 20))


@pytest.fixture(scope="session")
def small_model(small_config: ModelConfig) -> Infinity:
    """In float32, with random weights so large that every part of it changes the logits."""
    return lively(small_config)


@pytest.fixture(scope="session")
def small_vae(small_config: ModelConfig) -> BSQVAE:
    return random_vae(small_config, dtype=torch.float32, device="cpu", seed=1)


@pytest.fixture(scope="session")
def small_texts(small_config: ModelConfig) -> list[Tensor]:
    """Two prompts of different length."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(length, small_config.text_width, generator=generator) for length in (5, 3)]


def save_tiny_t5(folder: Path, *, width: int) -> Path:
    """A whole T5, encoder and decoder as flan-t5-xl is, that knows the words `a`, `red` and `cat`."""
    # Deferred: transformers takes seconds to import.
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "cat": 5}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = T5Config(vocab_size=6, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def lively(config: ModelConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Infinity:
    """A model whose random matrices keep the size of what goes through them, and whose gates are open."""
    model = random_transformer(config, dtype=dtype, device="cpu", seed=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("weight") and parameter.ndim == 2:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
            elif not name.endswith(("log_scale", "norm.weight")):
                parameter.copy_(noise / 2)
    return model


def random_schedule(config: ModelConfig, scales: ScaleSchedule, *, seed: int, sink_scales: int = 1) -> PruningSchedule:
    """Every head-scale that is not a sink leaves at a step of its own, early activations among them."""
    own = own_steps(config.num_layers, scales.num_scales)[:, None]
    last_step = config.num_layers * scales.num_scales - 1
    shape = (config.num_layers, config.num_heads, scales.num_scales)
    drop_step = np.random.default_rng(seed).integers(np.broadcast_to(own, shape), last_step, endpoint=True)
    drop_step[:, :, :sink_scales] = last_step
    drop_step[:, :, -1:] = own[:, :, -1:]
    return PruningSchedule(drop_step.astype(np.int16), config.name, scales, sink_scales, "random")


def _golden_model(folder: Path) -> Golden:
    record = json.loads((folder / "config.json").read_text())
    values, vae = record["transformer"], record["vae"]
    config = ModelConfig(
        record["name"],
        values["depth"],
        values["embed_dim"],
        values["num_heads"],
        values["block_chunks"],
        VAEConfig(
            vae["codebook_dim"],
            vae["patch_size"],
            vae["base_ch"],
            tuple(vae["encoder_ch_mult"]),
            vae["num_res_blocks"],
        ),
        text_width=values["text_channels"],
        text_maxlen=values["text_maxlen"],
        spatial_patchify=bool(values["apply_spatial_patchify"]),
        level_embed_every_chunk=not values["add_lvl_embeding_only_first_block"],
    )
    return Golden(
        config,
        load_transformer(folder / "transformer.safetensors", config, dtype=torch.float32, device="cpu"),
        load_vae(folder / "vae.safetensors", config, dtype=torch.float32, device="cpu"),
        ScaleSchedule.named(record["pn"], aspect=record["h_div_w"]),
        record["cases"],
        _arrays(folder / "inputs.npz"),
        _arrays(folder / "outputs.npz"),
    )


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as arrays:
        return dict(arrays)
