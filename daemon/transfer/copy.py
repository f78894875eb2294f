"""Copies: an older copy of a volume is brought up to date, and nothing but what changed is read.

How it works      The export of the newer snapshot says what changed since the older one; that is read and
                  written by several threads, and made durable at the end. The target's size is compared
                  before anything is written.
Durability        A copy that was interrupted is of neither snapshot; running it again makes it the newer one.
Errors            TargetSize, TransferFailed.
"""

from pathlib import Path

from polyvol.daemon.transfer.client import NbdExport
from polyvol.daemon.transfer.errors import TargetSize, TransferFailed
from polyvol.daemon.transfer.pipeline import in_order
from polyvol.daemon.transfer.plan import Run, bytes_in, pieces, plan
from polyvol.daemon.transfer.progress import progress
from polyvol.daemon.transfer.target import FileTarget, Target


def copy_changed(source: NbdExport, target: Target) -> tuple[int, int]:
    """Write what changed in `source` to `target`: bytes read, bytes made zeros."""
    if isinstance(target, NbdExport) and target.read_only:
        raise TransferFailed(what=f"writing {target.name}", why="it is read-only")
    if target.size != source.size:
        raise TargetSize(target=target.name, found=target.size, source=source.name, size=source.size)
    return _move(source, target, plan(source), f"copying {source.name}")


def copy_raw(source: NbdExport, path: Path) -> tuple[int, int]:
    """Write the whole of `source` to a new sparse file: bytes read, bytes of holes."""
    target = FileTarget(path, size=source.size)
    try:
        runs = [run for run in plan(source) if not run.zeros]
        read, _ = _move(source, target, runs, f"copying {source.name}")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        target.close()
    return read, source.size - read


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
    target.flush()
    read = bytes_in(runs)
    return read, sum(run.length for run in runs) - read
