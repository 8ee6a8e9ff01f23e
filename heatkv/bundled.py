"""What comes with heatkv for some models: trained weights, and what was measured on them."""

from __future__ import annotations

from pathlib import Path

from heatkv.config import ModelConfig

_FOLDERS = {"infinity-tiny": Path(__file__).parent / "tiny" / "weights"}


def bundled_weights(config: ModelConfig) -> Path | None:
    """The folder of this model's bundled weights, or None."""
    folder = _FOLDERS.get(config.name)
    return folder if folder is not None and any(folder.glob("*.safetensors")) else None


def bundled_orders(config: ModelConfig) -> Path | None:
    """The file of this model's bundled head orders (official format), or None."""
    return _file(config, "scas_orders.json")


def bundled_calibration(config: ModelConfig) -> Path | None:
    """The file of this model's bundled calibration (HDF5, of `kvscope calibrate`), or None."""
    return _file(config, "calibration.h5")


def _file(config: ModelConfig, name: str) -> Path | None:
    folder = _FOLDERS.get(config.name)
    return folder / name if folder is not None and (folder / name).is_file() else None
