"""Fidelity: from the attention mass that a schedule loses to how far its image will be off, learnt from forced runs.

A line through measured pairs in logarithms: log10 of the error = intercept + slope * log10 of the mass lost. The band
is what was left over in prompts that the line had not seen, at losses like the one asked for: it is wider where errors
scatter more. It holds for the model and the scales that it
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

FORMAT, VERSION = "kvscope.fidelity", 2
MEASURES = ("kl", "flips")
"""What is predicted: mean KL of the bits in nats, and the fraction of bits that flip; both forced."""

BAND = 1.2816
"""Standard deviations on either side: eight of ten measurements fall between. For files of version 1, of one width."""

TAIL = 0.1
"""Share of measurements on either side of the band."""

_NUM_KNOTS = 7
_NEAR, _LEAST_NEAR = 0.25, 20
"""Share of the trials, and the least number of them, that the band at one loss is taken from."""

ROUNDING = 3e-4
"""Losses below this share of attention say nothing: rounding, which changes with how heads are grouped, moves the bits
as much."""

COARSE = 0.1
"""Share of a loss that may be coarser codecs' noise: a fidelity is learnt from what dropping does, and where noise was
more than this, it predicted far too little (docs/tuning.md)."""

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
    knots: tuple[tuple[float, float, float], ...] = ()
    """(log10 lost, lower edge, upper edge), ascending: the band around the line, in log10, straight between knots.
    Empty: one width, BAND * spread."""

    def band(self, lost: float) -> Band:
        """The prediction at a loss."""
        middle, (low, high) = self.intercept + self.slope * math.log10(lost), self.edges(lost)
        return Band(10 ** (middle + low), 10**middle, 10 ** (middle + high))

    def edges(self, lost: float) -> tuple[float, float]:
        """The band's edges around the line, in log10."""
        if not self.knots:
            return -BAND * self.spread, BAND * self.spread
        places, low, high = zip(*self.knots, strict=True)
        at = math.log10(lost)
        return float(np.interp(at, places, low)), float(np.interp(at, places, high))


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

    def predict(self, measure: str, lost: float, *, coarse_share: float = 0.0) -> Band | None:
        """The error that goes with a loss; None where nothing was learnt: past all trials, for an unknown loss, or for
        one of which more than COARSE is coarser codecs' noise."""
        if lost == 0:
            return Band(0.0, 0.0, 0.0)
        if coarse_share > COARSE or not self.least <= lost <= self.most:
            return None
        return self.lines[measure].band(lost)

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
        if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") not in (1, VERSION):
            raise UsageError(f"{path}: not a fidelity of version 1 or {VERSION}; {_EXPECTED}")
        try:
            return cls(
                str(record["model"]),
                tuple((int(height), int(width)) for height, width in record["sizes"]),
                {measure: _read_line(record["lines"][measure]) for measure in MEASURES},
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
    left_over = np.zeros(len(error))
    for prompt in np.unique(prompts):
        inside, outside = prompts != prompt, prompts == prompt
        line = np.polyfit(lost[inside], error[inside], 1)
        left_over[outside] = error[outside] - np.polyval(line, lost[outside])
    spread = float(np.sqrt(np.mean(left_over**2)))
    rank = rank_correlation(lost.tolist(), error.tolist())
    return Line(float(intercept), float(slope), spread, rank, _knots(lost, left_over))


def _knots(lost: NDArray[np.float64], left_over: NDArray[np.float64]) -> tuple[tuple[float, float, float], ...]:
    """The band's edges at losses with equally many trials between, each from the trials nearest to it."""
    count = min(len(lost), max(_LEAST_NEAR, round(_NEAR * len(lost))))
    tail = TAIL * (1 - 1 / count)  # of few trials the outermost do not reach as far as of many
    knots = []
    for place in np.quantile(lost, np.linspace(0, 1, _NUM_KNOTS)):
        near = np.argsort(np.abs(lost - place), kind="stable")[:count]
        low, high = np.quantile(left_over[near], [tail, 1 - tail])
        knots.append((float(place), float(low), float(high)))
    return tuple(knots)


def _read_line(record: dict[str, Any]) -> Line:  # Any: JSON values
    knots = tuple((float(place), float(low), float(high)) for place, low, high in record.get("knots", ()))
    return Line(**record | {"knots": knots})
