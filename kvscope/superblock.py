"""Superblock: the first bytes of an HDF5 file, as far as they tell whether it was closed, and how long it is.

HDF5 itself does not compare lengths when it opens a file for live reading, because a live file's stored length is
out of date.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SIZE = 48
"""Bytes to read."""

# Version 3: signature, version, sizes of offsets and lengths, flags, base, extension, end of file.
_LAYOUT = struct.Struct("<8sBBBBQQQ")


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a superblock of version 3 (the one of live files) says."""

    is_closed: bool
    """No writer has it open, and none died with it open."""
    end: int
    """Length of the file in bytes; true only if it is closed."""


def parse(beginning: bytes) -> Superblock | None:
    """The superblock at the beginning of a file; None if it is of another version, or cut short."""
    if len(beginning) < _LAYOUT.size:
        return None
    signature, version, _, _, flags, _, _, end = _LAYOUT.unpack_from(beginning)
    return Superblock(flags == 0, end) if signature == SIGNATURE and version == 3 else None
