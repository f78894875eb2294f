"""The inventory: what there is to plan with, and the space that a plan takes of it. Pure.

How it works      A plan may contain devices that are still to be made: they have negative ids in it, which
                  the catalog replaces by the real ones when it records the plan.
Errors            UnknownDevice, DeviceNotReady, DeviceAdopted.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyvol.mapping.errors import DeviceAdopted, DeviceNotReady, UnknownDevice
from polyvol.mapping.extent import Extent, FreeSpace, free_runs
from polyvol.mapping.label import DATA_OFFSET
from polyvol.mapping.names import NAME_LENGTH_MAX, unique_name
from polyvol.mapping.records.devices import Device, data_area


@dataclass(frozen=True, slots=True)
class NewDevice:
    """A sparse file device to be made for the volume: `id` is negative, a place-holder within the plan."""

    id: int
    name: str
    path: str
    size: int


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
        """A sparse file device for each processor, because two that write to one file wait for each other."""
        if len(rooms) == 1:
            return [self._new(volume, suffix, rooms[0])]
        return [self._new(volume, f"{suffix}-{number}", room) for number, room in enumerate(rooms)]

    def _new(self, volume: str, suffix: str, room: int) -> int:
        """A sparse file device with this much room for extents: its place-holder id."""
        device = -1 - len(self.made)
        name = volume[: NAME_LENGTH_MAX - len(suffix)] + suffix
        devices = self._inventory.devices
        # A device that was renamed has its file by the old name still.
        files = {Path(each.path).name for each in devices.values()}
        name = unique_name(name, {*devices, *files, *self.names.values()})
        made = NewDevice(device, name, f"devices/{name}", DATA_OFFSET + room)
        self.made.append(made)
        self.names[device] = name
        self.space[device] = FreeSpace([data_area(device, made.size, adopted=False)])
        return device
