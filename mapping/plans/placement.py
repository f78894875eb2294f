"""Placement: which partition has which extents on which devices, and which processor owns it. Pure.

How it works      Partitions are taken in order. Processors go round, so that neighbours have different ones.
                  Devices go round too, skipping those with no room for a whole partition; when none has room,
                  the partition is put together of pieces, first of one device, then of several.
Invariants        PL1 no byte is given twice, nor one that was not free; PL2 each partition's extents add up
                  to its length; PL3 processors' shares differ by at most one partition; PL4 with enough room
                  everywhere, so do devices' shares; PL5 all or nothing: what does not fit is refused before
                  anything is given.
Errors            DeviceTooSmall.
"""

from collections.abc import Mapping, Sequence

from polyvol.mapping.errors import BadProcessors, DeviceTooSmall
from polyvol.mapping.extent import Extent, FreeSpace, joined
from polyvol.mapping.partition import Partition, partition_lengths, round_up

CHUNK_SIZE = 4 << 20
"""The unit of a change log's extents, bytes."""
LOG_SIZE_MIN = 64 << 20
"""The smallest change log, bytes."""
PROCESSORS_MAX = 256


def place_partitions(
    what: str,
    size: int,
    partition_size: int,
    processors: Sequence[int],
    space: Mapping[int, FreeSpace],
    names: Mapping[int, str],
) -> list[Partition]:
    """Give every partition its processor and its extents, taking them out of `space` (by device id)."""
    free = sum(device.free for device in space.values())
    if free < size:
        devices = ", ".join(names[device] for device in space)
        raise DeviceTooSmall(what=what, needed=size, devices=devices, free=free)
    rotation = RoundRobin(list(space.values()))
    return [
        Partition(number, processors[number % len(processors)], tuple(rotation.take(length)))
        for number, length in enumerate(partition_lengths(size, partition_size))
    ]


def place_on_base(size: int, partition_size: int, processors: Sequence[int], device: int) -> list[Partition]:
    """The partitions of a volume on an adopted device: one after the other from its first byte."""
    return [
        Partition(
            number,
            processors[number % len(processors)],
            (Extent(device, number * partition_size, length),),
        )
        for number, length in enumerate(partition_lengths(size, partition_size))
    ]


def place_log(what: str, volume_size: int, name: str, space: FreeSpace) -> list[Extent]:
    """A change log on one device: the volume's size if there is room, at least LOG_SIZE_MIN."""
    usable = space.usable(CHUNK_SIZE)
    if usable < LOG_SIZE_MIN:
        raise DeviceTooSmall(what=what, needed=LOG_SIZE_MIN, devices=name, free=usable)
    return joined(space.take_some(min(log_size(volume_size), usable), CHUNK_SIZE))


def place_log_of(what: str, size: int, name: str, space: FreeSpace) -> list[Extent]:
    """A change log of just this size, a multiple of CHUNK_SIZE, on one device."""
    usable = space.usable(CHUNK_SIZE)
    if usable < size:
        raise DeviceTooSmall(what=what, needed=size, devices=name, free=usable)
    return joined(space.take_some(size, CHUNK_SIZE))


def rooms(size: int, partition_size: int, processors: int) -> list[int]:
    """Bytes of the partitions that each processor gets when they go round; those without any are left out."""
    lengths = list(partition_lengths(size, partition_size))
    return [sum(lengths[first::processors]) for first in range(min(processors, len(lengths)))]


def log_size(volume_size: int) -> int:
    """How large a change log for a volume, or a processor's part of one, of this size wants to be, bytes."""
    return max(round_up(volume_size, CHUNK_SIZE), LOG_SIZE_MIN)


def check_processors(count: int | None) -> None:
    """BadProcessors if nothing can have so many processors."""
    if count is not None and not 1 <= count <= PROCESSORS_MAX:
        raise BadProcessors(count=count)


def choose_processors(count: int | None, available: int, load: Mapping[int, int]) -> list[int]:
    """The processors for a new volume: `count` of them (None: all), those with the fewest partitions."""
    candidates = range(max(available, count or 0))
    ranked = sorted(candidates, key=lambda processor: (load.get(processor, 0), processor))
    return sorted(ranked[: count or available])


class RoundRobin:
    """Hands out extents of devices in rotation."""

    def __init__(self, devices: list[FreeSpace]) -> None:
        self._devices = devices
        self._next = 0

    def take(self, length: int) -> list[Extent]:
        """Extents of so many bytes, which there are."""
        count = len(self._devices)
        order = [(self._next + step) % count for step in range(count)]
        for index in order:
            extent = self._devices[index].take_whole(length)
            if extent is not None:
                self._next = (index + 1) % count
                return [extent]
        for index in order:
            if self._devices[index].free >= length:
                self._next = (index + 1) % count
                return self._devices[index].take_some(length)
        return self._take_anywhere(length, order)

    def _take_anywhere(self, length: int, order: list[int]) -> list[Extent]:
        taken: list[Extent] = []
        for index in order:
            pieces = self._devices[index].take_some(length)
            taken += pieces
            length -= sum(piece.length for piece in pieces)
        assert length == 0, "PL5: the total was checked before the first partition"
        return taken
