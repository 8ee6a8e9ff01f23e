"""Spool: where a trace is recorded whose own folder is on a network file system.

Live reading needs writes that other readers see in order, and locks; NFS, SMB and the like promise neither. So such a
trace is recorded in the local temporary folder, and moved at the end of the run. Until then a link stands in its
place, through which this machine follows it. Cluster file systems that keep the order of writes (Lustre, GPFS, Ceph)
are recorded to as if they were local.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from heatkv.files import exists_text, place
from kvscope.errors import OutputError

MOUNTS = Path("/proc/self/mountinfo")

NETWORK = frozenset(
    ("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "afs", "coda", "davfs", "ncpfs", "glusterfs")
)
"""Types of file systems that live reading cannot trust."""

NETWORK_FUSE = frozenset(
    ("sshfs", "s3fs", "rclone", "gcsfuse", "glusterfs", "davfs", "davfs2", "smbnetfs", "curlftpfs")
)
"""The same, behind `fuse.`"""


@dataclass(frozen=True, slots=True)
class Spool:
    """A local file that becomes the trace at `target`."""

    path: Path
    target: Path
    kind: str
    """The file system that the target is on."""
    is_linked: bool = False
    """A link at the target leads to the local file."""

    @property
    def notice(self) -> str:
        """What whoever follows the run should know."""
        return f"{self.target} is on {self.kind}: recording to {self.path}, to be moved there when the run ends"

    def linked(self, *, overwrite: bool) -> Spool:
        """The spool with a link in the target's place, where the file system has links.

        Raises OutputError if the name was taken meanwhile.
        """
        try:
            if overwrite:
                beside = self.target.with_name(f".{self.target.name}.{os.getpid()}.part")
                beside.symlink_to(self.path)
                beside.replace(self.target)
            else:
                self.target.symlink_to(self.path)
        except FileExistsError:
            raise OutputError(exists_text(self.target)) from None
        except OSError:
            return self
        return Spool(self.path, self.target, self.kind, is_linked=True)

    def deliver(self, content: bytes | None) -> None:
        """Put the closed trace (or this content, made of it) in its place, and drop the local file.

        Raises OSError if that cannot be done; then the local file stays.
        """
        descriptor, name = tempfile.mkstemp(prefix=f".{self.target.name}.", suffix=".part", dir=self.target.parent)
        beside = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if content is None:
                    with self.path.open("rb") as local:
                        shutil.copyfileobj(local, file, 1 << 20)
                else:
                    file.write(content)
                os.fchmod(file.fileno(), self.path.stat().st_mode & 0o777)
                file.flush()
                os.fsync(file.fileno())
            place(beside, self.target, overwrite=self._is_our_link())
        finally:
            beside.unlink(missing_ok=True)
        self.drop()

    def drop(self) -> None:
        """Delete the local file, and the link that leads to it."""
        if self._is_our_link():
            self.target.unlink()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()

    def _is_our_link(self) -> bool:
        try:
            return self.is_linked and self.target.readlink() == self.path
        except OSError:
            return False


def spool_for(target: Path, *, mounts: Path = MOUNTS) -> Spool | None:
    """A new spool if the target is on a network file system and the temporary folder is not; else None."""
    kind = file_system_of(target.parent, mounts=mounts)
    if not is_network(kind):
        return None
    temporary = Path(tempfile.gettempdir())
    if is_network(file_system_of(temporary, mounts=mounts)):
        return None
    folder = tempfile.mkdtemp(prefix="kvscope-", dir=temporary)
    return Spool(Path(folder) / target.name, target, kind)


def is_network(kind: str) -> bool:
    """Whether a type of file system is one that live reading cannot trust."""
    return kind in NETWORK or (kind.startswith("fuse.") and kind.removeprefix("fuse.") in NETWORK_FUSE)


def file_system_of(folder: Path, *, mounts: Path = MOUNTS) -> str:
    """The type of the file system that a folder is on, as the system's table of mounts says; empty: it does not."""
    real = os.path.realpath(folder)
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    # The longest mount point above the folder; of several on one point, the last one is seen.
    found = [(len(point), index, kind) for index, (point, kind) in enumerate(map(_mount, lines)) if _is_in(real, point)]
    return max(found)[2] if found else ""


def _mount(line: str) -> tuple[str, str]:
    """(mount point, type) of a line: `36 35 98:0 /root /point options tags - type source options`."""
    fields, _, rest = line.partition(" - ")
    parts, kinds = fields.split(), rest.split()
    if len(parts) < 5 or not kinds:
        return "", ""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), parts[4]), kinds[0]


def _is_in(folder: str, point: str) -> bool:
    return bool(point) and (folder == point or folder.startswith(point.rstrip("/") + "/"))
