"""Placement: which partition has which extents on which devices, and which processor owns it. Pure.

How it works      Partitions are taken in order. Processors go round, so that neighbours have different ones.
                  Devices go round too, skipping those with no room for a whole partition; when none has room,
                  the partition is put together of pieces, first of one device, then of several. Where a place
                  names a partition's processor or devices, these are taken, and the others go round without
                  it.
Invariants        PL1 no byte is given twice, nor one that was not free; PL2 each partition's extents add up
                  to its length; PL3 processors' shares of the partitions that are not placed differ by at
                  most one; PL4 with enough room everywhere, so do devices' shares; PL5 all or nothing: what
                  does not fit is refused, and the free space of a plan that was refused is used no more.
Errors            DeviceTooSmall, BadProcessors, BadProcessorNumbers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from types import MappingProxyType

from polyvol.mapping.errors import BadProcessors, DeviceTooSmall, PolyvolError
from polyvol.mapping.extent import Extent, FreeSpace, joined, total
from polyvol.mapping.partition import Partition, partition_lengths, round_up

CHUNK_SIZE = 4 << 20
"""The unit of a log area's extents, bytes."""
AREA_SIZE_MIN = 64 << 20
"""The smallest log area, bytes."""
PROCESSORS_MAX = 256


class BadProcessorNumbers(PolyvolError):
    """Numbers of processors that a volume cannot be on."""

    code = "bad-processor-numbers"
    kind = "invalid"
    sentence = "the processors of a volume: {why}"
    hint = "give how many there shall be, or the numbers of different ones, from 0 to 255: 0,2"


def choose_owners(
    count: int, processors: Sequence[int], wanted: Mapping[int, int] = MappingProxyType({})
) -> list[int]:
    """The processor of each of so many partitions: as `wanted` by partition, else they go round."""
    turns = cycle(processors)
    return [wanted[number] if number in wanted else next(turns) for number in range(count)]


def place_partitions(
    what: str,
    lengths: Mapping[int, int],
    owners: Sequence[int],
    space: Mapping[int, FreeSpace],
    names: Mapping[int, str],
) -> list[Partition]:
    """Give partitions of these lengths, by number, their extents, taken out of `space` (by device id)."""
    needed, free = sum(lengths.values()), sum(device.free for device in space.values())
    if free < needed:
        devices = ", ".join(names[device] for device in space)
        raise DeviceTooSmall(what=what, needed=needed, devices=devices, free=free)
    rotation = RoundRobin(list(space.values()))
    return [
        Partition(number, owners[number], tuple(rotation.take(length))) for number, length in lengths.items()
    ]


def place_in_order(
    what: str,
    lengths: Mapping[int, int],
    owners: Sequence[int],
    devices: Sequence[tuple[FreeSpace, int | None]],
    names: str,
) -> list[Partition]:
    """Give partitions of these lengths, by number, extents of these devices in their order: of one with a
    size so many bytes each, of one without what is free there. `names`: of the devices."""
    placed, needed, free = [], sum(lengths.values()), sum(space.free for space, _ in devices)
    for number, length in lengths.items():
        extents: list[Extent] = []
        for space, size in devices:
            share = min(length, length if size is None else size)
            taken = space.take_some(share)
            if size is not None and total(taken) < share:
                break
            extents += taken
            length -= total(taken)
        if length:
            raise DeviceTooSmall(what=what, needed=needed, devices=names, free=free)
        placed.append(Partition(number, owners[number], tuple(extents)))
    return placed


def place_on_base(size: int, partition_size: int, owners: Sequence[int], device: int) -> list[Partition]:
    """The partitions of a volume on an adopted device: one after the other from its first byte."""
    return [
        Partition(number, owners[number], (Extent(device, number * partition_size, length),))
        for number, length in enumerate(partition_lengths(size, partition_size))
    ]


def place_area(what: str, volume_size: int, name: str, space: FreeSpace) -> list[Extent]:
    """A log area on one device: the volume's size if there is room, at least AREA_SIZE_MIN."""
    usable = space.usable(CHUNK_SIZE)
    if usable < AREA_SIZE_MIN:
        raise DeviceTooSmall(what=what, needed=AREA_SIZE_MIN, devices=name, free=usable)
    return joined(space.take_some(min(area_size(volume_size), usable), CHUNK_SIZE))


def place_area_of(what: str, size: int, name: str, space: FreeSpace) -> list[Extent]:
    """A log area of just this size, a multiple of CHUNK_SIZE, on one device."""
    usable = space.usable(CHUNK_SIZE)
    if usable < size:
        raise DeviceTooSmall(what=what, needed=size, devices=name, free=usable)
    return joined(space.take_some(size, CHUNK_SIZE))


def rooms(lengths: Mapping[int, int], owners: Sequence[int]) -> dict[int, int]:
    """Bytes of the partitions that each processor gets of these, by processor."""
    found: Counter[int] = Counter()
    for number, length in lengths.items():
        found[owners[number]] += length
    return dict(sorted(found.items()))


def area_size(volume_size: int) -> int:
    """How large a log area for a volume, or a processor's part of one, of this size wants to be, bytes."""
    return max(round_up(volume_size, CHUNK_SIZE), AREA_SIZE_MIN)


def check_processors(count: int | None) -> None:
    """BadProcessors if nothing can have so many processors."""
    if count is not None and not 1 <= count <= PROCESSORS_MAX:
        raise BadProcessors(count=count)


def choose_processors(
    wanted: int | Sequence[int] | None, available: int, load: Mapping[int, int]
) -> list[int]:
    """The processors for a new volume: these, or so many of them (None: all), those with the fewest
    partitions; BadProcessors or BadProcessorNumbers."""
    if isinstance(wanted, Sequence):
        if not wanted:
            raise BadProcessorNumbers(why="no processor is named")
        for number, processor in enumerate(wanted):
            if not 0 <= processor < PROCESSORS_MAX:
                raise BadProcessorNumbers(why=f"{processor} is not the number of a processor")
            if processor in wanted[:number]:
                raise BadProcessorNumbers(why=f"processor {processor} is named twice")
        return sorted(wanted)
    check_processors(wanted)
    candidates = range(max(available, wanted or 0))
    ranked = sorted(candidates, key=lambda processor: (load.get(processor, 0), processor))
    return sorted(ranked[: wanted or available])


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
