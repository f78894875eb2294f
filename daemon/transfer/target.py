"""Targets of copies: a file, a disk, or an NBD export.

Errors            TransferFailed.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from polyvol.daemon.transfer.client import NbdExport
from polyvol.daemon.transfer.errors import TransferFailed
from polyvol.mapping import fallocate


class Target(Protocol):
    """Where a copy is written to; by several threads at once."""

    name: str
    size: int

    def pwrite(self, data: bytes | bytearray, offset: int) -> None:
        """Write."""

    def zero(self, length: int, offset: int) -> None:
        """Make zeros."""

    def flush(self) -> None:
        """Make everything durable."""

    def close(self) -> None:
        """End it."""


class FileTarget:
    """A file or a disk. `size`: make a new file of it, which must not exist; None: it exists."""

    def __init__(self, path: Path, *, size: int | None = None) -> None:
        self.name = str(path)
        with self._errors("opening"):
            new = os.O_CREAT | os.O_EXCL if size is not None else 0
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | new, 0o600)
        with self._errors("asking for the size of"):
            self._sparse = stat.S_ISREG(os.fstat(self._fd).st_mode)
            if size is not None:
                os.ftruncate(self._fd, size)
            self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def pwrite(self, data: bytes | bytearray, offset: int) -> None:
        """Write."""
        view = memoryview(data)
        with self._errors("writing"):
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written

    def zero(self, length: int, offset: int) -> None:
        """Make zeros; a file's space is given back."""
        with self._errors("writing"):
            fallocate.zero(self._fd, offset, length, punch=self._sparse)

    def flush(self) -> None:
        """Make everything durable."""
        with self._errors("flushing"):
            os.fsync(self._fd)

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TransferFailed(what=f"{doing} {self.name}", why=error.strerror or error) from error


def open_target(text: str) -> Target:
    """The target that a URI or a path names."""
    if text.startswith(("nbd://", "nbd+unix://", "nbds://", "nbds+unix://")):
        return NbdExport(text, text)
    return FileTarget(Path(text))
