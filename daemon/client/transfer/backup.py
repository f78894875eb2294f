"""Backups: a snapshot's contents, or what changed since an older one, as a stream (snapshot/stream.py).

How it works      The snapshot's export reports what is zero and what changed; several threads read pieces of
                  1 MiB, turn zeros into holes, compress and compute CRCs, and one thread writes in order. A
                  file is written as FILE.partial, synced, read back (every CRC), and renamed.
Resuming          FILE.partial is read and checked; complete frames stay, and the rest is written after them.
                  A snapshot never changes, so the rest fits. A file that ends within its header has no
                  contents yet, and is rewritten from its beginning.
Invariants        BK1 a stream gets its end frame only after it is known that all connections were to one
                  export (client.py).
Durability        FILE exists only complete and synced (file.py); an interrupted backup leaves FILE.partial.
Errors            FileExists, FileBusy, NothingToResume, TransferFailed, and those of requests to the daemon.
"""

import os
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import zstandard
from crc32c import crc32c

from polyvol.daemon.backup_errors import NothingToResume, TransferFailed
from polyvol.daemon.client.transfer.client import NbdExport
from polyvol.daemon.client.transfer.file import OUTPUT_NAME, NewFile, file_errors
from polyvol.daemon.client.transfer.pipeline import in_order
from polyvol.daemon.client.transfer.plan import Run, bytes_in, pieces, plan
from polyvol.daemon.client.transfer.progress import progress
from polyvol.snapshot.errors.streams import StreamBroken
from polyvol.snapshot.stream import (
    FRAME_BYTES,
    HEADER_BYTES,
    MAGIC,
    Frame,
    FrameKind,
    FrameReader,
    StreamHeader,
    read_header,
)

LEVEL = 1
"""Of compression: 1 compresses about twice as fast as 3 and makes a tenth more (docs/decisions/0020)."""
_WORTH_IT = 0.95
"""What does not become shorter than this stays as it is."""


@dataclass(frozen=True, slots=True)
class Written:
    """The result of a backup: bytes of the stream, bytes read from the volume, and the offset where it
    resumed (0: it was new)."""

    stream_bytes: int
    read_bytes: int
    resumed_at: int = 0


class _Packer:
    """Makes frames of pieces, on several threads."""

    def __init__(self, source: NbdExport) -> None:
        self._source = source
        self._own = threading.local()

    def pack(self, piece: Run) -> tuple[Frame, bytes | bytearray]:
        """The piece's frame, not numbered yet, and its payload."""
        if piece.zeros:
            return Frame(FrameKind.ZEROS, 0, piece.offset, piece.length), b""
        data = self._source.pread(piece.length, piece.offset)
        if data == bytes(piece.length):
            return Frame(FrameKind.ZEROS, 0, piece.offset, piece.length), b""
        content_crc = crc32c(data)
        payload = self._compressor().compress(data)
        if len(payload) > piece.length * _WORTH_IT:
            kind, payload_crc = FrameKind.PLAIN, content_crc
            length = piece.length
            return Frame(kind, 0, piece.offset, length, length, payload_crc, content_crc), data
        frame = Frame(
            FrameKind.ZSTD, 0, piece.offset, piece.length, len(payload), crc32c(payload), content_crc
        )
        return frame, payload

    def _compressor(self) -> zstandard.ZstdCompressor:
        compressor: zstandard.ZstdCompressor | None = getattr(self._own, "compressor", None)
        if compressor is None:
            compressor = self._own.compressor = zstandard.ZstdCompressor(level=LEVEL)
        return compressor


def backup_to_file(source: NbdExport, header: StreamHeader, path: Path, *, resume: bool) -> Written:
    """Write a stream to a file that does not exist yet."""
    new = NewFile(path, resume=resume)
    with file_errors(new.partial), os.fdopen(new.fd, "r+b") as file:
        number, start, total = 0, 0, 0
        if new.begun and not _cut_short(file):
            header, number, start, total = _kept(file, new.partial, header)
        else:
            file.write(header.to_bytes())
        written = _write(source, header, file, (number, start, total))
        file.flush()
        os.fsync(file.fileno())
        _read_back(file, new.partial, header)
        new.commit()
    return written


def backup_to_pipe(source: NbdExport, header: StreamHeader) -> Written:
    """Write a stream to the standard output."""
    file = sys.stdout.buffer
    with file_errors(OUTPUT_NAME):
        file.write(header.to_bytes())
        written = _write(source, header, file, (0, 0, 0))
        file.flush()
    return written


def new_header(header: StreamHeader) -> StreamHeader:
    """The header with a number of its own."""
    return replace(header, stream=uuid4())


def _write(source: NbdExport, header: StreamHeader, file: BinaryIO, begun: tuple[int, int, int]) -> Written:
    """Write frames from `begun` (frames, offset, bytes that they describe) on, and the end."""
    number, start, total = begun
    seed, stream_bytes = header.seed, 0
    runs = plan(source, start=start)
    with progress(f"backing up {source.name}", bytes_in(runs)) as advance:
        for frame, payload in in_order(_Packer(source).pack, pieces(runs)):
            file.write(replace(frame, number=number).to_bytes(seed))
            file.write(payload)
            number, total = number + 1, total + frame.length
            stream_bytes += FRAME_BYTES + len(payload)
            advance(frame.length if frame.kind is not FrameKind.ZEROS else 0)
    source.check_first()  # BK1
    file.write(Frame(FrameKind.END, number, header.size, total).to_bytes(seed))
    return Written(stream_bytes + FRAME_BYTES + HEADER_BYTES, bytes_in(runs), start)


def _cut_short(file: BinaryIO) -> bool:
    """Whether a backup was interrupted within its header: the file then is empty."""
    begun = file.read(HEADER_BYTES)
    file.seek(0)
    if len(begun) == HEADER_BYTES or begun[: len(MAGIC)] != MAGIC[: len(begun)]:
        return False
    file.truncate()
    return True


def _kept(file: BinaryIO, path: Path, wanted: StreamHeader) -> tuple[StreamHeader, int, int, int]:
    """The complete part of an interrupted backup: its header, frames, where they end, bytes that they
    describe. The rest is truncated."""
    try:
        header = read_header(file, str(path))
    except StreamBroken as error:
        raise NothingToResume(path=path, why=error.facts["why"]) from error
    if replace(header, stream=wanted.stream, volume=wanted.volume) != wanted:
        of = header.snapshot if header.base_uuid is None else f"{header.snapshot} since {header.base}"
        raise NothingToResume(path=path, why=f"it is of snapshot {of} ({header.snapshot_uuid})")
    frames = FrameReader(file, header, str(path))
    end = file.tell()
    try:
        while frames.next() is not None:
            end = file.tell()
    except StreamBroken:
        pass  # the rest is incomplete
    file.seek(end)
    file.truncate()
    return header, frames.number, frames.offset, frames.total


def _read_back(file: BinaryIO, path: Path, header: StreamHeader) -> None:
    """TransferFailed unless the file is a complete stream with this header."""
    file.seek(0)
    try:
        if read_header(file, str(path)) != header:
            raise StreamBroken(name=path, why="its header is not the one that was written")
        frames = FrameReader(file, header, str(path))
        while frames.next() is not None:
            pass
    except StreamBroken as error:
        why = f"it is not what was written: {error.facts['why']}"
        raise TransferFailed(what=f"reading {path} back", why=why) from error
