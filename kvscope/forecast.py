"""What a schedule will make a run hold, before anything runs: the cache to the byte, the rest as estimates.

Pure numpy. What it says of the cache, of weights and of a layer's tensors is heatkv's doing; tests compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig, VAEConfig
    from heatkv.schedule import PruningSchedule

SLOT_NUMBER_BYTES = 4
"""Of one slot's number in the cache's index (heatkv.pool.Slots)."""
TOKEN_NUMBER_BYTES, CARRIED_BYTES = 2, 4
"""Of what an online policy's cache says of each token in each row: which it is, and the number that a policy may let
travel with it (heatkv.token_cache)."""
TOKENS_AT_ONCE, ALL_ROWS_AT_ONCE = 1024, 16384
"""Tokens of a row, and of all rows, that a layer takes at a time, but for attention (heatkv.transformer)."""
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


def vae_weight_bytes(config: VAEConfig, dtype_bytes: int) -> int:
    """Bytes of the VAE's weights, encoder and decoder, in the run's dtype."""
    widths = [config.base_channels * multiplier for multiplier in config.multipliers]
    last, blocks = widths[-1], config.encoder_blocks
    middle = 2 * _block(last, last)
    changing = [width for index, width in enumerate(widths) if 2**index < config.patch_size]
    encoder = [_conv(3, config.base_channels), _conv(last, config.code_channels), 2 * last, middle]
    encoder += [_conv(width, width) for width in changing]
    encoder += _levels([config.base_channels, *widths], blocks)
    growing = [width for index, width in enumerate(widths) if 1 < 2**index <= config.patch_size]
    decoder = [_conv(config.code_channels, last), _conv(widths[0], 3), 2 * widths[0], middle]
    decoder += [_conv(width, width) for width in growing]
    decoder += _levels([last, *reversed(widths)], blocks + 1)
    return (sum(encoder) + sum(decoder)) * dtype_bytes


def _levels(widths: list[int], blocks: int) -> list[int]:
    """Parameters of each level from the channels before it to its own."""
    return [_block(before, width) + (blocks - 1) * _block(width, width) for before, width in pairwise(widths)]


def _block(before: int, width: int) -> int:
    """Parameters of a residual block."""
    shortcut = _conv(before, width, side=1) if before != width else 0
    return 2 * before + _conv(before, width) + 2 * width + _conv(width, width) + shortcut


def _conv(before: int, width: int, *, side: int = 3) -> int:
    return before * width * side**2 + width


@dataclass(frozen=True, slots=True)
class Transients:
    """Estimates, in bytes, of what one layer of a scale needs for a moment, beside cache and weights."""

    input_bytes: int
    """The layer's input, float32, and the level embedding: there all the time."""
    projecting_bytes: int
    """Queries, keys and values, and what it takes to normalise and rotate a part of them."""
    gathered_bytes: int
    """Keys and values copied, or decoded, together for one call of attention, 0 where a kernel reads them in place; of
    an online policy, those among which it chooses, and those that stay."""
    attending_bytes: int
    """Queries, keys and values, what is gathered, and what attention gives."""
    feeding_bytes: int
    """What attention gave, what the layer gives, and of a part the hidden numbers of the feed-forward, before and after
    its nonlinearity."""
    logits_bytes: int
    """Of the scale's bits, float32, and of what they are computed from."""

    @property
    def total_bytes(self) -> int:
        """The most at once."""
        return self.input_bytes + max(
            self.projecting_bytes, self.attending_bytes, self.feeding_bytes, self.logits_bytes
        )


def transients(
    schedule: PruningSchedule, config: ModelConfig, query_scale: int, *, rows: int, dtype_bytes: int, attention: str
) -> Transients:
    """What a layer of a scale needs; `attention`: the way it is computed, one of heatkv.attention.PATHS.

    Tensors as heatkv.transformer makes them and lets go of them; what a library's kernels take is not counted.
    """
    tokens = schedule.scales.tokens[query_scale]
    numbers = rows * tokens * config.width
    first = rows * config.width * min(tokens, TOKENS_AT_ONCE, max(1, ALL_ROWS_AT_ONCE // rows))
    gathered = _copied_bytes(schedule, query_scale, 2 * rows * config.head_dim * dtype_bytes, attention)
    hidden = round(2 * config.ffn_width / config.width * dtype_bytes)

    def in_parts(of_part: int, of_result: int) -> int:
        """Bytes for each number of a part, and of the result, which is allocated when the first part is done."""
        second = min(first, numbers - first)
        return max(first * of_part, second * of_part + numbers * of_result if second else 0)

    return Transients(
        input_bytes=(numbers + tokens * config.width) * _F32,
        # Float32: the input normalised and modulated, a normalised query or key, and twice as much to rotate it.
        projecting_bytes=in_parts(4 * _F32 + 4 * dtype_bytes, 3 * dtype_bytes),
        gathered_bytes=gathered,
        attending_bytes=4 * numbers * dtype_bytes + gathered,
        # Float32: what the part is so far, and the same normalised and modulated.
        feeding_bytes=numbers * dtype_bytes + in_parts(2 * _F32 + hidden, _F32),
        logits_bytes=(2 * numbers + rows * tokens * 2 * config.bits_per_token) * _F32,
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
