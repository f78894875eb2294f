"""Volumes: the plan of a new one (pure), and the specification of an existing one for the engine.

How it works      `plan_volume` answers a request from an `Inventory` of what there is, and changes nothing;
                  the catalog then records the plan in one transaction. A plan may contain devices that are
                  still to be made: they have negative ids in it, which the catalog replaces by the real ones.
Invariants        VO1 a plan that was returned can be recorded as it is, as long as the inventory holds (the
                  daemon records it under the same hold of `catalog_lock`); VO2 bad input raises
                  before anything changes.
Errors            BadName, NameInUse, UnknownDevice, DeviceTooSmall and others of errors.py.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyvol.mapping import placement
from polyvol.mapping.device import DEVICE_SIZE_MAX, Device, data_area
from polyvol.mapping.errors import (
    BadProcessors,
    BaseFixesSize,
    DeviceAdopted,
    DeviceInUse,
    DeviceNotAdopted,
    DeviceNotReady,
    NameInUse,
    RepeatedDevice,
    SizeMissing,
    SizeTooLarge,
    UnknownDevice,
    ZeroSize,
)
from polyvol.mapping.extent import Extent, FreeSpace, free_runs
from polyvol.mapping.label import DATA_OFFSET
from polyvol.mapping.names import NAME_LENGTH_MAX, check_name, unique_name
from polyvol.mapping.partition import (
    PARTITION_SIZE_DEFAULT,
    Partition,
    check_partition_size,
    check_volume_size,
    round_up,
)
from polyvol.mapping.records import ChangeLog, CloneSource, Rollback, SnapshotRecord, Volume, WhenFull

if TYPE_CHECKING:
    from polyvol.engine import ExtentSpec, LogSpec, VolumeSpec

PROCESSORS_MAX = 256


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
class NewDevice:
    """A sparse file device to be made for the volume: `id` is negative, a place-holder within the plan."""

    id: int
    name: str
    path: str
    size: int


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


@dataclass(frozen=True, slots=True)
class Inventory:
    """What there is to plan with: devices by name, which of them cannot be used and why (by id), the extents
    in use on one, the volumes on one, the names taken, and the partitions that each processor has."""

    devices: Mapping[str, Device]
    unusable: Mapping[int, str]
    used: Callable[[int], Iterable[Extent]]
    volumes_on: Callable[[int], Sequence[str]]
    volume_names: Collection[str]
    load: Mapping[int, int]
    processors: int

    def usable(self, name: str) -> Device:
        """The device of this name; UnknownDevice or DeviceNotReady."""
        device = self.devices.get(name)
        if device is None:
            raise UnknownDevice(name=name)
        if device.id in self.unusable:
            raise DeviceNotReady(name=name, reason=self.unusable[device.id])
        return device

    def storage(self, name: str) -> Device:
        """The labelled device of this name, for extents."""
        device = self.usable(name)
        if device.adopted:
            raise DeviceAdopted(name=name)
        return device

    def space(self, device: Device) -> FreeSpace:
        """What is free on the device."""
        return FreeSpace(free_runs(device.data_area, self.used(device.id)))


def plan_volume(request: VolumeRequest, inventory: Inventory) -> VolumePlan:
    """The volume that would be made; see the module's errors."""
    name = check_name("volume", request.name)
    if name in inventory.volume_names:
        raise NameInUse(noun="volume", name=name)
    check_partition_size(request.partition_size)
    if request.processors is not None and not 1 <= request.processors <= PROCESSORS_MAX:
        raise BadProcessors(count=request.processors)
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


def plan_logs(
    allocator: "SpaceAllocator",
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


def volume_spec(
    volume: Volume,
    partitions: Iterable[Partition],
    logs: Sequence[ChangeLog],
    snapshots: Iterable[SnapshotRecord],
    rollbacks: Iterable[Rollback],
    directory: str,
    manifests: str,
) -> "VolumeSpec":
    """The volume as the engine's specification; `snapshots`: those that are kept for clones too;
    `manifests`: the directory of its journals' manifests."""
    return {
        "id": volume.id,
        "uuid": str(volume.uuid),
        "name": volume.name,
        "size": volume.size,
        "partition_size": volume.partition_size,
        "partitions": [
            {"processor": partition.processor, "extents": _extent_specs(partition.extents)}
            for partition in partitions
        ],
        "logs": [log_spec(log) for log in logs],
        "default_logs": [log.number for log in logs if log.default],
        "directory": directory,
        "manifests": {
            "directory": manifests,
            "partitions": volume.manifests,
            "older": volume.state == "ready" and not volume.manifests,
        },
        "snapshots": [
            {"epoch": snapshot.epoch, "log": snapshot.log, "size": snapshot.size} for snapshot in snapshots
        ],
        "rollbacks": [
            {"at": one.at, "to": one.to, "size": one.size, "to_size": one.to_size} for one in rollbacks
        ],
        "source": None
        if volume.source is None
        else {"volume": volume.source.volume, "epoch": volume.source.epoch},
        "next_epoch": volume.next_epoch,
    }


def log_spec(log: ChangeLog) -> "LogSpec":
    """The change log as the engine's specification."""
    return {"number": log.number, "extents": _extent_specs(log.extents)}


class SpaceAllocator:
    """The devices that a plan takes space from, those to be made among them."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self.space: dict[int, FreeSpace] = {}
        self.names: dict[int, str] = {}
        self.made: list[NewDevice] = []

    def storage(self, name: str) -> int:
        """An existing device by name: its id. Its free space is shared by all of the plan."""
        device = self._inventory.storage(name)
        if device.id not in self.space:
            self.space[device.id] = self._inventory.space(device)
            self.names[device.id] = device.name
        return device.id

    def new_each(self, volume: str, suffix: str, rooms: Sequence[int]) -> list[int]:
        """A sparse file device for each processor, as two that write to one file wait for each other."""
        if len(rooms) == 1:
            return [self._new(volume, suffix, rooms[0])]
        return [self._new(volume, f"{suffix}-{number}", room) for number, room in enumerate(rooms)]

    def _new(self, volume: str, suffix: str, room: int) -> int:
        """A sparse file device with this much room for extents: its place-holder id."""
        device = -1 - len(self.made)
        name = volume[: NAME_LENGTH_MAX - len(suffix)] + suffix
        name = unique_name(name, {*self._inventory.devices, *self.names.values()})
        made = NewDevice(device, name, f"devices/{name}", DATA_OFFSET + room)
        self.made.append(made)
        self.names[device] = name
        self.space[device] = FreeSpace([data_area(device, made.size, adopted=False)])
        return device


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


def refuse_repeats(noun: str, names: Sequence[str]) -> None:
    """Refuse names of which one comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RepeatedDevice(noun=noun, name=name)
        seen.add(name)


def _extent_specs(extents: Iterable[Extent]) -> "list[ExtentSpec]":
    return [{"device": extent.device, "offset": extent.offset, "length": extent.length} for extent in extents]
