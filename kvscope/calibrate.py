"""run_calibration: prompts through the unpruned model, one after another, into a calibration file that can go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from heatkv.config import model_config
from heatkv.measurements import measurement_names
from heatkv.scales import ScaleSchedule
from kvscope.calibration import Calibration, CalibrationFile, Settings, finished
from kvscope.job import Job
from kvscope.runner import load_pipeline
from kvscope.units import seconds_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from heatkv.pipeline import Pipeline

Narrate = Callable[[str], None]


def run_calibration(
    job: Job,
    prompts: list[str],
    out: Path,
    *,
    only_mass: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    narrate: Narrate = lambda _: None,
) -> Calibration:
    """Measure every prompt (seed of the job + its index); prompts that a stopped calibration measured are not repeated.

    The job's own prompt, policy and budget play no part. `only_mass`: attention mass alone, all that policy heatkv
    needs. Ctrl-C leaves `out` + ".part", with which the same call goes on. If `out` holds all of this already it is
    read, and nothing is measured.
    """
    settings = _settings(job, prompts, only_mass=only_mass)
    found = None if overwrite else finished(out, settings)
    if found is not None:
        narrate(f"{out}: holds these prompts of this model already; nothing to measure")
        return found
    with CalibrationFile(out, settings, overwrite=overwrite) as file:
        if file.discarded:
            narrate(file.discarded)
        done = file.prompts_done
        if done:
            narrate(f"{done} of {len(prompts)} prompts were measured before; going on")
        if done < len(prompts):
            pipeline = load_pipeline(job, model_config(job.model), narrate, threads=threads)
            pipeline.encoder.check(prompts)
            try:
                _measure_rest(pipeline, settings, file)
            except KeyboardInterrupt:
                narrate(f"{file.prompts_done} of {len(prompts)} prompts are safe; the same command goes on from there")
                raise
        return file.finish()


def _measure_rest(pipeline: Pipeline, settings: Settings, file: CalibrationFile) -> None:
    done, begin = file.prompts_done, time.monotonic()
    for index in range(done, len(settings.prompts)):
        file.append(_measure(pipeline, settings, index))
        _show(index + 1, len(settings.prompts), done, time.monotonic() - begin)


def _settings(job: Job, prompts: list[str], *, only_mass: bool = False) -> Settings:
    config = model_config(job.model)
    return Settings(
        model=config.name,
        weights="random" if job.random_weights else (job.weights or "bundled"),
        scales=config.schedule_for(job.resolution, aspect=job.aspect).to_json(),
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        sink_scales=config.sink_scales if job.sink_scales is None else job.sink_scales,
        prompts=tuple(prompts),
        seed=job.seed,
        cfg=job.cfg,
        tau=job.tau,
        top_k=job.top_k,
        top_p=job.top_p,
        dtype=job.dtype,
        device=job.device,
        measurements=measurement_names(guided=job.cfg != 1, only_mass=only_mass),
    )


def _measure(pipeline: Pipeline, settings: Settings, index: int) -> dict[str, NDArray[np.float32]]:
    # Deferred: torch, which is loaded by now; viewers import this package without it.
    from heatkv.calibrate import measure
    from heatkv.generate import Sampling

    (text,) = pipeline.encoder.encode([settings.prompts[index]])
    return measure(
        pipeline.transformer,
        text,
        ScaleSchedule.from_json(settings.scales),
        sampling=Sampling(cfg=settings.cfg, tau=settings.tau, top_k=settings.top_k, top_p=settings.top_p),
        seed=settings.seed + index,
        only_mass=settings.measurements == ("attention_mass",),
    )


def _show(done: int, count: int, before: int, elapsed: float) -> None:
    left = elapsed / (done - before) * (count - done)
    ending = "done" if done == count else f"about {seconds_text(left)} left"
    line = f"prompt {done:>4}/{count}  {seconds_text(elapsed)} gone, {ending}"
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if done == count else ""))
    else:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()
