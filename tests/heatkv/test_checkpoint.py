"""Weights load from every official layout, exactly, or not at all and with one line that says why."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from heatkv.checkpoint import (
    find_weights,
    load_transformer,
    load_vae,
    official_tensors,
    read_tensors,
    transformer_tensors,
    vae_tensors,
)
from heatkv.config import MODELS, ModelConfig
from heatkv.errors import CheckpointError
from heatkv.transformer import Infinity
from heatkv.vae import BSQVAE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Tensors = dict[str, Tensor]
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def official(small_model: Infinity) -> Tensors:
    """The small model's tensors under the official names."""
    return official_tensors(small_model)


@pytest.fixture(scope="session")
def official_vae(small_vae: BSQVAE) -> Tensors:
    return official_tensors(small_vae)


def _load(path: Path, config: ModelConfig, dtype: torch.dtype = torch.float32) -> Infinity:
    return load_transformer(path, config, dtype=dtype, device=CPU)


def _same(found: nn.Module, expected: nn.Module) -> bool:
    ours, theirs = found.state_dict(), expected.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _refusal(path: Path, load: Callable[[], object]) -> str:
    """The message of the error that `load` raises: one line that names the file."""
    with pytest.raises(CheckpointError) as raised:
        load()
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def _write_flat(folder: Path, tensors: Tensors) -> Path:
    torch.save(tensors, folder / "model.pth")
    return folder / "model.pth"


def _write_old_format(folder: Path, tensors: Tensors) -> Path:
    torch.save(tensors, folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def _write_training(folder: Path, tensors: Tensors) -> Path:
    record = {"epoch": 3, "trainer": {"gpt_fsdp": tensors, "gpt_opt": {"state": {}}}}
    torch.save(record, folder / "training.pth")
    return folder / "training.pth"


def _write_safetensors(folder: Path, tensors: Tensors) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


def _write_shards(folder: Path, tensors: Tensors, suffix: str) -> Path:
    sharded = folder / "sharded"
    sharded.mkdir()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for part in range(3):
        shard = f"model-0000{part + 1}-of-00003{suffix}"
        held = {name: tensors[name].contiguous() for name in names[part::3]}
        weight_map |= dict.fromkeys(held, shard)
        if suffix == ".safetensors":
            save_file(held, sharded / shard)
        else:
            torch.save(held, sharded / shard)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (sharded / f"model{suffix}.index.json").write_text(json.dumps(index))
    return sharded


def _write_bin_shards(folder: Path, tensors: Tensors) -> Path:
    return _write_shards(folder, tensors, ".bin")


def _write_safetensors_shards(folder: Path, tensors: Tensors) -> Path:
    return _write_shards(folder, tensors, ".safetensors")


LAYOUTS = [
    _write_flat,
    _write_old_format,
    _write_training,
    _write_safetensors,
    _write_bin_shards,
    _write_safetensors_shards,
]


class TestTransformer:
    @pytest.mark.parametrize("write", LAYOUTS)
    def test_every_layout_gives_the_model_back(
        self,
        write: Callable[[Path, Tensors], Path],
        tmp_path: Path,
        official: Tensors,
        small_model: Infinity,
        small_config: ModelConfig,
    ) -> None:
        loaded = _load(write(tmp_path, official), small_config)

        assert _same(loaded, small_model)
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())

    @pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_any_float_dtype_is_cast_to_the_model_dtype(
        self, stored: torch.dtype, tmp_path: Path, official: Tensors, small_config: ModelConfig
    ) -> None:
        path = _write_safetensors(tmp_path, {name: tensor.to(stored) for name, tensor in official.items()})

        loaded = _load(path, small_config, torch.bfloat16)

        name = "block_chunks.1.module.0.sa.mat_qkv.weight"
        assert loaded.kv_dtype == torch.bfloat16
        assert torch.equal(
            loaded.state_dict()["layers.2.attention.qkv.weight"], official[name].to(stored).to(torch.bfloat16)
        )
        assert torch.equal(loaded.head.weight, official["head.weight"].to(stored).float())

    def test_loaded_weights_do_not_keep_the_file_open(
        self, tmp_path: Path, official: Tensors, small_model: Infinity, small_config: ModelConfig
    ) -> None:
        path = _write_flat(tmp_path, official)

        loaded = _load(path, small_config)
        path.write_bytes(b"\0" * path.stat().st_size)

        assert _same(loaded, small_model)

    def test_tensors_that_only_training_reads_are_left_out(
        self, tmp_path: Path, official: Tensors, small_model: Infinity, small_config: ModelConfig
    ) -> None:
        extra = {"lvl_1L": torch.zeros(3, dtype=torch.int64), "attn_bias_for_masking": torch.zeros(2, 2)}

        assert _same(_load(_write_flat(tmp_path, official | extra), small_config), small_model)

    def test_a_longer_unconditional_text_is_cut(
        self, tmp_path: Path, official: Tensors, small_model: Infinity, small_config: ModelConfig
    ) -> None:
        longer = torch.cat((official["cfg_uncond"], torch.ones(4, small_config.text_width)))

        loaded = _load(_write_flat(tmp_path, official | {"cfg_uncond": longer}), small_config)

        assert _same(loaded, small_model)

    def test_official_names_of_a_saved_model_are_the_ones_it_was_loaded_from(
        self, tmp_path: Path, official: Tensors, small_config: ModelConfig
    ) -> None:
        again = official_tensors(_load(_write_flat(tmp_path, official), small_config))

        assert again.keys() == official.keys()
        assert all(torch.equal(again[name], official[name]) for name in official)


class TestStrictness:
    def test_missing_tensors_are_named(self, tmp_path: Path, official: Tensors, small_config: ModelConfig) -> None:
        less = {name: tensor for name, tensor in official.items() if "ca_norm" not in name}
        path = _write_flat(tmp_path, less)

        message = _refusal(path, lambda: _load(path, small_config))

        assert "8 missing (block_chunks.0.module.0.ca_norm.bias, block_chunks.0.module.0.ca_norm.weight, " in message
        assert ", …)" in message

    def test_tensors_that_nothing_reads_are_named(
        self, tmp_path: Path, official: Tensors, small_config: ModelConfig
    ) -> None:
        path = _write_flat(tmp_path, official | {"block_chunks.0.module.0.ca_gamma": torch.ones(1)})

        message = _refusal(path, lambda: _load(path, small_config))

        assert "1 not used (block_chunks.0.module.0.ca_gamma)" in message

    def test_other_shapes_name_the_model_that_they_belong_to(self, tmp_path: Path, small_config: ModelConfig) -> None:
        with torch.device("meta"):
            other = official_tensors(Infinity(MODELS["infinity-tiny"]))
        path = _write_flat(tmp_path, {name: torch.zeros(tensor.shape) for name, tensor in other.items()})

        message = _refusal(path, lambda: _load(path, small_config))

        assert "of another shape (cfg_uncond: (16, 128) where small has (16, 256))" in message
        assert message.endswith("Its width 192 is that of infinity-tiny.")

    def test_another_text_width_is_named(self, tmp_path: Path, official: Tensors, small_config: ModelConfig) -> None:
        path = _write_flat(tmp_path, official)
        wider = dataclasses.replace(small_config, text_width=512)

        assert "Its text width is 256, not 512." in _refusal(path, lambda: _load(path, wider))

    def test_whole_numbers_are_not_weights(self, tmp_path: Path, official: Tensors, small_config: ModelConfig) -> None:
        path = _write_flat(tmp_path, official | {"pos_start": official["pos_start"].int()})

        assert "1 not floating point (pos_start)" in _refusal(path, lambda: _load(path, small_config))

    def test_tensors_without_axes_are_refused_too(
        self, tmp_path: Path, official: Tensors, small_config: ModelConfig
    ) -> None:
        scalars = {"lvl_embed.weight": torch.ones(()), "text_norm.weight": torch.ones(())}
        path = _write_flat(tmp_path, official | scalars)

        assert "2 of another shape" in _refusal(path, lambda: _load(path, small_config))

    @pytest.mark.parametrize("num_chunks", [1, 4])
    def test_other_block_chunks_are_refused(
        self, num_chunks: int, tmp_path: Path, official: Tensors, small_config: ModelConfig
    ) -> None:
        path = _write_flat(tmp_path, official)

        message = _refusal(path, lambda: _load(path, dataclasses.replace(small_config, num_chunks=num_chunks)))

        assert "missing" in message
        assert "other block chunks" in message

    def test_blocks_without_chunks_are_recognised(
        self, tmp_path: Path, official: Tensors, small_config: ModelConfig
    ) -> None:
        renamed = {name.replace("block_chunks.0.module.", "blocks."): one for name, one in official.items()}
        path = _write_flat(tmp_path, renamed)

        assert "block_chunks=1" in _refusal(path, lambda: _load(path, small_config))

    def test_a_vae_is_recognised_where_a_transformer_belongs(
        self, tmp_path: Path, official_vae: Tensors, small_config: ModelConfig
    ) -> None:
        path = _write_flat(tmp_path, official_vae)

        assert "These are VAE weights" in _refusal(path, lambda: _load(path, small_config))

    def test_a_transformer_is_recognised_where_a_vae_belongs(
        self, tmp_path: Path, official: Tensors, small_config: ModelConfig
    ) -> None:
        path = _write_flat(tmp_path, official)

        message = _refusal(path, lambda: load_vae(path, small_config, dtype=torch.float32, device=CPU))

        assert "These are transformer weights" in message

    def test_a_vae_of_another_patch_size_is_refused(
        self, tmp_path: Path, official_vae: Tensors, small_config: ModelConfig
    ) -> None:
        path = _write_flat(tmp_path, official_vae)
        other = dataclasses.replace(small_config, vae=dataclasses.replace(small_config.vae, patch_size=2))

        message = _refusal(path, lambda: load_vae(path, other, dtype=torch.float32, device=CPU))

        assert "not used (decoder.up.2.upsample.conv.bias" in message


class _RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


class TestDamagedFiles:
    def test_code_in_a_pickle_is_never_run(self, tmp_path: Path, official: Tensors, small_config: ModelConfig) -> None:
        path, marker = tmp_path / "model.pth", tmp_path / "code_ran"
        torch.save(official | {"extra": _RunsCode(marker)}, path)

        message = _refusal(path, lambda: _load(path, small_config))

        assert "mkdir, and nothing but tensors is ever loaded" in message
        assert not marker.exists()

    def test_a_plain_pickle_is_never_run(self, tmp_path: Path) -> None:
        path, marker = tmp_path / "model.pth", tmp_path / "code_ran"
        path.write_bytes(pickle.dumps({"extra": _RunsCode(marker)}))

        _refusal(path, lambda: read_tensors(path))

        assert not marker.exists()

    @pytest.mark.parametrize("write", [_write_flat, _write_old_format, _write_safetensors])
    def test_a_file_cut_anywhere_is_refused(self, write: Callable[[Path, Tensors], Path], tmp_path: Path) -> None:
        path = write(tmp_path, {f"a.{index}": torch.ones(3, 4) for index in range(3)})
        whole = path.read_bytes()

        for length in range(0, len(whole), max(1, len(whole) // 60)):
            path.write_bytes(whole[:length])
            _refusal(path, lambda: read_tensors(path))

    @pytest.mark.parametrize(
        "content", [b"", b"hello, this is text", b"<!DOCTYPE html>", b"{}", b"PK\x03\x04", b"version https://git-lfs"]
    )
    @pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
    def test_what_is_no_checkpoint_is_refused(self, name: str, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / name
        path.write_bytes(content)

        _refusal(path, lambda: read_tensors(path))

    def test_a_zip_that_is_no_checkpoint_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "model.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "nothing")

        _refusal(path, lambda: read_tensors(path))

    @pytest.mark.parametrize("content", [[torch.ones(1)], {"a": 1}, torch.ones(2), {"vae": {"epoch": 1}}])
    def test_other_objects_than_tensors_by_name_are_refused(self, content: object, tmp_path: Path) -> None:
        path = tmp_path / "model.pth"
        torch.save(content, path)

        assert "not a state dict" in _refusal(path, lambda: read_tensors(path))

    def test_an_empty_state_dict_and_an_absent_file_are_refused(self, tmp_path: Path) -> None:
        path = _write_flat(tmp_path, {})

        assert "holds no tensors" in _refusal(path, lambda: read_tensors(path))
        assert "no such checkpoint" in _refusal(tmp_path / "b.pth", lambda: read_tensors(tmp_path / "b.pth"))


class TestShards:
    def test_an_absent_shard_is_named(self, tmp_path: Path, official: Tensors) -> None:
        folder = _write_bin_shards(tmp_path, official)
        absent = folder / "model-00002-of-00003.bin"
        absent.unlink()

        assert "no such file; the download is incomplete" in _refusal(absent, lambda: read_tensors(folder))

    def test_a_tensor_that_the_index_lists_and_no_shard_holds_is_named(self, tmp_path: Path, official: Tensors) -> None:
        folder = _write_safetensors_shards(tmp_path, official)
        index = folder / "model.safetensors.index.json"
        record = json.loads(index.read_text())
        record["weight_map"]["head.gone"] = "model-00001-of-00003.safetensors"
        index.write_text(json.dumps(record))

        assert "the index lists head.gone" in _refusal(folder, lambda: read_tensors(folder))

    @pytest.mark.parametrize(
        "content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": null}}']
    )
    def test_a_damaged_index_is_refused(self, content: str, tmp_path: Path) -> None:
        index = tmp_path / "model.bin.index.json"
        index.write_text(content)

        assert "a shard index" in _refusal(index, lambda: read_tensors(tmp_path))

    def test_shards_outside_the_folder_are_never_read(self, tmp_path: Path, official: Tensors) -> None:
        folder = tmp_path / "sharded"
        folder.mkdir()
        _write_flat(tmp_path, official)
        (folder / "model.bin.index.json").write_text(json.dumps({"weight_map": {"head.weight": "../model.pth"}}))

        assert "outside the folder" in _refusal(folder, lambda: read_tensors(folder))

    def test_a_folder_without_an_index_is_refused(self, tmp_path: Path) -> None:
        assert "a folder without *.index.json" in _refusal(tmp_path, lambda: read_tensors(tmp_path))


class TestVAE:
    @pytest.mark.parametrize("wrap", ["vae", "ema", None])
    @pytest.mark.parametrize("spelling", ["official", "older"])
    @pytest.mark.parametrize("masks", [True, False])
    def test_loads_under_any_key_in_both_spellings_with_and_without_masks(
        self,
        wrap: str | None,
        spelling: str,
        masks: bool,
        tmp_path: Path,
        official_vae: Tensors,
        small_vae: BSQVAE,
        small_config: ModelConfig,
    ) -> None:
        tensors = dict(official_vae)
        if spelling == "older":
            for kind in ("conv", "norm"):
                tensors = {name.replace(f".{kind}.weight", ".weight"): one for name, one in tensors.items()}
                tensors = {name.replace(f".{kind}.bias", ".bias"): one for name, one in tensors.items()}
            # A resampling convolution is a module called conv in a module; the older name keeps the inner one.
            tensors = {
                name.replace("sample.weight", "sample.conv.weight").replace("sample.bias", "sample.conv.bias"): one
                for name, one in tensors.items()
            }
        if masks:
            tensors |= {f"{name}.lfq.mask": 2 ** torch.arange(8) for name in ("quantize", "quantizer")}
        path = tmp_path / "vae.pth"
        torch.save({wrap: tensors, "epoch": 1} if wrap else tensors, path)

        assert _same(load_vae(path, small_config, dtype=torch.float32, device=CPU), small_vae)

    def test_the_key_vae_comes_before_ema(self, tmp_path: Path, official_vae: Tensors) -> None:
        other = {name: tensor + 1 for name, tensor in official_vae.items()}
        path = tmp_path / "vae.pth"
        torch.save({"ema": other, "vae": official_vae}, path)

        assert torch.equal(read_tensors(path)["encoder.conv_in.conv.bias"], official_vae["encoder.conv_in.conv.bias"])

    def test_bfloat16_is_what_it_is_asked_to_be(
        self, tmp_path: Path, official_vae: Tensors, small_config: ModelConfig
    ) -> None:
        loaded = load_vae(_write_flat(tmp_path, official_vae), small_config, dtype=torch.bfloat16, device=CPU)

        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}


class TestOfficialNames:
    def test_infinity_2b_has_the_official_names_and_shapes(self, golden: Path) -> None:
        record = json.loads((golden / "infinity_2b_keys.json").read_text())
        tensors = {name: torch.empty(shape, device="meta") for name, (shape, _) in record.items()}
        config = MODELS["infinity-2b"]
        with torch.device("meta"):
            model = Infinity(config)

        found = transformer_tensors(tensors, config, golden)

        assert _shapes(found) == _shapes(model.state_dict())
        assert _shapes(official_tensors(model)) == _shapes(tensors)

    def test_the_d32_vae_has_the_official_names_and_shapes(self, golden: Path) -> None:
        record = json.loads((golden / "infinity_vae_d32_keys.json").read_text())
        tensors = {name: torch.empty(shape, device="meta") for name, (shape, _) in record.items()}
        with torch.device("meta"):
            vae = BSQVAE(MODELS["infinity-2b"].vae)

        masks = {"quantize.lfq.mask", "quantizer.lfq.mask"}
        assert _shapes(vae_tensors(tensors)) == _shapes(vae.state_dict())
        assert _shapes(official_tensors(vae)).items() == {(n, s) for n, s in _shapes(tensors).items() if n not in masks}

    def test_infinity_2b_has_694_tensors_and_its_vae_268_and_two_masks(self) -> None:
        with torch.device("meta"):
            model, vae = Infinity(MODELS["infinity-2b"]), BSQVAE(MODELS["infinity-2b"].vae)

        transformer, autoencoder = _shapes(official_tensors(model)), _shapes(official_tensors(vae))

        assert len(transformer) == 22 + 32 * 21 == 694
        assert len(autoencoder) == 270 - 2
        assert transformer["cfg_uncond"] == (512, 2048)
        assert transformer["text_proj_for_sos.ca.mat_q"] == (1, 16, 128)
        assert transformer["lvl_embed.weight"] == (15, 2048)
        assert transformer["word_embed.weight"] == (2048, 32)
        assert transformer["shared_ada_lin.1.weight"] == (12288, 2048)
        assert transformer["head.weight"] == (64, 2048)
        assert transformer["block_chunks.7.module.3.sa.scale_mul_1H11"] == (1, 16, 1, 1)
        assert transformer["block_chunks.1.module.0.ffn.fc1.weight"] == (8192, 2048)
        assert autoencoder["decoder.up.4.upsample.conv.conv.weight"] == (512, 512, 3, 3)
        assert autoencoder["encoder.down.0.block.0.norm1.norm.weight"] == (128,)
        assert autoencoder["decoder.conv_in.conv.weight"] == (512, 32, 3, 3)


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


class TestFindWeights:
    def test_tells_the_parts_apart_by_name(self, tmp_path: Path, official: Tensors) -> None:
        for name in ("infinity_vae_d32reg.pth", "infinity_text2image_2b.pth", "text_encoder.safetensors", "notes.txt"):
            (tmp_path / name).touch()
        t5 = tmp_path / "flan-t5-xl"
        t5.mkdir()
        (t5 / "model.safetensors.index.json").touch()

        files = find_weights(tmp_path)

        assert files.transformer == tmp_path / "infinity_text2image_2b.pth"
        assert files.vae == tmp_path / "infinity_vae_d32reg.pth"
        assert files.text_encoder == t5

    def test_a_sharded_folder_is_a_transformer(self, tmp_path: Path, official: Tensors) -> None:
        (tmp_path / "vae.pth").touch()

        assert find_weights(_write_bin_shards(tmp_path, official).parent).transformer == tmp_path / "sharded"

    def test_two_candidates_are_both_named(self, tmp_path: Path) -> None:
        for name in ("infinity_2b_reg.pth", "infinity_8b.pth", "vae.pth"):
            (tmp_path / name).touch()

        message = _refusal(tmp_path, lambda: find_weights(tmp_path))

        assert "expected one transformer checkpoint, found infinity_2b_reg.pth, infinity_8b.pth" in message

    def test_an_empty_folder_an_absent_one_and_a_missing_vae_are_refused(self, tmp_path: Path) -> None:
        assert "expected one transformer checkpoint, found none" in _refusal(tmp_path, lambda: find_weights(tmp_path))
        assert "no such folder" in _refusal(tmp_path / "b", lambda: find_weights(tmp_path / "b"))

        (tmp_path / "infinity_2b_reg.pth").touch()
        assert "one VAE" in _refusal(tmp_path, lambda: find_weights(tmp_path))
