"""What comes with heatkv for some models: trained weights, and head orders measured on them."""

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
    folder = _FOLDERS.get(config.name)
    return folder / "scas_orders.json" if folder is not None and (folder / "scas_orders.json").is_file() else None
