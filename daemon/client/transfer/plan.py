"""Plans: which pieces of an export to transfer, in order, and how many bytes that is."""

from collections.abc import Iterator
from dataclasses import dataclass

from polyvol.daemon.client.transfer.client import NbdExport
from polyvol.snapshot.stream import CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Run:
    """A run of an export; `zeros`: it reads as zeros, so it is not read."""

    offset: int
    length: int
    zeros: bool

    @property
    def end(self) -> int:
        """The offset after its last byte."""
        return self.offset + self.length


def plan(export: NbdExport, *, start: int = 0) -> list[Run]:
    """The contents of the export, or the changes in it, from `start` on; adjacent runs with the same answer
    are merged."""
    runs: list[Run] = []
    for offset, length, zeros, changed in export.status():
        end = offset + length
        offset = max(offset, start)
        if not changed or offset >= end:
            continue
        if runs and runs[-1].end == offset and runs[-1].zeros == zeros:
            runs[-1] = Run(runs[-1].offset, end - runs[-1].offset, zeros)
        else:
            runs.append(Run(offset, end - offset, zeros))
    return runs


def pieces(runs: list[Run]) -> Iterator[Run]:
    """The same in pieces for one read each, aligned to the read size. Runs of zeros are not split."""
    for run in runs:
        if run.zeros:
            yield run
            continue
        at = run.offset
        while at < run.end:
            end = min(run.end, (at // CHUNK_BYTES + 1) * CHUNK_BYTES)
            yield Run(at, end - at, False)
            at = end


def bytes_in(runs: list[Run]) -> int:
    """How many bytes have to be read."""
    return sum(run.length for run in runs if not run.zeros)
