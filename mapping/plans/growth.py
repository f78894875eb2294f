"""Growth: the plan of a volume that becomes larger. Pure.

How it works      The last partition, if it is short, gets more extents behind those that it has; then come
                  new partitions. They go to the volume's processors, those with the fewest of its partitions
                  first; if each of these has just one, to others too, because a larger volume would have been
                  made with more. Extents are on the devices named, or on sparse files to be made, one for
                  each processor. What is new of a clone is in its change logs alone.
Invariants        GW1 what the volume has stays where it is: partitions keep their numbers, processors and
                  extents; GW2 as in volumes.py: a plan that was returned can be recorded as it is.
Errors            NotLarger, CloneHasNoDevices, UnalignedSize, SizeTooLarge, DeviceTooSmall and others of
                  errors.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from polyvol.mapping.errors import CloneHasNoDevices, DeviceTooSmall, NotLarger
from polyvol.mapping.names import refuse_repeats
from polyvol.mapping.partition import Partition, check_volume_size
from polyvol.mapping.plans.inventory import Inventory, NewDevice, SpaceAllocator
from polyvol.mapping.plans.placement import RoundRobin
from polyvol.mapping.records.volumes import Volume


@dataclass(frozen=True, slots=True)
class GrowthPlan:
    """A volume as it would grow. `partitions`: new ones, and the last one there was, if that gets longer:
    with its new extents only. Devices to be made have negative ids."""

    size: int
    partitions: tuple[Partition, ...]
    new_devices: tuple[NewDevice, ...]

    @property
    def processors(self) -> list[int]:
        """The processors that own partitions in it."""
        return sorted({partition.processor for partition in self.partitions})


def plan_growth(
    volume: Volume, partitions: Sequence[Partition], size: int, devices: Sequence[str], inventory: Inventory
) -> GrowthPlan:
    """How the volume would grow to `size` bytes; see the module's errors."""
    what = f"volume {volume.name}"
    check_volume_size(what, size, volume.partition_size)
    if size <= volume.size:
        raise NotLarger(name=volume.name, size=volume.size, wanted=size)
    refuse_repeats("device", devices)
    pieces = _pieces(volume, partitions, size, inventory)
    if volume.source is not None:
        if devices:
            raise CloneHasNoDevices(name=volume.name)
        return GrowthPlan(
            size, tuple(Partition(number, processor, ()) for number, processor, _ in pieces), ()
        )
    needed = sum(length for _, _, length in pieces)
    allocator = SpaceAllocator(inventory)
    if devices:
        ids = [allocator.storage(device) for device in devices]
        free = sum(allocator.space[device].free for device in ids)
        if free < needed:
            raise DeviceTooSmall(what=what, needed=needed, devices=", ".join(devices), free=free)
        rotation = RoundRobin([allocator.space[device] for device in ids])
        planned = [
            Partition(number, processor, tuple(rotation.take(length))) for number, processor, length in pieces
        ]
    else:
        rooms: Counter[int] = Counter()
        for _, processor, length in pieces:
            rooms[processor] += length
        made = allocator.new_each(volume.name, ".data", list(rooms.values()))
        file = dict(zip(rooms, made, strict=True))
        planned = [
            Partition(number, processor, tuple(allocator.space[file[processor]].take_some(length)))
            for number, processor, length in pieces
        ]
    return GrowthPlan(size, tuple(planned), tuple(allocator.made))


def _pieces(
    volume: Volume, partitions: Sequence[Partition], size: int, inventory: Inventory
) -> list[tuple[int, int, int]]:
    """What is to be placed, in order: partition, processor, bytes."""
    owned = Counter(partition.processor for partition in partitions)
    processors = set(owned)
    if max(owned.values()) == 1:
        processors |= set(range(inventory.processors))
    pieces: list[tuple[int, int, int]] = []
    at = volume.size
    while at < size:
        number = at // volume.partition_size
        length = min(size, (number + 1) * volume.partition_size) - at
        if number < len(partitions):
            processor = partitions[number].processor
        else:
            processor = min(processors, key=lambda each: (owned[each], inventory.load.get(each, 0), each))
            owned[processor] += 1
        pieces.append((number, processor, length))
        at += length
    return pieces
