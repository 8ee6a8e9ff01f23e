"""One whole image at 1M with the full cache, and one at a tenth of it: seconds of every scale, peak memory.

Minutes each, so both run once, each in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from heatkv.config import model_config
from tests.benchmarks.harness import Result, Row
from tests.benchmarks.workload import MODEL, SEED, Footprint, footprint

_BUDGET = 0.1


def run(*, quick: bool = False, device: str = "cpu", model: str = MODEL, resolution: str | None = None) -> Result:
    """`quick`: at 0.06M, to see that it works."""
    wanted = resolution or ("0.06M" if quick else "1M")
    full = footprint(model, wanted, None, device)
    pruned = footprint(model, wanted, _BUDGET, device)
    sizes = model_config(model).schedule_for(wanted).sizes
    rows = tuple(_rows(pruned, full, [f"{height}x{width}" for height, width in sizes]))
    title = f"one image at {wanted}, {model} in bfloat16, heatkv at {_BUDGET}, {pruned.orders}"
    return Result(title, "the full cache", 1, SEED, rows, device)


def _rows(pruned: Footprint, full: Footprint, sizes: list[str]) -> Iterator[Row]:
    for size, ours, other in zip(sizes, pruned.scale_s, full.scale_s, strict=True):
        yield Row(f"scale {size}", ours, "s", other, ours / other)
    ours, other = sum(pruned.scale_s), sum(full.scale_s)
    yield Row("all scales", ours, "s", other, ours / other)
    yield _bytes("cache, allocated", pruned.storage_bytes, full.storage_bytes)
    yield _bytes("peak memory", pruned.peak_bytes, full.peak_bytes)
    yield _bytes("peak memory - weights", pruned.peak_bytes - pruned.loaded_bytes, full.peak_bytes - full.loaded_bytes)
    yield Row("weights", pruned.weight_bytes, "bytes", full.weight_bytes)


def _bytes(name: str, ours: float, other: float) -> Row:
    return Row(name, ours, "bytes", other, ours / other)
