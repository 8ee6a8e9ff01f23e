"""Ragged attention by a Triton kernel that reads each head's tokens where they lie in the pool.

No key is copied, no mask is built, nothing waits for the device. Needs triton only when called.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from heatkv.errors import OptionError
from heatkv.kernels import dense
from heatkv.kernels.dense import CurrentAttention

_LEAST_HEAD_DIM = 16
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, slots=True)
class Tile:
    """How the kernel cuts the work: fixed at its compilation."""

    queries: int
    """At a time, per program; a power of two, at least 16."""
    keys: int
    """At a time, in the loop; a power of two, at least 16."""
    warps: int
    stages: int
    """Blocks of keys and values in flight."""

    def shared_bytes(self, head_dim: int, dtype_bytes: int) -> int:
        """Shared memory that the queries and the blocks in flight take, the compiler's own scratch not counted."""
        return dtype_bytes * head_dim * (self.queries + 2 * self.stages * self.keys)


_TILES = (
    Tile(64, 64, warps=4, stages=3),
    Tile(64, 64, warps=4, stages=2),
    Tile(64, 32, warps=4, stages=2),
    Tile(32, 32, warps=4, stages=1),
    Tile(16, 16, warps=2, stages=1),
)
"""Largest first. The first was the fastest on an H100 for maps up to 48 x 48 and as fast as any at 64 x 64, of tiles of
64 and 128 queries by 32 to 128 keys."""
_FLOAT32_TILES = _TILES[-2:]
"""A product of float32 numbers is three on the tensor cores: larger tiles spill registers (seen for 8.0 and 9.0)."""
_SCRATCH_BYTES = 8 << 10


def unavailable(device: torch.device, *, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the kernel cannot run there, as half a sentence; None if it can."""
    if device.type != "cuda":
        return f"needs CUDA, not {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if dtype not in _DTYPES:
        return f"computes in {', '.join(map(_name, _DTYPES))}, not {_name(dtype)}"
    if not _fits(head_dim):
        return f"needs a head_dim that is a power of two from {_LEAST_HEAD_DIM}, not {head_dim}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"needs compute capability 8.0, not {capability[0]}.{capability[1]}"
    return None


def ragged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    pool_keys: Tensor,
    pool_values: Tensor,
    slots: Tensor,
    offsets: Tensor,
    sources: Tensor,
    order: Tensor,
    *,
    query_scale: int,
    num_scales: int,
    capture_rows: int = 0,
    tile: Tile | None = None,
    current: CurrentAttention | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `ragged_attention_plain` returns, its shapes included; lse and mass are float32.

    order: heads, longest first: they are started in that order, so that no long head is left to run alone. The last
    axis of every [.., D] tensor must be contiguous, as must the index tensors. `tile` None: the one for the device.
    `current`: what attends to the current scale; None: cuDNN where it is there and faster, else the kernel itself.
    The output is bit for bit the same with and without capture. Raises OptionError for a head_dim or dtype that the
    kernel has no form of.
    """
    num_rows, num_heads, num_queries, head_dim = q.shape
    if not _fits(head_dim) or q.dtype not in _DTYPES:
        raise OptionError(
            f"the triton attention computes head_dim 16, 32, 64 … in {', '.join(map(_name, _DTYPES))}, "
            f"found head_dim {head_dim} in {_name(q.dtype)}; choose the plain or the varlen attention"
        )
    assert all(one.stride(-1) == 1 for one in (q, keys, values, pool_keys, pool_values))
    assert all(one.is_contiguous() for one in (slots, offsets, sources, order))
    # Deferred: triton is an optional package, takes 0.3 s, and looks for a compiler.
    from heatkv.kernels.ragged_kernel import ragged_attention_kernel

    tile = tile or tile_for(q)
    current = current or dense.attention_for(q)
    if current is None:
        out = torch.empty_like(q)
        lse = torch.empty((num_rows, num_heads, num_queries), dtype=torch.float32, device=q.device)
    else:
        out, lse = current(q, keys, values)
    num_blocks = -(-num_queries // tile.queries)
    partial = torch.empty((num_blocks, capture_rows, num_heads, num_scales), dtype=torch.float32, device=q.device)
    ragged_attention_kernel[(num_blocks, num_rows, num_heads)](
        *(q, keys, values, pool_keys, pool_values, slots, offsets, sources, order, out, lse, partial),
        *(*q.stride()[:3], *keys.stride()[:3], *values.stride()[:3]),
        *(*pool_keys.stride()[:2], *pool_values.stride()[:2], *out.stride()[:3]),
        *(num_queries, keys.shape[2], query_scale, num_scales, capture_rows),
        head_dim=head_dim,
        block_queries=tile.queries,
        block_keys=tile.keys,
        mass_columns=max(16, 1 << (num_scales - 1).bit_length()),
        capture=capture_rows > 0,
        current_done=current is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,  # said aloud, because what it is when unsaid changes with triton 3.10
    )
    # One partial sum per block of queries, added in one order: atomics would add them in another every time.
    return out, lse, partial.sum(dim=0) if capture_rows else None


def tile_for(q: Tensor) -> Tile:
    """The largest tile whose blocks fit the device's shared memory, with no more queries than there are."""
    # torch's annotations do not know this field yet.
    shared_bytes: int = torch.cuda.get_device_properties(q.device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    return choose_tile(q.shape[2], q.shape[3], dtype_bytes=q.element_size(), shared_bytes=shared_bytes)


def choose_tile(num_queries: int, head_dim: int, *, dtype_bytes: int, shared_bytes: int) -> Tile:
    """As `tile_for`, from numbers alone. The smallest tile is the answer to a memory that fits none."""
    room = shared_bytes - _SCRATCH_BYTES
    tiles = _TILES if dtype_bytes < 4 else _FLOAT32_TILES
    fitting = [tile for tile in tiles if tile.shared_bytes(head_dim, dtype_bytes) <= room] or [tiles[-1]]
    enough = [tile for tile in fitting if tile.queries < 2 * num_queries]
    return enough[0] if enough else fitting[-1]


def _fits(head_dim: int) -> bool:
    return head_dim >= _LEAST_HEAD_DIM and head_dim & (head_dim - 1) == 0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
