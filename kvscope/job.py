"""Job: everything needed to repeat a run, as plain data and as JSON. One job makes one trace."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from kvscope.errors import UsageError

_MODES = ("free", "forced")
_MOST = 1000.0

DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
"""Bytes of one number of each dtype that a model can run in."""


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
    cfg: float = 3.0
    tau: float = 1.0
    top_k: int = 900
    top_p: float = 0.97
    dtype: str = "bfloat16"
    device: str = "cpu"
    attention_mass: bool = False
    """Measure the attention each source scale receives. Costs time and memory: the trace says `perturbed`."""
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
        if not abs(self.cfg) <= _MOST:
            raise UsageError(f"guidance {self.cfg} is not possible; expected a number of at most {_MOST:g}")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed {self.seed} is not possible; expected 0 to 2^63 - 1")
        if self.dtype not in DTYPE_BYTES:
            raise UsageError(f"dtype {self.dtype!r}; expected one of {', '.join(DTYPE_BYTES)}")
        self._check_texts()

    def _check_texts(self) -> None:
        for text in (self.prompt, self.negative_prompt or ""):
            if any(0xD800 <= ord(character) <= 0xDFFF for character in text):  # bytes that were not UTF-8
                raise UsageError(f"prompt {text!r} is not UTF-8 text")

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Job:  # Any: a JSON object
        """The job of a JSON object; keys of later versions are ignored. Raises UsageError if one is missing."""
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            return cls(**{key: value for key, value in record.items() if key in known})
        except (AttributeError, TypeError) as error:
            raise UsageError(f"not a job ({error}); expected a JSON object with prompt, model and policy") from None
