"""A run without a model: it tells a Recorder exactly what a pruning schedule says, with made-up bits and attention.

Run as a program it records to the path it is given, and can kill itself or limit its file's size on the way.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heatkv.probe import RunStart, ScaleInfo, StepInfo
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from kvscope.job import Job
from kvscope.recorder import Recorder
from kvscope.trace import Trace
from kvscope.writer import TraceWriter

SCALES = ScaleSchedule.custom(((1, 1), (2, 2), (3, 3), (4, 4), (6, 6)))
LAYERS, HEADS, HEAD_DIM, BITS, ROWS, DTYPE_BYTES = 3, 2, 4, 4, 2, 4
STEP_S = 0.0005
TOKEN_BYTES = 2 * HEAD_DIM * DTYPE_BYTES * ROWS
CACHE_OVERHEAD_BYTES = 512
"""The fake cache holds this much beside its pool of keys and values."""
ATTENTION = "plain: the fake run computes none"


class FakeTensor:
    """What a recorder needs of a torch tensor; its array may change after it was handed over, as a run's may."""

    def __init__(self, values: NDArray[np.generic]) -> None:
        self.values = values

    def detach(self) -> FakeTensor:
        return self

    def cpu(self) -> FakeTensor:
        return self

    def numpy(self) -> NDArray[np.generic]:
        return self.values


def fake_schedule() -> PruningSchedule:
    """Frees one head-scale after its own layer, one early, and two right after they were written; one sink scale."""
    last_step = LAYERS * SCALES.num_scales - 1
    drop_step = np.full((LAYERS, HEADS, SCALES.num_scales), last_step)
    drop_step[0, 1, 1] = 2 * LAYERS + 0
    drop_step[2, 0, 1] = 2 * LAYERS + 1  # one layer before it would be read: early activation
    drop_step[1, 0, 2] = 2 * LAYERS + 1
    drop_step[1, 1, 3] = 3 * LAYERS + 1
    drop_step[:, :, -1] = (SCALES.num_scales - 1) * LAYERS + np.arange(LAYERS)[:, None]
    full = PruningSchedule(drop_step, "fake", SCALES, 1, "heatkv")
    return PruningSchedule(
        drop_step, "fake", SCALES, 1, "heatkv", full.peak_tokens / full.history_tokens, {"by": "hand"}
    )


def fake_start(schedule: PruningSchedule | None = None) -> RunStart:
    schedule = schedule or fake_schedule()
    return RunStart(
        model="fake",
        scales=SCALES,
        num_layers=LAYERS,
        num_heads=HEADS,
        head_dim=HEAD_DIM,
        bits_per_token=BITS,
        rows=ROWS,
        dtype="float32",
        dtype_bytes=DTYPE_BYTES,
        device="cpu",
        attention=ATTENTION,
        capacity_tokens=schedule.peak_tokens,
        schedule=schedule,
    )


def storage_bytes(schedule: PruningSchedule) -> int:
    """What the fake cache allocates, once: room for the schedule's peak, and its overhead."""
    return schedule.peak_tokens * TOKEN_BYTES + CACHE_OVERHEAD_BYTES


def fake_job(*, attention_mass: bool = True, **changes: object) -> Job:
    schedule = fake_schedule()
    return Job(
        "a red circle — ünïcode", "fake", "heatkv", attention_mass=attention_mass, budget=schedule.budget, **changes
    )


def fake_bits(scale: int) -> NDArray[np.uint8]:
    """[1, tokens, bit]: the same for every run."""
    return np.random.default_rng(scale).integers(0, 2, (1, SCALES.tokens[scale], BITS), dtype=np.uint8)


def fake_mass(schedule: PruningSchedule, query_scale: int) -> NDArray[np.float32]:
    """[layer, head, source_scale]: sums to 1 over what is visible, NaN elsewhere."""
    visible = schedule.visible(query_scale)
    weights = np.random.default_rng(100 + query_scale).random(visible.shape) * visible
    shares = weights / weights.sum(axis=-1, keepdims=True)
    return np.where(visible, shares, np.nan).astype(np.float32)


def fake_map(schedule: PruningSchedule, query_scale: int) -> NDArray[np.float32]:
    """[layer, head, token]: `fake_mass` shared out to the tokens of scales 0 to query_scale; one token gets nothing."""
    tokens = SCALES.tokens[: query_scale + 1]
    shares = np.random.default_rng(200 + query_scale).random((LAYERS, HEADS, sum(tokens)))
    shares[..., SCALES.offsets[1 : query_scale + 1]] = 0  # the first token of every scale but the first
    for source, mass in enumerate(np.moveaxis(fake_mass(schedule, query_scale)[..., : query_scale + 1], -1, 0)):
        part = shares[..., SCALES.offsets[source] : SCALES.offsets[source + 1]]
        part *= (mass / part.sum(axis=-1))[..., None]
    return shares.astype(np.float32)


def fake_image() -> NDArray[np.uint8]:
    rows, columns = np.mgrid[0:24, 0:24]
    return np.stack([rows * 10, columns * 10, np.full_like(rows, 128)], axis=-1).astype(np.uint8)


def fake_preview(codes: FakeTensor) -> NDArray[np.uint8]:
    """A grey picture, brighter with every scale."""
    return np.full((12, 12, 3), int(codes.values.flat[0]) * 40, np.uint8)


def run_steps(recorder: Recorder, schedule: PruningSchedule, query_scale: int) -> None:
    """Tell every step of one scale."""
    kept, read, held = schedule.kept_tokens(), schedule.read_tokens(), schedule.tokens_held()
    mass, maps = fake_mass(schedule, query_scale), fake_map(schedule, query_scale)
    capture = recorder.capture
    for layer in range(LAYERS):
        step = query_scale * LAYERS + layer
        accounted = int(held[step]) * TOKEN_BYTES
        begin_ns = time.monotonic_ns()
        time.sleep(STEP_S)
        recorder.step_done(
            StepInfo(
                query_scale=query_scale,
                layer=layer,
                begin_ns=begin_ns,
                end_ns=time.monotonic_ns(),
                device_ns=None,
                accounted_bytes=accounted,
                storage_bytes=storage_bytes(schedule),
                evicted_tokens=sum(SCALES.tokens[source] for source in schedule.evictions(step)[2]),
                kept_tokens=kept[query_scale, layer],
                read_tokens=read[query_scale, layer],
                attention_mass=FakeTensor(mass[layer]) if capture.mass else None,
                attention_mass_uncond=FakeTensor(mass[layer, ::-1]) if capture.unconditional else None,
                attention_map=FakeTensor(maps[layer]) if capture.maps else None,
            )
        )


def run_scale(recorder: Recorder, schedule: PruningSchedule, query_scale: int) -> None:
    """Tell one whole scale, and spoil its arrays afterwards."""
    run_steps(recorder, schedule, query_scale)
    bits = FakeTensor(fake_bits(query_scale))
    codes = FakeTensor(np.full((1, BITS, 6, 6), query_scale + 1.0, np.float32))
    recorder.scale_done(ScaleInfo(query_scale, bits, codes, codes))
    bits.values[...] = 77


def run(
    recorder: Recorder,
    *,
    scales: int = SCALES.num_scales,
    image: NDArray[np.uint8] | None = None,
    after: Callable[[int], None] = lambda _: None,
) -> None:
    """The first `scales` scales, and with the last one the image. `after` is called with each finished scale."""
    schedule = fake_schedule()
    recorder.run_started(fake_start(schedule))
    recorder.log("info", "a fake run")
    for query_scale in range(scales):
        run_scale(recorder, schedule, query_scale)
        after(query_scale)
    if scales == SCALES.num_scales:
        recorder.image_done(fake_image() if image is None else image)


def wait_for(condition: Callable[[], bool], *, seconds: float = 120.0) -> None:
    """Return as soon as the condition holds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def wait_for_scales(path: Path, scales: int) -> None:
    """Return when the trace at this path has committed so many scales."""
    with Trace.open(path) as trace:
        wait_for(lambda: _scales_now(trace) >= scales)


def _scales_now(trace: Trace) -> int:
    trace.refresh()
    return trace.scales_done


def _limit_file_size(num_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def change_folder(path: Path, change: str) -> None:
    """Move, delete or close the folder of a trace, or close the file itself; the administrator's rights go too."""
    match change:
        case "folder moved":
            path.parent.rename(path.parent.with_name("b"))
        case "folder deleted":
            shutil.rmtree(path.parent)
        case "folder closed":
            path.parent.chmod(0o555)
        case "file closed":
            path.chmod(0o400)
    if os.geteuid() == 0:
        os.seteuid(65534)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument(
        "--kill-at", type=int, help="kill -9 in the middle of this scale, once the scale before is committed"
    )
    parser.add_argument("--limit-bytes", type=int, help="forbid the file to grow past this size")
    parser.add_argument("--limit-at", type=int, default=-1, help="from this scale on; default: from the start")
    parser.add_argument(
        "--large-image", action="store_true", help="end with an image that does not fit in a small limit"
    )
    parser.add_argument(
        "--no-promise", action="store_true", help="let HDF5 itself meet the limit, as with a failing disk"
    )
    parser.add_argument("--kill-finalising", action="store_true", help="kill -9 when the new file is ready to be named")
    parser.add_argument("--change", help="what happens to the trace's folder after the third scale")
    options = parser.parse_args()
    if options.kill_finalising:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    if options.no_promise:
        TraceWriter._reserve = lambda _writer, _num_bytes: None  # type: ignore[method-assign]
    if options.limit_bytes and options.limit_at < 0:
        _limit_file_size(options.limit_bytes)
    recorder = Recorder(options.path, fake_job())

    def after(scale: int) -> None:
        if options.kill_at is not None and scale == options.kill_at - 1:
            wait_for_scales(options.path, options.kill_at)
            run_steps(recorder, fake_schedule(), options.kill_at)
            os.kill(os.getpid(), signal.SIGKILL)
        if options.change and scale == 2:
            wait_for_scales(options.path, 3)
            change_folder(options.path, options.change)
        if options.limit_bytes and scale == options.limit_at:
            _limit_file_size(options.limit_bytes)

    with recorder:
        large = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), dtype=np.uint8)
        run(recorder, image=large if options.large_image else None, after=after)
        sys.stdout.write("the run went on to its end\n")
    sys.stdout.write(f"failed: {recorder.failed}\nproblem: {recorder.problem}\n")


if __name__ == "__main__":
    main()
