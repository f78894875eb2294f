"""Log areas: the plan of those of a new volume, and of more for one that exists. Pure.

Errors            UnknownDevice, DeviceTooSmall, ZeroSize, SizeTooLarge and others of errors.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polyvol.mapping.errors import SizeTooLarge, ZeroSize
from polyvol.mapping.extent import Extent
from polyvol.mapping.names import refuse_repeats
from polyvol.mapping.partition import round_up
from polyvol.mapping.plans import placement
from polyvol.mapping.plans.inventory import Inventory, NewDevice, SpaceAllocator
from polyvol.mapping.records.devices import DEVICE_SIZE_MAX
from polyvol.mapping.records.log_areas import LogArea
from polyvol.mapping.records.volumes import Volume


def plan_areas(
    allocator: SpaceAllocator,
    name: str,
    size: int,
    rooms: Mapping[int, int],
    devices: Sequence[str],
    factor: int = 1,
) -> tuple[LogArea, ...]:
    """The log areas of a new volume: one on each device, or on sparse files to be made, one for each
    processor, whose partitions have these `rooms`; each as large as the volume, or its processor's part of
    it, `factor` times."""
    ids = [allocator.storage(device) for device in devices]
    if not ids:
        ids = allocator.new_each(
            name, ".log", [placement.area_size(factor * room) for room in rooms.values()]
        )
    what = _what(name)
    return tuple(
        LogArea(
            number,
            tuple(
                placement.place_area(what, factor * size, allocator.names[device], allocator.space[device])
            ),
        )
        for number, device in enumerate(ids, start=1)
    )


def plan_missing_areas(
    allocator: SpaceAllocator, volume: Volume, devices: Sequence[str], present: Sequence[LogArea]
) -> list[tuple[Extent, ...]]:
    """The extents of more log areas of a volume: one on each of these devices that has none yet."""
    ids = {allocator.storage(device) for device in devices} - {area.device for area in present}
    return [
        tuple(
            placement.place_area(
                _what(volume.name), volume.size, allocator.names[device], allocator.space[device]
            )
        )
        for device in (allocator.storage(name) for name in devices)
        if device in ids
    ]


@dataclass(frozen=True, slots=True)
class AddedAreas:
    """Log areas to be added to a volume: the extents of each, and the device to be made for it, if one is."""

    extents: tuple[tuple[Extent, ...], ...]
    new_device: NewDevice | None


def plan_added_areas(
    volume: Volume, devices: Sequence[str], size: int | None, present: int, inventory: Inventory
) -> AddedAreas:
    """One more log area on each of these devices, of this size each (None: what is free, at most the
    volume's size); without devices, one on a sparse file to be made (size None: `present`, that of all it
    has)."""
    refuse_repeats("device", devices)
    what = _what(volume.name)
    if size is not None and size <= 0:
        raise ZeroSize(what=what, size=size, smallest=placement.CHUNK_SIZE)
    if size is not None and size > DEVICE_SIZE_MAX:
        raise SizeTooLarge(what=what, size=size, largest=DEVICE_SIZE_MAX)
    allocator = SpaceAllocator(inventory)
    wanted = None if size is None else round_up(size, placement.CHUNK_SIZE)
    ids = [allocator.storage(device) for device in devices]
    if not ids:
        ids = allocator.new_each(volume.name, ".log", [wanted or present])
        wanted = wanted or present
    extents = (
        placement.place_area(what, volume.size, allocator.names[device], allocator.space[device])
        if wanted is None
        else placement.place_area_of(what, wanted, allocator.names[device], allocator.space[device])
        for device in ids
    )
    return AddedAreas(tuple(tuple(each) for each in extents), allocator.made[0] if allocator.made else None)


def _what(volume: str) -> str:
    return f"a log area of volume {volume}"
