"""run_job: from a Job to a trace. The only place in kvscope that reaches the model; torch is imported only inside.

Everything that can be refused is refused before weights are loaded: names, orders, budget, output.
"""

from __future__ import annotations

import gc
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from heatkv.bundled import bundled_weights
from heatkv.probe import Capture
from kvscope import shortage
from kvscope.errors import RunStopped, TraceError, UsageError
from kvscope.filters import filter_named
from kvscope.job import Job
from kvscope.nvml import GpuSampler
from kvscope.plan import plan_job
from kvscope.recorder import Preview, Recorder
from kvscope.replay import measure_of
from kvscope.trace import Trace
from kvscope.units import bytes_text, duration_text, head_tokens_text, seconds_text
from kvscope.writer import check_output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from heatkv.config import ModelConfig
    from heatkv.generate import Sampling
    from heatkv.pipeline import Pipeline
    from heatkv.probe import Probe, RunStart, ScaleInfo, StepInfo
    from kvscope.control.gate import Gate

Narrate = Callable[[str], None]


class Load(Protocol):
    """How a job comes by its model, as `load_pipeline`."""

    def __call__(self, job: Job, config: ModelConfig, narrate: Narrate, *, threads: int | None = None) -> Pipeline: ...


_MOST_THREADS = 1024
"""OpenMP crashes the process at some number above this."""

_CHEAP_CHANNELS = 64
"""VAEs of at most this base width decode in milliseconds on a CPU."""
_PREVIEW_CELLS = 16
"""Of a larger VAE's latent, the longer side of a preview's: 256 pixels."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a run left."""

    trace: Path
    image: NDArray[np.uint8]
    """RGB, [height, width, 3]."""
    failed: str | None
    """Why the trace ends early; None: it does not."""

    misplaced: str | None
    """Why the trace is not where it should be; None: it is, as far as its recorder knows."""
    run_id: str

    def is_ours(self) -> bool:
        """Whether the trace's path still leads to what this run recorded."""
        try:
            with Trace.open(self.trace) as trace:
                return trace.header.run_id == self.run_id
        except TraceError:
            return False

    def problem(self) -> str | None:
        """What is wrong with the trace, as one line; None: nothing."""
        if self.misplaced is not None:
            return f"{self.trace}: the image was made, but {self.misplaced}"
        if not self.trace.exists():
            return f"{self.trace}: the image was made, but the trace was moved or deleted during the run"
        if not self.is_ours():
            return f"{self.trace}: the image was made, but another file took the trace's place during the run"
        return self.failed and f"{self.trace}: the image was made, but the trace ends early: {self.failed}"


def run_job(
    job: Job,
    out: Path,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    narrate: Narrate = lambda _: None,
    progress: Probe | None = None,
    trace_filter: str = "gzip",
    gate: Gate | None = None,
    control_socket: str | None = None,
    load: Load | None = None,
) -> Made:
    """Run a job and record it.

    Ctrl-C closes the trace as cancelled, any error closes it as failed; both are passed on. If the trace can no
    longer be written the image is still made; `Made.problem` says why. `threads`: of the CPU, None is torch's choice.
    `trace_filter`: one of kvscope.filters.FILTERS. `gate`: where viewers hold the run, or end it: then RunStopped is
    raised, and the trace is closed as cancelled. `load`: instead of `load_pipeline`.
    """
    check_output(out, overwrite=overwrite)
    filter_named(trace_filter)
    plan = plan_job(job)
    forced = _parent_bits(job)
    if gate is not None:
        gate.loading(out)
    with shortage.told():
        pipeline = (load or load_pipeline)(job, plan.config, narrate, threads=threads)
        measure = measure_of(job, pipeline, plan)
    sampler = GpuSampler(gpu=_gpu(pipeline))
    recorder = Recorder(
        out,
        job,
        overwrite=overwrite,
        sampler=sampler,
        preview=_preview(pipeline),
        measure=measure,
        parent_run_id=forced.run_id,
        control_socket=control_socket,
        filter=trace_filter,
        narrate=narrate,
    )
    probes: list[Probe] = [
        recorder,
        _ScaleLog(recorder, pipeline.weights, sampler, narrate),
        *([progress] if progress else []),
    ]
    if gate is not None:
        # What a forced run records of its parent holds for the plan that it began with.
        revised = None if job.mode == "forced" else recorder.revised
        gate.recording(recorder.run_id, _log_to(recorder, narrate), revised)
        probes.append(gate)  # the last: what it holds back is recorded
    with _closing(recorder), shortage.told():
        generation = pipeline.generate(
            [job.prompt],
            plan.scales,
            negative_prompts=None if job.negative_prompt is None else [job.negative_prompt],
            sampling=_sampling(job),
            schedule=plan.schedule,
            online=plan.online,
            seed=job.seed,
            forced_bits=forced.bits,
            probe=_Listeners(probes),
        )
        assert generation.image is not None  # a pipeline always has a VAE
        image = generation.image[0].cpu().numpy()
        recorder.image_done(image)
    return Made(out, image, recorder.failed, recorder.file.misplaced, recorder.run_id)


def load_pipeline(job: Job, config: ModelConfig, narrate: Narrate, *, threads: int | None = None) -> Pipeline:
    """The job's model with its weights. Raises CheckpointError."""
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise UsageError(f"{threads} threads; expected 1 to {_MOST_THREADS}")
    check_weights(job, config)
    # Deferred: torch takes more than a second to import, and viewers never need it.
    import torch

    from heatkv.pipeline import Pipeline

    if threads is not None:
        torch.set_num_threads(threads)
    begin = time.monotonic()
    if job.random_weights:
        narrate(f"{config.name} with random weights: true memory and time, an image without meaning")
        pipeline = Pipeline.random(config, dtype=job.dtype, device=job.device)
    else:
        weights = None if job.weights is None else Path(job.weights)
        pipeline = Pipeline.load(config, weights, dtype=job.dtype, device=job.device)
    narrate(f"{config.name} ready in {seconds_text(time.monotonic() - begin)} ({job.dtype} on {job.device})")
    return pipeline


def check_weights(job: Job, config: ModelConfig) -> None:
    """Raises UsageError for a job that says nothing of weights, where the model comes without."""
    if not job.random_weights and job.weights is None and bundled_weights(config) is None:
        raise UsageError(f"{config.name} comes without weights; give --weights DIR, or --random-weights")


class KeptWeights:
    """The model of the last job, kept for the next one."""

    def __init__(self) -> None:
        self._pipeline: Pipeline | None = None
        self._made_for: tuple[object, ...] = ()

    def load(self, job: Job, config: ModelConfig, narrate: Narrate, *, threads: int | None = None) -> Pipeline:
        """The model at hand if it is this job's; else it is let go, and the job's is loaded."""
        wanted = (config.name, job.weights, job.random_weights, job.dtype, job.device)
        if self._pipeline is not None and wanted == self._made_for:
            narrate(f"{config.name} is loaded already ({job.dtype} on {job.device})")
            return self._pipeline
        if self._pipeline is not None:
            narrate(f"{config.name} with other weights, dtype or device than at hand: loading anew")
            self._let_go()
        self._pipeline = load_pipeline(job, config, narrate, threads=threads)
        self._made_for = wanted
        return self._pipeline

    def _let_go(self) -> None:
        # Deferred: torch, as in load_pipeline.
        import torch

        self._pipeline = None
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


@contextmanager
def _closing(recorder: Recorder) -> Iterator[None]:
    """The recorder's own context. A run that a viewer ends was not failed: its trace says so."""
    try:
        with recorder:
            try:
                yield
            except RunStopped as stop:
                recorder.finish("cancelled", str(stop))
                raise
    except KeyboardInterrupt:  # it may have come when the recorder had not begun to close
        recorder.finish("cancelled", "stopped by the user")
        raise


def _log_to(recorder: Recorder, narrate: Narrate) -> Narrate:
    def log(text: str) -> None:
        recorder.log("info", text)
        narrate(text)

    return log


@dataclass(frozen=True, slots=True)
class _Parent:
    run_id: str | None = None
    bits: list[Tensor] | None = None
    """Per scale, [1, tokens, bits]; None: the run is free."""


def check_parent(job: Job) -> None:
    """Raises TraceError or UsageError for a parent that the job cannot repeat."""
    if job.parent is not None:
        _open_parent(job, job.parent).close()


def _open_parent(job: Job, path: str) -> Trace:
    parent = Trace.open(Path(path))
    done = parent.scales_done
    if job.mode == "forced" and done < parent.header.scales.num_scales:
        parent.close()
        raise UsageError(f"{path}: holds {done} scales; forcing bits needs a finished run")
    return parent


def _parent_bits(job: Job) -> _Parent:
    if job.parent is None:
        return _Parent()
    # Deferred: torch, as in load_pipeline.
    import torch

    with _open_parent(job, job.parent) as parent:
        if job.mode == "free":
            return _Parent(parent.header.run_id)
        bits = [torch.from_numpy(parent.bits(scale).copy()) for scale in range(parent.scales_done)]
        return _Parent(parent.header.run_id, bits)


def _sampling(job: Job) -> Sampling:
    # Deferred: torch, as in load_pipeline.
    from heatkv.generate import Sampling

    return Sampling(cfg=job.cfg, tau=job.tau, top_k=job.top_k, top_p=job.top_p)


def _gpu(pipeline: Pipeline) -> int | str:
    """What to sample: the run's own GPU by its UUID, as NVML and CUDA number them differently; else the first."""
    if pipeline.device.type != "cuda":
        return 0
    # Deferred: torch, as in load_pipeline.
    import torch

    return f"GPU-{torch.cuda.get_device_properties(pipeline.device).uuid}"


def _preview(pipeline: Pipeline) -> Preview | None:
    """Decodes the codes so far, of large VAEs a small picture, as the whole one takes more memory than most caches;
    None where even that, after every scale, would cost more than the run should bear."""
    is_cheap = pipeline.config.vae.base_channels <= _CHEAP_CHANNELS
    if not is_cheap and pipeline.device.type == "cpu":
        return None
    most_cells = None if is_cheap else _PREVIEW_CELLS
    return lambda codes: pipeline.vae.decode_rgb(codes[:1], most_cells=most_cells)[0].cpu().numpy()


class _Listeners:
    """A Probe that tells several others."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self._probes = probes

    @property
    def capture(self) -> Capture:
        return reduce(operator.or_, (probe.capture for probe in self._probes))

    def run_started(self, start: RunStart) -> None:
        for probe in self._probes:
            probe.run_started(start)

    def step_done(self, step: StepInfo) -> None:
        for probe in self._probes:
            probe.step_done(step)

    def scale_done(self, scale: ScaleInfo) -> None:
        for probe in self._probes:
            probe.scale_done(scale)


class _ScaleLog:
    """A Probe that writes the trace's log: how the run computes, then one line per scale. The user hears the start."""

    capture = Capture()

    def __init__(self, recorder: Recorder, weights: str, sampler: GpuSampler, narrate: Narrate) -> None:
        self._recorder = recorder
        self._weights = weights
        self._sampler = sampler
        self._narrate = narrate
        self._evicted = 0
        self._begin_ns: int | None = None
        self._kept = 0

    def run_started(self, start: RunStart) -> None:
        self._recorder.log("info", f"weights: {self._weights}; {start.dtype} on {start.device}, {start.rows} rows")
        for line in (f"attention: {start.attention}", _pool_text(start)):
            self._recorder.log("info", line)
            self._narrate(line)
        reason = self._sampler.unavailable
        gpu = f"GPU: {self._sampler.gpu_name}" if reason is None else f"no GPU samples: {reason.text}"
        self._recorder.log("info", gpu)

    def step_done(self, step: StepInfo) -> None:
        self._begin_ns = self._begin_ns or step.begin_ns
        self._evicted += step.evicted_tokens
        self._kept = step.accounted_bytes

    def scale_done(self, scale: ScaleInfo) -> None:
        taken = duration_text(time.monotonic_ns() - (self._begin_ns or 0))
        evicted = f"{self._evicted:,} head-tokens evicted, {bytes_text(self._kept)} kept at its end"
        self._recorder.log("info", f"scale {scale.query_scale} done in {taken}, recording included: {evicted}")
        self._evicted, self._begin_ns = 0, None


def _pool_text(start: RunStart) -> str:
    plain = start.capacity_tokens * 2 * start.head_dim * start.dtype_bytes * start.rows
    num_bytes = sum(pool.capacity_tokens * pool.bytes_per_token for pool in start.pools) if start.pools else plain
    return f"cache: room for {head_tokens_text(start.capacity_tokens)}, {bytes_text(num_bytes)}, allocated once"
