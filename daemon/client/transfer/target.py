"""Targets of copies: a file, a disk, or an NBD export.

Owner and locks   A file or disk is locked (flock) while it is written; a disk is opened with O_EXCL, so that
                  one that is mounted, or part of something, is refused.
Errors            TransferFailed, DiskInUse.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from polyvol.daemon.backup_errors import TransferFailed
from polyvol.daemon.client.transfer.client import NbdExport
from polyvol.mapping import fallocate, occupied
from polyvol.mapping.errors import DiskInUse


class Target(Protocol):
    """Where a copy is written to; by several threads at once."""

    name: str
    size: int

    def pwrite(self, data: bytes | bytearray, offset: int) -> None:
        """Write."""

    def zero(self, length: int, offset: int) -> None:
        """Write zeros."""

    def flush(self) -> None:
        """Make everything durable."""

    def close(self) -> None:
        """End it."""


class FileTarget:
    """A file or a disk. `fd`: it is open already, and locked; this closes it."""

    def __init__(self, path: Path, *, fd: int | None = None) -> None:
        self.name = str(path)
        self.fd = self._open(path) if fd is None else fd
        with self._errors("asking for the size of"):
            self._sparse = stat.S_ISREG(os.fstat(self.fd).st_mode)
            self.size = os.lseek(self.fd, 0, os.SEEK_END)

    def grow(self, size: int) -> None:
        """Set a file's length; the new part is a hole."""
        with self._errors("writing"):
            os.ftruncate(self.fd, size)
            self.size = size

    def pread(self, length: int, offset: int) -> bytes:
        """Read; TransferFailed at a short read."""
        parts: list[bytes] = []
        with self._errors("reading"):
            while length:
                part = os.pread(self.fd, length, offset)
                if not part:
                    raise TransferFailed(what=f"reading {self.name}", why="it has become shorter")
                parts.append(part)
                offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def pwrite(self, data: bytes | bytearray, offset: int) -> None:
        """Write."""
        view = memoryview(data)
        with self._errors("writing"):
            while view:
                written = os.pwrite(self.fd, view, offset)
                view, offset = view[written:], offset + written

    def zero(self, length: int, offset: int) -> None:
        """Write zeros; a file's space is freed."""
        with self._errors("writing"):
            fallocate.zero(self.fd, offset, length, punch=self._sparse)

    def flush(self) -> None:
        """Make everything durable."""
        with self._errors("flushing"):
            os.fsync(self.fd)

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)

    def _open(self, path: Path) -> int:
        with self._errors("opening"):
            flags = os.O_EXCL if stat.S_ISBLK(path.stat().st_mode) else 0
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags)
            except OSError as error:
                disk = occupied.disk_name(path)
                if error.errno != errno.EBUSY or disk is None:
                    raise
                raise DiskInUse(path=path, use=occupied.in_use_by(disk) or occupied.HELD) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                todo = "end that process, then try again"
                why = "another process has locked it"
                raise TransferFailed(what=f"writing {path}", why=why, todo=todo) from error
            except OSError:
                pass  # a file system without locks
        return fd

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TransferFailed.of(f"{doing} {self.name}", error, self.name) from error


def open_target(text: str) -> Target:
    """The target that a URI or a path names."""
    if text.startswith(("nbd://", "nbd+unix://", "nbds://", "nbds+unix://")):
        return NbdExport(text, text)
    return FileTarget(Path(text))
