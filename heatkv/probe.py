"""Probe: what a run tells whoever listens. Typing only; arrays are handed over, never copied here.

A run calls, in this order: `run_started` once; per scale `step_done` for every layer, then `scale_done`.
Step arrays may still be on the device: a probe that needs them on the host copies them after the scale,
so that listening adds no synchronisation inside one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from heatkv.codecs import MODEL
from heatkv.scales import ScaleSchedule

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from heatkv.schedule import PruningSchedule


@dataclass(frozen=True, slots=True)
class Capture:
    """What a probe wants measured of self attention. Nothing by default: it costs time."""

    mass: bool = False
    """Attention mass of each source scale, in the conditional rows."""
    unconditional: bool = False
    """The same in the unconditional rows, where there are any."""
    maps: bool = False
    """Attention that every single key receives, in the conditional rows."""
    bit_exact: bool = True
    """The run's output stays bit for bit what it is without capture; False: faster, outputs may differ by rounding."""

    @property
    def any(self) -> bool:
        return self.mass or self.unconditional or self.maps

    def __or__(self, other: Capture) -> Capture:
        """What serves both: bit exact if one of them that wants something needs it."""
        exact = [one.bit_exact for one in (self, other) if one.any]
        return Capture(
            self.mass or other.mass,
            self.unconditional or other.unconditional,
            self.maps or other.maps,
            any(exact) or not exact,
        )


@dataclass(frozen=True, slots=True)
class PoolStart:
    """Where a cache keeps the tokens of one codec."""

    codec: str
    bytes_per_token: int
    """Of one token's key and value in one head, over all rows."""
    capacity_tokens: int
    """Head-tokens that it has room for."""


@dataclass(frozen=True, slots=True)
class RunStart:
    """Fixed facts of a run, known before its first step."""

    model: str
    scales: ScaleSchedule
    num_layers: int
    num_heads: int
    head_dim: int
    bits_per_token: int
    rows: int
    """Batch rows that hold K and V: images, times two with guidance."""
    dtype: str
    """The dtype of K and V, such as `bfloat16`."""
    dtype_bytes: int
    device: str
    attention: str
    """How self attention is computed, and why so: one line."""
    capacity_tokens: int
    """Head-tokens that the cache has room for."""
    schedule: PruningSchedule
    """The plan in force."""
    pools: tuple[PoolStart, ...] = ()
    """One for each codec of the plan; empty: it has none, and every token takes what the dtype does."""
    revise: Callable[[PruningSchedule, int], PruningSchedule] | None = None
    """Goes on with another schedule from a query scale on; called by a probe before that scale, in `run_started` or
    `scale_done`, which returns the schedule then in force. Raises ScheduleError; None: it cannot be revised."""

    @property
    def rooms(self) -> tuple[PoolStart, ...]:
        """`pools`, or where there are none the one that holds every token in the model's dtype."""
        token_bytes = 2 * self.head_dim * self.dtype_bytes * self.rows
        return self.pools or (PoolStart(MODEL, token_bytes, self.capacity_tokens),)


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One layer of one scale, after its write and eviction."""

    query_scale: int
    layer: int
    begin_ns: int
    """Monotonic clock, as end_ns; on a GPU the host's clock at launch."""
    end_ns: int
    device_ns: int | None
    """Time on the device; None where it was not measured (on the CPU, end_ns - begin_ns is it)."""
    accounted_bytes: int
    """Kept tokens of all layers and heads × bytes per token: what the budget counts."""
    storage_bytes: int
    """Every byte the cache holds for keys, values and its index, from its tensors and arrays."""
    evicted_tokens: int
    """Tokens freed by this step, over all layers and heads (early activation frees later layers' too)."""
    kept_tokens: NDArray[np.int64]
    """[head, source_scale]: what this layer holds after the step, counted in the cache."""
    read_tokens: NDArray[np.int64]
    """[head, source_scale]: what attention at this step could read, the current scale included."""
    attention_mass: Tensor | None = None
    """[head, source_scale] float32, mean over queries and conditional rows; None: not measured, NaN: not visible."""
    attention_mass_uncond: Tensor | None = None
    """The same, of the unconditional rows."""
    attention_map: Tensor | None = None
    """[head, token] float32, tokens of scales 0 to query_scale: attention that each key receives, mean over queries
    and conditional rows; NaN where the head did not see the key."""


@dataclass(frozen=True, slots=True)
class ScaleInfo:
    """One finished scale."""

    query_scale: int
    bits: Tensor
    """[batch, tokens, bits_per_token] uint8."""
    logits: Tensor
    """[batch, tokens, 2 * bits_per_token] float32: what the sampler saw, after temperature and guidance."""
    codes: Tensor
    """[batch, code_channels, height, width] float32: the codes summed so far, at the final grid."""


class Probe(Protocol):
    """Listens to a run; `capture` says what it wants measured of attention."""

    @property
    def capture(self) -> Capture: ...

    def run_started(self, start: RunStart) -> None: ...

    def step_done(self, step: StepInfo) -> None: ...

    def scale_done(self, scale: ScaleInfo) -> None: ...


class NullProbe:
    """Listens to nothing."""

    capture = Capture()

    def run_started(self, start: RunStart) -> None:
        return

    def step_done(self, step: StepInfo) -> None:
        return

    def scale_done(self, scale: ScaleInfo) -> None:
        return
