"""Whether the process that records a trace still lives: a lock on the trace file itself.

The recorder holds an open-file-description lock on one byte far past the file's end. The kernel drops it when the
process dies, however it dies, so neither a reused pid nor a pid of another container can fool a reader; a copy of a
live file is another file, without a lock. Such locks are independent of the ones that HDF5 takes (flock), and are
not lost when the same process opens and closes the file elsewhere, as POSIX locks are.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HEARTBEAT_S = 1.0
"""The recorder commits at least this often, so that a trace without a lock can be judged by its last commit."""

STALE_S = 15.0
"""A last commit older than this means, where there is no lock, that the recorder is gone."""

SUPPORTED = hasattr(fcntl, "F_OFD_SETLK") and struct.calcsize("P") == 8
"""Whether this system has such locks."""

_BYTE = 1 << 62
_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, length, pid


def hold(path: Path) -> tuple[int, bool]:
    """(descriptor, whether it holds the lock: not where there are none). Close the descriptor to release it.

    Raises BlockingIOError if another descriptor holds it.
    """
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    if not SUPPORTED:
        return descriptor, False
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _BYTE, 1, 0))
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        return descriptor, False
    return descriptor, True


def is_held(path: Path) -> bool:
    """Whether some process holds the lock on this file."""
    if not SUPPORTED:
        return False
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        query = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _BYTE, 1, 0)
        kind = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, query))[0]
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return bool(kind != fcntl.F_UNLCK)
