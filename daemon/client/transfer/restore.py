"""Restores: a stream's contents onto a volume, and the snapshot that they make up.

How it works      A stream from a file is first read completely: every CRC is checked and every frame
                  decompressed before anything is changed. An incremental one from a pipe is stored in a
                  temporary file for that. A full one from a pipe is checked as it arrives: its target is a
                  new volume, which is deleted if the stream is broken. Several threads decompress and write.
Invariants        The volume is written by its restore alone (daemon/restores/verbs.py). A snapshot of it is
                  taken only after the stream's end frame was read, all was flushed, and, for an incremental
                  one, the volume was found to differ from its base only where the stream has data. So the
                  snapshot is bit-identical to the one that was backed up.
Errors            StreamBroken, TransferFailed.
"""

import threading
from collections.abc import Iterator
from typing import BinaryIO

import zstandard
from crc32c import crc32c

from polyvol.daemon.client.transfer.client import NbdExport
from polyvol.daemon.client.transfer.pipeline import in_order
from polyvol.daemon.client.transfer.progress import progress
from polyvol.snapshot.errors.streams import StreamBroken
from polyvol.snapshot.stream import Frame, FrameKind, FrameReader, StreamHeader

Extents = list[tuple[int, int]]


class Unpacker:
    """Gives the contents of frames, on several threads."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._own = threading.local()

    def contents(self, frame: Frame, payload: bytes) -> bytes | None:
        """The contents of a frame, checked; None for zeros."""
        if frame.kind is FrameKind.ZEROS:
            return None
        data = payload if frame.kind is FrameKind.PLAIN else self._unpacked(frame, payload)
        if len(data) != frame.length or crc32c(data) != frame.content_crc:
            raise self._broken(frame)
        return data

    def _unpacked(self, frame: Frame, payload: bytes) -> bytes:
        unpacker: zstandard.ZstdDecompressor | None = getattr(self._own, "unpacker", None)
        if unpacker is None:
            unpacker = self._own.unpacker = zstandard.ZstdDecompressor()
        try:
            # Checked first: decompressing takes as much memory as the payload says.
            if zstandard.frame_content_size(payload) != frame.length:
                raise self._broken(frame)
            return unpacker.decompress(payload)
        except zstandard.ZstdError as error:
            raise self._broken(frame) from error

    def _broken(self, frame: Frame) -> StreamBroken:
        return StreamBroken(
            name=self._name, why=f"frame {frame.number} does not unpack to what it was made of"
        )


def verify(file: BinaryIO, header: StreamHeader, name: str, length: int) -> Extents:
    """Read a complete stream after its header; the extents that it covers, or StreamBroken. `length`: of the
    file."""
    unpacker = Unpacker(name)
    extents: Extents = []

    def work(piece: tuple[Frame, bytes]) -> tuple[Frame, int]:
        unpacker.contents(*piece)
        return piece[0], len(piece[1])

    with progress(f"checking {name}", length) as advance:
        for frame, done in in_order(work, frames(file, header, name)):
            advance(done)
            if extents and sum(extents[-1]) == frame.offset:
                extents[-1] = (extents[-1][0], extents[-1][1] + frame.length)
            else:
                extents.append((frame.offset, frame.length))
    return extents


def apply(
    file: BinaryIO, header: StreamHeader, name: str, target: NbdExport, *, compare: bool, length: int | None
) -> int:
    """Write a stream's contents after its header to a volume, durably; bytes written. `compare`: write only
    what differs. `length`: of the file, if it is known."""
    unpacker = Unpacker(name)

    def work(piece: tuple[Frame, bytes]) -> tuple[int, int]:
        frame, payload = piece
        data = unpacker.contents(frame, payload)
        if data is None:
            target.zero(frame.length, frame.offset)
        elif compare and target.pread(frame.length, frame.offset) == data:
            return len(payload), 0
        else:
            target.pwrite(data, frame.offset)
            return len(payload), frame.length
        return len(payload), 0

    written = 0
    with progress(f"restoring {name}", length) as advance:
        for done, bytes_written in in_order(work, frames(file, header, name)):
            advance(done)
            written += bytes_written
    target.flush()
    return written


def frames(file: BinaryIO, header: StreamHeader, name: str) -> Iterator[tuple[Frame, bytes]]:
    """The frames after a header, to the end, each checked as it arrives."""
    reader = FrameReader(file, header, name)
    while (found := reader.next()) is not None:
        yield found


def uncovered(changed: Extents, covered: Extents) -> tuple[int, int] | None:
    """The first of the extents `changed` that is not completely within `covered`; both in order."""
    index = 0
    for offset, length in changed:
        while index < len(covered) and sum(covered[index]) <= offset:
            index += 1
        # Adjacent extents are merged in `covered`, so it lies within one or in none.
        if index == len(covered) or covered[index][0] > offset or sum(covered[index]) < offset + length:
            return offset, length
    return None
