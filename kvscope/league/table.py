"""The league's results: one row a run, its columns with units and words, and all rows together. Pure numpy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.league.entrants import Entrant
    from kvscope.league.settings import Settings


@dataclass(frozen=True, slots=True)
class Column:
    """One number of every row."""

    unit: str
    words: str
    better: int = 0
    """1: more is better, -1: less is; 0: it does not rank."""
    title: str = ""
    """Short, for tables and charts; empty: not among the measures."""


NUMBERS: dict[str, Column] = {
    "accounted_peak_bytes": Column("B", "keys and values of the tokens held, the most after any step"),
    "stored_peak_bytes": Column("B", "the pool and the index into it, the most after any step, from the tensors"),
    "pool_bytes": Column("B", "the pool alone, allocated once"),
    "allocator_peak_bytes": Column("B", "the most that torch's CUDA allocator held during the run; NaN on a CPU"),
    "seconds": Column("s", "the free run, from its first layer to its last sampled bit"),
    "full_seconds": Column("s", "the same of policy full, for this prompt, in the same process"),
    "psnr": Column("dB", "free run's picture beside full's; infinite: equal", 1, "PSNR, dB"),
    "ssim": Column("1", "the same, structural similarity", 1, "SSIM"),
    "agreement_free": Column("1", "share of sampled bits that are full's, free run", 1, "bits free"),
    "agreement_forced": Column("1", "share of bits whose likelier value is full's, at full's bits", 1, "bits forced"),
    "kl": Column("nat/bit", "mean KL(full || this) of a bit, at full's bits", -1, "forced KL"),
    "colour": Column("1", "stated colours found in the picture (infinity-tiny)", 1, "colour"),
    "shape": Column("1", "stated objects found with their shape (infinity-tiny)", 1, "shape"),
    "position": Column("1", "stated places and relations that hold (infinity-tiny)", 1, "position"),
    "all_right": Column("1", "1 where the picture shows all of its prompt and no more (infinity-tiny)", 1, "all right"),
    "lpips": Column("1", "LPIPS between the free run's picture and full's", -1, "LPIPS"),
    "image_reward": Column("1", "ImageReward of the free run's picture", 1, "ImageReward"),
    "hps": Column("1", "HPS of the free run's picture", 1, "HPS"),
}
"""Every number of a row, float64; NaN: not measured."""

MEASURES: dict[str, Column] = {name: column for name, column in NUMBERS.items() if column.title}
"""Those that say how good a run is."""


@dataclass(frozen=True, slots=True)
class Row:
    """One policy at one target on one prompt and seed."""

    entrant: int
    prompt: int
    seed: int
    bits_sha256: str
    """Of all bits of the free run, scale after scale, one byte each."""
    numbers: dict[str, float]
    """By the names of NUMBERS; what is missing was not measured."""
    kl_by_scale: tuple[float, ...]

    @property
    def key(self) -> tuple[int, int, int]:
        return self.entrant, self.prompt, self.seed

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:  # Any: a JSON object
        return cls(**(record | {"kl_by_scale": tuple(record["kl_by_scale"])}))


@dataclass(frozen=True, slots=True)
class League:
    """What is measured so far: settings, who takes part, and a row for each finished run."""

    settings: Settings
    entrants: tuple[Entrant, ...]
    rows: tuple[Row, ...]

    @property
    def num_wanted(self) -> int:
        """Rows of the finished league."""
        return len(self.missing(()))

    def missing(self, rows: Iterable[Row]) -> list[tuple[int, int, int]]:
        """(entrant, prompt, seed) of every run that is wanted and not among these, prompt by prompt."""
        done = {row.key for row in rows}
        able = [index for index, one in enumerate(self.entrants) if one.is_reachable]
        places = [(prompt, seed) for seed in self.settings.seeds for prompt in range(len(self.settings.prompts))]
        wanted = ((entrant, prompt, seed) for prompt, seed in places for entrant in able)
        return [key for key in wanted if key not in done]

    def numbers(self, entrant: int, name: str) -> dict[tuple[int, int], float]:
        """One number of an entrant: (prompt, seed) → value; NaN where it was not measured."""
        return {(row.prompt, row.seed): row.numbers.get(name, np.nan) for row in self.rows if row.entrant == entrant}


def as_arrays(rows: Iterable[Row], num_scales: int) -> tuple[NDArray[np.void], NDArray[np.float64]]:
    """(one record a row with columns entrant, prompt, seed, bits_sha256 and NUMBERS; KL [row, scale])."""
    kept = list(rows)
    table = np.empty(len(kept), row_dtype())
    for place, row in zip(table, kept, strict=True):
        place["entrant"], place["prompt"], place["seed"] = row.key
        place["bits_sha256"] = row.bits_sha256
        for name in NUMBERS:
            place[name] = row.numbers.get(name, np.nan)
    kl = np.array([row.kl_by_scale for row in kept], np.float64).reshape(len(kept), num_scales)
    return table, kl


def from_arrays(table: NDArray[np.void], kl: NDArray[np.float64]) -> tuple[Row, ...]:
    """The rows of `as_arrays`."""
    return tuple(
        Row(
            int(place["entrant"]),
            int(place["prompt"]),
            int(place["seed"]),
            bytes(place["bits_sha256"]).decode("ascii"),
            {name: float(place[name]) for name in NUMBERS if not np.isnan(place[name])},
            tuple(map(float, scales)),
        )
        for place, scales in zip(table, kl, strict=True)
    )


def row_dtype() -> np.dtype[np.void]:
    """The record of a row as it is in a file."""
    places = [("entrant", "<i4"), ("prompt", "<i4"), ("seed", "<i8"), ("bits_sha256", "S64")]
    return np.dtype([*places, *((name, "<f8") for name in NUMBERS)])
