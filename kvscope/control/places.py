"""Where control sockets are: a folder that only this user can enter, and one short name per process.

A folder that somebody else could have made is refused. Sockets of processes that are gone are removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kvscope.errors import ControlError

SUPPORTED = hasattr(socket, "AF_UNIX") and hasattr(os, "geteuid")
"""Whether this system has Unix sockets, and users to tell apart."""

MOST_PATH_BYTES = 107 if sys.platform == "linux" else 103
"""sun_path of struct sockaddr_un, less its zero byte."""

_SUFFIX = ".sock"
_UNFINISHED = ".new"
"""Until it listens; not longer than the final suffix, so that it fits where that does."""
_BACKLOG = 32
_PROBE_S = 0.5
_CREDENTIALS = struct.Struct("3i")


def folders() -> list[Path]:
    """The folders that may hold sockets, the first choice first; they need not exist."""
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    # The XDG specification says to ignore a relative one.
    runtime = [Path(named) / "kvscope"] if named.startswith("/") and Path(named).is_dir() else []
    return [*runtime, Path(tempfile.gettempdir()) / f"kvscope-{os.geteuid()}"]


def private_folder(folder: Path) -> Path:
    """The folder, made if it is absent. Raises ControlError if anybody else could have a hand in it."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise ControlError(f"{folder}: cannot be made ({error.strerror}); set XDG_RUNTIME_DIR") from None
    check_private(folder)
    return folder


def check_private(folder: Path) -> None:
    """Raises ControlError unless this is a real folder, ours, and closed to everybody else."""
    try:
        status = folder.lstat()
    except OSError as error:
        raise ControlError(f"{folder}: cannot be looked at ({error.strerror}); set XDG_RUNTIME_DIR") from None
    found = None
    if not stat.S_ISDIR(status.st_mode):
        found = "a link" if stat.S_ISLNK(status.st_mode) else "no folder"
    elif status.st_uid != os.geteuid():
        found = f"owned by user {status.st_uid}"
    elif stat.S_IMODE(status.st_mode) != 0o700:
        found = f"of mode {stat.S_IMODE(status.st_mode):04o}"
    if found is not None:
        raise ControlError(f"{folder}: {found}; expected a folder of your own of mode 0700: remove it")


def listen() -> tuple[socket.socket, Path]:
    """A listening socket of mode 0600 in the first folder that will do, and its path. Raises ControlError."""
    if not SUPPORTED:
        raise ControlError("this system has no Unix sockets")
    reasons = []
    for folder in folders():
        try:
            return _listen_in(private_folder(folder))
        except ControlError as error:
            reasons.append(str(error))
        except OSError as error:
            reasons.append(f"{folder}: no socket can be made there ({error.strerror or error})")
    raise ControlError("; ".join(reasons))


def live_sockets() -> list[Path]:
    """The sockets of this user's processes that listen; those of dead ones are removed."""
    found = []
    for folder in folders() if SUPPORTED else []:
        try:
            check_private(folder)
            paths = sorted(folder.iterdir())
        except (ControlError, OSError):
            continue
        found += [path for path in _swept(paths) if path.suffix == _SUFFIX]
    return found


def socket_of(pid: int) -> str | None:
    """The socket of one process, by its name alone; None: there is none."""
    for folder in folders() if SUPPORTED else []:
        found = next((path for path in folder.glob(f"{pid}-*{_SUFFIX}")), None)
        if found is not None:
            return str(found)
    return None


def connect(path: str, timeout_s: float) -> socket.socket:
    """A connection to the process behind a socket. Raises ControlError unless it listens and is this user's."""
    if not SUPPORTED:
        raise ControlError("this system has no Unix sockets")
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        one.settimeout(timeout_s)
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise ControlError(f"{path}: no socket; expected the control socket of a run")
        one.connect(path)
        if not is_ours(one):
            raise ControlError(f"{path}: belongs to another user; expected a run of yours")
    except OSError as error:
        one.close()
        raise ControlError(f"{path}: no run listens ({error.strerror or error}); it may have ended") from None
    except (ControlError, ValueError) as error:
        one.close()
        raise error if isinstance(error, ControlError) else ControlError(f"{path!r}: no path") from None
    return one


def is_ours(one: socket.socket) -> bool:
    """Whether the process at the other end is this user's or the administrator's; True where none can tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    raw = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return uid in (0, os.geteuid())


def is_running(pid: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _listen_in(folder: Path) -> tuple[socket.socket, Path]:
    for _ in _swept(sorted(folder.iterdir())):
        pass
    name = f"{os.getpid()}-{secrets.token_hex(2)}"
    path = folder / f"{name}{_SUFFIX}"
    if len(os.fsencode(path)) > MOST_PATH_BYTES:
        raise ControlError(f"{folder}: too long a name for a socket; set XDG_RUNTIME_DIR to a shorter one")
    unfinished = path.with_suffix(_UNFINISHED)
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        one.bind(str(unfinished))
        unfinished.chmod(0o600)
        one.listen(_BACKLOG)
        one.setblocking(False)
        # Only now by its name: whoever finds it there and is refused knows that its process is gone.
        unfinished.rename(path)
    except OSError:
        one.close()
        unfinished.unlink(missing_ok=True)
        raise
    return one, path


def _swept(paths: list[Path]) -> Iterator[Path]:
    """The sockets among these that may be alive; the others are removed."""
    for path in paths:
        if path.suffix not in (_SUFFIX, _UNFINISHED) or _pid(path) is None:
            continue
        if _is_dead(path):
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            yield path


def _pid(path: Path) -> int | None:
    digits = path.name.partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None


def _is_dead(path: Path) -> bool:
    if path.suffix == _UNFINISHED:
        return not is_running(_pid(path) or 0)
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_S)
            probe.connect(str(path))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
