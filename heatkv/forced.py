"""Forced runs: what a schedule, or an online policy, does by itself, at the bits that a reference run made.

Both runs see the same bits at every scale, so that nothing differs but what the caches hold. Told per scale: how far
the distributions of the bits lie apart (KL, nats per bit) and how many bits would more likely be the other one; and per
layer and head how far attention's output is off when its inputs are the reference's: an error of that head alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from heatkv.attention import Path, attend, choose_path
from heatkv.cache import KVCache
from heatkv.generate import Run, Sampling, new_cache, stored
from heatkv.online import OnlinePlan
from heatkv.probe import NullProbe, ScaleInfo
from heatkv.schedule import PruningSchedule
from heatkv.selection import Selector
from heatkv.token_cache import TokenCache

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.scales import ScaleSchedule
    from heatkv.transformer import Infinity, TextContext


AnyPlan = PruningSchedule | OnlinePlan
"""What a run can obey: a schedule, or what an online policy is held to."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a run is made of besides its schedule: the model, its text, and how bits are drawn."""

    model: Infinity
    text: Tensor
    """[tokens, text_width]: the encoder's features of one prompt."""
    scales: ScaleSchedule
    sampling: Sampling
    negative: Tensor | None = None
    """The same of a negative prompt; None: the learned one."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A run under a plan whose bits and logits others are held against."""

    prompt: Prompt
    plan: AnyPlan
    bits: tuple[Tensor, ...]
    """Per scale, [1, tokens, bits] uint8."""
    logits: tuple[Tensor, ...]
    """Per scale, [1, tokens, 2 * bits] float32, after temperature and guidance."""

    @classmethod
    def of(
        cls, prompt: Prompt, plan: AnyPlan, *, bits: Sequence[Tensor] | None = None, seed: int | None = None
    ) -> Reference:
        """Run it: at the given bits, or drawing its own with `seed`."""
        listener = _Logits()
        made = _run(prompt, plan, listener, bits=bits, seed=seed)
        return cls(prompt, plan, made, tuple(listener.logits))


@dataclass(frozen=True, slots=True, eq=False)
class ForcedError:
    """How far a plan leads from the reference, at the reference's bits."""

    kl: NDArray[np.float64]
    """[scale]: mean over tokens and bits of KL(reference || this), in nats per bit."""
    flips: NDArray[np.float64]
    """[scale]: fraction of bits whose likelier value is the other one."""
    tokens: NDArray[np.int64]
    """[scale]: tokens of each, for means over the image."""

    @property
    def mean_kl(self) -> float:
        """Over all bits of the image."""
        return float((self.kl * self.tokens).sum() / self.tokens.sum())

    @property
    def mean_flips(self) -> float:
        """Over all bits of the image."""
        return float((self.flips * self.tokens).sum() / self.tokens.sum())


def forced_error(reference: Reference, plan: AnyPlan) -> ForcedError:
    """Run `plan` at the reference's bits and compare logits."""
    listener = _Logits()
    _run(reference.prompt, plan, listener, bits=reference.bits)
    pairs = list(zip(reference.logits, listener.logits, strict=True))
    return ForcedError(
        np.array([bit_kl(ours, theirs) for ours, theirs in pairs]),
        np.array([bit_flips(ours, theirs) for ours, theirs in pairs]),
        np.array(reference.prompt.scales.tokens),
    )


def bit_kl(reference: Tensor, other: Tensor) -> float:
    """Mean KL(reference || other) of the bits of one scale, in nats; logits [batch, tokens, 2 * bits]."""
    ours, theirs = (logits.double().unflatten(-1, (-1, 2)).log_softmax(-1) for logits in (reference, other))
    return max(0.0, float((ours.exp() * (ours - theirs)).sum(-1).mean()))


def bit_flips(reference: Tensor, other: Tensor) -> float:
    """Fraction of the bits whose likelier value differs; logits as in `bit_kl`. A tie counts as bit 0."""
    ours, theirs = (logits.unflatten(-1, (-1, 2)) for logits in (reference, other))
    return float(((ours[..., 1] > ours[..., 0]) != (theirs[..., 1] > theirs[..., 0])).double().mean())


def attention_error(reference: Reference, plan: AnyPlan) -> NDArray[np.float64]:
    """[scale, layer, head]: |out - reference's out| / |reference's out| over queries and rows, at the latter's inputs.

    One pass of the reference, with a second cache that obeys `plan` and is fed the same keys and values; an online
    policy chooses by the reference's queries.
    """
    prompt, config = reference.prompt, reference.prompt.model.config
    _bound(plan).validate(config, prompt.scales)
    errors = np.zeros((prompt.scales.num_scales, config.num_layers, config.num_heads))
    with torch.inference_mode():
        run = _shadowed(prompt, reference.plan, plan, errors)
        try:
            run.all_scales(1, None, reference.bits)
        finally:
            run.close()
    return errors


def _shadowed(prompt: Prompt, plan: AnyPlan, other: AnyPlan, errors: NDArray[np.float64]) -> _ShadowedRun:
    run = _ShadowedRun(*_parts(prompt, plan), _Logits(), _online(plan))
    run.errors = errors
    run.shadow = new_cache(other, prompt.model, rows=run.text.rows, device=run.device)
    run.shadow_selector = Selector(other, run._raw_queries) if isinstance(other, OnlinePlan) else None
    return run


class _ShadowedRun(Run):
    """A run that also asks, at every layer, what a second cache would have given."""

    shadow: KVCache | TokenCache
    shadow_selector: Selector | None
    errors: NDArray[np.float64]

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = super()._attend(layer, q, k, v)
        visible = self.shadow.visible(layer, query_scale=self.query_scale, keys=k, values=v)
        other = attend(q, visible, self.scales, path=self.path).out
        stored(self.shadow, self.shadow_selector, layer, self.query_scale, q, k, v)
        gap, size = ((x.double() ** 2).sum(dim=(0, 2, 3)) for x in (out - other, out))
        self.errors[self.query_scale, layer] = (
            (gap / size.clamp_min(torch.finfo(torch.double).tiny)).sqrt().cpu().numpy()
        )
        return out

    def close(self) -> None:
        super().close()
        self.shadow.clear()


class _Logits(NullProbe):
    """Keeps the logits of one run."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def scale_done(self, scale: ScaleInfo) -> None:
        self.logits.append(scale.logits.float())


@torch.inference_mode()
def _run(
    prompt: Prompt,
    plan: AnyPlan,
    listener: _Logits,
    *,
    bits: Sequence[Tensor] | None,
    seed: int | None = None,
) -> tuple[Tensor, ...]:
    run = Run(*_parts(prompt, plan), listener, _online(plan))
    try:
        return run.all_scales(1, seed, bits)[0]
    finally:
        run.close()


def _parts(
    prompt: Prompt, plan: AnyPlan
) -> tuple[Infinity, TextContext, ScaleSchedule, PruningSchedule, Sampling, Path]:
    model, scales, schedule = prompt.model, prompt.scales, _bound(plan)
    schedule.validate(model.config, scales)
    negatives = None if prompt.negative is None else [prompt.negative]
    text = model.encode_text([prompt.text], negatives, guided=prompt.sampling.guided)
    path = choose_path(text.pooled.device, dtype=model.kv_dtype, head_dim=model.config.head_dim, codecs=schedule.codecs)
    return model, text, scales, schedule, prompt.sampling, path


def _bound(plan: AnyPlan) -> PruningSchedule:
    return plan.bound() if isinstance(plan, OnlinePlan) else plan


def _online(plan: AnyPlan) -> OnlinePlan | None:
    return plan if isinstance(plan, OnlinePlan) else None
