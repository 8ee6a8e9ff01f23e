"""The training recipe of infinity-tiny: `python -m heatkv.tiny.train --out DIR`.

This file owns the loop: phases, learning rate, moving average, log and checkpoints. What a phase learns from, and by
which loss, is in `stages` and `transformer_stage`. Every phase counts steps, those of the released weights by
default; `--minutes` says how many from the rate of its first steps. A folder with a checkpoint is resumed; delete it
to start anew.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from heatkv.checkpoint import official_tensors
from heatkv.errors import UnknownNameError
from heatkv.tiny.stages import CONFIG, Stage, VaeStage
from heatkv.tiny.transformer_stage import Pool, TinyModel, TransformerStage
from heatkv.vae import BSQVAE

_RATE_STEPS = 20
_SAVE_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of training with its own learning-rate schedule."""

    name: str
    part: str
    """What is trained: `vae` or `transformer`."""
    steps: int
    """Of the released weights."""
    share: float
    """Share of `--minutes`, where that is given instead."""
    peak_rate: float
    end_rate: float
    """Learning rate at the last step, reached along a cosine."""
    ema: float
    """Share that the averaged weights keep at each step."""
    batch: int = 16
    num_scales: int = 0
    """Of the transformer: how many scales it learns in this phase."""
    warmup_steps: int = 50

    def rate(self, step: int, num_steps: int) -> float:
        """Learning rate at a step of this phase."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, num_steps))))
        return min(1.0, (step + 1) / self.warmup_steps) * (self.end_rate + (self.peak_rate - self.end_rate) * cosine)


PHASES = (
    Phase("vae", "vae", steps=3170, share=0.12, batch=8, peak_rate=1.5e-3, end_rate=5e-5, ema=0.995),
    Phase(
        "scales-3",
        "transformer",
        steps=2728,
        share=0.10,
        batch=32,
        peak_rate=1.2e-3,
        end_rate=1.2e-3,
        ema=0.998,
        num_scales=3,
        warmup_steps=100,
    ),
    Phase(
        "scales-5", "transformer", steps=2150, share=0.14, peak_rate=1.2e-3, end_rate=1.0e-3, ema=0.998, num_scales=5
    ),
    Phase(
        "scales-6", "transformer", steps=1695, share=0.15, peak_rate=1.0e-3, end_rate=0.8e-3, ema=0.998, num_scales=6
    ),
    Phase("scales-7", "transformer", steps=2302, share=0.49, peak_rate=0.8e-3, end_rate=4e-5, ema=0.999, num_scales=7),
)
"""The recipe, in order."""


@dataclass(slots=True)
class Progress:
    """Where training stands; part of the checkpoint."""

    phase: int = 0
    step: int = 0
    num_steps: int = 0
    """Of the current phase; 0 until its rate is measured."""
    seconds: float = 0.0


class Trainer:
    """Runs the phases on one stage each, and keeps a resumable folder: state.pt, log.jsonl."""

    def __init__(self, out: Path, *, seed: int = 0, phases: Sequence[Phase] = PHASES) -> None:
        self.out, self.seed, self.phases = out, seed, tuple(phases)
        self.progress = Progress()
        self.weights: dict[str, dict[str, Tensor]] = {}
        """Part → its averaged weights so far."""
        self._resumed: dict[str, Any] = {}  # Any: torch state of several kinds
        self._pool: Pool | None = None
        self._saved_at = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        if self._state_path.exists():
            self._resume()

    @property
    def _state_path(self) -> Path:
        return self.out / "state.pt"

    def run(self, *, minutes: float | None = None, steps: int | None = None) -> None:
        """Train all phases from where the folder stands: for `steps` each, `minutes` in all, or their own steps."""
        while self.progress.phase < len(self.phases):
            phase = self.phases[self.progress.phase]
            if minutes is None:
                self.progress.num_steps = steps or phase.steps
            self._run_phase(phase, seconds=(minutes or 0.0) * 60 * phase.share)
            self.progress = Progress(self.progress.phase + 1)
            self._save({})

    def export(self, folder: Path) -> Path:
        """Write the weights learnt so far as float16 safetensors, under the official names, and return the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        vae, model = BSQVAE(CONFIG.vae), TinyModel()
        vae.load_state_dict(self.weights["vae"])
        model.load_state_dict(self.weights["transformer"])
        parts = {"vae": official_tensors(vae), "transformer": official_tensors(model.transformer)}
        for name, tensors in (parts | {"text_encoder": model.text.state_dict()}).items():
            save_file(
                {key: value.half().contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors"
            )
        return folder

    def _run_phase(self, phase: Phase, *, seconds: float) -> None:
        stage = make_stage(phase, self.weights, seed=self.seed, pool=self._pool)
        optimizer = _optimizer(stage.module, phase)
        average = {name: value.detach().clone() for name, value in stage.module.state_dict().items()}
        stage.reseed(self.seed + 1000 * self.progress.phase + self.progress.step)
        if self._resumed:
            stage.module.load_state_dict(self._resumed["module"])
            optimizer.load_state_dict(self._resumed["optimizer"])
            average, self._resumed = self._resumed["average"], {}
        progress, begin, first = self.progress, time.monotonic(), self.progress.step
        while not progress.num_steps or progress.step < progress.num_steps:
            for group in optimizer.param_groups:
                group["lr"] = phase.rate(progress.step, progress.num_steps or 10**9)
            metrics = _train_step(stage, optimizer, average, phase, progress.step)
            progress.step += 1
            elapsed = time.monotonic() - begin
            if not progress.num_steps and progress.step - first >= _RATE_STEPS:
                progress.num_steps = max(_RATE_STEPS, int(seconds / elapsed * (progress.step - first)))
            self._report(phase, stage, metrics, average, elapsed / (progress.step - first))
            if time.monotonic() - self._saved_at > _SAVE_SECONDS:
                self._save(
                    {"module": stage.module.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
                )
        self.weights[phase.part] = average
        self._pool = stage.pool if isinstance(stage, TransformerStage) else None

    def _report(
        self, phase: Phase, stage: Stage, metrics: dict[str, float], average: dict[str, Tensor], step_s: float
    ) -> None:
        step, total = self.progress.step, self.progress.num_steps
        if step % 50 == 0 or step == total:
            self._log({"phase": phase.name, "step": step, "of": total, "step_s": step_s, **metrics})
            bar = "#" * (30 * step // max(total, 1))
            shown = " ".join(f"{name} {metrics[name]:.3f}" for name in ("loss", "psnr", "accuracy") if name in metrics)
            left = f"{(total - step) * step_s / 60:.1f} min left"
            sys.stderr.write(f"{phase.name} [{bar:<30}] {step}/{total} {shown} {left}\n")
        if step == total or (step >= 250 and step % max(500, total // 8) == 0):
            self._log({"phase": phase.name, "step": step, "of": total, "scores": _scores(stage, average)})

    def _log(self, record: dict[str, Any]) -> None:  # Any: a JSON object
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 1), **record}, default=float) + "\n")

    def _save(self, current: dict[str, Any]) -> None:  # Any: torch state of several kinds
        beside = self._state_path.with_suffix(".part")
        torch.save({"progress": asdict(self.progress), "weights": self.weights, "current": current}, beside)
        beside.replace(self._state_path)
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        state = torch.load(self._state_path, weights_only=True)
        self.progress, self.weights = Progress(**state["progress"]), state["weights"]
        self._resumed = state["current"]


def make_stage(phase: Phase, weights: dict[str, dict[str, Tensor]], *, seed: int, pool: Pool | None = None) -> Stage:
    """The stage of a phase, with the weights that its part has so far; `pool`: that of the phase before."""
    torch.manual_seed(seed)
    stage: Stage = VaeStage(phase.batch)
    if phase.part == "transformer":
        stage = TransformerStage(phase.batch, phase.num_scales, vae_weights=weights["vae"], pool=pool)
    if phase.part in weights:
        stage.module.load_state_dict(weights[phase.part])
    return stage


def _optimizer(module: nn.Module, phase: Phase) -> torch.optim.Optimizer:
    decay = 0.03 if phase.part == "transformer" else 0.0
    matrices = [p for name, p in module.named_parameters() if p.ndim >= 2 and "log_scale" not in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in module.parameters() if id(p) not in chosen]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=phase.peak_rate, betas=(0.9, 0.95))


def _train_step(
    stage: Stage, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], phase: Phase, step: int
) -> dict[str, float]:
    loss, metrics = stage.loss()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(stage.module.parameters(), 1.0)
    optimizer.step()
    decay = min(phase.ema, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in stage.module.state_dict().items():
            average[name].lerp_(value, 1 - decay)
    return metrics


def _scores(stage: Stage, average: dict[str, Tensor]) -> dict[str, float]:
    """The stage's held-out scores with the averaged weights."""
    trained = {name: value.clone() for name, value in stage.module.state_dict().items()}
    stage.module.load_state_dict(average)
    scores = stage.scores()
    stage.module.load_state_dict(trained)
    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m heatkv.tiny.train", description="Train infinity-tiny.")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the checkpoint and the log; resumed if it has one"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=None, help="time for the whole recipe, instead of its steps")
    length.add_argument("--steps", type=int, default=None, help="steps of every phase, instead of its own")
    parser.add_argument("--phases", default=None, help="only the first phases, up to the one of this name")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data (default: 0)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    names = [phase.name for phase in PHASES]
    if options.phases is not None and options.phases not in names:
        raise UnknownNameError("phase", options.phases, names)
    end = len(PHASES) if options.phases is None else names.index(options.phases) + 1
    trainer = Trainer(options.out, seed=options.seed, phases=PHASES[:end])
    trainer.run(minutes=options.minutes, steps=options.steps)
    done = trainer.export(options.out / "weights") if "transformer" in trainer.weights else options.out
    sys.stdout.write(f"{done}\n")


if __name__ == "__main__":
    main()
