"""Calibration: measured attention mass of many prompts in one HDF5 file, and the S-CAS scores and orders made from it.

A file grows prompt by prompt as `name.h5.part`; a calibration that was stopped goes on there. When the last prompt is
in, it is renamed. Each prompt's mass is kept, so that scores of any part of the prompts can be made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from heatkv.scales import ScaleSchedule
from heatkv.scas import ScasAccumulator, ScasScores
from kvscope.errors import OutputError, TraceFormatError, UsageError

FORMAT = "kvscope.calibration"
VERSION = 1
_MASS = "attention_mass"
_AXES = ("prompt", "query_scale", "layer", "head", "source_scale")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a calibration measures; two with equal settings can be one file."""

    model: str
    weights: str
    scales: dict[str, Any]  # Any: ScaleSchedule.to_json
    num_layers: int
    num_heads: int
    sink_scales: int
    prompts: tuple[str, ...]
    seed: int
    """Of the first prompt; prompt i runs with seed + i."""
    cfg: float
    tau: float
    top_k: int
    top_p: float
    dtype: str
    device: str

    @property
    def mass_shape(self) -> tuple[int, int, int, int]:
        """[query_scale, layer, head, source_scale] of one prompt."""
        num_scales = len(self.scales["sizes"])
        return num_scales, self.num_layers, self.num_heads, num_scales


@dataclass(frozen=True, slots=True)
class Calibration:
    """A finished calibration, read whole."""

    settings: Settings
    attention_mass: NDArray[np.float32]
    """[prompt, query_scale, layer, head, source_scale]: conditional row, mean over queries; NaN where none can be."""

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Raises TraceFormatError if the file is not a finished calibration."""
        with _reading(path) as file:
            settings = _settings(path, file)
            mass = file[_MASS][:]
        if mass.shape[0] != len(settings.prompts):
            raise TraceFormatError(f"{path}: {mass.shape[0]} of {len(settings.prompts)} prompts; finish it first")
        return cls(settings, mass)

    def scores(self, prompts: Sequence[int] | None = None) -> ScasScores:
        """S-CAS over all prompts, or those of these indices."""
        chosen = self.attention_mass if prompts is None else self.attention_mass[list(prompts)]
        settings = self.settings
        num_scales = settings.mass_shape[0]
        sums = ScasAccumulator(settings.num_layers, settings.num_heads, num_scales, settings.sink_scales)
        for mass in chosen:
            for query_scale in range(num_scales):
                for layer in range(settings.num_layers):
                    sums.add(query_scale, layer, mass[query_scale, layer])
            sums.prompts += 1
        return sums.scores(self._metadata())

    def _metadata(self) -> dict[str, Any]:  # Any: JSON values
        settings = self.settings
        return {
            "model": settings.model,
            "seed": settings.seed,
            "cfg": settings.cfg,
            "tau": settings.tau,
            "scale_schedule": [[1, *size] for size in ScaleSchedule.from_json(settings.scales).sizes],
        }


class CalibrationFile:
    """A calibration being measured: how many prompts are in, and a place for the next one's mass."""

    def __init__(self, path: Path, settings: Settings, *, overwrite: bool = False) -> None:
        """Create the file beside `path`, or go on with the one that is there.

        Raises OutputError if `path` exists, or the half-made file beside it is of other settings.
        """
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self._settings = settings
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists; choose another name, or use --overwrite")
        if self.part.exists():
            self._check_part()
        else:
            self._create()

    @property
    def prompts_done(self) -> int:
        with _reading(self.part) as file:
            return int(file[_MASS].shape[0])

    def append(self, mass: NDArray[np.float32]) -> None:
        """Add the next prompt's mass, [query_scale, layer, head, source_scale]; on disk when this returns."""
        try:
            with h5py.File(self.part, "r+") as file:
                table = file[_MASS]
                table.resize(table.shape[0] + 1, axis=0)
                table[-1] = mass
        except OSError as error:
            raise OutputError(f"{self.part}: cannot be written ({error}); the prompts before are safe") from None

    def finish(self) -> Calibration:
        """Give the file its name, and read it."""
        self.part.replace(self.path)
        return Calibration.load(self.path)

    def _create(self) -> None:
        try:
            with h5py.File(self.part, "w", libver=("v110", "v110")) as file:
                file.attrs.update({"format": FORMAT, "format_version": VERSION, "settings": _text(self._settings)})
                shape = self._settings.mass_shape
                table = file.create_dataset(
                    _MASS, (0, *shape), "f4", maxshape=(None, *shape), chunks=(1, *shape), compression="gzip"
                )
                table.attrs.update({"units": "1", "long_name": "Attention mass on each source scale, conditional row"})
                for axis, name in enumerate(_AXES):
                    table.dims[axis].label = name
        except OSError as error:
            raise OutputError(f"{self.part}: cannot be created ({error})") from None

    def _check_part(self) -> None:
        with _reading(self.part) as file:
            found = _settings(self.part, file)
        changed = [name for name, value in asdict(found).items() if value != asdict(self._settings)[name]]
        if changed:
            raise UsageError(
                f"{self.part}: a half-made calibration with another {', '.join(changed)}; "
                "give the same options to go on with it, or delete it"
            )


def is_calibration(path: Path) -> bool:
    """Whether a file says that it is one."""
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("format") == FORMAT)
    except OSError:
        return False


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise TraceFormatError(
            f"{path}: cannot be read as a calibration ({reason}); made by `kvscope calibrate`?"
        ) from None


def _settings(path: Path, file: h5py.File) -> Settings:
    if file.attrs.get("format") != FORMAT:
        raise TraceFormatError(f"{path}: not a calibration; expected a file made by `kvscope calibrate`")
    if file.attrs["format_version"] != VERSION:
        found = file.attrs["format_version"]
        raise TraceFormatError(f"{path}: calibration format {found}, this kvscope reads {VERSION}; upgrade kvscope")
    record = json.loads(file.attrs["settings"])
    return Settings(**(record | {"prompts": tuple(record["prompts"])}))


def _text(settings: Settings) -> str:
    return json.dumps(asdict(settings))
