"""The recipe: a few steps learn, a stopped run goes on, and what is exported is what the pipeline loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from heatkv.generate import Sampling, generate
from heatkv.pipeline import Pipeline
from heatkv.probe import NullProbe, ScaleInfo
from heatkv.tiny import train, transformer_stage
from heatkv.tiny.scenes import held_out_scenes
from heatkv.tiny.stages import CONFIG, VaeStage
from heatkv.tiny.train import PHASES, Phase, Trainer, main
from heatkv.tiny.transformer_stage import BlockCausal, TinyModel, TransformerStage
from heatkv.vae import BSQVAE, ResidualCodes

RATES = {"peak_rate": 1e-3, "end_rate": 1e-3, "ema": 0.9}
SHORT = (
    Phase("vae", "vae", steps=2, share=0.5, batch=4, warmup_steps=5, **RATES),
    Phase("scales-3", "transformer", steps=2, share=0.5, batch=4, warmup_steps=5, num_scales=3, **RATES),
)


@pytest.fixture(autouse=True)
def small_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer_stage, "_POOL_SCENES", 64)


class _Logits(NullProbe):
    def __init__(self, seen: list[torch.Tensor]) -> None:
        self.seen = seen

    def scale_done(self, scale: ScaleInfo) -> None:
        self.seen.append(scale.logits)


def vae_stage(batch: int = 4) -> VaeStage:
    torch.manual_seed(0)
    return VaeStage(batch)


def some_transformer_stage(num_scales: int = 4, batch: int = 8) -> TransformerStage:
    torch.manual_seed(0)
    stage = TransformerStage(batch, num_scales, vae_weights=BSQVAE(CONFIG.vae).state_dict())
    stage.reseed(0)
    return stage


def losses(stage: VaeStage | TransformerStage, steps: int, rate: float) -> list[float]:
    optimizer = torch.optim.AdamW(stage.module.parameters(), lr=rate)
    seen = []
    for _ in range(steps):
        loss, metrics = stage.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(metrics["loss"])
    return seen


def test_a_few_steps_lower_the_vae_loss() -> None:
    seen = losses(vae_stage(), 25, 1.5e-3)

    assert sum(seen[-5:]) < 0.7 * sum(seen[:5])


def test_a_few_steps_lower_the_transformer_loss() -> None:
    seen = losses(some_transformer_stage(), 25, 1e-3)

    assert sum(seen[-5:]) < 0.9 * sum(seen[:5])


def test_training_sees_what_generation_sees() -> None:
    stage = some_transformer_stage(num_scales=len(CONFIG.scales))
    model, scales = stage.module.transformer.eval(), CONFIG.schedule_for()
    texts = stage.module.text.encode([scene.caption for scene in held_out_scenes(2)])
    made = generate(model, texts, scales, seed=0)
    codes, logits = ResidualCodes.of(CONFIG, scales), list[torch.Tensor]()

    generate(model, texts, scales, sampling=Sampling(cfg=1.0), forced_bits=made.bits, probe=_Logits(logits))
    summed, features = codes.zeros(2), []
    for scale, bits in enumerate(made.bits):
        if scale:
            features.append(codes.features(summed, scale))
        summed = codes.add(summed, bits, scale)
    with torch.inference_mode():
        context = model.encode_text(texts, None, guided=False)
        at_once = stage._forward(context, torch.cat(features, 1), len(CONFIG.scales))

    # Float sums in another order only.
    torch.testing.assert_close(at_once.flatten(2), torch.cat(logits, 1), rtol=0, atol=2e-4)


def test_a_token_never_sees_a_later_scale() -> None:
    offsets, num_heads, head_dim = CONFIG.schedule_for().offsets, 2, 8
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, num_heads, offsets[-1], head_dim).unbind(0)
    attend, before = BlockCausal(offsets), offsets[-2]

    out = attend(0, q, k, v)
    k[:, :, before:], v[:, :, before:] = 0, 0

    assert torch.equal(attend(0, q, k, v)[:, :, :before], out[:, :, :before])
    assert not torch.equal(attend(0, q, k, v)[:, :, before:], out[:, :, before:])


def test_training_starts_with_zero_key_biases_and_open_gates() -> None:
    model = TinyModel().transformer

    assert all(not buffer.any() for buffer in model.buffers())
    assert all(layer.modulation[0, 0, :2].mean() > 0.9 for layer in model.layers)  # type: ignore[index, union-attr]


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    Trainer(tmp_path, phases=SHORT[:1]).run(steps=4)
    Trainer(tmp_path, phases=SHORT).run(steps=4)

    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    phases = [line["phase"] for line in lines if "loss" in line]
    assert phases == ["vae", "scales-3"]


def test_exported_weights_are_loaded_by_the_same_strict_loader_as_any_model(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, phases=SHORT)
    trainer.run(steps=2)

    pipeline = Pipeline.load(CONFIG, trainer.export(tmp_path / "weights"), dtype="float32")

    made = pipeline.generate([held_out_scenes(1)[0].caption], seed=0)
    assert made.image is not None
    assert made.image.shape == (1, 40, 40, 3)
    assert sum(file.stat().st_size for file in (tmp_path / "weights").iterdir()) <= 14e6


def test_the_learning_rate_rises_and_then_falls_to_its_end() -> None:
    phase = PHASES[-1]
    rates = [phase.rate(step, 1000) for step in range(1001)]

    assert rates[0] < rates[phase.warmup_steps]
    assert rates[phase.warmup_steps :] == sorted(rates[phase.warmup_steps :], reverse=True)
    assert rates[-1] == pytest.approx(phase.end_rate)


def test_the_command_trains_the_first_phase_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--out", str(tmp_path), "--steps", "2", "--phases", "vae"])

    assert "vae [" in capsys.readouterr().err
    assert (tmp_path / "state.pt").exists()


def test_without_a_length_a_phase_takes_its_own_steps(tmp_path: Path) -> None:
    Trainer(tmp_path, phases=SHORT).run()

    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["of"]) for line in lines if "loss" in line] == [("vae", 2), ("scales-3", 2)]


def test_minutes_become_steps_by_the_rate_of_the_first_ones(tmp_path: Path) -> None:
    Trainer(tmp_path, phases=SHORT[:1]).run(minutes=1e-6)

    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["of"] == last["step"] == 20  # the fewest that a rate is measured by


@pytest.mark.slow
def test_a_short_retraining_reaches_the_logged_curve(tmp_path: Path) -> None:
    log = Path(train.__file__).parent / "weights" / "training-log.jsonl"
    if not log.exists():
        pytest.skip("the package has no training log of infinity-tiny; it comes with the weights")
    logged = next(line for line in map(json.loads, log.read_text().splitlines()) if line["step"] == 50)

    Trainer(tmp_path, phases=PHASES[:1]).run(steps=50)

    reached = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert (logged["phase"], reached["step"]) == ("vae", 50)
    assert reached["loss"] < 1.3 * logged["loss"]  # one batch of 8 pictures scatters by a tenth
