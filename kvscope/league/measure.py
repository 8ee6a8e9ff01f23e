"""Measures one prompt after another: full's free run once, then each entrant's free run and its run at full's bits.

Torch is loaded when a Ruler is made: only workers make one. Prompts go one at a time, so that what an online policy
decides is decided for this image.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heatkv.errors import HeatKVError
from heatkv.probe import NullProbe
from kvscope.errors import KVScopeError
from kvscope.league import perceptual
from kvscope.league.adapter import generated
from kvscope.league.settings import FULL
from kvscope.league.table import Row
from kvscope.likeness import psnr, ssim
from kvscope.plan import plan_job
from kvscope.runner import load_pipeline

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from heatkv.pipeline import Pipeline
    from heatkv.probe import RunStart, ScaleInfo, StepInfo
    from kvscope.job import Job
    from kvscope.league.entrants import Entrant
    from kvscope.league.settings import Settings
    from kvscope.plan import Plan


@dataclass(frozen=True, slots=True)
class Run:
    """What one run came to."""

    bits: tuple[Tensor, ...]
    """Per scale, [1, tokens, bits] uint8."""
    logits: tuple[Tensor, ...]
    """Per scale, [1, tokens, 2 * bits] float32."""
    image: NDArray[np.uint8]
    seconds: float
    memory: dict[str, float]
    """The byte columns of table.NUMBERS."""


class Ruler:
    """The model of a league, and the entrants' plans, ready to measure."""

    def __init__(
        self,
        settings: Settings,
        entrants: Sequence[Entrant],
        *,
        threads: int = 1,
        narrate: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings, self._entrants = settings, entrants
        self._pipeline: Pipeline = load_pipeline(settings.job(FULL, None), settings.config, narrate, threads=threads)
        self._pipeline.encoder.check(settings.prompts)
        self._judges = perceptual.loaded(settings.metrics)
        self._plans: dict[int, Plan] = {}
        self._run(0, 0, settings.seeds[0])  # warm: a process's first run is slower than those that are timed

    def rows(self, prompt: int, seed: int, entrants: Sequence[int]) -> Iterator[Row]:
        """A row of each of these entrants, as it is measured."""
        full = self._run(0, prompt, seed)
        for index in entrants:
            is_full = self._entrants[index].policy == FULL
            free = full if is_full else self._run(index, prompt, seed)
            forced = full if is_full else self._run(index, prompt, seed, bits=full.bits)
            yield self._row(index, prompt, seed, full, free, forced)

    def _row(self, index: int, prompt: int, seed: int, full: Run, free: Run, forced: Run) -> Row:
        text = self._settings.prompts[prompt]
        tokens = self._settings.scales.tokens
        kl, flips = _forced(full, forced)
        similarity = ssim(free.image, full.image)
        numbers = free.memory | {
            "seconds": free.seconds,
            "full_seconds": full.seconds,
            "psnr": psnr(free.image, full.image),
            "agreement_free": _agreement(free.bits, full.bits),
            "agreement_forced": 1 - _mean(flips, tokens),
            "kl": _mean(kl, tokens),
            **({} if similarity is None else {"ssim": similarity}),
            **alignment(free.image, text, self._settings.model),
            **{name: judge(free.image, full.image, text) for name, judge in self._judges.items()},
        }
        return Row(index, prompt, seed, bits_sha256(free.bits), numbers, tuple(kl))

    def _run(self, index: int, prompt: int, seed: int, *, bits: Sequence[Tensor] | None = None) -> Run:
        entrant = self._entrants[index]
        job = self._settings.job(entrant.policy, entrant.budget, prompt=self._settings.prompts[prompt], seed=seed)
        listener = _Listener(self._settings.device)
        made = generated(self._pipeline, self._plan(index, job), job, bits=bits, probe=listener)
        assert made.image is not None  # a pipeline always has a VAE
        return Run(made.bits, tuple(listener.logits), made.image[0].cpu().numpy(), listener.seconds, listener.memory)

    def _plan(self, index: int, job: Job) -> Plan:
        """The entrant's plan, made once. Raises KVScopeError if it is not the one that the league was begun with."""
        if index not in self._plans:
            plan, entrant = plan_job(job), self._entrants[index]
            found = self._settings.peak_bytes(plan)
            if found != entrant.peak_bytes:
                expected = f"the league was begun with {entrant.peak_bytes:,}"
                raise KVScopeError(
                    f"{entrant.policy} at {entrant.budget}: plans {found:,} bytes, {expected}; start anew"
                )
            self._plans[index] = plan
        return self._plans[index]


def alignment(image: NDArray[np.uint8], prompt: str, model: str) -> dict[str, float]:
    """How far a picture of infinity-tiny shows its prompt; nothing for other models, or captions it does not know."""
    # Deferred: only the tiny model needs its world.
    from heatkv.tiny.detect import align
    from heatkv.tiny.scenes import parse_caption

    if model != "infinity-tiny":
        return {}
    try:
        found = align(image, parse_caption(prompt))
    except HeatKVError:
        return {}
    return {name: getattr(found, name) for name in ("colour", "shape", "position", "all_right")}


def bits_sha256(bits: Sequence[Tensor | NDArray[np.uint8]]) -> str:
    """Of all bits, scale after scale, a byte each."""
    # Deferred: numpy, which is loaded by now.
    import numpy as np

    return hashlib.sha256(b"".join(np.asarray(one, np.uint8).tobytes() for one in bits)).hexdigest()


def _forced(full: Run, forced: Run) -> tuple[list[float], list[float]]:
    """Per scale, KL and flips."""
    from heatkv.forced import bit_flips, bit_kl

    pairs = list(zip(full.logits, forced.logits, strict=True))
    return [bit_kl(*pair) for pair in pairs], [bit_flips(*pair) for pair in pairs]


def _agreement(bits: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    same = sum(int((one == other).sum()) for one, other in zip(bits, others, strict=True))
    return same / sum(one.numel() for one in bits)


def _mean(by_scale: Sequence[float], tokens: Sequence[int]) -> float:
    """Over all bits of the image: scales count by their tokens."""
    return sum(value * count for value, count in zip(by_scale, tokens, strict=True)) / sum(tokens)


class _Listener(NullProbe):
    """Keeps logits, the clock and the most bytes of one run."""

    def __init__(self, device: str) -> None:
        self.logits: list[Tensor] = []
        self.memory: dict[str, float] = {"accounted_peak_bytes": 0.0, "stored_peak_bytes": 0.0}
        self.seconds = 0.0
        self._on_gpu = device.startswith("cuda")
        self._begin = 0.0

    def run_started(self, start: RunStart) -> None:
        self.memory["pool_bytes"] = float(sum(one.capacity_tokens * one.bytes_per_token for one in start.rooms))
        if self._on_gpu:
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._begin = time.monotonic()

    def step_done(self, step: StepInfo) -> None:
        for name, now in (("accounted_peak_bytes", step.accounted_bytes), ("stored_peak_bytes", step.storage_bytes)):
            self.memory[name] = max(self.memory[name], float(now))

    def scale_done(self, scale: ScaleInfo) -> None:
        self.seconds = time.monotonic() - self._begin  # bits are on the CPU, so the device has finished the scale
        self.logits.append(scale.logits.float())
        if self._on_gpu:
            import torch

            self.memory["allocator_peak_bytes"] = float(torch.cuda.max_memory_allocated())
