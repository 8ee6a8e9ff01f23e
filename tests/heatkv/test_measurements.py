"""What policies read of a calibration: derived numbers against loops over the definition, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from heatkv.config import model_config
from heatkv.errors import MeasurementsError
from heatkv.measurements import AXES, Measurements

if TYPE_CHECKING:
    from numpy.typing import NDArray

TINY = model_config("infinity-tiny")
SCALES = TINY.schedule_for()
SIZES = {"query_scale": 7, "source_scale": 7, "layer": 6, "head": 6}
LAST = SCALES.num_scales - 1


def mass() -> NDArray[np.float64]:
    """[query_scale, layer, head, source_scale] of a run: shares of 1 over what each scale sees."""
    drawn = np.random.default_rng(0).random([SIZES[axis] for axis in AXES["attention_mass"]])
    drawn[np.broadcast_to(~np.tri(7, dtype=bool)[:, None, None], drawn.shape)] = np.nan
    shares: NDArray[np.float64] = drawn / np.nansum(drawn, axis=3, keepdims=True)
    return shares


def complete() -> Measurements:
    arrays = {name: np.zeros([SIZES[axis] for axis in axes]) for name, axes in AXES.items()}
    provenance = {"model": TINY.name, "scales": SCALES.to_json(), "source": "scas.h5"}
    return Measurements(**arrays, provenance=provenance)


def test_reliance_sums_the_mass_on_history_over_later_query_scales() -> None:
    reliance = Measurements(attention_mass=mass()).reliance()

    for layer, head, scale in np.ndindex(6, 6, 7):
        later = range(scale + 1, 7)
        expected = sum(mass()[one, layer, head, source] for one in later for source in range(one))
        assert reliance[layer, head, scale] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sinks", [0, 2, 5])
def test_the_static_score_is_the_share_of_this_scale_and_the_one_before(sinks: int) -> None:
    score = Measurements(attention_mass=mass()).static_score(sinks)

    for layer, head in np.ndindex(6, 6):
        seen = [mass()[scale, layer, head, : scale + 1] for scale in range(sinks + 1, 7)]
        expected = np.mean([one[-2:].sum() / one[sinks:].sum() for one in seen])
        assert score[layer, head] == pytest.approx(expected, abs=1e-12)


def test_a_head_that_reads_only_sinks_is_not_static() -> None:
    on_sinks = np.where(np.isnan(mass()), np.nan, 0.0)
    on_sinks[..., 0] = 1

    np.testing.assert_array_equal(Measurements(attention_mass=on_sinks).static_score(2), 0)


def test_everything_is_granted_where_it_fits() -> None:
    complete().require(("orders", "reliance", *AXES), TINY, SCALES)


def test_what_is_missing_is_named_with_the_way_out() -> None:
    partly = replace(complete(), selectivity=None)

    partly.require(["attention_mass"], TINY, SCALES)
    with pytest.raises(MeasurementsError, match=r"scas\.h5: selectivity not measured; .*kvscope calibrate --prompts"):
        partly.require(["attention_mass", "selectivity"], TINY, SCALES)
    with pytest.raises(MeasurementsError, match="attention_mass not measured"):
        Measurements().require(["static_score"], TINY, SCALES)


def test_another_model_and_other_scales_are_refused() -> None:
    other_scales = replace(SCALES, sizes=(*SCALES.sizes[:-1], (9, 9)))
    unnamed = replace(complete(), provenance={})

    with pytest.raises(MeasurementsError, match="made for model infinity-tiny, the run has infinity-2b"):
        complete().require(["column_variance"], model_config("infinity-2b"), SCALES)
    with pytest.raises(MeasurementsError, match=r"made for grids 1x1 .* 10x10, the run has .* 9x9"):
        complete().require(["column_variance"], TINY, other_scales)
    with pytest.raises(MeasurementsError, match="made for heads 6, the run has 16"):
        unnamed.require(["column_variance"], replace(model_config("infinity-2b"), num_layers=6), SCALES)
    with pytest.raises(MeasurementsError, match="made for scales 7, the run has 13"):
        unnamed.require(["selectivity"], TINY, model_config("infinity-2b").schedule_for())


def test_derived_numbers_need_the_mass_and_fewer_sinks_than_scales() -> None:
    with pytest.raises(MeasurementsError, match="attention_mass not measured"):
        Measurements().reliance()
    with pytest.raises(MeasurementsError, match="attention_mass not measured"):
        Measurements().static_score(2)
    with pytest.raises(MeasurementsError, match="6 sink scales; expected 0 to 5 of 7 scales"):
        complete().static_score(6)


def test_arrays_of_other_shapes_are_refused_and_good_ones_are_read_only() -> None:
    with pytest.raises(MeasurementsError, match=r"selectivity has shape \[3\]; expected \[query_scale, layer\]"):
        Measurements(selectivity=np.zeros(3))
    with pytest.raises(MeasurementsError, match="kv_similarity has 5 scales, others 7"):
        Measurements(selectivity=np.zeros((7, 6)), kv_similarity=np.zeros((6, 5)))
    taken = complete().selectivity
    assert taken is not None
    assert not taken.flags.writeable
