from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from heatkv.errors import OutputError
from kvscope.errors import UsageError
from kvscope.fidelity import BAND, COARSE, ROUNDING, Fidelity, Trial, rank_correlation
from kvscope.scatter import scatter_svg

SIZES = ((1, 1), (2, 2))


def trials(*, noise: float = 0.0, count: int = 60) -> list[Trial]:
    """KL = 3 lost^1.5, flips = lost; three prompts."""
    generator = np.random.default_rng(0)
    lost = 10 ** generator.uniform(-4, -1, count)
    error = 10 ** (noise * generator.standard_normal(count))
    return [
        Trial(index % 3, "random", float(loss), float(3 * loss**1.5 * one), float(loss * one))
        for index, (loss, one) in enumerate(zip(lost, error, strict=True))
    ]


def test_the_line_behind_the_trials_is_found() -> None:
    learnt = Fidelity.learnt("m", SIZES, trials())
    band = learnt.predict("kl", 0.01)

    assert band is not None
    assert band.middle == pytest.approx(3 * 0.01**1.5, rel=1e-6)
    assert learnt.lines["kl"].rank_correlation == pytest.approx(1)
    assert learnt.lines["flips"].slope == pytest.approx(1)


def test_eight_of_ten_fall_within_the_band() -> None:
    learnt = Fidelity.learnt("m", SIZES, trials(noise=0.2, count=900))

    inside = 0
    fresh = trials(noise=0.2, count=1000)[900:]
    for trial in fresh:
        band = learnt.predict("kl", trial.lost)
        inside += band is None or band.low <= trial.kl <= band.high

    assert learnt.lines["kl"].spread == pytest.approx(0.2, rel=0.1)
    assert math.erf(BAND / math.sqrt(2)) == pytest.approx(0.8, abs=1e-4)
    assert 65 <= inside <= 95


@pytest.mark.parametrize("lost", [1e-9, 0.9, math.nan])
def test_past_what_was_tried_nothing_is_predicted(lost: float) -> None:
    assert Fidelity.learnt("m", SIZES, trials()).predict("kl", lost) is None


def test_of_a_loss_that_is_mostly_codecs_noise_nothing_is_predicted() -> None:
    learnt = Fidelity.learnt("m", SIZES, trials())

    assert learnt.predict("kl", 0.01, coarse_share=COARSE) == learnt.predict("kl", 0.01)
    assert learnt.predict("kl", 0.01, coarse_share=COARSE + 0.01) is None


def test_nothing_lost_is_nothing_wrong() -> None:
    band = Fidelity.learnt("m", SIZES, trials()).predict("flips", 0.0)

    assert band is not None
    assert (band.low, band.high) == (0.0, 0.0)


def test_losses_that_rounding_outweighs_do_not_bend_the_line() -> None:
    noise = [Trial(index % 3, "random", ROUNDING / 2, 0.1, 0.1) for index in range(20)]

    learnt = Fidelity.learnt("m", SIZES, [*trials(), *noise])

    assert learnt.lines["kl"].slope == pytest.approx(1.5)
    assert learnt.least >= ROUNDING
    assert len(learnt.trials) == 80
    assert learnt.predict("kl", ROUNDING / 2) is None


def test_the_band_is_wide_where_errors_scatter_and_holds_eight_of_ten_of_other_prompts_at_every_loss() -> None:
    generator = np.random.default_rng(1)
    many = []
    for index in range(1200):
        lost = float(10 ** generator.uniform(-3, -0.5))
        error = 10 ** ((0.05 if lost > 0.02 else 0.4) * generator.standard_normal())
        many.append(Trial(index % 6, "random", lost, 3 * lost**1.5 * error, lost * error))
    learnt = Fidelity.learnt("m", SIZES, [one for one in many if one.prompt < 5])
    small, large = learnt.predict("kl", 0.002), learnt.predict("kl", 0.2)

    assert small is not None
    assert large is not None
    assert small.high / small.low > 3 * (large.high / large.low)
    for low, high in ((0.001, 0.01), (0.03, 0.3)):
        fresh = [one for one in many if one.prompt == 5 and low < one.lost < high]
        bands = [learnt.predict("kl", one.lost) for one in fresh]
        inside = [band is not None and band.low <= one.kl <= band.high for band, one in zip(bands, fresh, strict=True)]
        assert 0.68 <= np.mean(inside) <= 0.92  # two standard deviations of some 70 trials, and a little


def test_a_file_of_version_1_keeps_its_band_of_one_width(tmp_path: Path) -> None:
    record = Fidelity.learnt("m", SIZES, trials(noise=0.2)).to_json() | {"version": 1}
    for line in record["lines"].values():
        del line["knots"]
    (tmp_path / "old.json").write_text(json.dumps(record))

    old = Fidelity.load(tmp_path / "old.json")

    for lost in (0.001, 0.05):
        band = old.predict("kl", lost)
        assert band is not None
        assert band.high / band.middle == pytest.approx(10 ** (BAND * old.lines["kl"].spread))


def test_coverage_counts_trials_in_the_band_of_all_other_prompts() -> None:
    assert Fidelity.learnt("m", SIZES, trials(noise=0.2, count=900)).coverage("kl") == pytest.approx(0.8, abs=0.05)

    shifted = [Trial(3, "random", one.lost, one.kl * 100, one.flips) for one in trials(noise=0.2, count=300)]
    odd = Fidelity.learnt("m", SIZES, [*trials(noise=0.2, count=300), *shifted])
    assert odd.coverage("kl") < 0.7
    assert odd.coverage("flips") > 0.7


def test_the_picture_has_a_mark_for_every_trial_and_is_well_formed() -> None:
    learnt = Fidelity.learnt("m", SIZES, [*trials(noise=0.1), Trial(0, "<odd> & kind", 0.01, 0.02, 0.03)])

    svg = scatter_svg(learnt)

    ET.fromstring(svg)
    assert svg.count('stroke-opacity="0.7"') == 2 * 61 + 2
    assert "&lt;odd&gt; &amp; kind" in svg
    assert "rank correlation" in svg


def test_too_few_trials_are_refused() -> None:
    with pytest.raises(UsageError, match="learning needs 10, of 2 prompts or more"):
        Fidelity.learnt("m", SIZES, trials(count=9))


def test_a_file_comes_back_as_it_was_and_is_not_overwritten(tmp_path: Path) -> None:
    learnt = Fidelity.learnt("m", SIZES, trials(noise=0.1))
    path = learnt.save(tmp_path / "fidelity.json")

    assert Fidelity.load(path) == learnt
    assert learnt.fits("m", SIZES)
    assert not learnt.fits("m", SIZES[:1])
    with pytest.raises(OutputError):
        learnt.save(path)


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"format": "kvscope.fidelity", "version": 1}'])
def test_what_is_no_such_file_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)

    with pytest.raises(UsageError, match=r"a file made by `kvscope fidelity`$"):
        Fidelity.load(path)


def test_rank_correlation_takes_ties_at_their_mean() -> None:
    assert rank_correlation([1, 2, 2, 3], [10, 20, 20, 30]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert math.isnan(rank_correlation([1, 1], [1, 2]))
