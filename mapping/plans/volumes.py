"""Volumes: the plan of a new one. Pure.

How it works      `plan_volume` answers a request from an `Inventory` of what there is, and changes nothing;
                  the catalog then records the plan in one transaction.
Invariants        VO1 a plan that was returned can be recorded as it is, as long as the inventory holds (the
                  daemon records it under the same hold of `catalog_lock`); VO2 bad input raises
                  before anything changes.
Errors            BadName, NameInUse, UnknownDevice, DeviceTooSmall and others of errors.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polyvol.mapping.errors import BaseFixesSize, DeviceInUse, DeviceNotAdopted, SizeMissing
from polyvol.mapping.names import check_free, refuse_repeats
from polyvol.mapping.partition import (
    PARTITION_SIZE_DEFAULT,
    Partition,
    check_partition_size,
    check_volume_size,
    partition_lengths,
)
from polyvol.mapping.plans import placement
from polyvol.mapping.plans.inventory import Inventory, NewDevice, SpaceAllocator
from polyvol.mapping.plans.log_areas import plan_areas
from polyvol.mapping.plans.log_rules import bind_rules, named_devices, parse_rules
from polyvol.mapping.plans.places import Place, check_places
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.log_areas import LogArea
from polyvol.mapping.records.log_rules import LogRule
from polyvol.mapping.records.volumes import CloneSource, WhenFull


@dataclass(frozen=True, slots=True)
class VolumeRequest:
    """What was asked for. Sizes are bytes; devices are named. `log_devices`: texts of log rules
    (log_rules.py). `processors`: how many, or which; None: all that there are. `places`: of partitions that
    shall not be placed by default. `log_limit`: as in a Volume."""

    name: str
    size: int | None = None
    partition_size: int = PARTITION_SIZE_DEFAULT
    devices: tuple[str, ...] = ()
    log_devices: tuple[str, ...] = ()
    processors: int | tuple[int, ...] | None = None
    base: str | None = None
    when_full: WhenFull = "keep-writing"
    places: tuple[Place, ...] = ()
    log_limit: int | None = None


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """A volume as it would be."""

    name: str
    size: int
    partition_size: int
    partitions: tuple[Partition, ...]
    logs: tuple[LogArea, ...]
    new_devices: tuple[NewDevice, ...]
    when_full: WhenFull = "keep-writing"
    source: CloneSource | None = None
    log_rules: tuple[LogRule, ...] = ()
    log_limit: int | None = None

    @property
    def processors(self) -> list[int]:
        """The processors that own partitions of it."""
        return sorted({partition.processor for partition in self.partitions})


def plan_volume(request: VolumeRequest, inventory: Inventory) -> VolumePlan:
    """The volume that would be made; see the module's errors."""
    name = check_free("volume", request.name, inventory.volume_names)
    check_partition_size(request.partition_size)
    refuse_repeats("device", request.devices)
    wanted = parse_rules(request.log_devices)
    processors = placement.choose_processors(request.processors, inventory.processors, inventory.load)
    base = None if request.base is None else _base(request, request.base, inventory)
    size = _size(request, base)
    check_volume_size(f"volume {name}", size, request.partition_size)
    lengths = dict(enumerate(partition_lengths(size, request.partition_size)))
    check_places(name, request.places, lengths)
    placed = {number: place for place in request.places for number in _numbers(place)}
    fixed = {number: place.processor for number, place in placed.items() if place.processor is not None}
    owners = placement.choose_owners(len(lengths), processors, fixed)
    allocator = SpaceAllocator(inventory)
    if base is not None:
        partitions = placement.place_on_base(size, request.partition_size, owners, base.id)
    else:
        partitions = _place(request, lengths, owners, allocator)
    rules = bind_rules(name, wanted, len(lengths), owners, inventory)
    areas = plan_areas(allocator, name, size, placement.rooms(lengths, owners), named_devices(wanted))
    return VolumePlan(
        name=name,
        size=size,
        partition_size=request.partition_size,
        partitions=tuple(partitions),
        logs=areas,
        new_devices=tuple(allocator.made),
        when_full=request.when_full,
        log_rules=rules,
        log_limit=request.log_limit,
    )


def _place(
    request: VolumeRequest, lengths: Mapping[int, int], owners: Sequence[int], allocator: SpaceAllocator
) -> list[Partition]:
    """The partitions of these lengths and owners: first those whose place names devices, then the others, on
    the devices of the request or on sparse files to be made, one for each processor."""
    default = [allocator.storage(device) for device in request.devices]
    rest, partitions = dict(lengths), list[Partition]()
    for place in request.places:
        if place.devices:
            ids = [(allocator.storage(device.name), device.size) for device in place.devices]
            partitions += placement.place_in_order(
                f"place {place.text!r} of volume {request.name}",
                {number: rest.pop(number) for number in _numbers(place)},
                owners,
                [(allocator.space[device], size) for device, size in ids],
                ", ".join(device.name for device in place.devices),
            )
    if default and rest:
        space = {device: allocator.space[device] for device in default}
        what = f"volume {request.name}"
        partitions += placement.place_partitions(what, rest, owners, space, allocator.names)
    elif rest:
        rooms = placement.rooms(rest, owners)
        files = dict(zip(rooms, allocator.new_each(request.name, ".data", list(rooms.values())), strict=True))
        partitions += [
            Partition(number, owners[number], tuple(allocator.space[files[owners[number]]].take_some(length)))
            for number, length in rest.items()
        ]
    return sorted(partitions, key=lambda partition: partition.number)


def _numbers(place: Place) -> range:
    return range(place.partitions[0], place.partitions[1] + 1)


def _base(request: VolumeRequest, name: str, inventory: Inventory) -> Device:
    device = inventory.usable(name)
    if not device.adopted:
        raise DeviceNotAdopted(name=device.name)
    if request.size is not None or request.devices or any(place.devices for place in request.places):
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
