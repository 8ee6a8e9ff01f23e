"""What measuring attention costs: time of one layer and of whole generations, memory, and how exact the mass is.

The mass of the conditional row, with the full cache, as a calibration needs it. `reference style` is how the
reference implementation measures: explicit float32 scores, their softmax and its sums, then attention as usual.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import heatkv.generate
from heatkv.attention import Attended, Path, attend, choose_path
from heatkv.config import model_config
from heatkv.policies.full import FullPolicy
from heatkv.probe import Capture
from heatkv.scales import ScaleSchedule
from heatkv.visible import Visible, gathered
from tests.benchmarks.harness import Goal, Result, Row, take_turns
from tests.benchmarks.layers import QUERY_NORM, filled_cache, one_layer, random_queries, visible_at
from tests.benchmarks.memory import available_bytes, held_bytes, in_fresh_process, peak_bytes
from tests.benchmarks.workload import DTYPE, MODEL, SEED, Subject, Watch

_MODES = {
    "uncaptured": Capture(),
    "fast": Capture(mass=True, bit_exact=False),
    "bit-exact": Capture(mass=True),
    "reference style": Capture(mass=True),
}
_RESOLUTIONS = ("0.06M", "0.25M")
_SIDES = (16, 32, 64)
_MASS_SIDES = (1, 4, 8, 16, 24)
_MASS_ERROR = {torch.bfloat16: 1e-5, torch.float32: 5e-7}
_SHARP_NORM = 30.0
"""Of queries whose attention is concentrated on few keys."""
_SCRATCH_BYTES = 200e6
_GENERATION_RATIO = {"fast": 1.03, "bit-exact": 1.05}


def run(
    *,
    quick: bool = False,
    device: str = "cpu",
    model: str = MODEL,
    resolutions: Sequence[str] | None = None,
    sides: Sequence[int] | None = None,
    mass_sides: Sequence[int] = _MASS_SIDES,
    scratch_side: int | None = None,
) -> Result:
    """Rows for one layer at `sides`, for its memory at `scratch_side`, for the mass, and for whole generations."""
    repeats = 1 if quick else 3
    config = model_config(model)
    rows = [
        *itertools.chain(
            *(_one_layer_rows(model, side, device) for side in sides or (_SIDES[:2] if quick else _SIDES))
        ),
        *_scratch_rows(model, scratch_side or (32 if quick else 64), device),
        *(_mass_row(model, mass_sides, dtype, mode, device) for dtype in _MASS_ERROR for mode in ("fast", "bit-exact")),
        *_generation_rows(model, resolutions or (_RESOLUTIONS[:1] if quick else _RESOLUTIONS), repeats, device),
    ]
    path = choose_path(device, dtype=DTYPE, head_dim=config.head_dim)
    title = f"attention mass of the conditional row, {model}, path {path.name}"
    return Result(title, "the same, uncaptured", repeats, SEED, tuple(rows), device)


def reference_style(
    q: Tensor,
    visible: Visible,
    scales: ScaleSchedule,
    *,
    path: Path,
    capture: Capture | None = None,
    conditional_rows: int | None = None,
) -> Attended:
    """As heatkv.attention.attend with mass, for a cache in which all heads keep the same."""
    keys = _all_of(visible, visible.pool.keys, visible.keys)
    values = _all_of(visible, visible.pool.values, visible.values)
    scores = q[:conditional_rows].float() @ keys[:conditional_rows].float().transpose(-1, -2)
    weights = scores.softmax(dim=-1)
    tokens = [*(count for _, count in visible.sources[0]), visible.keys.shape[2]]
    mass = torch.stack([part.sum(-1).mean(-1) for part in weights.split(tokens, dim=-1)], dim=-1)  # [R, H, scales]
    return Attended(F.scaled_dot_product_attention(q, keys, values, scale=1.0), mass.mean(0))


def _all_of(visible: Visible, stored: Tensor, current: Tensor) -> Tensor:
    """[R, H, T, D]: every head's stored tokens, then the current ones."""
    slots = torch.from_numpy(np.stack(visible.slots))
    if not slots.numel():
        return current
    rows, heads, tokens, head_dim = current.shape
    return gathered(stored, current, slots, current.new_empty(rows, heads, slots.shape[1] + tokens, head_dim))


def scratch_bytes(model: str, side: int, mode: str, device: str) -> float:
    """What a process needs during one layer's attention beyond what it held before; the output counts."""
    call = layer_calls(model, side, device)[mode]
    layer_calls(model, 4, device)[mode]()
    before = held_bytes(device)
    return peak_bytes(call, device) - before


def _one_layer_rows(model: str, side: int, device: str) -> Iterator[Row]:
    calls = layer_calls(model, side, device)
    times = take_turns(calls, repeats=3 if side >= 64 else 7, least_s=0.1, device=device)
    goal = Goal("at most", 1.05) if device == "cuda" else None
    for mode in list(calls)[1:]:
        yield times.row(f"attention {side}x{side}, {mode}", mode, "uncaptured", goal=None if "ref" in mode else goal)


def _scratch_rows(model: str, side: int, device: str) -> Iterator[Row]:
    plain = in_fresh_process(scratch_bytes, model, side, "uncaptured", device)
    for mode in ("fast", "bit-exact", "reference style"):
        name = f"scratch {side}x{side}, {mode}"
        if mode == "reference style" and device == "cpu" and not _explicit_fits(model, side):
            yield Row(name, math.nan, "bytes", note="too little memory is free")
            continue
        extra = in_fresh_process(scratch_bytes, model, side, mode, device) - plain
        goal = None if mode == "reference style" else Goal("at most", _SCRATCH_BYTES, of_value=True)
        yield Row(name, extra, "bytes", goal=goal, note=f"beyond the {plain / 2**20:.0f} MiB of attention uncaptured")


def _explicit_fits(model: str, side: int) -> bool:
    """Whether explicit scores and weights leave half of the free memory free."""
    config = model_config(model)
    scales = config.schedule_for()
    keys = scales.offsets[scales.sizes.index((side, side)) + 1]
    return not 2 * 4 * config.num_heads * side**2 * keys > available_bytes() / 2


def _mass_row(model: str, sides: Sequence[int], dtype: torch.dtype, mode: str, device: str) -> Row:
    """The largest error of any head and scale against float64, and how far from 1 a head's masses sum."""
    errors, sums = [], []
    for side, norm in itertools.product(sides, (QUERY_NORM, _SHARP_NORM)):
        q, visible, scales = _layer(model, side, device, dtype, norm)
        path = choose_path(device, dtype=dtype, head_dim=q.shape[-1])
        found = attend(q, visible, scales, path=path, capture=_MODES[mode], conditional_rows=1).mass
        assert found is not None  # mass was asked for
        seen = found[:, : visible.query_scale + 1].double()
        errors.append(float((seen - _exact_mass(q, visible)).abs().max()))
        sums.append(float((seen.sum(-1) - 1).abs().max()))
    name = f"mass error, {str(dtype).removeprefix('torch.')}, {mode}"
    sizes = ", ".join(f"{side}x{side}" for side in sides)
    note = f"largest of {sizes}; sums off 1 by {max(sums):.1g}"
    return Row(name, max(errors), "", goal=Goal("at most", _MASS_ERROR[dtype], of_value=True), note=note)


def _exact_mass(q: Tensor, visible: Visible) -> Tensor:
    """[H, scales up to the current one] in float64: the first row's softmax mass, mean over queries."""
    masses = []
    for head, slots in enumerate(visible.slots):
        keys = torch.cat((visible.pool.keys[0, visible.pool.index(slots).long()], visible.keys[0, head]))
        weights = (q[0, head].double() @ keys.double().T).softmax(dim=-1).mean(0)
        tokens = [*(count for _, count in visible.sources[head]), visible.keys.shape[2]]
        masses.append(torch.stack([part.sum() for part in weights.split(tokens)]))
    return torch.stack(masses)


def layer_calls(model: str, side: int, device: str) -> dict[str, Callable[[], Attended]]:
    q, visible, scales = _layer(model, side, device, DTYPE, QUERY_NORM)
    path = choose_path(device, dtype=DTYPE, head_dim=q.shape[-1])

    def call(mode: str) -> Attended:
        way = reference_style if mode == "reference style" else attend
        return way(q, visible, scales, path=path, capture=_MODES[mode], conditional_rows=1)

    return {mode: lambda mode=mode: call(mode) for mode in _MODES}  # type: ignore[misc]  # mypy cannot infer these


def _layer(
    model: str, side: int, device: str, dtype: torch.dtype, norm: float
) -> tuple[Tensor, Visible, ScaleSchedule]:
    """Queries of one layer, what they see with the full cache, and the scales."""
    config = model_config(model)
    scales = config.schedule_for()
    scale = scales.sizes.index((side, side))
    kept = FullPolicy().plan(config, scales).visible(max(0, scale - 1))[0]
    schedule = one_layer(kept, scales, min(config.sink_scales, scale))
    cache = filled_cache(schedule, scale, head_dim=config.head_dim, device=device, dtype=dtype)
    visible = visible_at(cache, scale, head_dim=config.head_dim, device=device, dtype=dtype)
    q = random_queries((config.num_heads, side**2, config.head_dim), device=device, dtype=dtype, norm=norm)
    return q, visible, scales


def _generation_rows(model: str, resolutions: Sequence[str], repeats: int, device: str) -> Iterator[Row]:
    subject = Subject.load(model, resolutions[0], device)
    subject.warm_up()
    for resolution in resolutions:
        yield from _rows_of_generations(subject.at(resolution), resolution, repeats)


def _rows_of_generations(subject: Subject, resolution: str, repeats: int) -> Iterator[Row]:
    codes: dict[str, Tensor] = {}

    def generate(mode: str) -> None:
        codes[mode] = subject.generate(probe=Watch(_MODES[mode])).codes

    def explicit() -> None:
        # The loop has no place for a foreign attention, and should not have one: only this comparison needs it.
        with mock.patch.object(heatkv.generate, "attend", reference_style):
            generate("reference style")

    variants: dict[str, Callable[[], None]] = {mode: lambda mode=mode: generate(mode) for mode in _MODES}  # type: ignore[misc]
    variants["reference style"] = explicit
    rarely = ("reference style",)
    times = take_turns(variants, repeats=repeats, warm_up=False, only_first=rarely, device=subject.device)
    for mode in list(_MODES)[1:]:
        limit = _GENERATION_RATIO.get(mode)
        goal = None if limit is None or subject.device != "cpu" else Goal("at most", limit)
        differing = int((codes[mode] != codes["uncaptured"]).sum())
        note = f"{differing} codes differ{'; one round' if mode in rarely else ''}"
        yield times.row(f"generation {resolution}, {mode}", mode, "uncaptured", goal=goal, note=note)
    equal = Goal("at most", 0, of_value=True)
    differing = int((codes["bit-exact"] != codes["uncaptured"]).sum())
    yield Row(f"generation {resolution}, bit-exact: codes that differ", differing, "", goal=equal)
