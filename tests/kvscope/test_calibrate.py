from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from heatkv.config import model_config
from heatkv.errors import OutputError as HeatKVOutputError
from heatkv.measurements import AXES
from heatkv.orders import HeadOrders
from heatkv.tiny.scenes import PromptError
from kvscope import calibrate, liveness
from kvscope.calibrate import run_calibration
from kvscope.calibration import Calibration, CalibrationFile, is_calibration
from kvscope.cli import main
from kvscope.errors import OutputError, TraceFormatError, UsageError
from kvscope.job import Job
from kvscope.official import check_official

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
    whole = Calibration.load(calibration_path)
    assert list(made.tables) == list(AXES)
    for name, table in made.tables.items():
        np.testing.assert_array_equal(table, whole.tables[name])
    assert [path.name for path in tmp_path.iterdir()] == ["scas.h5"]


def interrupted_after_one(out: Path) -> None:
    """Measure the first prompt only, as a calibration that was then killed would have."""
    from kvscope.runner import load_pipeline

    settings = calibrate._settings(job(), PROMPTS)
    pipeline = load_pipeline(job(), model_config("infinity-tiny"), lambda _: None)
    with CalibrationFile(out, settings) as file:
        file.append(calibrate._measure(pipeline, settings, 0))


def test_a_calibration_killed_between_two_tables_measures_that_prompt_again(
    tmp_path: Path, calibration_path: Path
) -> None:
    out = tmp_path / "scas.h5"
    interrupted_after_one(out)
    with h5py.File(tmp_path / "scas.h5.part", "r+") as file:
        file["selectivity"].resize(2, axis=0)

    with CalibrationFile(out, calibrate._settings(job(), PROMPTS)) as half_made:
        assert half_made.prompts_done == 1
    made = run_calibration(job(), PROMPTS, out)

    for name, table in Calibration.load(calibration_path).tables.items():
        np.testing.assert_array_equal(made.tables[name], table)


def test_every_measurement_is_labelled(calibration_path: Path) -> None:
    with h5py.File(calibration_path) as file:
        assert file.attrs["format_version"] == 2
        assert set(file) == set(AXES)
        for name, axes in AXES.items():
            assert [dimension.label for dimension in file[name].dims] == ["prompt", *axes]
            assert file[name].attrs["long_name"]


def test_measurements_are_means_over_prompts_and_fit_the_run(calibration_path: Path) -> None:
    calibration, config = Calibration.load(calibration_path), model_config("infinity-tiny")

    every, some = calibration.measurements(), calibration.measurements([2, 0])

    every.require(AXES, config, config.schedule_for())
    assert every.provenance["prompts"] == 3
    assert every.provenance["source"] == str(calibration_path)
    assert every.output_error is not None
    assert some.output_error is not None
    table = calibration.tables["output_error"].astype(np.float64)
    np.testing.assert_allclose(every.output_error, table.mean(0), rtol=1e-12)
    np.testing.assert_allclose(some.output_error, (table[0] + table[2]) / 2, rtol=1e-12)
    seen = ~np.isnan(every.output_error)
    np.testing.assert_array_equal(seen[:, 0, 0], np.tri(7, k=-1, dtype=bool))
    assert (every.output_error[seen] >= 0).all()


def test_the_mass_alone_is_the_same_and_serves_heatkv_only(tmp_path: Path, calibration_path: Path) -> None:
    made, said = run_calibration(job(), PROMPTS, tmp_path / "mass.h5", only_mass=True), list[str]()
    again = run_calibration(job(), PROMPTS, calibration_path, only_mass=True, narrate=said.append)

    assert list(made.tables) == ["attention_mass"]
    np.testing.assert_array_equal(made.attention_mass, again.attention_mass)
    assert "nothing to measure" in said[0]
    assert made.measurements().column_variance is None
    with pytest.raises(OutputError, match="exists"):
        run_calibration(job(), PROMPTS, tmp_path / "mass.h5")


def test_without_guidance_nothing_is_measured_of_the_unconditional_row(tmp_path: Path) -> None:
    made = run_calibration(job(cfg=1.0), PROMPTS[:1], tmp_path / "scas.h5")

    assert set(AXES) - set(made.tables) == {"attention_mass_uncond", "output_error_uncond"}


def test_a_calibration_of_format_1_is_still_read(tmp_path: Path, calibration_path: Path) -> None:
    path = tmp_path / "old.h5"
    as_format(1, calibration_path, path)

    old, new = Calibration.load(path), Calibration.load(calibration_path)

    assert old.scores().orders().content_hash == new.scores().orders().content_hash
    assert old.measurements().selectivity is None
    assert run_calibration(job(), PROMPTS, path, only_mass=True).settings == old.settings


def test_a_calibration_of_a_later_format_says_what_to_do(tmp_path: Path, calibration_path: Path) -> None:
    path = tmp_path / "new.h5"
    as_format(3, calibration_path, path)

    with pytest.raises(TraceFormatError, match="calibration format 3, this kvscope reads 1–2; upgrade kvscope"):
        Calibration.load(path)


def as_format(version: int, calibration: Path, out: Path) -> None:
    """A copy as format 1 was, which held the mass and did not say so, with another version number."""
    with h5py.File(calibration) as file, h5py.File(out, "w") as old:
        file.copy("attention_mass", old)
        settings = json.loads(file.attrs["settings"])
        del settings["measurements"]
        old.attrs.update({"format": file.attrs["format"], "format_version": version, "settings": json.dumps(settings)})


def test_a_half_made_file_of_other_settings_is_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "scas.h5"
    interrupted_after_one(out)

    with pytest.raises(UsageError, match=r"with other seed; give the same options .* --overwrite"):
        run_calibration(job(seed=4), PROMPTS, out)


def test_an_existing_calibration_of_other_settings_is_not_overwritten(calibration_path: Path) -> None:
    with pytest.raises(OutputError, match="exists"):
        run_calibration(job(seed=4), PROMPTS, calibration_path)


def test_an_existing_calibration_of_the_same_settings_is_read(calibration_path: Path) -> None:
    content, said = calibration_path.read_bytes(), list[str]()

    made = run_calibration(job(), PROMPTS, calibration_path, narrate=said.append)

    assert len(said) == 1
    assert "nothing to measure" in said[0]
    np.testing.assert_array_equal(made.attention_mass, Calibration.load(calibration_path).attention_mass)
    assert calibration_path.read_bytes() == content


def an_empty_part(out: Path, seed: int) -> None:
    """What a calibration leaves that was stopped before its first prompt was measured."""
    with CalibrationFile(out, calibrate._settings(job(seed=seed), PROMPTS)):
        pass


def test_a_half_made_file_without_prompts_does_not_block_other_settings(tmp_path: Path) -> None:
    out = tmp_path / "scas.h5"
    an_empty_part(out, seed=4)

    with CalibrationFile(out, calibrate._settings(job(), PROMPTS)) as file:
        assert file.prompts_done == 0
        assert file.discarded == ""


def test_overwriting_starts_anew_over_a_half_made_file_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "scas.h5"
    interrupted_after_one(out)

    with CalibrationFile(out, calibrate._settings(job(), PROMPTS), overwrite=True) as file:
        assert file.prompts_done == 0
        assert "scas.h5.part: a half-made calibration, started anew" in file.discarded


@pytest.mark.parametrize("kept_bytes", [5, 900, 3000])
def test_a_damaged_half_made_file_is_named_with_the_way_out(tmp_path: Path, kept_bytes: int) -> None:
    out, part = tmp_path / "scas.h5", tmp_path / "scas.h5.part"
    an_empty_part(out, seed=3)
    part.write_bytes(part.read_bytes()[:kept_bytes])
    settings = calibrate._settings(job(), PROMPTS)

    with pytest.raises(UsageError, match=r"scas\.h5\.part: damaged, .* delete it, or start anew with --overwrite"):
        CalibrationFile(out, settings)
    with CalibrationFile(out, settings, overwrite=True) as file:
        assert file.prompts_done == 0


@pytest.mark.skipif(not liveness.SUPPORTED, reason="this system has no open-file-description locks")
@pytest.mark.parametrize("overwrite", [False, True])
def test_two_calibrations_never_share_a_file(tmp_path: Path, overwrite: bool) -> None:
    out, settings = tmp_path / "scas.h5", calibrate._settings(job(), PROMPTS)

    with CalibrationFile(out, settings) as first:
        with pytest.raises(OutputError, match=r"scas\.h5\.part: another process measures into it"):
            CalibrationFile(out, settings, overwrite=overwrite)
        first.append({name: np.zeros(settings.shape(name), np.float32) for name in settings.measurements})
        assert first.prompts_done == 1

    with CalibrationFile(out, settings) as second:
        assert second.prompts_done == 1


def test_a_name_that_is_taken_meanwhile_is_not_overwritten_and_nothing_measured_is_lost(tmp_path: Path) -> None:
    out = tmp_path / "scas.h5"
    with CalibrationFile(out, calibrate._settings(job(), PROMPTS)) as file:
        out.write_text("precious")
        with pytest.raises(OutputError, match=r"exists; .* the measurements are in .*\.part"):
            file.finish()

    assert out.read_text() == "precious"
    assert file.part.exists()


@pytest.mark.parametrize(
    ("name", "message"), [(".", "is a folder"), ("pipe", "not a regular"), ("n" * 300, "too long")]
)
def test_an_output_that_cannot_be_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OutputError, match=message):
        run_calibration(job(), PROMPTS, tmp_path / name, overwrite=True)


def test_a_trace_that_is_being_recorded_is_not_overwritten(live_trace: Path) -> None:
    with pytest.raises(OutputError, match="is being recorded by process"):
        run_calibration(job(), PROMPTS, live_trace, overwrite=True)


def test_a_pipe_is_no_calibration_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert not is_calibration(tmp_path / "pipe")
    with pytest.raises(TraceFormatError, match="not a regular file"):
        Calibration.load(tmp_path / "pipe")


def test_official_files_that_cannot_be_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    folder, file = tmp_path / "official", tmp_path / "file"
    file.write_text("precious")
    check_official(folder / "deeper")
    for taken in (file, file / "deeper"):
        with pytest.raises(HeatKVOutputError, match="no folder"):
            check_official(taken)

    with pytest.raises(HeatKVOutputError, match="File name too long"):
        check_official(tmp_path / ("n" * 300))

    folder.mkdir()
    check_official(folder)
    (folder / "scas_orders.pt").touch()

    with pytest.raises(HeatKVOutputError, match=r"scas_orders\.pt: exists"):
        check_official(folder)
    check_official(folder, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["scas_orders.pt"]


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


def test_a_calibration_stopped_by_the_user_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, said = tmp_path / "scas.h5", []

    def stop_after_one(done: int, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvscope.calibrate._show", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        run_calibration(job(), PROMPTS, out, narrate=said.append)

    assert said[-1] == "1 of 3 prompts are safe; the same command goes on from there"


def test_a_prompt_that_the_model_refuses_is_told_before_any_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "scas.h5"
    trained = job(random_weights=False)

    with pytest.raises(PromptError, match="'purple' in prompt 'a purple cow'"):
        run_calibration(trained, [PROMPTS[1], "a purple cow"], out)

    run_calibration(trained, [PROMPTS[1]], out)
