"""Change logs: the plan of those of a new volume, and of more for one that exists. Pure.

Errors            UnknownDevice, DeviceTooSmall, ZeroSize, SizeTooLarge and others of errors.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from polyvol.mapping.errors import SizeTooLarge, ZeroSize
from polyvol.mapping.extent import Extent
from polyvol.mapping.names import refuse_repeats
from polyvol.mapping.partition import round_up
from polyvol.mapping.plans import placement
from polyvol.mapping.plans.inventory import Inventory, NewDevice, SpaceAllocator
from polyvol.mapping.records.change_logs import ChangeLog
from polyvol.mapping.records.devices import DEVICE_SIZE_MAX, Device
from polyvol.mapping.records.volumes import Volume


def plan_logs(
    allocator: SpaceAllocator,
    name: str,
    size: int,
    partition_size: int,
    processors: int,
    devices: Sequence[str],
    factor: int = 1,
) -> tuple[ChangeLog, ...]:
    """The change logs of a new volume: one on each device, or on sparse files to be made, one for each
    processor; each as large as the volume, or its processor's part of it, `factor` times."""
    ids = [allocator.storage(device) for device in devices]
    if not ids:
        rooms = placement.rooms(size, partition_size, processors)
        ids = allocator.new_each(name, ".log", [placement.log_size(factor * room) for room in rooms])
    what = f"a change log of volume {name}"
    return tuple(
        ChangeLog(
            number,
            True,
            tuple(placement.place_log(what, factor * size, allocator.names[device], allocator.space[device])),
        )
        for number, device in enumerate(ids, start=1)
    )


def plan_log(volume: Volume, device: Device, inventory: Inventory) -> list[Extent]:
    """Where one more change log of an existing volume would be on this device."""
    space = inventory.space(device)
    return placement.place_log(f"a change log of volume {volume.name}", volume.size, device.name, space)


@dataclass(frozen=True, slots=True)
class AddedLogs:
    """Change logs to be added to a volume: the extents of each, and the device to be made for it, if one
    is."""

    extents: tuple[tuple[Extent, ...], ...]
    new_device: NewDevice | None


def plan_added_logs(
    volume: Volume, devices: Sequence[str], size: int | None, present: int, inventory: Inventory
) -> AddedLogs:
    """One more change log on each of these devices, of this size each (None: what is free, at most the
    volume's size); without devices, one on a sparse file to be made (size None: `present`, that of all it
    has)."""
    refuse_repeats("device", devices)
    what = f"a change log of volume {volume.name}"
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
        placement.place_log(what, volume.size, allocator.names[device], allocator.space[device])
        if wanted is None
        else placement.place_log_of(what, wanted, allocator.names[device], allocator.space[device])
        for device in ids
    )
    return AddedLogs(tuple(tuple(each) for each in extents), allocator.made[0] if allocator.made else None)
