"""Backup streams: every byte of them; docs/formats-backup.md shows the same.

How it works      A stream is a header, frames in order of their offset, and an end. A frame says what a run
                  of the volume holds: bytes as they are, bytes compressed by zstd, or zeros. A full stream's
                  frames cover the whole volume; an incremental one's cover what changed since its base.
Invariants        SF1 frames are numbered from 0, their offsets ascend, none overlaps the one before, all are
                  inside the volume; SF2 a frame's CRC is started from the stream's own number, so that a
                  frame of another stream is never taken for one of this; SF3 only a stream with its end is
                  complete.
Errors            StreamBroken, with the reason and the place. No field is used before its CRC has been
                  checked, and a frame takes at most CHUNK_BYTES_MAX of memory.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO
from uuid import UUID

from crc32c import crc32c

from polyvol.snapshot.errors.streams import StreamBroken

MAGIC = b"PVBKUP\r\n"
VERSION = 1
HEADER_BYTES = 512
FRAME_BYTES = 48
BLOCK = 4096
CHUNK_BYTES = 1 << 20
"""Contents of one frame, at most, as this version writes them."""
CHUNK_BYTES_MAX = 32 << 20
"""The same, as this version reads them."""
SIZE_MAX = 1 << 62
NO_BASE = UUID(int=0)

_HEADER = struct.Struct("<8sII16sIIQQQQ16s16s16s64s64s64s")
_FRAME = struct.Struct("<IB3xQQQIII4x")
_CRC = struct.Struct("<I")
HEADER_FIELDS = (
    *("magic", "version", "header_crc", "stream", "flags", "chunk_bytes", "size", "base_size"),
    *("instant_ns", "partition_size", "volume_uuid", "snapshot_uuid", "base_uuid"),
    *("volume", "snapshot", "base"),
)
FRAME_FIELDS = (
    *("frame_crc", "kind", "number", "offset", "length", "payload_bytes", "payload_crc"),
    "content_crc",
)


class FrameKind(IntEnum):
    """The kind of a frame. END: `length` is the number of bytes that the frames before it describe."""

    ZSTD = 1
    PLAIN = 2
    ZEROS = 3
    END = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamHeader:
    """The contents of a stream: snapshot `snapshot` of a volume of `size` bytes; `base`: the snapshot that it
    follows (None: it is a full stream). A snapshot that was restored keeps the UUID of the one that it is a
    copy of. `stream` is the stream's own number."""

    stream: UUID
    size: int
    partition_size: int
    instant_ns: int
    volume_uuid: UUID
    volume: str
    snapshot_uuid: UUID
    snapshot: str
    base_uuid: UUID | None = None
    base: str = ""
    base_size: int = 0
    chunk_bytes: int = CHUNK_BYTES

    @property
    def seed(self) -> int:
        """The initial value of the CRCs of frames (SF2)."""
        return crc32c(self.stream.bytes)

    def to_bytes(self) -> bytes:
        """The header, with its CRC."""
        packed = _HEADER.pack(
            MAGIC,
            VERSION,
            0,
            self.stream.bytes,
            0 if self.base_uuid is None else 1,
            self.chunk_bytes,
            self.size,
            self.base_size,
            self.instant_ns,
            self.partition_size,
            self.volume_uuid.bytes,
            self.snapshot_uuid.bytes,
            (self.base_uuid or NO_BASE).bytes,
            self.volume.encode(),
            self.snapshot.encode(),
            self.base.encode(),
        )
        whole = packed.ljust(HEADER_BYTES, b"\0")
        return whole[:12] + _CRC.pack(crc32c(whole[16:])) + whole[16:]


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's header: `length` bytes of the volume from `offset`, in `payload_bytes` of the stream."""

    kind: FrameKind
    number: int
    offset: int
    length: int
    payload_bytes: int = 0
    payload_crc: int = 0
    content_crc: int = 0

    def to_bytes(self, seed: int) -> bytes:
        """The frame's header, with its CRC."""
        packed = _FRAME.pack(
            0,
            self.kind,
            self.number,
            self.offset,
            self.length,
            self.payload_bytes,
            self.payload_crc,
            self.content_crc,
        )
        return _CRC.pack(crc32c(packed[4:], seed)) + packed[4:]


def read_header(file: BinaryIO, name: str) -> StreamHeader:
    """The header that a stream begins with."""
    data = _read(file, HEADER_BYTES)
    if not data.startswith(MAGIC):
        raise StreamBroken(name=name, why="it is not a backup of polyvol")
    fields = dict(zip(HEADER_FIELDS, _HEADER.unpack_from(data.ljust(HEADER_BYTES, b"\0")), strict=True))
    if len(data) < HEADER_BYTES:
        raise StreamBroken(name=name, why="it ends within its header")
    if fields["header_crc"] != crc32c(data[16:]):
        raise StreamBroken(name=name, why="its header does not match its CRC")
    if fields["version"] != VERSION or fields["flags"] not in (0, 1):
        raise StreamBroken(name=name, why=f"it has format version {fields['version']}, not {VERSION}")
    chunk = fields["chunk_bytes"]
    size, base_size, unit = fields["size"], fields["base_size"], fields["partition_size"]
    if not BLOCK <= chunk <= CHUNK_BYTES_MAX or not 0 < size <= SIZE_MAX or size % BLOCK or base_size > size:
        raise StreamBroken(name=name, why="its header makes no sense")
    return StreamHeader(
        stream=UUID(bytes=fields["stream"]),
        size=size,
        partition_size=unit,
        instant_ns=fields["instant_ns"],
        volume_uuid=UUID(bytes=fields["volume_uuid"]),
        volume=_text(fields["volume"]),
        snapshot_uuid=UUID(bytes=fields["snapshot_uuid"]),
        snapshot=_text(fields["snapshot"]),
        base_uuid=UUID(bytes=fields["base_uuid"]) if fields["flags"] else None,
        base=_text(fields["base"]),
        base_size=base_size,
        chunk_bytes=chunk,
    )


class FrameReader:
    """Reads the frames after a header in order, and checks that each may follow (SF1, SF2)."""

    def __init__(self, file: BinaryIO, header: StreamHeader, name: str) -> None:
        self._file = file
        self._header = header
        self._seed = header.seed
        self._name = name
        self.number = 0
        """Frames read."""
        self.offset = 0
        """Where the last one ended."""
        self.total = 0
        """Bytes of the volume that they are about."""

    def next(self) -> tuple[Frame, bytes] | None:
        """The next frame with its payload, of which the CRC was checked; None after the end."""
        data = _read(self._file, FRAME_BYTES)
        if len(data) < FRAME_BYTES:
            raise self._broken("it ends before its end frame")
        crc, kind, *numbers = _FRAME.unpack(data)
        if crc != crc32c(data[4:], self._seed) or kind not in list(FrameKind):
            raise self._broken("a frame's header does not match its CRC")
        frame = Frame(FrameKind(kind), *numbers)
        self._check(frame)
        if frame.kind is FrameKind.END:
            if _read(self._file, 1):
                raise self._broken("something follows its end frame")
            return None
        payload = _read(self._file, frame.payload_bytes)
        if len(payload) < frame.payload_bytes:
            raise self._broken("it ends within a frame")
        if crc32c(payload) != frame.payload_crc:
            raise self._broken("a frame's payload does not match its CRC")
        self.number += 1
        self.offset = frame.offset + frame.length
        self.total += frame.length
        return frame, payload

    def _check(self, frame: Frame) -> None:
        if frame.number != self.number:
            raise self._broken(f"frame {frame.number} is where frame {self.number} should be")
        if frame.kind is FrameKind.END:
            full = self._header.base_uuid is None
            if frame.length != self.total or (full and self.total != self._header.size):
                raise self._broken("its end frame does not match what came before")
            return
        aligned = frame.offset % BLOCK == 0 and frame.length % BLOCK == 0
        inside = frame.length <= self._header.size - frame.offset
        if not aligned or frame.offset < self.offset or frame.length == 0 or not inside:
            raise self._broken(f"frame {frame.number} is out of order")
        payload_max = 0 if frame.kind is FrameKind.ZEROS else self._header.chunk_bytes
        if frame.kind is not FrameKind.ZEROS and frame.length > payload_max:
            raise self._broken(f"frame {frame.number} is too long")
        plain = frame.kind is FrameKind.PLAIN and frame.payload_bytes != frame.length
        if frame.payload_bytes > payload_max or plain:
            raise self._broken(f"frame {frame.number} has too much payload")

    def _broken(self, why: str) -> StreamBroken:
        at = f" (after frame {self.number - 1})" if self.number else " (at its beginning)"
        return StreamBroken(name=self._name, why=why + at)


def _read(file: BinaryIO, length: int) -> bytes:
    """`length` bytes, or as many as there are: a pipe may give fewer at a time."""
    parts = []
    while length:
        part = file.read(length)
        if not part:
            break
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("ascii", "replace")
