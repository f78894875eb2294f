"""Volumes: the plan of a new one. Pure.

How it works      `plan_volume` answers a request from an `Inventory` of what there is, and changes nothing;
                  the catalog then records the plan in one transaction.
Invariants        VO1 a plan that was returned can be recorded as it is, as long as the inventory holds (the
                  daemon records it under the same hold of `catalog_lock`); VO2 bad input raises
                  before anything changes.
Errors            BadName, NameInUse, UnknownDevice, DeviceTooSmall and others of errors.py.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyvol.mapping.errors import (
    BaseFixesSize,
    DeviceInUse,
    DeviceNotAdopted,
    SizeMissing,
)
from polyvol.mapping.names import check_free, refuse_repeats
from polyvol.mapping.partition import (
    PARTITION_SIZE_DEFAULT,
    Partition,
    check_partition_size,
    check_volume_size,
)
from polyvol.mapping.plans import placement
from polyvol.mapping.plans.change_logs import plan_logs
from polyvol.mapping.plans.inventory import Inventory, NewDevice, SpaceAllocator
from polyvol.mapping.records.change_logs import ChangeLog
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.volumes import CloneSource, WhenFull

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class VolumeRequest:
    """What was asked for. Sizes are bytes; devices are named. `processors` None: all that there are."""

    name: str
    size: int | None = None
    partition_size: int = PARTITION_SIZE_DEFAULT
    devices: tuple[str, ...] = ()
    log_devices: tuple[str, ...] = ()
    processors: int | None = None
    base: str | None = None
    when_full: WhenFull = "keep-writing"


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """A volume as it would be."""

    name: str
    size: int
    partition_size: int
    partitions: tuple[Partition, ...]
    logs: tuple[ChangeLog, ...]
    new_devices: tuple[NewDevice, ...]
    when_full: WhenFull = "keep-writing"
    source: CloneSource | None = None

    @property
    def processors(self) -> list[int]:
        """The processors that own partitions of it."""
        return sorted({partition.processor for partition in self.partitions})


def plan_volume(request: VolumeRequest, inventory: Inventory) -> VolumePlan:
    """The volume that would be made; see the module's errors."""
    name = check_free("volume", request.name, inventory.volume_names)
    check_partition_size(request.partition_size)
    placement.check_processors(request.processors)
    refuse_repeats("device", request.devices)
    refuse_repeats("log device", request.log_devices)
    processors = placement.choose_processors(request.processors, inventory.processors, inventory.load)
    base = None if request.base is None else _base(request, request.base, inventory)
    size = _size(request, base)
    what = f"volume {name}"
    check_volume_size(what, size, request.partition_size)
    allocator = SpaceAllocator(inventory)
    if base is not None:
        partitions = placement.place_on_base(size, request.partition_size, processors, base.id)
    else:
        ids = [allocator.storage(device) for device in request.devices]
        if not ids:
            rooms = placement.rooms(size, request.partition_size, len(processors))
            ids = allocator.new_each(name, ".data", rooms)
        space = {device: allocator.space[device] for device in ids}
        partitions = placement.place_partitions(
            what, size, request.partition_size, processors, space, allocator.names
        )
    logs = plan_logs(allocator, name, size, request.partition_size, len(processors), request.log_devices)
    made = tuple(allocator.made)
    return VolumePlan(name, size, request.partition_size, tuple(partitions), logs, made, request.when_full)


def _base(request: VolumeRequest, name: str, inventory: Inventory) -> Device:
    device = inventory.usable(name)
    if not device.adopted:
        raise DeviceNotAdopted(name=device.name)
    if request.size is not None or request.devices:
        raise BaseFixesSize(device=device.name)
    users = inventory.volumes_on(device.id)
    if users:
        raise DeviceInUse(name=device.name, volumes=", ".join(users))
    return device


def _size(request: VolumeRequest, base: Device | None) -> int:
    if base is not None:
        return base.size
    if request.size is None:
        raise SizeMissing(name=request.name)
    return request.size
