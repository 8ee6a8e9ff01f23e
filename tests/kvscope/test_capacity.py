from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from heatkv.bundled import bundled_calibration
from heatkv.config import model_config
from heatkv.errors import BudgetError, UnknownNameError
from heatkv.vae import BSQVAE
from kvscope import cli
from kvscope.capacity import UNCOUNTED, Capacity, Setting, capacity, capacity_text, resolutions_of
from kvscope.job import Job
from kvscope.ledger import predict
from kvscope.plan import plan_job
from tests.benchmarks.memory import most_tensor_bytes

GIB = 1 << 30
TINY = Setting(model_config("infinity-tiny"), "cuda", "bfloat16", 2, 2)
LARGE = Setting(model_config("infinity-2b"), "cuda", "bfloat16", 2, 2)


def fitting(memory: int, setting: Setting = LARGE, *, budgets: tuple[float, ...] = (1.0, 0.5, 0.1)) -> Capacity:
    return capacity(setting, memory, resolutions=("0.06M", "1M"), budgets=budgets)


def test_the_largest_batch_fits_and_one_more_image_does_not() -> None:
    found = fitting(24 * GIB)

    for cell in found.cells:
        assert cell.use is not None
        assert cell.use.total_bytes <= 24 * GIB
        assert LARGE.use(cell.resolution, cell.budget, cell.images + 1).total_bytes > 24 * GIB


def test_a_smaller_budget_and_a_smaller_image_never_fit_fewer() -> None:
    images = {(cell.resolution, cell.budget): cell.images for cell in fitting(24 * GIB).cells}

    assert images["1M", 1.0] <= images["1M", 0.5] <= images["1M", 0.1]
    assert all(images["0.06M", budget] > images["1M", budget] for budget in (1.0, 0.5, 0.1))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("budget", [0.1, 0.5])
def test_the_parts_of_one_image_are_those_of_the_ledger(device: str, budget: float) -> None:
    config = TINY.config
    schedule = plan_job(Job("", config.name, "heatkv", budget=budget)).schedule
    run = predict(schedule, config, 2, 2, device=device).run
    expected = {line.key: line.predicted.num_bytes for line in run.lines + run.beside}

    use = Setting(config, device, "bfloat16", 2, 2).use("native", budget, 1)

    total = expected["allocated"] if device == "cuda" else (expected["rss_added"] or 0) + use.weights_bytes
    assert total is not None
    # The plan's peak may be some tokens below its budget; on a CPU it has fewer heads to gather for.
    assert total <= use.weights_bytes + use.cache_bytes + use.layer_bytes <= 1.05 * total


@pytest.mark.parametrize("setting", [TINY, LARGE])
@pytest.mark.parametrize("images", [1, 3])
def test_decoding_takes_what_the_decoders_tensors_do(setting: Setting, images: int) -> None:
    config = setting.config
    resolution = resolutions_of(config)[-1]
    with torch.device("meta"):
        vae = BSQVAE(config.vae).to(torch.bfloat16)
    grid = config.schedule_for(None if config.scales else resolution).sizes[-1]
    latent = torch.empty(images, config.vae.code_channels, *grid, device="meta")

    most = most_tensor_bytes(lambda: vae.decode_rgb(latent))

    use = dataclasses.replace(setting, device="cpu").use(resolution, 1.0, images)
    assert 0.97 < use.decode_bytes / most < 1.03


def test_where_not_one_image_fits_the_line_that_is_too_large_is_named() -> None:
    assert [(cell.images, cell.binds) for cell in fitting(3 * GIB).cells] == [(0, "weights")] * 6


def test_a_budget_that_no_schedule_can_meet_says_what_it_needs() -> None:
    cells = fitting(24 * GIB, budgets=(0.05,)).cells

    assert (cells[0].images, cells[0].binds) == (0, "needs 7.93 %")
    assert cells[1].images > 0
    with pytest.raises(BudgetError):
        LARGE.use("0.06M", 0.05, 1)


def test_what_is_reserved_is_left() -> None:
    tiny = capacity(TINY, 40 << 20, resolutions=("native",), budgets=(0.1,)).cells[0]
    less = capacity(TINY, 40 << 20, resolutions=("native",), budgets=(0.1,), reserve_bytes=20 << 20).cells[0]

    assert 0 < less.images < tiny.images


def test_the_text_has_every_cell_and_what_is_not_counted() -> None:
    text = capacity_text(fitting(24 * GIB))

    assert "all numbers are predicted; nothing was run" in text
    assert all(name in text for name in UNCOUNTED["cuda"])
    assert text.count("(cache)") + text.count("(decoding)") == 6
    assert max(map(len, text.splitlines())) <= 100


def test_a_model_has_its_own_resolutions() -> None:
    assert resolutions_of(TINY.config) == ("native",)
    assert resolutions_of(LARGE.config) == ("0.06M", "0.25M", "0.60M", "1M")


def test_the_command_tags_every_number_as_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["capacity", "--memory", "24GiB", "--resolution", "1M", "--budget", "0.1", "--json"]) == 0

    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert cell["predicted"]["tag"] == "predicted"
    assert cell["predicted"]["images"] == cell["images"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "much"], "--memory 'much' is no amount of bytes"),
        (["--memory", "1GiB", "--reserve", "2GiB"], "--reserve 2GiB of --memory 1GiB leaves nothing"),
        (["--memory", "1GiB", "--budget", "2"], "--budget 2; expected a fraction of history"),
        (["--memory", "1GiB", "--device", "tpu"], "expected one of cuda, cpu"),
        (["--memory", "1GiB", "--dtype", "int3"], "expected one of bfloat16, float32"),
        (["--memory", "1GiB", "--resolution", "9M"], "9M"),
        (["--memory", "1GiB", "--model", "other"], "other"),
        (["--memory", "1GiB", "--kv-codec", "int5"], "unknown KV codec 'int5'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["capacity", *arguments]) == 2

    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_an_unknown_resolution_is_an_error_of_heatkv() -> None:
    with pytest.raises(UnknownNameError):
        LARGE.use("9M", 0.1, 1)


@pytest.mark.parametrize("budget", [0.1, 1.0])
@pytest.mark.parametrize("codec", ["int8", "k4v2"])
def test_a_codec_s_cache_is_the_pools_of_a_run(codec: str, budget: float) -> None:
    setting = Setting(model_config("infinity-tiny"), "cuda", "bfloat16", 2, 2, codec=codec)
    job = Job(prompt="", model="infinity-tiny", policy="heatkv", budget=budget, kv_codec=codec)

    use = setting.use("native", budget, 1)

    planned = plan_job(job).capacity_bytes(rows=2, dtype_bytes=2)
    assert 0.95 * use.cache_bytes <= planned <= use.cache_bytes
    assert use.cache_bytes <= dataclasses.replace(setting, codec="model").use("native", budget, 1).cache_bytes


def test_a_policy_that_needs_a_calibration_is_given_one(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["capacity", "--memory", "24GiB", "--model", "infinity-tiny", "--budget", "0.2"]
    calibration = str(bundled_calibration(model_config("infinity-tiny")))

    assert cli.main([*asked, "--policy", "knapsack", "--orders", calibration]) == 0
    assert "policy knapsack" in capsys.readouterr().out
    assert cli.main([*asked, "--orders", calibration]) == 2
    assert "give --policy" in capsys.readouterr().err
