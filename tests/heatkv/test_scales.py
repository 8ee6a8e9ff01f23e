"""Scale schedules equal the official tables, and refuse what is none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from heatkv.config import model_config
from heatkv.errors import ScheduleError, UnknownNameError
from heatkv.scales import RESOLUTIONS, TEMPLATES, ScaleSchedule

if TYPE_CHECKING:
    from pathlib import Path

_TOKENS_1M = {1.0: 10521, 1.25: 10774, 1.333: 10973, 1.5: 10997, 1.75: 11252, 2.0: 11269, 2.5: 10805, 3.0: 11123}
_TOKENS_006M = {1.0: 521, 1.25: 614, 1.333: 665, 1.5: 533, 1.75: 472, 2.0: 451, 2.5: 555, 3.0: 509}
_INVERSE = {1.0: 1.0, 1.25: 0.8, 1.333: 0.75, 1.5: 0.666, 1.75: 0.571, 2.0: 0.5, 2.5: 0.4, 3.0: 0.333}


def test_all_templates_and_resolutions_equal_the_reference(golden: Path) -> None:
    reference = json.loads((golden / "infinity_schedules.json").read_text())

    found = {
        template: {resolution: ScaleSchedule.named(resolution, aspect=float(template)) for resolution in by_resolution}
        for template, by_resolution in reference["schedules"].items()
    }

    assert sorted(map(float, found)) == sorted(TEMPLATES)
    for template, by_resolution in reference["schedules"].items():
        assert by_resolution.keys() == RESOLUTIONS.keys()
        for resolution, record in by_resolution.items():
            scales = found[template][resolution]
            assert [list(size) for size in scales.sizes] == [size[1:] for size in record["scales_thw"]]
            assert list(model_config("infinity-2b").image_size(scales)) == record["pixel_hw"]


@pytest.mark.parametrize("aspect", _TOKENS_1M)
def test_token_counts_of_every_template_and_its_inverse(aspect: float) -> None:
    for template in (aspect, _INVERSE[aspect]):
        assert ScaleSchedule.named("1M", aspect=template).total_tokens == _TOKENS_1M[aspect]
        assert ScaleSchedule.named("0.06M", aspect=template).total_tokens == _TOKENS_006M[aspect]


@pytest.mark.parametrize(
    ("resolution", "num_scales", "tokens", "history"),
    [("0.06M", 7, 521, 265), ("0.25M", 10, 2521, 1497), ("0.60M", 12, 6425, 4121), ("1M", 13, 10521, 6425)],
)
def test_square_resolutions_have_the_published_sizes(
    resolution: str, num_scales: int, tokens: int, history: int
) -> None:
    scales = ScaleSchedule.named(resolution)

    assert (scales.num_scales, scales.total_tokens, scales.history_tokens) == (num_scales, tokens, history)
    assert scales.offsets[0] == 0
    assert scales.offsets[-1] == tokens


def test_inverse_templates_exchange_height_and_width() -> None:
    tall, wide = ScaleSchedule.named("1M", aspect=1.5), ScaleSchedule.named("1M", aspect=0.666)

    assert wide.sizes == tuple((width, height) for height, width in tall.sizes)


def test_the_nearest_template_is_taken() -> None:
    assert ScaleSchedule.named("1M", aspect=16 / 9).aspect == 1.75
    assert ScaleSchedule.named("1M", aspect=3.2).aspect == 3.0


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("aspect", TEMPLATES)
def test_rope_is_normalised_to_the_1m_grid_at_every_resolution(resolution: str, aspect: float) -> None:
    scales = ScaleSchedule.named(resolution, aspect=aspect)

    assert scales.rope_grid == ScaleSchedule.named("1M", aspect=aspect).sizes[-1]


def test_unknown_resolution_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown resolution '0\.60m'; known, nearest first: 0\.60M, 0\.06M"):
        ScaleSchedule.named("0.60m")


@pytest.mark.parametrize("aspect", [0.0, -1.0, float("nan")])
def test_an_aspect_that_is_no_ratio_is_refused(aspect: float) -> None:
    with pytest.raises(ScheduleError, match="height / width"):
        ScaleSchedule.named("1M", aspect=aspect)


@pytest.mark.parametrize("sizes", [((1, 1),), ((1, 1), (0, 2))])
def test_impossible_grids_are_refused(sizes: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ScheduleError):
        ScaleSchedule.custom(sizes)


def test_json_round_trip_and_damage() -> None:
    scales = ScaleSchedule.custom(((1, 1), (2, 3), (4, 6)), rope_grid=(8, 12))

    assert ScaleSchedule.from_json(json.loads(json.dumps(scales.to_json()))) == scales
    with pytest.raises(ScheduleError, match="damaged"):
        ScaleSchedule.from_json({"sizes": [[1, 1], [2]]})
