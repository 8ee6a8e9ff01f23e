from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from heatkv.config import model_config
from heatkv.orders import HeadOrders
from kvscope.calibrate import run_calibration
from kvscope.calibration import Calibration
from kvscope.cli import main
from kvscope.errors import OutputError, TraceFormatError, UsageError
from kvscope.job import Job

PROMPTS = ["a red circle", "a blue square on a black background", "a green triangle"]


def job(**changes: object) -> Job:
    fixed = {"prompt": "", "model": "infinity-tiny", "policy": "full", "random_weights": True, "seed": 3}
    return Job(**(fixed | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def calibration_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibration") / "scas.h5"
    run_calibration(job(), PROMPTS, out)
    return out


def test_mass_sums_to_one_over_the_scales_that_a_query_scale_sees(calibration_path: Path) -> None:
    mass = Calibration.load(calibration_path).attention_mass

    assert mass.shape == (3, 7, 6, 6, 7)
    np.testing.assert_allclose(np.nansum(mass, axis=-1), 1, atol=1e-5)
    seen = ~np.isnan(mass[0, :, 0, 0])
    np.testing.assert_array_equal(seen, np.tri(7, dtype=bool))


def test_scores_are_the_mean_over_prompts_and_all_later_scales(calibration_path: Path) -> None:
    calibration = Calibration.load(calibration_path)

    scores = calibration.scores().scores

    expected = calibration.attention_mass[:, 4:, :, :, 3].astype(np.float64).mean(axis=(0, 1))
    np.testing.assert_allclose(scores[:, :, 3], expected, atol=1e-12)
    assert np.isnan(scores[:, :, [0, 1, 6]]).all()


def test_a_stopped_calibration_goes_on_and_ends_the_same(tmp_path: Path, calibration_path: Path) -> None:
    out = tmp_path / "scas.h5"
    said: list[str] = []
    interrupted_after_one(out)
    made = run_calibration(job(), PROMPTS, out, narrate=said.append)

    assert said[0] == "1 of 3 prompts were measured before; going on"
    np.testing.assert_array_equal(made.attention_mass, Calibration.load(calibration_path).attention_mass)
    assert [path.name for path in tmp_path.iterdir()] == ["scas.h5"]


def interrupted_after_one(out: Path) -> None:
    """Measure the first prompt only, as a calibration that was then killed would have."""
    from kvscope import calibrate
    from kvscope.calibration import CalibrationFile
    from kvscope.runner import load_pipeline

    settings = calibrate._settings(job(), PROMPTS)
    pipeline = load_pipeline(job(), model_config("infinity-tiny"), lambda _: None)
    CalibrationFile(out, settings).append(calibrate._measure(pipeline, settings, 0))


def test_a_half_made_file_of_other_settings_is_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "scas.h5"
    interrupted_after_one(out)

    with pytest.raises(UsageError, match=r"another seed.*delete it"):
        run_calibration(job(seed=4), PROMPTS, out)


def test_an_existing_calibration_is_not_overwritten(calibration_path: Path) -> None:
    with pytest.raises(OutputError, match="exists"):
        run_calibration(job(), PROMPTS, calibration_path)


def test_a_file_that_is_no_calibration_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    path.write_text("no")

    with pytest.raises(TraceFormatError, match="kvscope calibrate"):
        Calibration.load(path)


def test_the_official_files_say_what_the_calibration_says(tmp_path: Path) -> None:
    prompts, out, official = tmp_path / "prompts.txt", tmp_path / "scas.h5", tmp_path / "official"
    prompts.write_text("\n".join(PROMPTS))
    options = ["--random-weights", "--threads", "1", "--samples", "2", "--official", str(official)]

    assert main(["calibrate", "--prompts", str(prompts), "-o", str(out), *options]) == 0

    scores = Calibration.load(out).scores()
    orders = HeadOrders.load(official / "scas_orders.json", config=model_config("infinity-tiny"))
    assert orders.content_hash == scores.orders().content_hash
    saved = torch.load(official / "scas_scores.pt", weights_only=True)
    np.testing.assert_array_equal(saved["scores"].numpy(), scores.scores)
    metadata = json.loads((official / "scas_scores.json").read_text())["metadata"]
    assert metadata["num_prompts"] == 2
    assert metadata["model"] == "infinity-tiny"


def test_a_plan_takes_a_calibration_as_it_takes_its_official_orders(
    tmp_path: Path, calibration_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = Calibration.load(calibration_path).scores().orders().save(tmp_path / "orders.json")
    plans = []
    for source in (calibration_path, orders):
        assert main(["plan", "--orders", str(source), "--budget", "0.2", "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out)["schedule_sha256"])

    assert plans[0] == plans[1]
