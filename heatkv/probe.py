"""Probe: what a run tells whoever listens. Typing only; arrays are handed over, never copied here.

A run calls, in this order: `run_started` once; per scale `step_done` for every layer, then `scale_done`.
Step arrays may still be on the device: a probe that needs them on the host copies them after the scale,
so that listening adds no synchronisation inside one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from heatkv.scales import ScaleSchedule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from heatkv.schedule import PruningSchedule


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
    schedule: PruningSchedule
    """The plan in force."""


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
    """Every byte the cache holds, from its tensors."""
    evicted_tokens: int
    """Tokens freed by this step, over all layers and heads (early activation frees later layers' too)."""
    kept_tokens: NDArray[np.int64]
    """[head, source_scale]: what this layer holds after the step, counted in the cache."""
    read_tokens: NDArray[np.int64]
    """[head, source_scale]: what attention at this step could read, the current scale included."""
    attention_mass: Tensor | None
    """[head, source_scale] float32, mean over queries and conditional rows; None: not measured."""


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
    """Listens to a run. Set `wants_attention_mass` to have the mass measured (it costs time, not exactness)."""

    @property
    def wants_attention_mass(self) -> bool: ...

    def run_started(self, start: RunStart) -> None: ...

    def step_done(self, step: StepInfo) -> None: ...

    def scale_done(self, scale: ScaleInfo) -> None: ...


class NullProbe:
    """Listens to nothing."""

    wants_attention_mass = False

    def run_started(self, start: RunStart) -> None:
        return

    def step_done(self, step: StepInfo) -> None:
        return

    def scale_done(self, scale: ScaleInfo) -> None:
        return
