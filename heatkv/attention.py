"""Self attention over what a KV cache kept, and how much of it goes where: the interface, and the choice of a way.

Four ways give the same numbers; `choose_path` is the one place that decides. grouped: CPU, heads with equal token
counts together. triton: one CUDA kernel that reads each head's slots in place. varlen: CUDA without Triton. plain:
float32 in blocks, anywhere; what the others are tested against. Each is one file in kernels/.

Nothing is masked: a token that was evicted is not read. Letters: R rows, H heads, L queries, D head_dim.
Softmax scale is 1 (cosine attention).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from heatkv.codecs import MODEL
from heatkv.errors import OptionError, UnknownNameError
from heatkv.kernels import dense, ragged, varlen
from heatkv.kernels.grouped import grouped_attention
from heatkv.kernels.mass import key_mass
from heatkv.kernels.plain import ragged_attention_plain
from heatkv.pool import TokenPool
from heatkv.probe import Capture
from heatkv.scales import ScaleSchedule
from heatkv.visible import Packed, Visible

PATHS = ("grouped", "triton", "varlen", "plain")


@dataclass(frozen=True, slots=True)
class Path:
    """A way to compute attention."""

    name: str
    """One of PATHS."""
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def choose_path(
    device: torch.device | str,
    *,
    dtype: torch.dtype,
    head_dim: int,
    requested: str = "auto",
    codecs: Sequence[str] = (),
) -> Path:
    """The way that is used for a model; `requested` forces one of PATHS. Raises OptionError if it cannot work.

    `codecs`: what stored tokens are in; all ways but the model's own numbers decode before they attend, and say so.
    """
    path = _chosen_path(torch.device(device), dtype, head_dim, requested)
    coded = [name for name in codecs if name != MODEL]
    if not coded:
        return path
    return replace(path, reason=f"{path.reason}; {', '.join(coded)} is decoded first, of one layer at a time")


def _chosen_path(device: torch.device, dtype: torch.dtype, head_dim: int, requested: str) -> Path:
    if requested != "auto":
        return _requested_path(requested, device, dtype, head_dim)
    if device.type == "cpu":
        return Path("grouped", "CPU: heads that keep equally many tokens share one call")
    why_not = {name: _unavailable(name, device, dtype, head_dim) for name in ("triton", "varlen")}
    if why_not["triton"] is None:
        after = dense.note(device, dtype=dtype, head_dim=head_dim)
        return Path("triton", f"CUDA: one kernel reads every head's slots in place{after}")
    if why_not["varlen"] is None:
        return Path("varlen", f"CUDA; the Triton kernel cannot be used: {why_not['triton']}")
    return Path("plain", f"no faster way: {why_not['triton']}; {why_not['varlen']}")


def _requested_path(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Path:
    if name not in PATHS:
        raise UnknownNameError("attention path", name, PATHS)
    why_not = _unavailable(name, device, dtype, head_dim)
    if why_not is not None:
        raise OptionError(f"attention path {name} cannot be used here: {why_not}; use auto, or plain")
    return Path(name, "as asked for")


def _unavailable(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why a way cannot be used, as half a sentence; None if it can."""
    if name == "grouped":
        return None if device.type == "cpu" else f"needs the CPU, not {device.type}"
    kernels = {"triton": ragged.unavailable, "varlen": varlen.unavailable}
    return kernels[name](device, dtype=dtype, head_dim=head_dim) if name in kernels else None


@dataclass(frozen=True, slots=True)
class Attended:
    """Attention's output, and what was measured of it; None: not asked for."""

    out: Tensor
    """[R, H, L, D]."""
    mass: Tensor | None = None
    """[H, num_scales] float32, mean over queries and conditional rows; NaN where a head cannot see a scale."""
    mass_uncond: Tensor | None = None
    """The same of the unconditional rows."""
    map: Tensor | None = None
    """[H, tokens of scales 0 to the current one] float32: what each key receives, else as `mass`."""


def attend(
    q: Tensor,
    visible: Visible,
    scales: ScaleSchedule,
    *,
    path: Path,
    capture: Capture | None = None,
    conditional_rows: int | None = None,
) -> Attended:
    """Attention of q [R, H, L, D] over what is visible. Rows after the first `conditional_rows` are unconditional."""
    capture = capture or Capture()
    conditional = q.shape[0] if conditional_rows is None else conditional_rows
    rows = q.shape[0] if capture.unconditional else conditional if capture.any else 0
    measured = _grouped if path.name == "grouped" else _ragged
    out, mass, key_masses = measured(q, visible, scales, rows, capture, path)
    if mass is None:
        return Attended(out)
    has_other_rows = capture.unconditional and conditional < rows

    def mean(of: slice) -> Tensor:
        return mass[of].mean(0).masked_fill(visible.unseen(scales.num_scales, of), torch.nan)

    return Attended(
        out,
        mean(slice(conditional)) if capture.mass else None,
        mean(slice(conditional, rows)) if has_other_rows else None,
        _map([each[:conditional] for each in key_masses], visible, scales) if capture.maps else None,
    )


_RAGGED: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor | None]]] = {
    "triton": ragged.ragged_attention,
    "varlen": varlen.ragged_attention_varlen,
    "plain": ragged_attention_plain,
}
"""Ways with one signature."""

_Measured = tuple[Tensor, Tensor | None, list[Tensor]]


def _grouped(q: Tensor, visible: Visible, scales: ScaleSchedule, rows: int, capture: Capture, _: Path) -> _Measured:
    return grouped_attention(
        q, visible, num_scales=scales.num_scales, capture_rows=rows, bit_exact=capture.bit_exact, maps=capture.maps
    )


def _ragged(q: Tensor, visible: Visible, scales: ScaleSchedule, rows: int, capture: Capture, path: Path) -> _Measured:
    packed = visible.packed()
    rows_differ = visible.tokens is not None
    pool_keys, pool_values, slots = _readable(visible, packed)
    out, lse, mass = _RAGGED[path.name](
        q,
        visible.keys,
        visible.values,
        pool_keys,
        pool_values,
        slots,
        packed.offsets,
        packed.sources,
        packed.order,
        query_scale=visible.query_scale,
        num_scales=scales.num_scales,
        capture_rows=0 if rows_differ else rows,
    )
    key_masses = []
    slots_of = slots.split([len(each) for each in visible.slots])
    for head in range(q.shape[1] if capture.maps or (rows and rows_differ) else 0):
        stored = pool_keys[:rows].index_select(1, slots_of[head])
        keys = torch.cat((stored, visible.keys[:rows, head]), dim=1)
        key_masses.append(key_mass(q[:rows, head, None], keys[:, None], lse[:rows, head, None])[:, 0])
    if rows and rows_differ:
        parts = [each[:, None, : len(slots)] for each, slots in zip(key_masses, visible.slots, strict=True)]
        mass = torch.cat([visible.mass_by_scale(part, [head]) for head, part in enumerate(parts)], dim=1)
    return out, mass, key_masses


def _readable(visible: Visible, packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [R, n, D] and the slots of them that are visible: the pool in place, or what of it is decoded."""
    pool = visible.pool
    if isinstance(pool, TokenPool) and pool.is_plain:
        return pool.keys, pool.values, packed.slots
    keys, values = pool.read(np.concatenate(visible.slots))
    return keys, values, torch.arange(keys.shape[1], dtype=torch.int32, device=keys.device)


def _map(key_masses: list[Tensor], visible: Visible, scales: ScaleSchedule) -> Tensor:
    """[H, tokens of scales 0 to the current one], from the mass [R, T] of the keys that each head sees."""
    offsets = scales.offsets
    num_seen = offsets[visible.query_scale + 1]
    whole = torch.full((visible.num_heads, num_seen), torch.nan, device=visible.keys.device)
    for head, masses in enumerate(key_masses):
        if visible.tokens is not None:
            whole[head] = _map_of_rows(masses, visible.tokens[head], num_seen)
            continue
        begin, mean = 0, masses.mean(0)
        for source_scale, tokens in (*visible.sources[head], (visible.query_scale, visible.keys.shape[2])):
            whole[head, offsets[source_scale] : offsets[source_scale] + tokens] = mean[begin : begin + tokens]
            begin += tokens
    return whole


def _map_of_rows(masses: Tensor, tokens: Tensor, num_seen: int) -> Tensor:
    """[num_seen], mean over rows that keep tokens of their own; NaN where none has the token."""
    rows, num_keys = masses.shape
    current = torch.arange(num_seen - (num_keys - tokens.shape[1]), num_seen, device=masses.device)
    at = torch.cat((tokens[:rows].long(), current.expand(rows, -1)), dim=1)
    summed = masses.new_zeros(rows, num_seen).scatter_(1, at, masses).mean(0)
    seen = torch.zeros(rows, num_seen, dtype=torch.bool, device=masses.device).scatter_(1, at, True).any(0)
    return summed.masked_fill(~seen, torch.nan)
