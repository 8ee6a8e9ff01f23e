"""The gates and figures of infinity-tiny, on random weights; the figures of the bundled weights where they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from heatkv.bundled import bundled_weights
from heatkv.config import model_config
from heatkv.generate import Sampling
from heatkv.pipeline import Pipeline
from heatkv.tiny import evaluate, transformer_stage
from heatkv.tiny.evaluate import Gate, calibrate, gates, heads, rank_correlation
from heatkv.tiny.scenes import held_out_scenes
from heatkv.tiny.train import Phase, Trainer

CONFIG = model_config("infinity-tiny")
RATES = {"peak_rate": 1e-3, "end_rate": 1e-3, "ema": 0.9}
PHASES = (
    Phase("vae", "vae", steps=1, share=0.5, batch=2, **RATES),
    Phase("few", "transformer", steps=1, share=0.5, batch=2, num_scales=2, **RATES),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer_stage, "_POOL_SCENES", 8)
        trainer = Trainer(folder, phases=PHASES)
        trainer.run(steps=1)
    return trainer.export(folder / "weights")


@pytest.fixture(scope="module")
def bundled() -> Pipeline:
    if bundled_weights(CONFIG) is None:
        pytest.skip("the package has no weights of infinity-tiny; train them, or install a release")
    return Pipeline.load(CONFIG, None)


def test_a_gate_holds_from_its_least_figure_on() -> None:
    assert Gate("a", 0.9, 0.9, 10).holds
    assert not Gate("a", 0.9, 0.899, 10).holds


def test_untrained_weights_fail_the_gates_and_the_exit_code_says_so(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = evaluate.main(["gates", "--weights", str(weights), "--prompts", "4"])

    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 1
    by_gate = {record["gate"]: record["holds"] for record in records}
    assert by_gate["detector on renders: colour"]
    assert not by_gate["generated: shape"]
    assert "attention: distance from uniform" in by_gate


def test_the_policy_table_names_every_ranking_and_its_bytes(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main(["policies", "--weights", str(weights), "--prompts", "2", "--budgets", "0.1", "--random", "1"])

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["ranking"] for row in rows] == ["full", "heatkv", "reversed", "random-0", "sinks-only"]
    assert all(row["peak_bytes"] > 0 for row in rows)


def test_s_cas_of_two_halves_is_compared_for_every_prunable_scale(weights: Path) -> None:
    records = list(heads(Pipeline.load(CONFIG, weights), prompts=2))

    assert [record["source_scale"] for record in records] == [2, 3, 4, 5]
    assert all(-1 <= record["rank_correlation"] <= 1 for record in records)


def test_calibration_of_the_same_captions_gives_the_same_scores(weights: Path) -> None:
    pipeline = Pipeline.load(CONFIG, weights)

    first, again, other = (calibrate(pipeline, prompts=which).scores for which in (range(1), range(1), range(1, 2)))

    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other, equal_nan=True)


def test_rank_correlation_is_one_for_the_same_order_and_minus_one_for_the_reverse() -> None:
    values = np.array([0.1, 0.5, 0.2, 0.9])

    assert rank_correlation(values, values**3) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)


def test_the_bundled_model_passes_its_gates_on_a_few_prompts(bundled: Pipeline) -> None:
    measured = gates(bundled, held_out_scenes(24), sampling=Sampling(cfg=CONFIG.cfg, tau=CONFIG.tau))

    # 24 prompts tell a figure to about ±0.06; the full measurement is in the model card.
    assert all(gate.figure >= gate.least - 0.06 for gate in measured)


def test_the_bundled_model_makes_one_image_in_seconds(bundled: Pipeline) -> None:
    first, again = (bundled.generate([held_out_scenes(1)[0].caption], seed=1).image for _ in range(2))

    assert first is not None
    assert again is not None
    assert (first == again).all()
