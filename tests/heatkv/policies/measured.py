"""What calibration would tell policies, made up: random measurements and head orders. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.measurements import Measurements
from heatkv.orders import HeadOrders

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig
    from heatkv.scales import ScaleSchedule


def supplied(config: ModelConfig, scales: ScaleSchedule, *, first_source: int = 0, seed: int = 0) -> dict[str, Any]:
    """All that any policy needs, for make_policy."""
    return {
        "orders": random_orders(config, scales, first_source=first_source, seed=seed),
        "measurements": random_measurements(config, scales, seed=seed),
    }


def random_orders(config: ModelConfig, scales: ScaleSchedule, *, first_source: int = 0, seed: int = 0) -> HeadOrders:
    """A permutation of all heads for every source scale from the first on."""
    random, num_slots = np.random.default_rng(seed), config.num_layers * config.num_heads
    slots = [random.permutation(num_slots) for _ in range(first_source, scales.num_scales - 1)]
    ranked = np.array(slots, dtype=np.int32).reshape(-1, num_slots)
    return HeadOrders(ranked, first_source, config.num_layers, config.num_heads)


def random_measurements(config: ModelConfig, scales: ScaleSchedule, *, seed: int = 0) -> Measurements:
    """Of every kind, NaN where calibration has NaN."""
    random = np.random.default_rng(seed)
    layers, heads, num_scales = config.num_layers, config.num_heads, scales.num_scales
    shape = (num_scales, layers, heads, num_scales)
    mass, errors = (_causal(random.random(shape) + 1e-3) for _ in range(2))
    selectivity, similarity = random.random((num_scales, layers)), random.random((layers, num_scales))
    selectivity[0], similarity[:, 0] = np.nan, np.nan
    errors[np.arange(num_scales), :, :, np.arange(num_scales)] = np.nan
    return Measurements(
        attention_mass=mass / np.nansum(mass, axis=-1, keepdims=True),
        attention_mass_uncond=mass / np.nansum(mass, axis=-1, keepdims=True),
        column_variance=random.random((layers, heads)),
        selectivity=selectivity,
        kv_similarity=similarity,
        output_error=errors,
        output_error_uncond=errors,
        provenance={"model": config.name, "scales": scales.to_json(), "source": "random numbers"},
    )


def _causal(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[query_scale, layer, head, source_scale], NaN at scales that come later."""
    for query_scale in range(len(values)):
        values[query_scale, ..., query_scale + 1 :] = np.nan
    return values
