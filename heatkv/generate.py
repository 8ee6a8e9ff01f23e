"""Text to image: the loop over scales. It feeds the transformer, obeys the schedule, samples bits, tells the probe.

Semantics: FoundationVision/Infinity, infinity/models/infinity.py: autoregressive_infer_cfg.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from heatkv.attention import Attended, Path, attend, choose_path
from heatkv.cache import KVCache
from heatkv.config import ModelConfig
from heatkv.errors import OptionError
from heatkv.online import OnlinePlan
from heatkv.policies.full import FullPolicy
from heatkv.probe import NullProbe, Probe, RunStart, ScaleInfo, StepInfo
from heatkv.revision import check_room, revised
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from heatkv.selection import Selector
from heatkv.token_cache import TokenCache
from heatkv.transformer import NUM_LEVEL_EMBEDDINGS, Infinity, Rope, TextContext
from heatkv.vae import BSQVAE, ResidualCodes


@dataclass(frozen=True, slots=True)
class Sampling:
    """How bits are drawn. A list gives one value per scale; top_k and top_p of 0 are off."""

    cfg: float | tuple[float, ...] = 3.0
    """Guidance strength; 1 everywhere means no unconditional rows at all (half the cache)."""
    tau: float | tuple[float, ...] = 1.0
    top_k: int = 900
    """There are two outcomes per bit: 1 is greedy, anything above is off."""
    top_p: float = 0.97
    """The less likely outcome is removed where its probability is at most 1 - top_p."""
    cfg_insertion_layers: tuple[int, ...] = (0,)
    """0: guide the logits; -n: guide the hidden state after the n-th layer from the end."""

    def __post_init__(self) -> None:
        wrong = [item for item in self.cfg_insertion_layers if item > 0]
        if wrong:
            raise OptionError(f"cfg insertion layer {wrong[0]} is not possible; use 0 (logits) or negative numbers")
        for tau in self.tau if isinstance(self.tau, tuple) else (self.tau,):
            if not 0 < tau < math.inf:
                raise OptionError(f"temperature {tau} is not possible; expected a number above 0")
        for cfg in self.cfg if isinstance(self.cfg, tuple) else (self.cfg,):
            if not math.isfinite(cfg):
                raise OptionError(f"cfg {cfg} is not possible; expected a finite number")

    def check(self, num_scales: int, num_layers: int) -> None:
        """Raises OptionError if a list does not fit the scales, or an insertion layer the model."""
        for name, value in (("cfg", self.cfg), ("tau", self.tau)):
            if isinstance(value, tuple) and len(value) != num_scales:
                raise OptionError(f"{name} list has {len(value)} values, this run has {num_scales} scales")
        for item in self.cfg_insertion_layers:
            if item and num_layers + item < 1:
                raise OptionError(f"cfg insertion layer {item} is before layer 1 of {num_layers}")

    @property
    def guided(self) -> bool:
        """Whether unconditional rows are needed at any scale."""
        return any(value != 1 for value in (self.cfg if isinstance(self.cfg, tuple) else (self.cfg,)))

    def cfg_at(self, scale: int) -> float:
        return self.cfg[scale] if isinstance(self.cfg, tuple) else self.cfg

    def tau_at(self, scale: int) -> float:
        return self.tau[scale] if isinstance(self.tau, tuple) else self.tau


@dataclass(frozen=True, slots=True)
class Generation:
    """What a run made."""

    bits: tuple[Tensor, ...]
    """Per scale, [batch, tokens, bits_per_token] uint8, on the CPU."""
    codes: Tensor
    """[batch, code_channels, height, width] float32: what the VAE decodes."""
    image: Tensor | None
    """[batch, height, width, 3] uint8 RGB; None without a VAE."""


@torch.inference_mode()
def generate(
    model: Infinity,
    texts: Sequence[Tensor],
    scales: ScaleSchedule,
    *,
    sampling: Sampling | None = None,
    schedule: PruningSchedule | None = None,
    online: OnlinePlan | None = None,
    seed: int | None = None,
    forced_bits: Sequence[Tensor] | None = None,
    negatives: Sequence[Tensor] | None = None,
    vae: BSQVAE | None = None,
    probe: Probe | None = None,
    attention: str = "auto",
) -> Generation:
    """Make one image per text (encoder features, [tokens, text_width] each).

    Without `schedule` everything is kept; with `online` its policy chooses what stays, instead. With
    `forced_bits` (one tensor per scale, as Generation.bits) the sampler is not asked: each scale sees exactly those
    bits, so what differs is the cache's doing alone. Bits depend on `seed`, the dtype and the device type; None draws
    from torch's global generator. `attention`: one of heatkv.attention.PATHS, or `auto`.
    """
    sampling = sampling or Sampling()
    sampling.check(scales.num_scales, model.config.num_layers)
    _check_texts(texts, negatives, model.config)
    if scales.num_scales > NUM_LEVEL_EMBEDDINGS:
        raise OptionError(f"{scales.num_scales} scales; Infinity knows at most {NUM_LEVEL_EMBEDDINGS}")
    if online is not None:
        schedule = online.bound()
    schedule = schedule or FullPolicy().plan(model.config, scales)
    schedule.validate(model.config, scales)
    if forced_bits is not None:
        _check_bits(forced_bits, len(texts), model.config, scales)
    text = model.encode_text(texts, negatives, guided=sampling.guided)
    path = choose_path(
        text.pooled.device,
        dtype=model.kv_dtype,
        head_dim=model.config.head_dim,
        requested=attention,
        codecs=schedule.codecs,
    )
    run = Run(model, text, scales, schedule, sampling, path, probe, online)
    try:
        bits, codes = run.all_scales(len(texts), seed, forced_bits)
    finally:
        run.close()
    return Generation(bits, codes, vae.decode_rgb(codes) if vae is not None else None)


class Run:
    """The state of one generation: text, cache, and where the loop is. `close` it when it is over."""

    def __init__(
        self,
        model: Infinity,
        text: TextContext,
        scales: ScaleSchedule,
        schedule: PruningSchedule,
        sampling: Sampling,
        path: Path,
        probe: Probe | None,
        online: OnlinePlan | None = None,
    ) -> None:
        self.model, self.text, self.schedule, self.sampling, self.path = model, text, schedule, sampling, path
        self.scales = scales  # not the schedule's: a plan knows the grids, but RoPE is the run's own
        self.probe = probe or NullProbe()
        self.device = text.pooled.device
        self.cache = new_cache(online or schedule, model, rows=text.rows, device=self.device)
        self.selector = None if online is None else Selector(online, self._raw_queries)
        self.layer_input = text.pooled
        self.rope = Rope.of(self.scales, model.config.head_dim, self.device)
        self.codes = ResidualCodes.of(model.config, self.scales)
        self.query_scale = 0
        self.clock = StepClock(self.device.type)
        self.step_evicted = 0
        self.step_read = np.zeros((schedule.num_heads, self.scales.num_scales), np.int64)
        self.step_attended: Attended | None = None

    def close(self) -> None:
        """Let go of the cache's memory."""
        self.cache.clear()

    def revise(self, schedule: PruningSchedule, query_scale: int) -> PruningSchedule:
        """Go on with another schedule, before the first step of this query scale; the one that is obeyed then.

        Raises ScheduleError if what has left would come back, or the cache has no room; see heatkv.revision.
        """
        assert isinstance(self.cache, KVCache)  # of an online policy's run nobody is offered this
        one = revised(self.schedule, schedule, query_scale)
        check_room(one, query_scale, self._run_start().rooms)
        self.cache.revise(one, query_scale)
        self.schedule = one
        return one

    def all_scales(
        self, batch: int, seed: int | None, forced_bits: Sequence[Tensor] | None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Every scale in turn: the bits of each, and the codes they sum up to; see `generate`."""
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        self.probe.run_started(self._run_start())
        summed = self.codes.zeros(batch, self.device)
        all_bits = []
        for scale in range(self.scales.num_scales):
            logits = self._guided_logits(scale, batch, summed)
            if forced_bits is None:
                bits = sample_bits(logits, self.sampling, generator)
            else:
                bits = forced_bits[scale].to(self.device)
            summed = self.codes.add(summed, bits, scale)
            all_bits.append(bits.cpu())
            for step in self.clock.scale_done():
                self.probe.step_done(step)
            self.probe.scale_done(ScaleInfo(scale, bits, logits, summed))
        return tuple(all_bits), summed

    def _guided_logits(self, scale: int, batch: int, summed: Tensor) -> Tensor:
        """[batch, tokens, 2 * bits]: after temperature and guidance, before top-k and top-p."""
        strength = self.sampling.cfg_at(scale)
        hidden = self._hidden(scale, summed, self._guidance(strength))
        logits = self.model.bit_logits(hidden, self.text) * (1 / self.sampling.tau_at(scale))
        if strength != 1 and 0 in self.sampling.cfg_insertion_layers:
            return strength * logits[:batch] + (1 - strength) * logits[batch:]
        return logits[:batch]

    def _guidance(self, strength: float) -> dict[int, float]:
        if strength == 1:
            return {}
        depth = self.model.config.num_layers
        return {depth + item: strength for item in self.sampling.cfg_insertion_layers if item < 0}

    def _hidden(self, scale: int, summed: Tensor, guidance: dict[int, float]) -> Tensor:
        self.query_scale = scale
        begin, end = self.scales.offsets[scale : scale + 2]
        levels = torch.full((end - begin,), scale, device=self.device)
        rope = self.rope.tokens(begin, end)
        return self.model.trunk(
            self._inputs(scale, summed),  # in no variable, which would keep it alive through all layers
            levels,
            self.text,
            rope,
            self._attend,
            guidance=guidance,
            before_layer=self._before_layer,
            after_layer=self._after_layer,
        )

    def _inputs(self, scale: int, summed: Tensor) -> Tensor:
        """[R, L, C], of the codes of the scales before."""
        if scale == 0:
            return self.model.start_tokens(self.text)
        features = self.codes.features(summed, scale)
        return self.model.embed(features).repeat(self.text.rows // features.shape[0], 1, 1)

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        visible = self.cache.visible(layer, query_scale=self.query_scale, keys=k, values=v)
        conditional = q.shape[0] // 2 if self.sampling.guided else q.shape[0]
        attended = attend(
            q, visible, self.scales, path=self.path, capture=self.probe.capture, conditional_rows=conditional
        )
        self.step_attended = attended
        self.step_read = visible.read_tokens(self.scales.num_scales)
        self.step_evicted = self._store(layer, q, k, v)
        return attended.out

    def _store(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> int:
        """End a step in the cache; returns the tokens that are gone."""
        return stored(self.cache, self.selector, layer, self.query_scale, q, k, v)

    def _before_layer(self, _: int, x: Tensor) -> None:
        self.layer_input = x
        self.clock.begin()

    def _raw_queries(self, layer: int, index: Tensor) -> Tensor:
        return self.model.raw_queries(layer, self.layer_input[:, index], self.text)

    def _after_layer(self, layer: int) -> None:
        assert self.step_attended is not None  # every layer attends
        begin_ns, end_ns = self.clock.end()
        step = StepInfo(
            query_scale=self.query_scale,
            layer=layer,
            begin_ns=begin_ns,
            end_ns=end_ns,
            device_ns=None,
            accounted_bytes=self.cache.accounted_bytes,
            storage_bytes=self.cache.storage_bytes,
            evicted_tokens=self.step_evicted,
            kept_tokens=self.cache.kept_tokens(layer),
            read_tokens=self.step_read,
            attention_mass=self.step_attended.mass,
            attention_mass_uncond=self.step_attended.mass_uncond,
            attention_map=self.step_attended.map,
        )
        self.step_attended = None
        for one in self.clock.step_done(step):
            self.probe.step_done(one)

    def _run_start(self) -> RunStart:
        config, dtype = self.model.config, self.model.kv_dtype
        return RunStart(
            model=config.name,
            scales=self.scales,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            bits_per_token=config.bits_per_token,
            rows=self.text.rows,
            dtype=str(dtype).removeprefix("torch."),
            dtype_bytes=dtype.itemsize,
            device=str(self.device),
            attention=str(self.path),
            capacity_tokens=self.cache.capacity_tokens,
            pools=self.cache.pool_starts,
            schedule=self.schedule,
            revise=self.revise if isinstance(self.cache, KVCache) else None,
        )


def new_cache(
    plan: PruningSchedule | OnlinePlan, model: Infinity, *, rows: int, device: torch.device
) -> KVCache | TokenCache:
    """The cache that obeys a plan of this kind, empty."""
    head_dim, dtype = model.config.head_dim, model.kv_dtype
    if isinstance(plan, OnlinePlan):
        return TokenCache(plan, rows=rows, head_dim=head_dim, dtype=dtype, device=device)
    return KVCache(plan, rows=rows, head_dim=head_dim, dtype=dtype, device=device)


def stored(
    cache: KVCache | TokenCache,
    selector: Selector | None,
    layer: int,
    query_scale: int,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
) -> int:
    """End a step in a cache, of which an online policy's comes with a selector; returns the tokens that are gone."""
    if isinstance(cache, KVCache):
        return cache.store(layer, query_scale=query_scale, keys=keys, values=values)
    if query_scale == cache.plan.scales.num_scales - 1:
        return 0
    assert selector is not None  # a TokenCache comes with one
    candidates = cache.candidates(layer, query_scale=query_scale, keys=keys, values=values)
    return cache.store(layer, selector.choose(layer, query_scale, q, candidates))


class StepClock:
    """When steps begin and end. On a GPU it holds them back until their scale is done: only then are times on the
    device known without waiting for it inside the scale."""

    def __init__(self, device_type: str, new_event: Callable[[], torch.Event] | None = None) -> None:
        on_gpu = device_type == "cuda"
        self._new_event = new_event or (functools.partial(torch.cuda.Event, enable_timing=True) if on_gpu else None)
        self._begin_ns = 0
        self._events: list[torch.Event] = []
        self._steps: list[StepInfo] = []

    def begin(self) -> None:
        if self._new_event is not None:
            self._mark()
        self._begin_ns = time.monotonic_ns()

    def end(self) -> tuple[int, int]:
        """(begin_ns, end_ns) on the host's clock."""
        if self._new_event is not None:
            self._mark()
        return self._begin_ns, time.monotonic_ns()

    def step_done(self, step: StepInfo) -> list[StepInfo]:
        """The steps to be told now."""
        if self._new_event is None:
            return [step]
        self._steps.append(step)
        return []

    def scale_done(self) -> list[StepInfo]:
        """The steps held back, with their times on the device, which must have finished them."""
        pairs = zip(self._events[::2], self._events[1::2], strict=True)
        told = [
            dataclasses.replace(step, device_ns=round(begin.elapsed_time(end) * 1e6))
            for step, (begin, end) in zip(self._steps, pairs, strict=True)
        ]
        self._events, self._steps = [], []
        return told

    def _mark(self) -> None:
        assert self._new_event is not None  # the callers ask
        event = self._new_event()
        event.record()
        self._events.append(event)


def sample_bits(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """Draw bits [batch, tokens, bits] uint8 from logits [batch, tokens, 2 * bits]; one draw for the whole scale.

    The single `multinomial` call over (batch, token, bit) is part of the contract: it makes a seed give the
    official code's bits on the same kind of device.
    """
    pairs = logits.unflatten(-1, (-1, 2)).flatten(0, 2)
    if sampling.top_k == 1:
        pairs = pairs.masked_fill(pairs < pairs.amax(dim=-1, keepdim=True), -torch.inf)
    if sampling.top_p > 0:
        likely = pairs.softmax(dim=-1)
        unlikely = (likely <= 1 - sampling.top_p) & (pairs < pairs.amax(dim=-1, keepdim=True))
        pairs = pairs.masked_fill(unlikely, -torch.inf)
    drawn = torch.multinomial(pairs.softmax(dim=-1), 1, replacement=True, generator=generator)
    return drawn.view(*logits.shape[:2], -1).to(torch.uint8)


def _check_texts(texts: Sequence[Tensor], negatives: Sequence[Tensor] | None, config: ModelConfig) -> None:
    if not texts:
        raise OptionError("no prompts; give at least one")
    if negatives is not None and len(negatives) != len(texts):
        raise OptionError(f"{len(negatives)} negative prompts for {len(texts)} prompts; give one each")
    for text in (*texts, *(negatives or ())):
        if text.ndim != 2 or text.shape[1] != config.text_width or not 1 <= len(text) <= config.text_maxlen:
            expected = f"1 to {config.text_maxlen} tokens of {config.text_width} channels"
            raise OptionError(f"prompt features have shape {list(text.shape)}; {config.name} takes {expected}")


def _check_bits(forced_bits: Sequence[Tensor], batch: int, config: ModelConfig, scales: ScaleSchedule) -> None:
    expected = [(batch, tokens, config.bits_per_token) for tokens in scales.tokens]
    found = [tuple(bits.shape) for bits in forced_bits]
    if found != expected:
        raise OptionError(f"forced bits have shapes {found}; this run needs one tensor per scale, {expected}")
