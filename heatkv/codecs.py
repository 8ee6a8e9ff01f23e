"""Codecs: how a stored token's key and value are written, and how many bytes that takes. No torch: planners ask too.

A number is stored as it is, as fp8, or as an integer code within a group of neighbouring channels of one token, with
a scale (and a lowest value) of 16 bits a group. No group reaches beyond its token, so that a slot means the same
wherever it is moved and whatever leaves around it. Encoding itself is in packing.py.

Measured, as error of attention's output over its size, for keys alone and values alone. infinity-tiny (head_dim 32,
one group; its own keys and values of 3 prompts): int8 0.0014 and 0.0013, int4 0.021 and 0.022, int2 0.13 and 0.10,
fp8 0.015 and 0.007. Shape of infinity-2b (head_dim 128; random keys of length one, normal values with channels of
log-normal size and mean): int8 0.0010 and 0.0078, int4 0.016 and 0.10, int2 0.075 and 0.42, fp8 0.008 and 0.026.

Therefore: groups are asymmetric, as a symmetric group of half the channels takes the same bytes and is no better
(int4: 0.024 and 0.021 tiny, 0.016 and 0.11 2b). Keys, whose channels are alike, have groups of 64 (of 32: 0.013 for
int4 at 11 % more bytes), values of 32 (of 64: 0.13). Two-bit values reach over 0.8 of their range (the whole: 0.12
tiny, 0.52 2b), keys over all of it (0.8: 0.12 tiny, but 0.11 2b). A Hadamard rotation before coding is left out: on
infinity-tiny it changes int4 by 3 % at most and int2 keys by 15 %, for a product of matrices at every read; on values
with outlying channels such as those made up above it would take a quarter off int4's error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from heatkv.errors import UnknownNameError

MODEL = "model"
"""The codec that changes nothing."""

SCALE_BYTES = 2
"""Of a group's scale, and of its lowest value: float16."""

Number = Literal["model", "fp8", "code"]


@dataclass(frozen=True, slots=True)
class Packing:
    """How one vector of head_dim numbers, a key or a value, is written."""

    number: Number
    """As in the model's dtype, as float8 e4m3, or as a code of `bits` within its group."""
    bits: int = 0
    """Of a code: 2, 4 or 8."""
    group: int = 0
    """Most neighbouring channels that share a scale; the last group of a vector is filled up with its last number."""
    reach: float = 1.0
    """Fraction of a group's range that codes span, round its middle; numbers beyond are taken as the ends of it."""

    def __post_init__(self) -> None:
        assert self.number != "code" or (self.bits in (2, 4, 8) and self.group % 8 == 0 and self.group)

    def groups(self, head_dim: int) -> int:
        """Groups of one vector."""
        return -(-head_dim // self.group)

    def group_of(self, head_dim: int) -> int:
        """Channels of each: the vector in equal parts, rounded up to whole bytes of codes."""
        return -(-head_dim // (self.groups(head_dim) * 8)) * 8

    def num_bytes(self, head_dim: int, dtype_bytes: int) -> int:
        """Bytes of one vector: codes, scales, lowest values and what fills up the last group."""
        if self.number == "model":
            return head_dim * dtype_bytes
        if self.number == "fp8":
            return head_dim
        groups = self.groups(head_dim)
        return groups * (self.group_of(head_dim) * self.bits // 8 + 2 * SCALE_BYTES)


@dataclass(frozen=True, slots=True)
class Codec:
    """How keys and values are written, chosen apart: keys have length one, values any."""

    name: str
    keys: Packing
    values: Packing

    @property
    def is_model(self) -> bool:
        """Whether what is stored is what the model computed."""
        return self.name == MODEL

    def bytes_per_token(self, head_dim: int, *, rows: int, dtype_bytes: int) -> int:
        """Of one token's key and value in one head, over all rows; `dtype_bytes`: of the model's numbers."""
        return rows * (self.keys.num_bytes(head_dim, dtype_bytes) + self.values.num_bytes(head_dim, dtype_bytes))


_AS_IT_IS = Packing("model")
_FP8 = Packing("fp8")


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec(MODEL, _AS_IT_IS, _AS_IT_IS),
        Codec("fp8", _FP8, _FP8),
        Codec("int8", Packing("code", 8, 64), Packing("code", 8, 64)),
        Codec("int4", Packing("code", 4, 64), Packing("code", 4, 32)),
        Codec("k4v2", Packing("code", 4, 64), Packing("code", 2, 32, reach=0.8)),
        Codec("int2", Packing("code", 2, 64), Packing("code", 2, 32, reach=0.8)),
    )
}
"""Every known codec by name."""


def codec_named(name: str) -> Codec:
    """The row of CODECS with this name. Raises UnknownNameError listing the known, nearest first."""
    if name not in CODECS:
        raise UnknownNameError("KV codec", name, CODECS)
    return CODECS[name]
