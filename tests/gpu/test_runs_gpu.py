"""Whole runs on a CUDA device: every cache, codec and way of attention, what they hold, and what a trace says of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

import heatkv.generate
from heatkv.attention import PATHS, Attended, Path, attend, choose_path
from heatkv.codecs import CODECS
from heatkv.config import model_config
from heatkv.errors import OptionError
from heatkv.generate import Sampling, generate
from heatkv.online import OnlinePlan
from heatkv.policies import make_policy
from heatkv.policies.full import FullPolicy
from heatkv.probe import Capture
from kvscope.cli import main
from kvscope.trace import Trace
from tests.heatkv.conftest import Recording, lively, random_schedule
from tests.heatkv.policies.measured import supplied

if TYPE_CHECKING:
    import pathlib

    from heatkv.scales import ScaleSchedule
    from heatkv.schedule import PruningSchedule
    from heatkv.transformer import Infinity
    from heatkv.visible import Visible

# What Triton and CUDA's libraries warn of is not what is tested here.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

CONFIG = model_config("infinity-tiny")
SCALES = CONFIG.schedule_for()
WAYS = [name for name in PATHS if name != "grouped"]
EVERYTHING = Capture(mass=True, unconditional=True, maps=True)
ONLINE = (
    "scalekv",
    "hack",
    "hackpp",
    "forcing",
    "h2o",
    "snapkv",
    "pyramidkv",
    "adakv",
    "streaming",
    "window",
    "random",
)
BFLOAT16 = {"triton": 4e-3, "plain": 4e-3, "varlen": 4.5e-3}
"""Largest error of an attention output in units of the largest value: the softmax and its product are rounded, to
8 bits each. varlen is torch's kernel."""


@pytest.fixture(scope="module")
def model() -> Infinity:
    return lively(CONFIG).cast_layers(torch.bfloat16).to("cuda")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    try:
        choose_path("cuda", dtype=torch.bfloat16, head_dim=CONFIG.head_dim, requested=request.param)
    except OptionError as error:
        pytest.skip(str(error))
    return str(request.param)


@dataclass
class Compared:
    """Attention of a run, and at every step once more in float32 by the plain way, on the same cache."""

    errors: list[float] = field(default_factory=list)
    """Of outputs, in units of the largest value."""
    mass_errors: list[float] = field(default_factory=list)

    def __call__(self, q: Tensor, visible: Visible, scales: ScaleSchedule, *, path: Path, **how: Any) -> Attended:
        found = attend(q, visible, scales, path=path, **how)
        # Of float32 queries its output is float32, so that one side alone is rounded.
        plain = attend(q.float(), visible, scales, path=Path("plain", "to compare with"), **how)
        stored = np.concatenate(visible.slots)
        largest = max(
            float(each.abs().max()) for each in (visible.values, visible.pool.read(stored)[1]) if each.numel()
        )
        self.errors.append(float((found.out - plain.out).abs().max()) / largest)
        for ours, other in ((found.mass, plain.mass), (found.mass_uncond, plain.mass_uncond), (found.map, plain.map)):
            if ours is None or other is None:
                assert ours is other
                continue
            assert torch.equal(ours.isnan(), other.isnan())
            self.mass_errors.append(float((ours - other).nan_to_num().abs().max()))
        return found


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Compared:
    comparison = Compared()
    monkeypatch.setattr(heatkv.generate, "attend", comparison)
    return comparison


def _texts(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(length, CONFIG.text_width, generator=generator).cuda() for length in lengths or (5, 3)]


def _run(model: Infinity, plan: PruningSchedule | OnlinePlan, **how: Any) -> tuple[tuple[Tensor, ...], Recording]:
    heard = Recording(how.pop("capture", Capture()))
    planned = {"online": plan} if isinstance(plan, OnlinePlan) else {"schedule": plan}
    made = generate(model, how.pop("texts", None) or _texts(), SCALES, seed=1, probe=heard, **planned, **how)
    return made.bits, heard


def _planned(name: str, budget: float) -> PruningSchedule | OnlinePlan:
    made: PruningSchedule | OnlinePlan = make_policy(name, supplied(CONFIG, SCALES)).plan(CONFIG, SCALES, budget=budget)
    return made


class TestAttention:
    def test_of_a_planned_run_is_that_of_the_plain_way(self, way: str, model: Infinity, compared: Compared) -> None:
        _run(model, random_schedule(CONFIG, SCALES, seed=4, sink_scales=2), attention=way, capture=EVERYTHING)

        assert max(compared.errors) <= BFLOAT16[way]
        assert max(compared.mass_errors) <= 1e-5

    @pytest.mark.parametrize("name", ONLINE)
    def test_of_rows_that_keep_tokens_of_their_own(
        self, name: str, way: str, model: Infinity, compared: Compared
    ) -> None:
        _run(model, _planned(name, 0.2), attention=way, capture=EVERYTHING)

        assert max(compared.errors) <= BFLOAT16[way]
        assert max(compared.mass_errors) <= 1e-5

    @pytest.mark.parametrize("codec", CODECS)
    def test_over_what_a_codec_stored(self, codec: str, way: str, model: Infinity, compared: Compared) -> None:
        schedule = random_schedule(CONFIG, SCALES, seed=5, sink_scales=2).in_codec(codec)
        online = _planned("snapkv", 0.2)
        assert isinstance(online, OnlinePlan)

        for plan in (schedule, replace(online, codec=codec)):
            _run(model, plan, attention=way, capture=EVERYTHING)

        assert max(compared.errors) <= BFLOAT16[way]
        assert max(compared.mass_errors) <= 1e-5

    def test_over_a_mixture_of_codecs(self, way: str, model: Infinity, compared: Compared) -> None:
        schedule, names = random_schedule(CONFIG, SCALES, seed=6, sink_scales=1), tuple(CODECS)
        codec = np.random.default_rng(0).integers(0, len(names), schedule.drop_step.shape, dtype=np.uint8)

        _run(model, replace(schedule, codec=codec, codecs=names), attention=way, capture=EVERYTHING)

        assert max(compared.errors) <= BFLOAT16[way]

    def test_of_one_prompt_of_three_and_without_guidance(self, way: str, model: Infinity, compared: Compared) -> None:
        schedule = random_schedule(CONFIG, SCALES, seed=7)
        for texts in (_texts(4), _texts(5, 3, 7)):
            _run(model, schedule, attention=way, texts=texts, capture=EVERYTHING)
        once = Sampling(cfg=1.0)
        _run(model, schedule, attention=way, sampling=once, capture=Capture(mass=True))

        assert max(compared.errors) <= BFLOAT16[way]


class TestRuns:
    @pytest.mark.parametrize("name", ["heatkv", "knapsack", *ONLINE])
    def test_hold_what_was_planned_after_every_step_and_repeat_bit_for_bit(self, name: str, model: Infinity) -> None:
        plan = _planned(name, 0.2)

        bits, heard = _run(model, plan)
        again, _ = _run(model, plan)

        held = [step.accounted_bytes for step in heard.steps]
        np.testing.assert_array_equal(held, plan.tokens_held() * 4 * CONFIG.head_dim * 2 * 2)
        assert all(torch.equal(one, other) for one, other in zip(bits, again, strict=True))

    def test_are_the_same_with_and_without_capture(self, way: str, model: Infinity) -> None:
        plan = random_schedule(CONFIG, SCALES, seed=8)

        bits, _ = _run(model, plan, attention=way)
        measured, heard = _run(model, plan, attention=way, capture=EVERYTHING)

        assert all(torch.equal(one, other) for one, other in zip(bits, measured, strict=True))
        mass = (
            torch.stack([step.attention_mass for step in heard.steps if step.attention_mass is not None])
            .nan_to_num()
            .sum(-1)
        )
        torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=1e-5)

    def test_tell_how_long_the_device_took_for_every_step(self, model: Infinity) -> None:
        _, heard = _run(model, FullPolicy().plan(CONFIG, SCALES))

        assert len(heard.steps) == CONFIG.num_layers * SCALES.num_scales
        assert all(step.device_ns is not None and step.device_ns > 0 for step in heard.steps)

    def test_never_wait_for_the_device_within_a_scale(
        self, way: str, model: Infinity, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if way == "plain":
            pytest.skip("the plain way asks where each head's tokens begin")
        plan = random_schedule(CONFIG, SCALES, seed=9)
        _run(model, plan, attention=way)
        trunk = type(model).trunk

        def unwaiting(*args: Any, **kwargs: Any) -> Tensor:
            torch.cuda.set_sync_debug_mode("error")
            try:
                return trunk(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(type(model), "trunk", unwaiting)

        _run(model, plan, attention=way)
        if way == "triton":
            _run(model, plan, attention=way, capture=Capture(mass=True, unconditional=True))


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Of a HeatKV run of the bundled model."""
    path = tmp_path_factory.mktemp("cuda") / "run.h5"
    assert main(["run", "--device", "cuda", "--policy", "heatkv", "--budget", "0.1", "-o", str(path)]) == 0
    return path


class TestCommands:
    def test_a_recorded_run_is_valid(self, trace: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["trace", "validate", str(trace)]) == 0

    def test_stats_say_how_attention_was_computed(
        self, trace: pathlib.Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["stats", str(trace), "--json"]) == 0

        assert json.loads(capsys.readouterr().out)["status"] == "done"
        with Trace.open(trace) as opened:
            assert str(opened.header.attention).startswith(("triton", "varlen"))

    def test_the_driver_was_sampled(self, trace: pathlib.Path) -> None:
        with Trace.open(trace) as opened:
            assert opened.gpu_unavailable is None
            assert opened.header.gpu_name
            used, total = opened.gpu["used_bytes"], opened.gpu["total_bytes"]

        assert len(used)
        assert (used > 0).all()
        assert (used < total).all()

    def test_the_ledger_measures_down_to_the_device(
        self, trace: pathlib.Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["ledger", str(trace), "--json"]) == 0

        ledger = json.loads(capsys.readouterr().out)
        measured = {line["key"]: line["measured"]["num_bytes"] for line in ledger["run"]["lines"]}
        assert measured["allocated"] <= measured["reserved"] <= measured["total"], measured

    def test_the_allocator_s_peak_was_predicted(
        self, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "run.h5"
        shape = ["--model", "infinity-2b", "--random-weights", "--resolution", "0.25M"]
        assert main(["run", "--device", "cuda", *shape, "-o", str(path)]) == 0
        capsys.readouterr()
        assert main(["ledger", str(path), "--json"]) == 0

        lines = {line["key"]: line for line in json.loads(capsys.readouterr().out)["run"]["lines"]}
        allocated = lines["allocated"]
        assert 0.95 < allocated["measured"]["num_bytes"] / allocated["predicted"]["num_bytes"] < 1.05
        with Trace.open(path) as opened:
            preview, image = opened.preview(SCALES.num_scales - 1), opened.image
        assert preview is not None
        assert image is not None
        assert (preview.shape, image.shape) == ((256, 256, 3), (512, 512, 3))
