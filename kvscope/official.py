"""Write a calibration in the reference implementation's files, which its own tools read.

tools/compute_scas.py of arm-research/heatkv: scas_orders.json, scas_scores.json, scas_scores.pt, scas_orders.pt.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from heatkv.errors import OutputError
from heatkv.files import check_new, write_new
from kvscope.calibration import Calibration

if TYPE_CHECKING:
    from heatkv.scas import ScasScores


FILES = ("scas_orders.json", "scas_scores.json", "scas_scores.npz", "scas_scores.pt", "scas_orders.pt")
"""Every file that is written."""


def check_official(folder: Path, *, overwrite: bool = False) -> None:
    """Raises OutputError if save_official could not write its files there; touches nothing."""
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None
    if not existing.is_dir():
        raise OutputError(f"{folder}: cannot be made, {existing} is no folder; choose another name")
    if not os.access(existing, os.W_OK):
        raise OutputError(f"{folder}: no permission to write in {existing}; choose another folder")
    if folder.exists():
        for name in FILES:
            check_new(folder / name, overwrite=overwrite)


def save_official(calibration: Calibration, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the folder, made if absent; returns the files. Raises OutputError if one exists, unless `overwrite`."""
    check_official(folder, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None
    scores = calibration.scores()
    scores.save(folder, overwrite=overwrite)
    _save_tensors(scores, folder, overwrite=overwrite)
    return [folder / name for name in sorted(FILES)]


def _save_tensors(scores: ScasScores, folder: Path, *, overwrite: bool) -> None:
    # Deferred: torch, which calibrating has loaded; .pt is its format.
    import io

    import torch

    metadata = scores.metadata | scores.orders().shape_metadata()
    contents = {
        "scas_scores.pt": {"scores": torch.from_numpy(scores.scores.copy()), "metadata": metadata},
        "scas_orders.pt": {"orders": scores.orders().to_lists(), "metadata": metadata},
    }
    for name, content in contents.items():
        packed = io.BytesIO()
        torch.save(content, packed)
        write_new(folder / name, packed.getvalue(), overwrite=overwrite)
