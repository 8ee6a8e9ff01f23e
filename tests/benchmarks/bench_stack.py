"""How much of the machine the layers use: operations per second of all layers at one scale, over a plain matmul's.

Operations are those that the model needs (tests/benchmarks/workload.py, stack_flops); the cache is full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from heatkv.attention import attend, choose_path
from heatkv.policies.full import FullPolicy
from heatkv.transformer import Rope
from tests.benchmarks.harness import Goal, Result, Row, take_turns
from tests.benchmarks.layers import filled_cache
from tests.benchmarks.workload import DTYPE, MODEL, SEED, Subject, stack_flops

_SHARES = {16: 0.85, 32: 0.75}
"""Side of the scale → goal on the CPU."""
_MATRIX = 4096


def run(
    *,
    quick: bool = False,
    device: str = "cpu",
    model: str = MODEL,
    resolution: str | None = "1M",
    sides: Sequence[int] | None = None,
    matrix: int = _MATRIX,
) -> Result:
    """One row per side; `matrix`: rows and columns of the plain product."""
    repeats = 1 if quick else 5
    subject = Subject.load(model, resolution, device)
    a, b = (torch.randn(matrix, matrix, device=device).to(DTYPE) for _ in range(2))
    wanted = sides or (list(_SHARES)[:1] if quick else list(_SHARES))
    with torch.inference_mode():
        variants: dict[str, Callable[[], object]] = {"matmul": lambda: a @ b}
        variants |= {f"{side}x{side}": _stack(subject, side) for side in wanted}
        times = take_turns(variants, repeats=repeats, least_s=1.0, device=device)
    flops = {f"{side}x{side}": _flops(subject, side) for side in wanted}
    rows = []
    for side in wanted:
        name = f"{side}x{side}"
        shares = [flops[name] / (2 * matrix**3) / ratio for ratio in times.ratios(name, "matmul")]
        goal = Goal("at least", _SHARES[side]) if device == "cpu" and side in _SHARES else None
        rate, plain = flops[name] / times.median(name) / 1e9, 2 * matrix**3 / times.median("matmul") / 1e9
        rows.append(Row(name, rate, "GFLOP/s", plain, median(shares), (min(shares), max(shares)), goal))
    title = f"all layers of {model} in bfloat16, full cache"
    return Result(title, f"{matrix} x {matrix} x {matrix} product", repeats, SEED, tuple(rows), device)


def _stack(subject: Subject, side: int) -> Callable[[], Tensor]:
    """A call of all layers at the scale with this side, after everything before it."""
    model, scales, config, device = subject.model, subject.scales, subject.config, subject.device
    scale = scales.sizes.index((side, side))
    schedule = FullPolicy().plan(config, scales)
    cache = filled_cache(schedule, scale, head_dim=config.head_dim, device=device)
    path = choose_path(device, dtype=DTYPE, head_dim=config.head_dim)
    context = model.encode_text(subject.texts, None, guided=True)
    rope = Rope.of(scales, config.head_dim, device).tokens(*scales.offsets[scale : scale + 2])
    levels = torch.full((scales.tokens[scale],), scale, device=device)
    generator = torch.Generator(device).manual_seed(SEED)
    x = torch.randn(context.rows, scales.tokens[scale], config.width, generator=generator, device=device)

    def attend_to_cache(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        visible = cache.visible(layer, query_scale=scale, keys=k, values=v)
        return attend(q, visible, scales, path=path).out

    return lambda: model.trunk(x, levels, context, rope, attend_to_cache)


def _flops(subject: Subject, side: int) -> float:
    scales = subject.scales
    scale = scales.sizes.index((side, side))
    return stack_flops(
        subject.config,
        tokens=scales.tokens[scale],
        keys=scales.offsets[scale + 1],
        text_tokens=len(subject.texts[0]),
    )
