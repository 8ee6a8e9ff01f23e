"""Write a calibration in the reference implementation's files, which its own tools read.

tools/compute_scas.py of arm-research/heatkv: scas_orders.json, scas_scores.json, scas_scores.pt, scas_orders.pt.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from heatkv.errors import OutputError
from kvscope.calibration import Calibration

if TYPE_CHECKING:
    from heatkv.scas import ScasScores


def save_official(calibration: Calibration, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the folder, made if absent; returns the files. Raises OutputError if one exists, unless `overwrite`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None
    scores = calibration.scores()
    scores.save(folder, overwrite=overwrite)
    _save_tensors(scores, folder, overwrite=overwrite)
    return sorted(path for path in folder.iterdir() if path.name.startswith("scas_"))


def _save_tensors(scores: ScasScores, folder: Path, *, overwrite: bool) -> None:
    # Deferred: torch, which calibrating has loaded; .pt is its format.
    import io

    import torch

    from heatkv.files import write_new

    metadata = scores.metadata | scores.orders().shape_metadata()
    contents = {
        "scas_scores.pt": {"scores": torch.from_numpy(scores.scores.copy()), "metadata": metadata},
        "scas_orders.pt": {"orders": scores.orders().to_lists(), "metadata": metadata},
    }
    for name, content in contents.items():
        packed = io.BytesIO()
        torch.save(content, packed)
        write_new(folder / name, packed.getvalue(), overwrite=overwrite)
