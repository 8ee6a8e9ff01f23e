"""Fidelity: from the attention mass that a schedule loses to how far its image will be off, learnt from forced runs.

A line through measured pairs in logarithms: log10 of the error = intercept + slope * log10 of the mass lost. The band
is the spread of what was left over in prompts that the line had not seen. It holds for the model and the scales that it
was learnt on, and within the range of losses that were tried; elsewhere there is no prediction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from heatkv.files import read_json, write_new
from kvscope.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT, VERSION = "kvscope.fidelity", 1
MEASURES = ("kl", "flips")
"""What is predicted: mean KL of the bits in nats, and the fraction of bits that flip; both forced."""

BAND = 1.2816
"""Standard deviations on either side: eight of ten measurements fall between."""

ROUNDING = 3e-4
"""Losses below this share of attention say nothing: rounding, which changes with how heads are grouped, moves the bits
as much."""

_EXPECTED = "expected a file made by `kvscope fidelity`"


@dataclass(frozen=True, slots=True)
class Trial:
    """One schedule tried on one prompt."""

    prompt: int
    """Which prompt: trials of one are left out together."""
    schedule: str
    """What schedule it was, in a word."""
    lost: float
    """Estimated: Estimate.lost of the schedule on that prompt's full run."""
    kl: float
    """Forced: mean KL in nats per bit."""
    flips: float
    """Forced: fraction of bits."""


@dataclass(frozen=True, slots=True)
class Band:
    """A prediction: between low and high in eight cases of ten."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """log10 measure = intercept + slope · log10 lost."""

    intercept: float
    slope: float
    spread: float
    """Standard deviation of log10, over prompts left out."""
    rank_correlation: float
    """Spearman's, of estimated loss and measured error, of all trials that it was learnt from."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What was learnt for one model and its scales."""

    model: str
    sizes: tuple[tuple[int, int], ...]
    lines: dict[str, Line]
    """One of each of MEASURES."""
    least: float
    most: float
    """The range of losses that were tried."""
    trials: tuple[Trial, ...]

    @classmethod
    def learnt(cls, model: str, sizes: tuple[tuple[int, int], ...], trials: Sequence[Trial]) -> Self:
        """From trials; those that lost less than ROUNDING say nothing about a slope and are left out. Raises UsageError
        if too few are left."""
        useful = [trial for trial in trials if trial.lost >= ROUNDING and trial.kl > 0 and trial.flips > 0]
        if len(useful) < 10 or len({trial.prompt for trial in useful}) < 2:
            raise UsageError(f"{len(useful)} trials that lose anything; learning needs 10, of 2 prompts or more")
        lines = {measure: _line(useful, measure) for measure in MEASURES}
        lost = [trial.lost for trial in useful]
        return cls(model, sizes, lines, min(lost), max(lost), tuple(trials))

    def predict(self, measure: str, lost: float) -> Band | None:
        """The error that goes with a loss; None where nothing was learnt: past all trials, or for an unknown loss."""
        if lost == 0:
            return Band(0.0, 0.0, 0.0)
        if not self.least <= lost <= self.most:
            return None
        line = self.lines[measure]
        middle = line.intercept + line.slope * math.log10(lost)
        low, high = middle - BAND * line.spread, middle + BAND * line.spread
        return Band(10**low, 10**middle, 10**high)

    def coverage(self, measure: str) -> float:
        """How many trials, as a fraction, fall within the band that the trials of all other prompts give; NaN: none.

        Trials past the losses that those others tried have no band, and do not count.
        """
        inside = []
        for prompt in sorted({trial.prompt for trial in self.trials}):
            others = [trial for trial in self.trials if trial.prompt != prompt]
            try:
                learnt = self.learnt(self.model, self.sizes, others)
            except UsageError:  # too few prompts are left
                continue
            for trial in self.trials:
                band = learnt.predict(measure, trial.lost) if trial.prompt == prompt and trial.lost > 0 else None
                if band is not None:
                    inside.append(band.low <= getattr(trial, measure) <= band.high)
        return float(np.mean(inside)) if inside else math.nan

    def fits(self, model: str, sizes: tuple[tuple[int, int], ...]) -> bool:
        """Whether it was learnt on this model at these scales."""
        return (self.model, self.sizes) == (model, sizes)

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    def save(self, path: Path, *, overwrite: bool = False) -> Path:
        """Write the JSON file. Raises OutputError if it exists, unless `overwrite`."""
        return write_new(path, json.dumps(self.to_json(), indent=1).encode() + b"\n", overwrite=overwrite)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file made by `save`. Raises UsageError saying what is wrong with it."""
        record = read_json(path, expected=_EXPECTED.removeprefix("expected "), error=UsageError)
        if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
            raise UsageError(f"{path}: not a fidelity of version {VERSION}; {_EXPECTED}")
        try:
            return cls(
                str(record["model"]),
                tuple((int(height), int(width)) for height, width in record["sizes"]),
                {measure: Line(**record["lines"][measure]) for measure in MEASURES},
                float(record["least"]),
                float(record["most"]),
                tuple(Trial(**trial) for trial in record["trials"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: damaged ({error}); {_EXPECTED}") from None


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: the correlation of ranks, ties at their mean; NaN if one does not vary."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (a, b)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    ranks: NDArray[np.float64] = (first + (counts - 1) / 2)[where]
    return ranks


def _line(trials: Sequence[Trial], measure: str) -> Line:
    lost = np.log10([trial.lost for trial in trials])
    error = np.log10([getattr(trial, measure) for trial in trials])
    prompts = np.array([trial.prompt for trial in trials])
    slope, intercept = np.polyfit(lost, error, 1)
    left_over = []
    for prompt in np.unique(prompts):
        inside, outside = prompts != prompt, prompts == prompt
        line = np.polyfit(lost[inside], error[inside], 1)
        left_over.append(error[outside] - np.polyval(line, lost[outside]))
    spread = float(np.sqrt(np.mean(np.concatenate(left_over) ** 2)))
    return Line(float(intercept), float(slope), spread, rank_correlation(lost.tolist(), error.tolist()))
