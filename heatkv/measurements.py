"""Measurements: what calibration tells policies of a model, as means over its prompts. numpy only.

Knows no file and no model: heatkv.calibrate measures, kvscope.calibration keeps. Anything may be absent; a policy asks
for what it needs with `require`. Axes are named in AXES; NaN where nothing can be measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.errors import MeasurementsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig
    from heatkv.scales import ScaleSchedule

_HEAD_SCALES = ("query_scale", "layer", "head", "source_scale")

AXES: dict[str, tuple[str, ...]] = {
    "attention_mass": _HEAD_SCALES,
    "attention_mass_uncond": _HEAD_SCALES,
    "column_variance": ("layer", "head"),
    "selectivity": ("query_scale", "layer"),
    "kv_similarity": ("layer", "source_scale"),
    "output_error": _HEAD_SCALES,
    "output_error_uncond": _HEAD_SCALES,
}
"""Measurement → its axes. A policy's `needs` are names of this table, or of what is derived from it."""

_DERIVED_FROM = {"reliance": "attention_mass", "static_score": "attention_mass"}
_WAY_OUT = "measure it with `kvscope calibrate --prompts FILE -o FILE`, and give that file as --orders"


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """Means over calibration prompts, float64 and read-only, with axes as in AXES; None: not measured."""

    attention_mass: NDArray[np.float64] | None = None
    """Softmax mass on each source scale, the current one included; mean over queries, conditional row."""
    attention_mass_uncond: NDArray[np.float64] | None = None
    """The same of the unconditional row."""
    column_variance: NDArray[np.float64] | None = None
    """At the last scale: variance over queries of each key's attention, summed over keys (HACK, arXiv 2504.09261)."""
    selectivity: NDArray[np.float64] | None = None
    """Mass on the current scale × mass on the most attended history tokens (ScaleKV, arXiv 2505.19602)."""
    kv_similarity: NDArray[np.float64] | None = None
    """Cosine of keys and values with those at the same place one scale before (AMS-KV, arXiv 2511.16047)."""
    output_error: NDArray[np.float64] | None = None
    """Squared change of the layer's attention output, projected, were this head blind to this source scale; as a
    fraction of the squared output of all heads. Conditional row; NaN for the current scale, which is never dropped."""
    output_error_uncond: NDArray[np.float64] | None = None
    """The same of the unconditional row."""
    provenance: dict[str, Any] = field(default_factory=dict)  # Any: JSON values
    """Where they came from: `model` (name), `scales` (ScaleSchedule.to_json), `prompts` (their number), `source`…"""

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for name in AXES:
            values = getattr(self, name)
            if values is None:
                continue
            array = np.array(values, dtype=np.float64)
            _check_shape(name, array, sizes)
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def require(self, names: Iterable[str], config: ModelConfig, scales: ScaleSchedule) -> None:
        """Raises MeasurementsError unless all these are there, of this model, at these scales.

        A policy may pass its `needs` whole: a derived number needs what it is made of, and what is no measurement, such
        as `orders`, is passed over.
        """
        wanted = [name for name in (_DERIVED_FROM.get(name, name) for name in names) if name in AXES]
        source = self.provenance.get("source", "the measurements")
        missing = [name for name in wanted if getattr(self, name) is None]
        if missing:
            raise MeasurementsError(f"{source}: {', '.join(missing)} not measured; {_WAY_OUT}")
        found, expected = self._made_for(wanted), _of_run(config, scales)
        for axis, value in found.items():
            if value != expected[axis]:
                raise MeasurementsError(f"{source}: made for {axis} {value}, the run has {expected[axis]}; {_WAY_OUT}")

    def reliance(self) -> NDArray[np.float64]:
        """[layer, head, query_scale]: mass on history, summed over later query scales (gamma of HACK++, 2606.08302).

        Of the conditional row; 0 at the last scale. Raises MeasurementsError without attention_mass.
        """
        mass = self._mass()
        current = np.einsum("klhk->klh", mass)
        on_history = np.nansum(mass, axis=3) - current
        from_here_on = np.cumsum(on_history[::-1], axis=0)[::-1]
        return np.moveaxis(from_here_on - on_history, 0, -1)

    def static_score(self, sink_scales: int) -> NDArray[np.float64]:
        """[layer, head]: how much of its attention behind the sinks a head pays to this scale and the one before.

        Mean over query scales that see both (Forcing-KV, arXiv 2605.09681, whose chunks are scales here: an
        adaptation). Of the conditional row. Raises MeasurementsError without attention_mass, or with too many sinks.
        """
        mass = np.nan_to_num(self._mass())
        num_scales = len(mass)
        if not 0 <= sink_scales < num_scales - 1:
            raise MeasurementsError(f"{sink_scales} sink scales; expected 0 to {num_scales - 2} of {num_scales} scales")
        shares = []
        for scale in range(sink_scales + 1, num_scales):
            whole = mass[scale, :, :, sink_scales : scale + 1].sum(-1)
            near = mass[scale, :, :, scale - 1 : scale + 1].sum(-1)
            shares.append(near / np.maximum(whole, np.finfo(np.float64).tiny))
        score: NDArray[np.float64] = np.mean(shares, axis=0)
        return score

    def _mass(self) -> NDArray[np.float64]:
        if self.attention_mass is None:
            raise MeasurementsError(f"attention_mass not measured; {_WAY_OUT}")
        return self.attention_mass

    def _made_for(self, names: list[str]) -> dict[str, object]:
        """What the numbers were made for, as far as the provenance and the shapes of `names` tell."""
        found: dict[str, object] = {}
        if "model" in self.provenance:
            found["model"] = self.provenance["model"]
        for name in names:
            for axis, size in zip(AXES[name], getattr(self, name).shape, strict=True):
                found[_plural(axis)] = size
        if "scales" in self.provenance:
            found["grids"] = _grids(self.provenance["scales"]["sizes"])
        return found


def measurement_names(*, guided: bool, only_mass: bool = False) -> tuple[str, ...]:
    """What one run can measure: everything, but nothing of the unconditional row without guidance."""
    return ("attention_mass",) if only_mass else tuple(name for name in AXES if guided or "uncond" not in name)


def _of_run(config: ModelConfig, scales: ScaleSchedule) -> dict[str, object]:
    return {
        "model": config.name,
        "layers": config.num_layers,
        "heads": config.num_heads,
        "scales": scales.num_scales,
        "grids": _grids(scales.sizes),
    }


def _grids(sizes: Iterable[Iterable[int]]) -> str:
    return " ".join("x".join(map(str, size)) for size in sizes)


def _plural(axis: str) -> str:
    return "scales" if axis.endswith("_scale") else f"{axis}s"


def _check_shape(name: str, array: NDArray[np.float64], sizes: dict[str, int]) -> None:
    """Raises MeasurementsError if an axis is absent, or longer or shorter than in `sizes`, which learns of it."""
    axes = AXES[name]
    if array.ndim != len(axes):
        raise MeasurementsError(f"{name} has shape {list(array.shape)}; expected [{', '.join(axes)}]")
    for axis, size in zip(axes, array.shape, strict=True):
        expected = sizes.setdefault(_plural(axis), size)
        if size != expected:
            raise MeasurementsError(
                f"{name} has {size} {_plural(axis)}, others {expected}; they are of two calibrations"
            )
