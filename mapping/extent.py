"""Extents: runs of bytes on devices, and the free space between them.

How it works      `free_runs` subtracts what is used from a device's data area; `FreeSpace` hands out runs of
                  one device, lowest offset first.
Invariants        ET1 offset and length are multiples of 4096, length > 0; ET2 `FreeSpace` never hands out a
                  byte twice, nor one that was used. Everything here is pure: no file is touched.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BLOCK_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes from `offset` on the device whose id is `device`."""

    device: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + self.length


def free_runs(area: Extent, used: Iterable[Extent]) -> list[Extent]:
    """The runs of `area` that none of `used` covers, by offset."""
    runs: list[Extent] = []
    at = area.offset
    for extent in sorted(used, key=lambda extent: extent.offset):
        end = min(extent.offset, area.end)
        if end > at:
            runs.append(Extent(area.device, at, end - at))
        at = max(at, extent.end)
    if at < area.end:
        runs.append(Extent(area.device, at, area.end - at))
    return runs


def total(extents: Iterable[Extent]) -> int:
    """The sum of the lengths, bytes."""
    return sum(extent.length for extent in extents)


def joined(extents: Sequence[Extent]) -> list[Extent]:
    """The same bytes in the same order, neighbours on one device made one extent."""
    result: list[Extent] = []
    for extent in extents:
        last = result[-1] if result else None
        if last is not None and last.device == extent.device and last.end == extent.offset:
            result[-1] = Extent(last.device, last.offset, last.length + extent.length)
        else:
            result.append(extent)
    return result


class FreeSpace:
    """What is free on one device, being handed out."""

    def __init__(self, runs: Iterable[Extent]) -> None:
        self._runs = [run for run in runs if run.length > 0]
        self.free = total(self._runs)

    def take_whole(self, length: int) -> Extent | None:
        """One extent of this length from the first run that has it, or None."""
        if length > self.free:
            return None
        for index, run in enumerate(self._runs):
            if run.length >= length:
                return self._cut(index, length)
        return None

    def take_some(self, length: int, unit: int = BLOCK_SIZE) -> list[Extent]:
        """Extents of at most `length` bytes together, each a multiple of `unit`; lowest offsets first."""
        taken: list[Extent] = []
        index = 0
        while length >= unit and index < len(self._runs):
            part = min(self._runs[index].length, length) // unit * unit
            if part == 0:
                index += 1
                continue
            before = len(self._runs)
            taken.append(self._cut(index, part))
            length -= part
            if len(self._runs) == before:
                index += 1
        return taken

    def usable(self, unit: int) -> int:
        """How much `take_some` could give in this unit, bytes."""
        return sum(run.length // unit * unit for run in self._runs)

    def _cut(self, index: int, length: int) -> Extent:
        run = self._runs[index]
        if run.length == length:
            del self._runs[index]
        else:
            self._runs[index] = Extent(run.device, run.offset + length, run.length - length)
        self.free -= length
        return Extent(run.device, run.offset, length)
