"""Comparison: two recorded runs beside each other, A and B, in numbers. Pure numpy; knows neither files nor screens.

Every difference is B − A, every ratio B / A, whoever shows it. Runs are aligned by query scale, layer, head and source
scale; what only one of them has is left out, and a Note says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from kvscope.comparable import Note, Recorded, check_comparable, notes_on, other_picture
from kvscope.likeness import psnr, ssim

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvscope.analysis import Summary


@runtime_checkable
class RecordsBits(Protocol):
    """A run whose sampled bits can be read: a Trace."""

    def bits(self, scale: int) -> NDArray[np.uint8]: ...


Unit = Literal["bytes", "seconds"]


@dataclass(frozen=True, slots=True)
class Pair:
    """One number of both runs; None: not known."""

    name: str
    """With its unit, as `storage_peak_bytes`."""
    title: str
    unit: Unit
    a: float | None
    b: float | None
    tag: str
    """How it came about: measured, forced or defined; of each run, where they differ."""

    @property
    def difference(self) -> float | None:
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def ratio(self) -> float | None:
        """B / A; None where A is 0."""
        return None if self.a is None or self.b is None or self.a == 0 else self.b / self.a

    @property
    def change(self) -> float | None:
        """The difference as a fraction of A."""
        return None if self.ratio is None else self.ratio - 1

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return {
            "a": self.a,
            "b": self.b,
            "difference": self.difference,
            "ratio": self.ratio,
            "tag": None if self.a is None and self.b is None else self.tag,
        }


@dataclass(frozen=True, slots=True)
class ScalePair:
    """One query scale that both runs have finished."""

    query_scale: int
    tokens: int
    numbers: tuple[Pair, ...]
    """storage_bytes and accounted_bytes, the most within the scale; seconds, of those in its layers."""
    bit_agreement: float | None
    """Share of sampled bits that are the same; None: not known."""

    def number(self, name: str) -> Pair:
        """One of `numbers`."""
        return next(pair for pair in self.numbers if pair.name == name)


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike the two results are; None: not known, for the reason."""

    reason: str | None
    """Why pictures are not compared; None: they are."""
    psnr: float | None
    """dB; infinite where the pictures are the same."""
    ssim: float | None
    bit_agreement: float | None
    """Of all scales that both have."""
    lpips: float | None = None
    """See kvscope.lpips; measured only where it is asked for."""

    @property
    def finite_psnr(self) -> float | None:
        """The PSNR where it is a number; None: the pictures are the same, or not known."""
        return None if self.psnr is None or math.isinf(self.psnr) else self.psnr


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run B beside run A."""

    a: Summary
    b: Summary
    scales_shared: int
    """Query scales that both have finished; nothing beyond is compared."""
    totals: tuple[Pair, ...]
    scales: tuple[ScalePair, ...]
    likeness: Likeness
    notes: tuple[Note, ...]
    side: str = "B"
    """What run B is called: C, D, … where several runs stand beside A."""

    @property
    def whole(self) -> bool:
        """All that either has recorded is compared."""
        return self.scales_shared == self.a.scales_done == self.b.scales_done

    def total(self, name: str) -> Pair:
        """One of `totals`."""
        return next(pair for pair in self.totals if pair.name == name)

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """All but A; an infinite PSNR is None beside `pictures_equal`."""
        alike = self.likeness
        return {
            "b": facts(self.b),
            "scales_shared": self.scales_shared,
            "totals": {pair.name: pair.to_json() for pair in self.totals},
            "pictures": {
                "not_compared": alike.reason,
                "pictures_equal": None if alike.psnr is None else math.isinf(alike.psnr),
                "psnr_db": alike.finite_psnr,
                "ssim": alike.ssim,
                "lpips": alike.lpips,
                "bit_agreement": alike.bit_agreement,
            },
            "scales": [
                {"query_scale": scale.query_scale, "tokens": scale.tokens, "bit_agreement": scale.bit_agreement}
                | {pair.name: pair.to_json() for pair in scale.numbers}
                for scale in self.scales
            ],
            "notes": [{"about": note.about, "text": note.text} for note in self.notes],
        }


@dataclass(frozen=True, slots=True)
class CellDifference:
    """A head-scale at the query scale where it differs most."""

    query_scale: int
    layer: int
    head: int
    source_scale: int
    a: float
    b: float

    @property
    def difference(self) -> float:
        return self.b - self.a

    def to_json(self) -> dict[str, int | float]:
        return asdict(self) | {"difference": self.difference}


Cells = Callable[[Recorded], "NDArray[np.float64]"]

MEASURES: dict[str, Cells] = {
    "kept": lambda run: run.kept_tokens.astype(np.float64),
    "read": lambda run: run.read_tokens.astype(np.float64),
    "mass": lambda run: run.attention_mass.astype(np.float64),
}
"""What head-scales can be compared by: name → values [query_scale, layer, head, source_scale], NaN: there is none."""

TOTALS: dict[str, str] = {
    "storage_peak_bytes": "stored peak",
    "accounted_peak_bytes": "accounted peak",
    "budget_bytes": "budget",
    "full_history_bytes": "full history",
    "allocator_peak_bytes": "allocator peak",
    "process_rss_peak_bytes": "process peak",
    "gpu_used_peak_bytes": "GPU peak",
    "layer_seconds": "in layers",
    "seconds": "begin to end",
}
"""Name of each of a comparison's totals → its title."""

_OF_STEPS = ("storage_peak_bytes", "accounted_peak_bytes", "layer_seconds", "seconds")
"""Totals that are of the shared scales alone; of the others, a part of a run is not known."""
_OF_SCALES = {"storage_bytes": "stored", "accounted_bytes": "accounted", "seconds": "in layers"}
"""Numbers of each scale: a ScaleSummary's own names → titles."""
_DEFINED = ("budget_bytes", "full_history_bytes")


def side_name(index: int) -> str:
    """A, B, C, … of the runs that are compared, and beyond Z their numbers."""
    return chr(ord("A") + index) if index < 26 else f"run {index + 1}"


def compare(a: Recorded, b: Recorded, summaries: tuple[Summary, Summary], side: str = "B") -> Comparison:
    """B beside A. `summaries`: what analysis.summarize says of each. Raises UsageError as check_comparable does."""
    check_comparable(a, b, side)
    shared = min(a.scales_done, b.scales_done)
    bits = _bit_agreements(a, b, shared)
    return Comparison(
        a=summaries[0],
        b=summaries[1],
        scales_shared=shared,
        totals=tuple(_totals(a, b, summaries, shared)),
        scales=tuple(_scale_pair(summaries, scale, bits) for scale in range(shared)),
        likeness=_likeness(a, b, bits),
        notes=tuple(notes_on(a, b, shared, side)),
        side=side,
    )


def differences(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """B − A of two runs' values [query_scale, layer, head, source_scale], as far as both go; NaN where one has none."""
    shared = min(len(a), len(b))
    return b[:shared] - a[:shared]


def largest(a: NDArray[np.float64], b: NDArray[np.float64], count: int) -> list[CellDifference]:
    """The head-scales that differ most, each at the query scale where it does; of equal ones the first comes first.

    Cells that only one run has, or that do not differ, are not among them.
    """
    size = np.nan_to_num(np.abs(differences(a, b)), nan=0.0)
    if not size.size:
        return []
    query_scales, most = size.argmax(axis=0), size.max(axis=0)
    found = []
    for index in np.argsort(-most, axis=None, kind="stable")[:count]:
        layer, head, source = map(int, np.unravel_index(index, most.shape))
        query_scale = int(query_scales[layer, head, source])
        place = query_scale, layer, head, source
        if most[place[1:]] > 0:
            found.append(CellDifference(*place, a=float(a[place]), b=float(b[place])))
    return found


def facts(summary: Summary) -> dict[str, Any]:  # Any: a JSON object
    """Which run it is."""
    names = ("trace", "run_id", "status", "model", "resolution", "policy", "budget", "mode", "scales_done")
    return {name: getattr(summary, name) for name in names}


def _totals(a: Recorded, b: Recorded, summaries: tuple[Summary, Summary], shared: int) -> Iterator[Pair]:
    whole = a.scales_done == b.scales_done
    of_a, of_b = (_of_steps(run, shared) for run in (a, b))
    for name, title in TOTALS.items():
        if name in _OF_STEPS:
            pair = of_a.get(name), of_b.get(name)
        elif whole or name in _DEFINED:
            pair = getattr(summaries[0], name), getattr(summaries[1], name)
        else:
            pair = None, None
        yield Pair(name, title, _unit_of(name), *pair, _tag(summaries, name))


def _of_steps(run: Recorded, shared: int) -> dict[str, float]:
    """What can be said of the first `shared` scales alone; nothing where they have no steps."""
    steps = run.steps[run.steps["query_scale"] < shared]
    if not steps.size:
        return {}
    return {
        "storage_peak_bytes": int(steps["storage_bytes"].max()),
        "accounted_peak_bytes": int(steps["accounted_bytes"].max()),
        "layer_seconds": float((steps["end_ns"] - steps["begin_ns"]).sum()) / 1e9,
        "seconds": float(steps["end_ns"].max() - steps["begin_ns"].min()) / 1e9,
    }


def _scale_pair(summaries: tuple[Summary, Summary], scale: int, bits: list[tuple[int, int]] | None) -> ScalePair:
    of_a, of_b = summaries[0].scales[scale], summaries[1].scales[scale]
    tag = _tag(summaries, "scales")
    numbers = tuple(
        Pair(name, title, _unit_of(name), getattr(of_a, name), getattr(of_b, name), tag)
        for name, title in _OF_SCALES.items()
    )
    agreement = None if bits is None else bits[scale][0] / bits[scale][1]
    return ScalePair(scale, of_a.tokens, numbers, agreement)


def _unit_of(name: str) -> Unit:
    return "bytes" if name.endswith("_bytes") else "seconds"


def _tag(summaries: tuple[Summary, Summary], name: str) -> str:
    of_a, of_b = (summary.tags[name] for summary in summaries)
    return of_a if of_a == of_b else f"A {of_a}, B {of_b}"


def _bit_agreements(a: Recorded, b: Recorded, shared: int) -> list[tuple[int, int]] | None:
    """(bits that are the same, bits) of each shared scale; None: the bits cannot be read, or mean different things."""
    if not (isinstance(a, RecordsBits) and isinstance(b, RecordsBits)) or other_picture(a, b):
        return None
    if a.header.bits_per_token != b.header.bits_per_token or not shared:
        return None
    equal = [a.bits(scale) == b.bits(scale) for scale in range(shared)]
    return [(int(np.count_nonzero(one)), one.size) for one in equal]


def _likeness(a: Recorded, b: Recorded, bits: list[tuple[int, int]] | None) -> Likeness:
    agreement = None if bits is None else sum(same for same, _ in bits) / sum(count for _, count in bits)
    reason = _no_likeness(a, b)
    if reason is not None or a.image is None or b.image is None:
        return Likeness(reason, None, None, agreement)
    return Likeness(None, psnr(a.image, b.image), ssim(a.image, b.image), agreement)


def _no_likeness(a: Recorded, b: Recorded) -> str | None:
    """Why the pictures are not compared; None: they are."""
    other = other_picture(a, b)
    if other:
        return f"{' and '.join(other)} differ{'s' if len(other) == 1 else ''}"
    missing = [side for side, run in (("A", a), ("B", b)) if run.image is None]
    if missing:
        return f"no picture in {' and '.join(missing)}"
    assert a.image is not None  # neither is missing
    assert b.image is not None
    return None if a.image.shape == b.image.shape else "pictures of two sizes"
