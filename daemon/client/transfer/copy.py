"""Copies: complete ones to a new file, and updates of older ones.

How it works      To update a copy, the export of the newer snapshot reports what changed since the older one;
                  several threads read and write that, and it is flushed at the end. The target's size is
                  compared before anything is written. A whole copy is a sparse file, made as
                  FILE.partial (file.py), and read back before it gets its name.
Durability        An older copy whose update was interrupted matches neither snapshot; running it again
                  completes the update. A whole copy that was interrupted is removed; a kill leaves
                  FILE.partial.
Errors            TargetSize, FileExists, FileBusy, TransferFailed.
"""

import os
from array import array
from pathlib import Path

from crc32c import crc32c

from polyvol.daemon.backup_errors import TargetSize, TransferFailed
from polyvol.daemon.client.transfer.client import NbdExport
from polyvol.daemon.client.transfer.file import NewFile
from polyvol.daemon.client.transfer.pipeline import in_order
from polyvol.daemon.client.transfer.plan import Run, bytes_in, pieces, plan
from polyvol.daemon.client.transfer.progress import progress
from polyvol.daemon.client.transfer.target import FileTarget, Target


def copy_changed(source: NbdExport, target: Target) -> tuple[int, int]:
    """Write what changed in `source` to `target`: bytes read, bytes made zeros."""
    if isinstance(target, NbdExport) and target.read_only:
        raise TransferFailed(
            what=f"writing {target.name}", why="it is read-only", todo="give a target that can be written"
        )
    if target.size != source.size:
        raise TargetSize(target=target.name, found=target.size, source=source.name, size=source.size)
    return _move(source, target, plan(source), f"copying {source.name}")


def copy_raw(source: NbdExport, path: Path) -> tuple[int, int]:
    """Write the whole of `source` to a new sparse file: bytes read, bytes of holes."""
    new = NewFile(path, resume=None)
    target = FileTarget(new.partial, fd=new.fd)
    try:
        target.grow(source.size)
        runs = [run for run in plan(source) if not run.zeros]
        crcs = _copy_new(source, target, runs)
        source.check_first()
        target.flush()
        _read_back(target, runs, crcs, source.size)
        new.commit()
    except BaseException:
        new.remove()
        raise
    finally:
        target.close()
    read = bytes_in(runs)
    return read, source.size - read


def _copy_new(source: NbdExport, target: FileTarget, runs: list[Run]) -> "array[int]":
    """Write runs to a file that is one hole: the CRC of each piece."""

    def work(piece: Run) -> tuple[int, int]:
        data = source.pread(piece.length, piece.offset)
        if data != bytes(piece.length):
            target.pwrite(data, piece.offset)
        return piece.length, crc32c(data)

    crcs = array("I")
    with progress(f"copying {source.name}", bytes_in(runs)) as advance:
        for length, crc in in_order(work, pieces(runs)):
            crcs.append(crc)
            advance(length)
    return crcs


def _read_back(target: FileTarget, runs: list[Run], crcs: "array[int]", size: int) -> None:
    """TransferFailed unless the file has this size and the written contents."""
    why = "it is not what was written"
    if os.fstat(target.fd).st_size != size:
        raise TransferFailed(what=f"reading {target.name} back", why=why)
    for piece, crc in zip(pieces(runs), crcs, strict=True):
        if crc32c(target.pread(piece.length, piece.offset)) != crc:
            raise TransferFailed(what=f"reading {target.name} back", why=why)


def _move(source: NbdExport, target: Target, runs: list[Run], what: str) -> tuple[int, int]:
    sparse = isinstance(target, FileTarget)

    def work(piece: Run) -> Run:
        if piece.zeros:
            target.zero(piece.length, piece.offset)
            return piece
        data = source.pread(piece.length, piece.offset)
        if sparse and data == bytes(piece.length):
            target.zero(piece.length, piece.offset)
        else:
            target.pwrite(data, piece.offset)
        return piece

    with progress(what, bytes_in(runs)) as advance:
        for piece in in_order(work, pieces(runs)):
            advance(0 if piece.zeros else piece.length)
    source.check_first()
    target.flush()
    read = bytes_in(runs)
    return read, sum(run.length for run in runs) - read
