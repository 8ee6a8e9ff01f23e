"""Calibration: measurements of many prompts in one HDF5 file, and what policies are given of them.

A file grows prompt by prompt as `name.h5.part`; a calibration that was stopped goes on there. When the last prompt is
in, it is renamed. Each prompt's numbers are kept, so that means of any part of the prompts can be made again.

Format 2: one dataset per measurement, named and with axes as in heatkv.measurements.AXES behind the axis `prompt`.
Format 1, which is read too, held attention_mass alone.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

import heatkv.errors
from heatkv.files import check_new, exists_text, place
from heatkv.measurements import AXES, Measurements
from heatkv.scales import ScaleSchedule
from heatkv.scas import ScasAccumulator, ScasScores
from kvscope import liveness
from kvscope.errors import OutputError, TraceFormatError, UsageError
from kvscope.header import optional_text
from kvscope.writer import check_output

FORMAT = "kvscope.calibration"
VERSION = 2
_READABLE = (1, 2)
_MASS = "attention_mass"
_LONG_NAMES = {
    _MASS: "Attention mass on each source scale, conditional row",
    "attention_mass_uncond": "The same of the unconditional row",
    "column_variance": "Variance over queries of each key's attention, summed over keys, at the last scale",
    "selectivity": "Attention on the current scale times that on the most attended tenth of history",
    "kv_similarity": "Cosine of keys and values with those at the same place one scale before",
    "output_error": "Squared change of the projected output without this source scale, of all heads' output squared",
    "output_error_uncond": "The same of the unconditional row",
}


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
    measurements: tuple[str, ...] = (_MASS,)
    """Names of heatkv.measurements.AXES."""

    def shape(self, measurement: str) -> tuple[int, ...]:
        """Of one prompt's numbers."""
        num_scales = len(self.scales["sizes"])
        sizes = {"layer": self.num_layers, "head": self.num_heads}
        return tuple(sizes.get(axis, num_scales) for axis in AXES[measurement])


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """A finished calibration, read whole."""

    settings: Settings
    tables: Mapping[str, NDArray[np.float32]]
    """Measurement → [prompt, …], then the axes of heatkv.measurements.AXES; NaN where nothing can be measured."""
    source: str
    """Its file."""

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Raises TraceFormatError if the file is not a finished calibration."""
        with _reading(path) as file:
            settings = _settings(path, file)
            tables = {name: file[name][:] for name in settings.measurements}
        done = min(map(len, tables.values()))
        if done != len(settings.prompts):
            raise TraceFormatError(f"{path}: {done} of {len(settings.prompts)} prompts; finish it first")
        return cls(settings, tables, str(path))

    @property
    def attention_mass(self) -> NDArray[np.float32]:
        """[prompt, query_scale, layer, head, source_scale]: conditional row, mean over queries."""
        return self.tables[_MASS]

    def measurements(self, prompts: Sequence[int] | None = None) -> Measurements:
        """Means over all prompts, or those of these indices."""
        chosen = slice(None) if prompts is None else list(prompts)
        means = {name: table[chosen].mean(axis=0, dtype=np.float64) for name, table in self.tables.items()}
        count = len(self.settings.prompts) if prompts is None else len(prompts)
        provenance = asdict(self.settings) | {"prompts": count, "source": self.source}
        return Measurements(**means, provenance=provenance)

    def scores(self, prompts: Sequence[int] | None = None, *, sink_scales: int | None = None) -> ScasScores:
        """S-CAS over all prompts, or those of these indices; sink_scales None: those of the settings."""
        chosen = self.attention_mass if prompts is None else self.attention_mass[list(prompts)]
        settings = self.settings
        num_scales = len(settings.scales["sizes"])
        sinks = settings.sink_scales if sink_scales is None else sink_scales
        sums = ScasAccumulator(settings.num_layers, settings.num_heads, num_scales, sinks)
        for mass in chosen:
            sums.add_prompt(mass)
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
    """A calibration being measured: how many prompts are in, and a place for the next one's numbers.

    A context manager: leaving it lets go of the lock that keeps a second process from the same file.
    """

    def __init__(self, path: Path, settings: Settings, *, overwrite: bool = False) -> None:
        """Create the file beside `path`, or go on with the one that is there; `overwrite` starts anew.

        A half-made file of other settings is replaced if it holds no prompt yet. Raises OutputError if `path` or the
        half-made file cannot be written, `path` exists, or another process measures into it; UsageError if the
        half-made file is of other settings, or damaged.
        """
        self.path = path
        self._overwrite = overwrite
        self._settings = settings
        self._target = check_output(path, overwrite=overwrite)
        self.part = self._target.with_name(self._target.name + ".part")
        self._descriptor: int | None = _locked(self.part)
        try:
            self.discarded = self._discard_part()
            """What was measured before and is thrown away, in words; empty: nothing."""
            if not self.part.stat().st_size:
                self._create()
        except BaseException:
            self.close()
            raise

    @property
    def prompts_done(self) -> int:
        with _reading(self.part) as file:
            return _prompts_done(file, self._settings)

    def append(self, measured: Mapping[str, NDArray[np.float32]]) -> None:
        """Add the next prompt's numbers: every measurement of the settings; on disk when this returns."""
        try:
            with h5py.File(self.part, "r+") as file:
                done = _prompts_done(file, self._settings)
                for name in self._settings.measurements:
                    file[name].resize(done + 1, axis=0)
                    file[name][done] = measured[name]
        except (OSError, RuntimeError) as error:
            raise OutputError(f"{self.part}: cannot be written ({error}); the prompts before are safe") from None

    def finish(self) -> Calibration:
        """Give the file its name, and read it. Raises OutputError if that name was taken meanwhile."""
        try:
            place(self.part, self._target, overwrite=self._overwrite)
        except FileExistsError:
            raise OutputError(f"{exists_text(self.path)}; the measurements are in {self.part}") from None
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror}); see {self.part}") from None
        self.close()
        return Calibration.load(self.path)

    def close(self) -> None:
        """Let go of the lock. What was measured stays, and the same call goes on with it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _discard_part(self) -> str:
        """Empty the half-made file if it is not to be gone on with; returns what it held, in words."""
        if not self.part.stat().st_size:
            return ""
        if not self._overwrite and not self._is_part_replaceable():
            return ""
        os.truncate(self.part, 0)
        return f"{self.part}: a half-made calibration, started anew" if self._overwrite else ""

    def _is_part_replaceable(self) -> bool:
        """Whether the half-made file is of other settings and without prompts. Raises UsageError if it has some."""
        try:
            with _reading(self.part) as file:
                settings = _settings(self.part, file)
                found, done = asdict(settings), _prompts_done(file, settings)
        except TraceFormatError:
            raise UsageError(
                f"{self.part}: damaged, or no calibration; delete it, or start anew with --overwrite"
            ) from None
        wanted = asdict(self._settings)
        changed = [name for name, value in found.items() if value != wanted[name]]
        if changed and done:
            raise UsageError(
                f"{self.part}: a half-made calibration with other {', '.join(changed)}; "
                "give the same options to go on with it, or start anew with --overwrite"
            )
        return bool(changed)

    def _create(self) -> None:
        try:
            with h5py.File(self.part, "w", libver=("v110", "v110")) as file:
                # Of fixed length, so that what asks only for the format need not trust the file.
                file.attrs.update({"format": np.bytes_(FORMAT), "format_version": VERSION})
                file.attrs["settings"] = _text(self._settings)
                for name in self._settings.measurements:
                    _create_table(file, name, self._settings.shape(name))
        except (OSError, RuntimeError) as error:
            raise OutputError(f"{self.part}: cannot be created ({error})") from None


def finished(path: Path, settings: Settings) -> Calibration | None:
    """The calibration of these settings that a file holds whole, if with more measurements; None: it holds none."""
    if not is_calibration(path):
        return None
    try:
        calibration = Calibration.load(path)
    except TraceFormatError:
        return None
    found = calibration.settings
    complete = set(settings.measurements) <= set(found.measurements)
    return calibration if complete and replace(settings, measurements=found.measurements) == found else None


def is_calibration(path: Path) -> bool:
    """Whether a file says that it is one."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for its writer for ever
            return False
        with h5py.File(path, "r") as file:
            return optional_text(file.attrs, "format") == FORMAT
    except (OSError, ValueError, RuntimeError, KeyError):  # no name that a file can have; damage, in many ways
        return False


def _locked(part: Path) -> int:
    """A descriptor that holds the lock of a half-made file; the file is created, empty, if it is not there."""
    try:
        check_new(part, overwrite=True)
        part.touch(0o666)
        descriptor, _ = liveness.hold(part)
        if os.path.samestat(os.fstat(descriptor), part.stat()):
            return descriptor
        os.close(descriptor)
    except (BlockingIOError, FileNotFoundError):  # the other process has it, or has just given it its name
        pass
    except OSError as error:
        raise OutputError(f"{part}: cannot be written ({error.strerror})") from None
    except heatkv.errors.OutputError as error:
        raise OutputError(str(error)) from None
    raise OutputError(f"{part}: another process measures into it; wait for it, or choose another name")


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("not a regular file")
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        # HDF5 tells of damage in many ways.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TraceFormatError(
            f"{path}: cannot be read as a calibration ({reason}); made by `kvscope calibrate`?"
        ) from None


def _settings(path: Path, file: h5py.File) -> Settings:
    if optional_text(file.attrs, "format") != FORMAT:
        raise TraceFormatError(f"{path}: not a calibration; expected a file made by `kvscope calibrate`")
    found = file.attrs["format_version"]
    if found not in _READABLE:
        reads = "–".join(map(str, _READABLE))
        raise TraceFormatError(f"{path}: calibration format {found}, this kvscope reads {reads}; upgrade kvscope")
    record = json.loads(file.attrs["settings"])
    lists = {name: tuple(record[name]) for name in ("prompts", "measurements") if name in record}
    return Settings(**(record | lists))


def _prompts_done(file: h5py.File, settings: Settings) -> int:
    """Prompts whose every measurement is in: a calibration may be killed between two."""
    return int(min(file[name].shape[0] for name in settings.measurements))


def _create_table(file: h5py.File, name: str, shape: tuple[int, ...]) -> None:
    """An empty table of one measurement, that grows along its first axis."""
    table = file.create_dataset(
        name, (0, *shape), "f4", maxshape=(None, *shape), chunks=(1, *shape), compression="gzip", shuffle=True
    )
    table.attrs.update({"units": "1", "long_name": _LONG_NAMES[name]})
    for axis, label in enumerate(("prompt", *AXES[name])):
        table.dims[axis].label = label


def _text(settings: Settings) -> str:
    return json.dumps(asdict(settings))
