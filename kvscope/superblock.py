"""Superblock: the first bytes of an HDF5 file, as far as they tell whether it was closed, and how long it is.

A process that dies leaves a superblock that says "open for writing" and a stored length that is out of date. HDF5 then
opens the file only in live mode, where it takes every damaged block for one that is being written, and waits for it
for ever. `RepairedFile` shows such a file with the superblock that a clean close would have written.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SIZE = 48
"""Bytes to read."""

# Version 3: signature, version, sizes of offsets and lengths, flags, base, extension, end of file, root.
_LAYOUT = struct.Struct("<8sBBBBQQQQ")
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a superblock of version 3 (the one of live files) says."""

    is_closed: bool
    """No writer has it open, and none died with it open."""
    end: int
    """Length of the file in bytes; true only if it is closed."""


def parse(beginning: bytes) -> Superblock | None:
    """The superblock at the beginning of a file; None if it is of another version, or cut short."""
    if len(beginning) < SIZE:
        return None
    signature, version, _, _, flags, _, _, end, _ = _LAYOUT.unpack_from(beginning)
    return Superblock(flags == 0, end) if signature == SIGNATURE and version == 3 else None


def repaired(beginning: bytes, length: int) -> bytes:
    """The superblock that says: closed, and `length` bytes long."""
    signature, version, offsets, lengths, _, base, extension, _, root = _LAYOUT.unpack_from(beginning)
    fields = _LAYOUT.pack(signature, version, offsets, lengths, 0, base, extension, length, root)
    return fields + _CHECKSUM.pack(checksum(fields))


class RepairedFile(io.RawIOBase):
    """A file of a process that died, read as if it had been closed. The file itself is not touched."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._length = path.stat().st_size
        self._beginning = repaired(self._file.read(SIZE), self._length)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not 0 <= self._position < self._length:  # a damaged address, perhaps larger than any file
            return 0
        view = memoryview(buffer).cast("B")
        self._file.seek(self._position)
        count = self._file.readinto(view) or 0
        hidden = self._beginning[self._position : self._position + count]
        view[: len(hidden)] = hidden
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def checksum(content: bytes) -> int:
    """HDF5's checksum of metadata: Bob Jenkins' lookup3 (hashlittle, initial value 0)."""
    a = b = c = (0xDEADBEEF + len(content)) & _WORD
    blocks = max(0, (len(content) - 1) // 12)
    for begin in range(0, 12 * blocks, 12):
        x, y, z = _THREE.unpack_from(content, begin)
        a, b, c = _mix((a + x) & _WORD, (b + y) & _WORD, (c + z) & _WORD)
    if not content:
        return c
    x, y, z = _THREE.unpack(content[12 * blocks :].ljust(12, b"\0"))
    return _final((a + x) & _WORD, (b + y) & _WORD, (c + z) & _WORD)


_WORD = 0xFFFFFFFF
_THREE = struct.Struct("<III")


def _rotated(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (32 - bits))) & _WORD


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for bits in (4, 6, 8, 16, 19, 4):
        a = ((a - c) & _WORD) ^ _rotated(c, bits)
        c = (c + b) & _WORD
        a, b, c = b, c, a
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _rotated(b, bits)) & _WORD
        a, b, c = b, c, a
    return b
