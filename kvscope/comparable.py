"""Whether, and how far, two recorded runs can be compared: what must be the same, and what must be known beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from kvscope import units
from kvscope.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from heatkv.schedule import PruningSchedule
    from kvscope.header import Header


class Recorded(Protocol):
    """What a comparison needs of a run: a Trace has it, and so has a Snapshot of one."""

    @property
    def path(self) -> Path: ...
    @property
    def header(self) -> Header: ...
    @property
    def schedule(self) -> PruningSchedule: ...
    @property
    def status(self) -> str: ...
    @property
    def scales_done(self) -> int: ...
    @property
    def steps(self) -> NDArray[np.void]: ...
    @property
    def kept_tokens(self) -> NDArray[np.integer]: ...
    @property
    def read_tokens(self) -> NDArray[np.integer]: ...
    @property
    def attention_mass(self) -> NDArray[np.floating]: ...
    @property
    def image(self) -> NDArray[np.uint8] | None: ...


About = Literal["run", "memory", "time", "pictures"]


@dataclass(frozen=True, slots=True)
class Note:
    """What must be known to read a comparison right."""

    about: About
    text: str


_OF_PICTURE = ("model", "prompt", "negative_prompt", "seed")
"""Facts of a run that make its picture another one altogether."""
_OF_SAMPLING = ("cfg", "tau", "top_k", "top_p", "weights")
"""Facts that change a picture, as a pruned cache does."""


def check_comparable(a: Recorded, b: Recorded, side: str = "B") -> None:
    """Raises UsageError, naming what differs and both values, for runs whose heads or scales are not the same.

    `side`: what the second run is called, beside A.
    """
    for name, of_a, of_b in (
        ("layers", a.header.num_layers, b.header.num_layers),
        ("heads", a.header.num_heads, b.header.num_heads),
        ("head dimension", a.header.head_dim, b.header.head_dim),
        ("scales", _scales_text(a.header), _scales_text(b.header)),
    ):
        if of_a != of_b:
            raise UsageError(
                f"{a.path.name} and {b.path.name} cannot be compared: {name} {of_a} in A and {of_b} in {side}; "
                "choose two runs of one model at one resolution"
            )


def other_picture(a: Recorded, b: Recorded) -> list[str]:
    """The facts by which the two runs were to make different pictures."""
    return [
        name.replace("_", " ") for name in _OF_PICTURE if getattr(a.header.job, name) != getattr(b.header.job, name)
    ]


def notes_on(a: Recorded, b: Recorded, shared: int, side: str = "B") -> Iterator[Note]:
    """Most important first. `side`: as in check_comparable."""
    yield from _progress_notes(a, b, shared, side)
    other = other_picture(a, b)
    if other:
        yield Note("pictures", f"{' and '.join(other)} not the same: pictures, bits and attention are of two things")
    yield from _honesty_notes(a, b, side)
    yield from _choice_notes(a, b, side)
    yield from _memory_notes(a, b, side)
    for name in _OF_SAMPLING:
        of_a, of_b = getattr(a.header.job, name), getattr(b.header.job, name)
        if of_a != of_b:
            yield Note("pictures", f"{name} {of_a} in A, {of_b} in {side}: pictures differ for that too")


def shared_text(shared: int) -> str:
    """Which scales are compared, where it is not all of them."""
    return "scale 0 only" if shared == 1 else f"scales 0 to {shared - 1} only"


def _progress_notes(a: Recorded, b: Recorded, shared: int, side: str) -> Iterator[Note]:
    if a.header.run_id == b.header.run_id:
        yield Note("run", f"A and {side} are one run: nothing differs but how much of it was read")
    if a.scales_done != b.scales_done:
        counts = ", ".join(f"{name} {run.status} with {run.scales_done}" for name, run in (("A", a), (side, b)))
        yield Note("run", f"{shared_text(shared) if shared else 'no scale'}: {counts}; memory of the process left out")
    elif a.status != "done" or b.status != "done":
        yield Note("run", f"A is {a.status}, {side} is {b.status}, both with {shared} scales")


def _honesty_notes(a: Recorded, b: Recorded, side: str) -> Iterator[Note]:
    for name, run in (("A", a), (side, b)):
        if run.header.job.mode == "forced":
            yield Note("pictures", f"{name} is forced: it was fed its parent's bits, so its bits agree by construction")
    random = [name for name, run in (("A", a), (side, b)) if run.header.job.random_weights]
    if random:
        yield Note("pictures", f"random weights in {' and '.join(random)}: pictures and attention mean nothing")
    causes = [run.header.perturbed_by or "recording" if run.header.perturbed else None for run in (a, b)]
    if causes[0] != causes[1]:
        words = ", ".join(f"{name} {cause or 'was not'}" for name, cause in zip(("A", side), causes, strict=True))
        yield Note("memory", f"perturbed differently ({words}): time and process memory do not compare, the cache does")
    elif causes[0] is not None:
        yield Note("memory", "each was perturbed by its recording, whose time and memory are in it")


def _choice_notes(a: Recorded, b: Recorded, side: str) -> Iterator[Note]:
    for name, run in (("A", a), (side, b)):
        if run.schedule.online:
            words = f"{name}: {units.printable(run.schedule.policy)} chose single tokens during the run"
            yield Note("run", f"{words}; kept and read tokens are the first row's, other rows may keep others, as many")


def _memory_notes(a: Recorded, b: Recorded, side: str) -> Iterator[Note]:
    if a.header.bytes_per_token != b.header.bytes_per_token:
        words = ", ".join(
            f"{name} {units.bytes_text(run.header.bytes_per_token)} ({run.header.dtype}, {run.header.rows} rows)"
            for name, run in (("A", a), (side, b))
        )
        yield Note("memory", f"bytes per token differ: {words}; bytes differ for that too, tokens do not")
    codecs = [" and ".join(pool.codec for pool in run.header.pools) or "the model's dtype" for run in (a, b)]
    if codecs[0] != codecs[1]:
        words = f"A stores tokens in {codecs[0]}, {side} in {codecs[1]}"
        yield Note("memory", f"{words}: a token is not the same bytes in both")
    machines = [run.header.gpu_name or run.header.device for run in (a, b)]
    if machines[0] != machines[1]:
        yield Note("time", f"A ran on {machines[0]}, {side} on {machines[1]}: times do not compare")


def _scales_text(header: Header) -> str:
    return " ".join(f"{height}x{width}" for height, width in header.scales.sizes)
