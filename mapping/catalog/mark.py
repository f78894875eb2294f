"""The mark: a small file next to the catalog with the number of its committed transactions.

How it works      `catalog.mark` has two records in two sectors; docs/formats-labels.md gives every byte.
                  After each commit the older one is overwritten with the catalog's new count.
Invariants        CM1 the mark never says more than the catalog on the disk has: it is written when the commit
                  is durable; CM2 so a catalog that has less than its mark says is an older copy, or has lost
                  its log; CM3 a catalog that has committed more than its making has a mark.
Durability        The file and its name are durable before the second commit. What is written later is not
                  synced: after a power loss it may be older, which CM1 allows.
Errors            OSError. `read` leaves damaged records out.
"""

import contextlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import crcmod.predefined

from polyvol.mapping.durable import replace_file

MAGIC = b"PVMARK\0\x01"
FORMAT_VERSION = 1
COPY_AT = (0, 512)
"""Offsets of the two records, bytes: no power loss damages both."""
_FIELDS = struct.Struct("<8s I I 16s Q")
_CRC = struct.Struct("<I")
_RECORD_BYTES = _FIELDS.size + _CRC.size
_FILE_BYTES = 1024
_crc32c = crcmod.predefined.mkPredefinedCrcFun("crc-32c")


@dataclass(frozen=True, slots=True)
class Marked:
    """What a record says: so many commits of this catalog."""

    catalog: UUID
    commits: int


class BadMark(Exception):
    """A record that cannot be read right; its text is a clause."""


class Mark:
    """The file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def read(self) -> list[Marked | BadMark] | None:
        """What the two records say; None if there is no file."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        return [_unpack(data[at : at + _RECORD_BYTES]) for at in COPY_AT]

    def newest(self) -> Marked | None:
        """The record with more commits, of those that can be read."""
        right = [each for each in self.read() or [] if isinstance(each, Marked)]
        return max(right, key=lambda each: each.commits, default=None)

    def make(self, marked: Marked) -> None:
        """Make the file, or make it say this; durable."""
        new = self.path.with_name(f"{self.path.name}.new")
        data = bytearray(_FILE_BYTES)
        for at in COPY_AT:
            data[at : at + _RECORD_BYTES] = _pack(marked)
        replace_file(self.path, new, bytes(data), mode=0o600)

    def open(self) -> None:
        """Be ready to write."""
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)

    def write(self, marked: Marked) -> None:
        """Record that this commit is durable (CM1), in a new file if the mark was removed or replaced."""
        if os.fstat(self._fd).st_nlink == 0:
            self.make(marked)
            os.close(self._fd)
            self._fd = -1
            self.open()
        os.pwrite(self._fd, _pack(marked), COPY_AT[marked.commits % 2])

    def close(self) -> None:
        """Close it, synced if that succeeds; idempotent."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1


def _pack(marked: Marked) -> bytes:
    fields = _FIELDS.pack(MAGIC, FORMAT_VERSION, _RECORD_BYTES, marked.catalog.bytes, marked.commits)
    return fields + _CRC.pack(_crc32c(fields))


def _unpack(data: bytes) -> Marked | BadMark:
    if len(data) < _RECORD_BYTES or data[: len(MAGIC)] != MAGIC:
        return BadMark("is damaged")
    _, version, length, catalog, commits = _FIELDS.unpack_from(data)
    if _CRC.unpack_from(data, _FIELDS.size)[0] != _crc32c(data[: _FIELDS.size]):
        return BadMark("is damaged")
    if version != FORMAT_VERSION or length != _RECORD_BYTES:
        return BadMark(f"has format version {version}, and this polyvold knows {FORMAT_VERSION}")
    return Marked(UUID(bytes=catalog), commits)
