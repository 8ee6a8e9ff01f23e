"""Find, verify and load weights, strictly: every tensor used, none missing, or an error that says why.

The only file that knows the official names. Reads .pth (flat, or under trainer → gpt_fsdp), sharded folders with
an index file, and safetensors; never unpickles anything but tensors.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from heatkv.config import MODELS, ModelConfig
from heatkv.errors import CheckpointError
from heatkv.files import read_json
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
_OUR_LAYER_KEY = re.compile(r"layers\.(\d+)\.(.+)")
_OFFICIAL_TOP_NAMES = {ours: official for official, ours in _TOP_NAMES.items()}
_OFFICIAL_LAYER_NAMES = {ours: official for official, ours in _LAYER_NAMES.items()}
# Training-time tensors that some official files carry and inference never reads.
_UNUSED = frozenset({"lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen"})
_VAE_MASKS = frozenset({"quantize.lfq.mask", "quantizer.lfq.mask"})
_VAE_LEAF = re.compile(r"\.(conv|norm)\.(weight|bias)$")
_NAMED_ERRORS = 4
# Raised for damaged bytes. Torch's restricted unpickler lets whatever it stumbles on through, without a useful text.
_STUMBLES = (pickle.UnpicklingError, struct.error, LookupError, AssertionError, AttributeError, TypeError)
_UNREADABLE = (SafetensorError, OSError, EOFError, RuntimeError, ValueError)

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
    entries = [entry for entry in sorted(folder.iterdir()) if _is_checkpoint(entry)]
    vaes = [entry for entry in entries if "vae" in entry.name.lower()]
    models = [entry for entry in entries if entry not in vaes]
    for what, found in (("transformer", models), ("VAE (a file with 'vae' in its name)", vaes)):
        if len(found) != 1:
            names = ", ".join(entry.name for entry in found) or "none"
            raise CheckpointError(
                f"{folder}: expected one {what} checkpoint, found {names}; docs/weights.md says what belongs there"
            )
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
        raise CheckpointError(f"{path}: names one tensor twice, in two spellings; which of the two counts is unknown")
    text = tensors.get("unconditional_text")
    if text is not None and text.ndim == 2 and text.shape[0] > config.text_maxlen:
        tensors["unconditional_text"] = text[: config.text_maxlen]
    return tensors


def vae_tensors(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official VAE tensors, in either spelling (`x.conv.weight` or `x.weight`), under our names."""
    return {_our_vae_name(name): tensor for name, tensor in official.items() if name not in _VAE_MASKS}


def official_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors under the official names, to be saved. Shapes and layout are the official ones already."""
    return {_official_name(name, model): tensor for name, tensor in model.state_dict().items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a checkpoint file or a sharded folder, unwrapped. Raises CheckpointError."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    tensors = _read_shards(path) if path.is_dir() else _read_file(path)
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    return tensors


def _is_checkpoint(entry: Path) -> bool:
    if entry.name.startswith("text_encoder"):
        return False
    if entry.is_dir():
        return "t5" not in entry.name.lower() and _index_file(entry) is not None
    return entry.suffix in {".pth", ".pt", ".bin", ".safetensors"}


def _index_file(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.index.json"))), None)


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = _index_file(folder)
    if index is None:
        raise CheckpointError(f"{folder}: a folder without *.index.json; expected the sharded checkpoint and its index")
    weight_map = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{index}: shard {shard!r} is outside the folder")
        tensors.update(_read_file(folder / shard))
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise CheckpointError(f"{folder}: the index lists {_some(absent)}, which no shard holds; download it again")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name → name of the shard that holds it."""
    expected = "a shard index: JSON with weight_map"
    record = read_json(index, expected=expected, error=CheckpointError)
    weight_map = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: not {expected} from tensor names to files")
    return weight_map


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the download is incomplete")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on how the file was written
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason}); truncated or damaged?") from None
    except _STUMBLES as error:
        # torch's text is a page on its API; a user needs only the name of what it would not load.
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            held = f"holds {refused[1]}, and nothing but tensors is ever loaded"
            raise CheckpointError(f"{path}: {held}; convert it to safetensors") from None
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one; download it again") from None
    return _unwrap(loaded, path)


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


def _official_name(ours: str, model: nn.Module) -> str:
    """The official name of a tensor; a name that means nothing here stays."""
    if isinstance(model, BSQVAE):
        return _official_vae_name(ours, model)
    assert isinstance(model, Infinity)
    match = _OUR_LAYER_KEY.fullmatch(ours)
    if match is None or match[2] not in _OFFICIAL_LAYER_NAMES:
        return _OFFICIAL_TOP_NAMES.get(ours, ours)
    chunk, position = divmod(int(match[1]), model.config.num_layers // model.config.num_chunks)
    return f"block_chunks.{chunk}.module.{position}.{_OFFICIAL_LAYER_NAMES[match[2]]}"


def _our_vae_name(official: str) -> str:
    # `up.1.upsample.conv` is itself a module called conv, so its official weight ends in `conv.conv.weight`.
    name = _VAE_LEAF.sub(r".\2", official)
    return re.sub(r"(up|down)sample\.(weight|bias)$", r"\1sample.conv.\2", name)


def _official_vae_name(ours: str, model: BSQVAE) -> str:
    if ours not in model.state_dict():
        return ours
    module, leaf = ours.rsplit(".", 1)
    kind = "norm" if isinstance(model.get_submodule(module), nn.GroupNorm) else "conv"
    return f"{module}.{kind}.{leaf}"


def _filled(
    model: ModuleT, tensors: Mapping[str, Tensor], path: Path, config: ModelConfig, device: torch.device | str
) -> ModuleT:
    expected = model.state_dict()
    _check(model, tensors, path, config)
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


def _check(model: nn.Module, found: Mapping[str, Tensor], path: Path, config: ModelConfig) -> None:
    """Raises CheckpointError, in the file's own names, unless every tensor fits and none is missing or left over."""
    expected = model.state_dict()
    missing = sorted(expected.keys() - found.keys())
    unused = sorted(found.keys() - expected.keys())
    reshaped = [name for name in expected if name in found and expected[name].shape != found[name].shape]
    integer = [name for name in expected if name in found and not found[name].is_floating_point()]
    if not (missing or unused or reshaped or integer):
        return
    parts = []

    def some(names: Iterable[str]) -> str:
        return _some(_official_name(name, model) for name in names)

    if missing:
        parts.append(f"{len(missing)} missing ({some(missing)})")
    if unused:
        parts.append(f"{len(unused)} not used ({some(unused)})")
    if reshaped:
        name = reshaped[0]
        shapes = f"{tuple(found[name].shape)} where {config.name} has {tuple(expected[name].shape)}"
        parts.append(f"{len(reshaped)} of another shape ({some([name])}: {shapes})")
    if integer:
        parts.append(f"{len(integer)} not floating point ({some(integer)})")
    raise CheckpointError(f"{path}: does not fit {config.name}: {'; '.join(parts)}. {_likely_cause(found, config)}")


def _likely_cause(found: Mapping[str, Tensor], config: ModelConfig) -> str:
    if any(name.startswith(("encoder.", "decoder.")) for name in found) and "text_norm.weight" not in found:
        return "These are VAE weights; was the wrong file named, or a VAE for another patch size?"
    if any(name.startswith("blocks.") for name in found):
        return "Its layers are not in block chunks (block_chunks=1); no official inference checkpoint is like that."
    if "cfg_uncond" in found:
        return "These are transformer weights; was the wrong file named?"
    width, text_width = _last_side(found, "level_embed.weight"), _last_side(found, "text_norm.weight")
    for other in MODELS.values():
        if width == other.width != config.width:
            return f"Its width {width} is that of {other.name}."
    if text_width not in (None, config.text_width):
        return f"Its text width is {text_width}, not {config.text_width}."
    return "Another architecture, other block chunks, or an incomplete file?"


def _last_side(tensors: Mapping[str, Tensor], name: str) -> int | None:
    shape = tensors[name].shape if name in tensors else ()
    return shape[-1] if shape else None


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED_ERRORS]) + (", …" if len(names) > _NAMED_ERRORS else "")
