"""Encoding and decoding of keys and values as a codec's Packing says: torch's half of codecs.py, on any device.

One vector becomes one row of bytes: codes, then the scales of its groups, then their lowest values. Codes of less
than 8 bits share a byte with codes that lie a whole part of the vector apart, so that unpacking is a shift and a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heatkv.codecs import Packing
from heatkv.errors import OptionError

_SCALE = torch.float16
_LARGEST_SCALE = torch.finfo(_SCALE).max
_LEAST_SCALE = torch.finfo(_SCALE).smallest_normal
"""That numbers are divided by; where all of a group are alike, what their codes are means nothing."""
_FP8 = torch.float8_e4m3fn
_LARGEST_FP8 = torch.finfo(_FP8).max


def stored_dtype(packing: Packing, dtype: torch.dtype) -> torch.dtype:
    """What a pool holds: numbers of the model's `dtype`, or bytes."""
    return dtype if packing.number == "model" else torch.uint8


def check_device(packing: Packing, device: torch.device) -> None:
    """Raises OptionError unless numbers can be written so on this device."""
    if packing.number != "fp8":
        return
    try:
        torch.zeros(1, device=device).to(_FP8).to(torch.float32)
    except (RuntimeError, NotImplementedError, TypeError):
        raise OptionError(f"KV codec fp8 cannot be used on {device}: torch has no float8 there; use int8") from None


def encode(packing: Packing, numbers: Tensor) -> Tensor:
    """`numbers` [..., D] as they are stored: [..., D] of their dtype, or [..., num_bytes] uint8."""
    if packing.number == "model":
        return numbers
    if packing.number == "fp8":
        return numbers.float().clamp(-_LARGEST_FP8, _LARGEST_FP8).to(_FP8).view(torch.uint8)
    grouped = _grouped(packing, numbers)
    ends = _ends(packing, grouped)
    scale, low = ends.float().chunk(2, dim=-1)
    codes = grouped.sub(low[..., None]).div_(scale.clamp_min(_LEAST_SCALE)[..., None]).round_().clamp_(0, _top(packing))
    return torch.cat((_packed(packing, codes.flatten(-2)), ends.view(torch.uint8)), dim=-1)


def decode(packing: Packing, stored: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
    """What `encode` was given, as nearly as was stored: [..., head_dim] in `dtype`."""
    if packing.number == "model":
        return stored
    if packing.number == "fp8":
        return stored.view(_FP8).to(dtype)
    groups, group = packing.groups(head_dim), packing.group_of(head_dim)
    num_code_bytes = groups * group * packing.bits // 8
    numbers: Tensor = _unpacked(packing, stored, num_code_bytes).float().unflatten(-1, (groups, group))
    ends = stored[..., num_code_bytes:].contiguous().view(_SCALE).float()
    scale, low = ends.chunk(2, dim=-1)
    numbers = numbers.mul_(scale[..., None]).add_(low[..., None])
    return numbers.flatten(-2)[..., :head_dim].to(dtype)


def _top(packing: Packing) -> int:
    """The largest code."""
    return (1 << packing.bits) - 1


def _grouped(packing: Packing, numbers: Tensor) -> Tensor:
    """[..., groups, group] float32, filled up with the last number."""
    head_dim = numbers.shape[-1]
    groups, group = packing.groups(head_dim), packing.group_of(head_dim)
    wide = numbers.float().contiguous().clamp(-_LARGEST_SCALE / 2, _LARGEST_SCALE / 2)
    missing = groups * group - head_dim
    if missing:
        wide = torch.cat((wide, wide[..., -1:].expand(*wide.shape[:-1], missing)), dim=-1)
    return wide.view(*wide.shape[:-1], groups, group)


def _ends(packing: Packing, grouped: Tensor) -> Tensor:
    """Distances of codes, then values of code 0: [..., 2 * groups], as they are stored."""
    low, high = grouped.amin(dim=-1), grouped.amax(dim=-1)  # in half the time of aminmax
    span = high - low
    if packing.reach < 1:
        low = torch.add(low, span, alpha=(1 - packing.reach) / 2)
    return torch.cat((span * (packing.reach / _top(packing)), low), dim=-1).to(_SCALE)


def _packed(packing: Packing, codes: Tensor) -> Tensor:
    """[..., n * bits / 8] uint8 of codes [..., n], whole numbers in float32."""
    packed, *others = codes.chunk(8 // packing.bits, dim=-1)
    for index, part in enumerate(others, 1):
        packed = torch.add(packed, part, alpha=1 << (packing.bits * index))
    return packed.to(torch.uint8)


def _unpacked(packing: Packing, stored: Tensor, num_code_bytes: int) -> Tensor:
    """Codes [..., n] uint8 of whole stored vectors, as bytes that lie together are shifted many at once."""
    if packing.bits == 8:
        return stored[..., :num_code_bytes]
    top = _top(packing)
    parts = [stored & top, *(stored >> shift for shift in range(packing.bits, 8, packing.bits))]
    masked = [part & top for part in parts[1:-1]]
    return torch.cat([part[..., :num_code_bytes] for part in (parts[0], *masked, parts[-1])], dim=-1)
