"""Find, verify and load weights, strictly: every tensor used, none missing, or an error that says why.

The only file that knows the official names. Reads .pth (flat, or under trainer → gpt_fsdp), sharded folders with
an index file, and safetensors; never unpickles anything but tensors.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from heatkv.config import MODELS, ModelConfig
from heatkv.errors import CheckpointError
from heatkv.transformer import Infinity, initialise
from heatkv.vae import BSQVAE

# Official name → ours, for the transformer. Layers are handled by _layer_name.
_TOP_NAMES = {
    "cfg_uncond": "unconditional_text",
    "pos_start": "start_embed",
    "text_norm.weight": "text_norm.weight",
    "text_proj_for_sos.ca.mat_q": "text_pool.query",
    "text_proj_for_sos.ca.v_bias": "text_pool.v_bias",
    "text_proj_for_sos.ca.zero_k_bias": "text_pool.k_bias",
    "text_proj_for_sos.ca.mat_kv.weight": "text_pool.kv.weight",
    "text_proj_for_sos.ca.proj.weight": "text_pool.proj.weight",
    "text_proj_for_sos.ca.proj.bias": "text_pool.proj.bias",
    "text_proj_for_ca.0.weight": "text_proj.0.weight",
    "text_proj_for_ca.0.bias": "text_proj.0.bias",
    "text_proj_for_ca.2.weight": "text_proj.2.weight",
    "text_proj_for_ca.2.bias": "text_proj.2.bias",
    "lvl_embed.weight": "level_embed.weight",
    "word_embed.weight": "word_embed.weight",
    "word_embed.bias": "word_embed.bias",
    "shared_ada_lin.1.weight": "modulation.weight",
    "shared_ada_lin.1.bias": "modulation.bias",
    "head_nm.ada_lin.1.weight": "head_modulation.weight",
    "head_nm.ada_lin.1.bias": "head_modulation.bias",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}
_LAYER_NAMES = {
    "ada_gss": "modulation",
    "sa.scale_mul_1H11": "attention.log_scale",
    "sa.q_bias": "attention.q_bias",
    "sa.v_bias": "attention.v_bias",
    "sa.zero_k_bias": "attention.k_bias",
    "sa.mat_qkv.weight": "attention.qkv.weight",
    "sa.proj.weight": "attention.proj.weight",
    "sa.proj.bias": "attention.proj.bias",
    "ca.v_bias": "cross.v_bias",
    "ca.zero_k_bias": "cross.k_bias",
    "ca.mat_q.weight": "cross.q.weight",
    "ca.mat_q.bias": "cross.q.bias",
    "ca.mat_kv.weight": "cross.kv.weight",
    "ca.proj.weight": "cross.proj.weight",
    "ca.proj.bias": "cross.proj.bias",
    "ffn.fc1.weight": "ffn.fc1.weight",
    "ffn.fc1.bias": "ffn.fc1.bias",
    "ffn.fc2.weight": "ffn.fc2.weight",
    "ffn.fc2.bias": "ffn.fc2.bias",
    "ca_norm.weight": "cross_norm.weight",
    "ca_norm.bias": "cross_norm.bias",
}
_LAYER_KEY = re.compile(r"block_chunks\.(\d+)\.module\.(\d+)\.(.+)")
# Training-time tensors that some official files carry and inference never reads.
_UNUSED = frozenset({"lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen"})
_VAE_MASKS = frozenset({"quantize.lfq.mask", "quantizer.lfq.mask"})
_VAE_LEAF = re.compile(r"\.(conv|norm)\.(weight|bias)$")
_NAMED_ERRORS = 4

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Where the parts of a model lie in a weights folder."""

    transformer: Path
    vae: Path
    text_encoder: Path | None


def find_weights(folder: Path) -> WeightFiles:
    """The transformer, VAE and text encoder in a folder, told apart by name.

    The VAE is the file with `vae` in its name; the text encoder a folder with `t5` in its name; the transformer the
    remaining .safetensors or .pth file, or the remaining folder with an index file (8B).
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give --weights a folder, or use --random-weights")
    entries = [entry for entry in sorted(folder.iterdir()) if _is_checkpoint(entry) and "text" not in entry.name]
    vaes = [entry for entry in entries if "vae" in entry.name.lower()]
    models = [entry for entry in entries if entry not in vaes]
    for what, found in (("transformer", models), ("VAE (a file with 'vae' in its name)", vaes)):
        if len(found) != 1:
            names = ", ".join(entry.name for entry in found) or "none"
            raise CheckpointError(f"{folder}: expected one {what} checkpoint, found {names}")
    encoders = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and "t5" in entry.name.lower()]
    return WeightFiles(models[0], vaes[0], encoders[0] if encoders else None)


def load_transformer(path: Path, config: ModelConfig, *, dtype: torch.dtype, device: torch.device | str) -> Infinity:
    """The transformer of `config` with the weights at `path`, ready to run. Raises CheckpointError."""
    with torch.device("meta"):
        model = Infinity(config).cast_layers(dtype)
    tensors = transformer_tensors(read_tensors(path), config, path)
    return _filled(model, tensors, path, config, device)


def load_vae(path: Path, config: ModelConfig, *, dtype: torch.dtype, device: torch.device | str) -> BSQVAE:
    """The VAE of `config` with the weights at `path`, ready to run. Raises CheckpointError."""
    with torch.device("meta"):
        model = BSQVAE(config.vae).to(dtype)
    return _filled(model, vae_tensors(read_tensors(path)), path, config, device)


def random_transformer(config: ModelConfig, *, dtype: torch.dtype, device: torch.device | str, seed: int) -> Infinity:
    """The transformer of `config` with random weights: real time and memory, images without meaning."""
    with torch.device("meta"):
        model = Infinity(config).cast_layers(dtype)
    return _randomised(model, device, seed)


def random_vae(config: ModelConfig, *, dtype: torch.dtype, device: torch.device | str, seed: int) -> BSQVAE:
    """The VAE of `config` with random weights."""
    with torch.device("meta"):
        model = BSQVAE(config.vae).to(dtype)
    return _randomised(model, device, seed)


def transformer_tensors(official: Mapping[str, Tensor], config: ModelConfig, path: Path) -> dict[str, Tensor]:
    """Official transformer tensors under our names; names that mean nothing here stay, for the strict check."""
    per_chunk = config.num_layers // config.num_chunks
    tensors = {_our_name(name, per_chunk): tensor for name, tensor in official.items() if name not in _UNUSED}
    if len(tensors) + len(_UNUSED & official.keys()) != len(official):
        raise CheckpointError(f"{path}: two tensors stand for one layer; it is not in {config.num_chunks} block chunks")
    text = tensors.get("unconditional_text")
    if text is not None and text.ndim == 2 and text.shape[0] > config.text_maxlen:
        tensors["unconditional_text"] = text[: config.text_maxlen]
    return tensors


def vae_tensors(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official VAE tensors, in either spelling (`x.conv.weight` or `x.weight`), under our names."""
    return {_our_vae_name(name): tensor for name, tensor in official.items() if name not in _VAE_MASKS}


def official_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors under the official names, to be saved. Shapes and layout are the official ones already."""
    if isinstance(model, BSQVAE):
        return {_official_vae_name(name, model): tensor for name, tensor in model.state_dict().items()}
    assert isinstance(model, Infinity)
    per_chunk = model.config.num_layers // model.config.num_chunks
    return {_official_name(name, per_chunk): tensor for name, tensor in model.state_dict().items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a checkpoint file or a sharded folder, unwrapped. Raises CheckpointError."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    tensors = _read_shards(path) if path.is_dir() else _read_file(path)
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    return tensors


def _is_checkpoint(entry: Path) -> bool:
    if entry.is_dir():
        return "t5" not in entry.name.lower() and _index_file(entry) is not None
    return entry.suffix in {".pth", ".pt", ".bin", ".safetensors"}


def _index_file(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.index.json"))), None)


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = _index_file(folder)
    if index is None:
        raise CheckpointError(f"{folder}: a folder without *.index.json; expected the sharded checkpoint and its index")
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: not a shard index ({error!r}); expected JSON with weight_map") from None
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{index}: shard {shard!r} is outside the folder")
        tensors.update(_read_file(folder / shard))
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise CheckpointError(f"{folder}: the index lists {_some(absent)}, which no shard holds; download it again")
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the download is incomplete")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        return _unwrap(torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path)), path)
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: holds objects other than tensors, which are never loaded; convert it") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason}); truncated or damaged?") from None


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:  # Any: whatever the file holds
    """The tensors of a checkpoint: flat, under trainer → gpt_fsdp, or (VAE) under `vae`, else `ema`."""
    for keys in (("trainer", "gpt_fsdp"), ("vae",), ("ema",)):
        inner = loaded
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            loaded = inner
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(
            f"{path}: not a state dict; expected tensors by name, flat or under trainer.gpt_fsdp, vae or ema"
        )
    return {str(name): tensor for name, tensor in loaded.items()}


def _our_name(official: str, layers_per_chunk: int) -> str:
    match = _LAYER_KEY.fullmatch(official)
    if match is None:
        return _TOP_NAMES.get(official, official)
    chunk, index, rest = int(match[1]), int(match[2]), match[3]
    if rest not in _LAYER_NAMES or index >= layers_per_chunk:
        return official
    return f"layers.{chunk * layers_per_chunk + index}.{_LAYER_NAMES[rest]}"


def _official_name(ours: str, layers_per_chunk: int) -> str:
    if not ours.startswith("layers."):
        return next(official for official, name in _TOP_NAMES.items() if name == ours)
    _, index, rest = ours.split(".", 2)
    chunk, position = divmod(int(index), layers_per_chunk)
    return f"block_chunks.{chunk}.module.{position}." + next(o for o, name in _LAYER_NAMES.items() if name == rest)


def _our_vae_name(official: str) -> str:
    # `up.1.upsample.conv` is itself a module called conv, so its official weight ends in `conv.conv.weight`.
    name = _VAE_LEAF.sub(r".\2", official)
    return re.sub(r"(up|down)sample\.(weight|bias)$", r"\1sample.conv.\2", name)


def _official_vae_name(ours: str, model: BSQVAE) -> str:
    module, leaf = ours.rsplit(".", 1)
    kind = "norm" if isinstance(model.get_submodule(module), nn.GroupNorm) else "conv"
    return f"{module}.{kind}.{leaf}"


def _filled(
    model: ModuleT, tensors: Mapping[str, Tensor], path: Path, config: ModelConfig, device: torch.device | str
) -> ModuleT:
    expected = model.state_dict()
    _check(expected, tensors, path, config)
    for name, tensor in tensors.items():
        parent, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        filled = tensor.to(device=device, dtype=expected[name].dtype, copy=True)
        if leaf in parent._buffers:
            parent._buffers[leaf] = filled
        else:
            parent._parameters[leaf] = nn.Parameter(filled, requires_grad=False)
    return model.eval()


def _randomised(model: ModuleT, device: torch.device | str, seed: int) -> ModuleT:
    model = model.to_empty(device=device)
    initialise(model, seed=seed)
    return model.requires_grad_(False).eval()


def _check(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, config: ModelConfig) -> None:
    missing = sorted(expected.keys() - found.keys())
    unused = sorted(found.keys() - expected.keys())
    reshaped = [name for name in expected if name in found and expected[name].shape != found[name].shape]
    integer = [name for name in expected if name in found and not found[name].is_floating_point()]
    if not (missing or unused or reshaped or integer):
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_some(missing)})")
    if unused:
        parts.append(f"{len(unused)} not used ({_some(unused)})")
    if reshaped:
        name = reshaped[0]
        shapes = f"{tuple(found[name].shape)} where {config.name} has {tuple(expected[name].shape)}"
        parts.append(f"{len(reshaped)} of another shape ({name}: {shapes})")
    if integer:
        parts.append(f"{len(integer)} not floating point ({_some(integer)})")
    raise CheckpointError(f"{path}: does not fit {config.name}: {'; '.join(parts)}. {_likely_cause(found, config)}")


def _likely_cause(found: Mapping[str, Tensor], config: ModelConfig) -> str:
    if any(name.startswith(("encoder.", "decoder.")) for name in found) and "text_norm.weight" not in found:
        return "These are VAE weights; was the wrong file named, or a VAE for another patch size?"
    if any(name.startswith("blocks.") for name in found):
        return "Its layers are not in block chunks (block_chunks=1); no official inference checkpoint is like that."
    width = found["text_norm.weight"].shape[0] if "text_norm.weight" in found else None
    lvl = found.get("level_embed.weight")
    layers = {name.split(".")[1] for name in found if name.startswith("layers.")}
    for other in MODELS.values():
        if lvl is not None and lvl.shape[-1] == other.width and other.name != config.name:
            return f"Its width and {len(layers)} layers look like {other.name}."
    if width is not None and width != config.text_width:
        return f"Its text width is {width}, not {config.text_width}."
    return "Another architecture, other block chunks, or an incomplete file?"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED_ERRORS]) + (", …" if len(names) > _NAMED_ERRORS else "")
