"""Job: everything needed to repeat a run, as plain data and as JSON. One job makes one trace."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin, get_type_hints

from heatkv.codecs import MODEL, codec_named
from kvscope.errors import UsageError

if TYPE_CHECKING:
    from heatkv.probe import Capture

_MODES = ("free", "forced")
_MOST = 1000.0
_MOST_WHOLE = 1 << 53

DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
"""Bytes of one number of each dtype that a model can run in."""


MapKind = Literal["uint8", "float32"]
MAP_KINDS: tuple[MapKind, ...] = ("uint8", "float32")
"""How a trace stores attention maps: in codes of one byte (see maps.py), or as measured."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run: what to generate, with which model, and how its cache is pruned."""

    prompt: str
    model: str
    policy: str
    seed: int = 0
    negative_prompt: str | None = None
    """Text of the unconditional row; None: the model's learned one."""
    weights: str | None = None
    """Folder of weights; None: those that come with the model, or random ones."""
    random_weights: bool = False
    resolution: str | None = None
    """A name such as `0.06M`; None: the model's own."""
    aspect: float = 1.0
    """Height / width."""
    budget: float | None = None
    """Fraction of history kept at peak; None: no budget."""
    orders: str | None = None
    """File of head orders to plan from."""
    schedule: str | None = None
    """File of a pruning schedule to obey, instead of planning."""
    sink_scales: int | None = None
    """First scales that are never evicted; None: the model's default."""
    kv_codec: str = MODEL
    """How stored tokens are written, but for the sinks; a budget is then of bytes, and buys more tokens."""
    cfg: float = 3.0
    tau: float = 1.0
    top_k: int = 900
    top_p: float = 0.97
    dtype: str = "bfloat16"
    device: str = "cpu"
    attention_mass: bool = False
    """Measure the attention that each source scale receives, in the conditional rows. This and the next two take time
    or memory from the run: the trace says `perturbed`."""
    attention_mass_uncond: bool = False
    """The same in the unconditional rows."""
    attention_map: MapKind | None = None
    """Record the attention that each key cell receives, in codes of one byte or as it was measured; None: do not."""
    bit_exact: bool = True
    """Measure so that no bit of the image changes; False: faster, and the image may change by rounding."""
    parent: str | None = None
    """The trace that this job repeats with changes."""
    mode: Literal["free", "forced"] = "free"
    """`forced` feeds the parent's bits at every scale; `free` generates as a user would."""

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise UsageError(f"job mode {self.mode!r}; expected one of {', '.join(_MODES)}")
        if self.mode == "forced" and self.parent is None:
            raise UsageError("a forced job repeats a parent's bits; give the parent trace")
        if self.budget is not None and not 0 <= self.budget <= 1:
            raise UsageError(f"budget {self.budget} is not a fraction of history; expected 0 to 1")
        if not 0 < self.aspect < math.inf:
            raise UsageError(f"aspect {self.aspect} is not a height / width ratio; expected a number above 0")
        if not 0 < self.tau <= _MOST:
            raise UsageError(f"temperature {self.tau} is not possible; expected above 0 and at most {_MOST:g}")
        if not 0 <= self.cfg <= _MOST:
            raise UsageError(f"guidance {self.cfg} is not possible; expected 0 to {_MOST:g}; 1 is no guidance")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed {self.seed} is not possible; expected 0 to 2^63 - 1")
        codec_named(self.kv_codec)
        if self.dtype not in DTYPE_BYTES:
            raise UsageError(f"dtype {self.dtype!r}; expected one of {', '.join(DTYPE_BYTES)}")
        if self.attention_map is not None and self.attention_map not in MAP_KINDS:
            raise UsageError(f"attention map as {self.attention_map!r}; expected one of {', '.join(MAP_KINDS)}")
        self._check_texts()

    @property
    def capture(self) -> Capture:
        """What a run of this job measures of attention."""
        # Deferred: what only reads traces has no use for a probe.
        from heatkv.probe import Capture

        maps = self.attention_map is not None
        return Capture(self.attention_mass, self.attention_mass_uncond, maps, bit_exact=self.bit_exact)

    @property
    def tiers(self) -> tuple[str, ...]:
        """What a trace of this job records of attention: `occupancy`; and if wanted `mass`, `mass_uncond`, `maps`."""
        has_maps = self.attention_map is not None
        wanted = {"mass": self.attention_mass, "mass_uncond": self.attention_mass_uncond, "maps": has_maps}
        return ("occupancy", *(tier for tier, is_on in wanted.items() if is_on))

    def _check_texts(self) -> None:
        for text in (self.prompt, self.negative_prompt or ""):
            if any(0xD800 <= ord(character) <= 0xDFFF for character in text):  # bytes that were not UTF-8
                raise UsageError(f"prompt {text!r} is not UTF-8 text")

    def replayed(self, parent: Path, schedule: Path, mode: str) -> Job:
        """This job of a parent trace again, under another schedule. Raises UsageError for an unknown mode."""
        return dataclasses.replace(
            self,
            policy="schedule",
            budget=None,
            orders=None,
            sink_scales=None,
            kv_codec=MODEL,  # the schedule says what is stored how
            schedule=str(schedule),
            parent=str(parent),
            mode=cast("Literal['free', 'forced']", mode),  # checked when the job is made
        )

    def replanned(
        self,
        parent: Path,
        mode: str,
        *,
        policy: str,
        budget: float | None = None,
        orders: Path | None = None,
        sink_scales: int | None = None,
    ) -> Job:
        """This job of a parent trace again, under another policy. Raises UsageError for an unknown mode or a budget."""
        return dataclasses.replace(
            self,
            policy=policy,
            budget=budget,
            orders=None if orders is None else str(orders),
            sink_scales=sink_scales,
            kv_codec=MODEL,  # as the budget: not the parent's
            schedule=None,
            parent=str(parent),
            mode=cast("Literal['free', 'forced']", mode),  # checked when the job is made
        )

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Job:  # Any: a JSON object
        """The job of a JSON object; keys of later versions are ignored.

        Raises UsageError if one is missing, or is of another type than it should be.
        """
        expected = "expected a JSON object with prompt, model and policy"
        if not isinstance(record, dict):
            raise UsageError(f"not a job ({type(record).__name__}); {expected}")
        kinds = get_type_hints(cls)
        given = {key: value for key, value in record.items() if key in kinds}
        for key, value in given.items():
            if not _is_a(value, kinds[key]):
                raise UsageError(f"not a job ({key} is {value!r:.50}); {expected}")
        try:
            return cls(**given)
        except TypeError as error:
            raise UsageError(f"not a job ({error}); {expected}") from None


def _is_a(value: Any, kind: Any) -> bool:  # Any: JSON values, and types as annotations give them
    """Whether a value of JSON is of an annotation's type; a whole number is a float, but True is no number.

    Of a Literal any value is: the job itself says which ones there are.
    """
    if get_origin(kind) is Literal:
        return True
    if get_args(kind):
        return any(_is_a(value, one) for one in get_args(kind))
    if kind is float:
        return type(value) is float or (type(value) is int and abs(value) < _MOST_WHOLE)
    return type(value) is kind
