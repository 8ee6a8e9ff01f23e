"""What a schedule will make a run hold, before anything runs: the cache to the byte, the rest as estimates.

Pure numpy. What it says of the cache, of weights and of a layer's tensors is heatkv's doing; tests compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig
    from heatkv.schedule import PruningSchedule

SLOT_NUMBER_BYTES = 4
"""Of one slot's number in the cache's index (heatkv.pool.Slots)."""
TOKEN_NUMBER_BYTES, CARRIED_BYTES = 2, 4
"""Of what an online policy's cache says of each token in each row: which it is, and the number that a policy may let
travel with it (heatkv.token_cache)."""
TOKENS_AT_ONCE = 1024
"""Tokens that a layer's feed-forward takes at a time (heatkv.transformer)."""
GATHER_BYTES = 32 << 20
"""The most that keys and values gathered for one call take, but at least one head's (heatkv.kernels.grouped)."""
_NUM_LEVELS = 15
_F32 = 4


def stored_bytes(schedule: PruningSchedule, head_dim: int, *, rows: int, dtype_bytes: int) -> NDArray[np.int64]:
    """Bytes of the pool and of the index into it after each step: [num_steps]; exactly what a run records.

    The pool has room for the schedule's peak, in each codec. The index holds the number of every slot that was ever in
    use: one that came back is kept in a list, and goes out again before a new one does. Of an online policy it says
    also, for each token held and each row, which one that is.
    """
    index = SLOT_NUMBER_BYTES * _slots_used(schedule) + said_bytes(schedule, rows) * schedule.tokens_held()
    stored: NDArray[np.int64] = schedule.capacity_bytes(head_dim, rows=rows, dtype_bytes=dtype_bytes) + index
    return stored


def said_bytes(schedule: PruningSchedule, rows: int) -> int:
    """What is said of each token held, in all rows, where an online policy chose them: beside the keys and values, and
    on their device. 0 for a planned policy, where scales stay whole."""
    if not schedule.online:
        return 0
    carried = CARRIED_BYTES if schedule.provenance.get("carries") else 0
    return rows * (TOKEN_NUMBER_BYTES + carried)


def _slots_used(schedule: PruningSchedule) -> NDArray[np.int64]:
    """Slots that were ever in use, after each step: [num_steps].

    Of a planned policy all those of the first scales, which nobody drops, are taken at the start.
    """
    if schedule.online:
        used: NDArray[np.int64] = np.maximum.accumulate(schedule.tokens_held())
        return used
    tokens = np.array(schedule.scales.tokens)
    num_resident = schedule.resident_scales
    resident = tokens[:num_resident] * schedule.num_heads
    steps = np.arange(schedule.num_steps)[:, None]
    written = np.array([source * schedule.num_layers for source in range(num_resident)], np.int64)
    layers_written = np.clip(steps + 1 - written, 0, schedule.num_layers)
    first = None if schedule.codec is None else schedule.codecs[schedule.codec[0, 0, 0]]
    slots_used = np.full(schedule.num_steps, resident.sum() * schedule.num_layers)
    for codec, held in schedule.tokens_held_by_codec().items():
        resident_held = layers_written @ resident if first in (None, codec) else 0
        slots_used += np.maximum.accumulate(held - resident_held)
    return slots_used


def weight_bytes(config: ModelConfig, dtype_bytes: int) -> int:
    """Bytes of the transformer's weights: matrices of the layers in the run's dtype, everything else in float32."""
    width, hidden, text, bits = config.width, config.ffn_width, config.text_width, config.bits_per_token
    layer_matrices = 8 * width**2 + 2 * width * hidden + 4 * width + hidden
    layer_vectors = 13 * width + config.num_heads
    around = [
        config.text_maxlen * text + text,  # unconditional text and text norm
        2 * text * width + width**2 + 4 * width,  # text pool
        text * width + width**2 + 2 * width,  # text projection
        (1 + _NUM_LEVELS) * width,  # start and level embeddings
        bits * width + width,  # word embedding
        8 * width**2 + 8 * width,  # modulations
        2 * bits * width + 2 * bits,  # head
    ]
    layers = config.num_layers * (layer_matrices * dtype_bytes + layer_vectors * _F32)
    return layers + sum(around) * _F32


@dataclass(frozen=True, slots=True)
class Transients:
    """Estimates, in bytes, of what one layer of a scale needs for a moment, beside cache and weights."""

    stream_bytes: int
    """A layer's input and output, float32."""
    qkv_bytes: int
    """Queries, keys and values of the scale."""
    attended_bytes: int
    """What attention gives."""
    gathered_bytes: int
    """Keys and values copied, or decoded, together for one call of attention, 0 where a kernel reads them in place; of
    an online policy, those among which it chooses, and those that stay."""
    ffn_bytes: int
    """Hidden numbers of the feed-forward layer, before and after its nonlinearity, TOKENS_AT_ONCE at a time."""
    logits_bytes: int
    """Of the scale's bits, float32."""

    @property
    def total_bytes(self) -> int:
        """At most so much at once: keys and values are gathered before the feed-forward begins."""
        moment = max(self.gathered_bytes, self.ffn_bytes)
        return max(self.stream_bytes + self.qkv_bytes + self.attended_bytes + moment, self.logits_bytes)


def transients(
    schedule: PruningSchedule, config: ModelConfig, query_scale: int, *, rows: int, dtype_bytes: int, attention: str
) -> Transients:
    """What a layer of a scale needs; `attention`: the way it is computed, one of heatkv.attention.PATHS."""
    tokens = schedule.scales.tokens[query_scale]
    channel_bytes = rows * tokens * config.width
    return Transients(
        stream_bytes=2 * channel_bytes * _F32,
        qkv_bytes=3 * channel_bytes * dtype_bytes,
        attended_bytes=channel_bytes * dtype_bytes,
        gathered_bytes=_copied_bytes(schedule, query_scale, 2 * rows * config.head_dim * dtype_bytes, attention),
        ffn_bytes=2 * rows * min(tokens, TOKENS_AT_ONCE) * config.ffn_width * dtype_bytes,
        logits_bytes=rows * tokens * 2 * config.bits_per_token * _F32,
    )


def _copied_bytes(schedule: PruningSchedule, query_scale: int, token_bytes: int, attention: str) -> int:
    if schedule.layer_tokens is None:
        return _gathered_bytes(schedule, query_scale, token_bytes, attention)
    held = schedule.layer_tokens.astype(np.int64)
    before = held[query_scale - 1] if query_scale else np.zeros_like(held[0])
    candidates = before + schedule.num_heads * schedule.scales.tokens[query_scale]
    return int((candidates + held[query_scale]).max()) * token_bytes


def _gathered_bytes(schedule: PruningSchedule, query_scale: int, token_bytes: int, attention: str) -> int:
    """The most of any layer; heads that see the same scales are gathered together, as GATHER_BYTES allow."""
    if attention == "triton" and schedule.codec is None:
        return 0
    visible = schedule.visible(query_scale)
    tokens = np.where(visible, np.array(schedule.scales.tokens), 0)
    if attention == "triton":  # decodes what is stored, and reads the current scale in place
        return int(tokens[..., :query_scale].sum(axis=(1, 2)).max()) * token_bytes
    if attention == "varlen":
        return int(tokens.sum(axis=(1, 2)).max()) * token_bytes
    # Each head's scales as one number: equal numbers see the same.
    seen = visible @ (1 << np.arange(visible.shape[-1]))
    head_bytes = tokens.sum(axis=-1) * token_bytes
    reads_past: NDArray[np.bool_] = np.asarray(visible[..., :query_scale].any(axis=-1))
    # What is stored in codecs is decoded for all heads at once, if that is no more than may be gathered.
    stored = tokens[..., :query_scale].sum(axis=(1, 2)) * token_bytes if schedule.codec is not None else np.zeros(1)
    decoded = np.broadcast_to(np.where(stored <= GATHER_BYTES, stored, 0), len(seen)).tolist()
    most = 0
    for layer in range(len(seen)):
        _, first, heads = np.unique(seen[layer], return_index=True, return_counts=True)
        each = head_bytes[layer][first]
        together = np.minimum(heads, np.maximum(1, GATHER_BYTES // each))
        gathered = int(np.where(reads_past[layer][first], together * each, 0).max())
        most = max(most, gathered + int(decoded[layer]))
    return most
