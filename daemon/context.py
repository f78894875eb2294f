"""The context: the state that the verbs of all nouns share while the daemon runs.

Owner and locks   `locks` (daemon/locks.py) has all locks and their order. Verbs that only read take none:
                  they read within `reading` (daemon/consistent_read.py); any thread may replace entries of
                  `uses`. `volume_trouble`, `fill_levels`, `refusing`, `relocations`, `restoring` and
                  `rewritten` are changed under the volume's lock, `device_trouble` and `files` under the
                  device's, by replacing single entries; any thread may read them. Engine calls that may wait
for a device refuse to run under `catalog_lock`."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from polyvol.daemon.config import IO_TIMEOUT_S
from polyvol.daemon.consistent_read import ConsistentRead
from polyvol.daemon.engine_border import EngineLike, guarded
from polyvol.daemon.errors import (
    EngineFailed,
    Restoring,
    SnapshotWasDeleted,
    VolumeBusy,
    VolumeNotServed,
    engine_errors,
)
from polyvol.daemon.events import Events
from polyvol.daemon.fill_level import FillLevel
from polyvol.daemon.locks import CatalogLock, Locks, Operation
from polyvol.daemon.relocation_progress import RelocationProgress
from polyvol.daemon.sizes import format_seconds
from polyvol.daemon.state.reserve import Reserve
from polyvol.daemon.types.devices import ExtentView
from polyvol.daemon.types.usage import VolumeUseView
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.clock import Clock, steady_ns, wall_ns
from polyvol.mapping.errors import UnknownDevice, UnknownSnapshot, UnknownVolume
from polyvol.mapping.extent import Extent
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.label import NO_RUN
from polyvol.mapping.opening import OpenFile
from polyvol.mapping.probes import Probes
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.groups import Group
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.specs import manifest_directory, volume_directory
from polyvol.snapshot.errors.groups import UnknownGroup
from polyvol.snapshot.snapshot import export_name

if TYPE_CHECKING:
    from polyvol.engine import EngineStats, ExportInfo


@dataclass
class Context:
    """The catalog, the engine, known faults (by device id and by volume id, as a clause), the open files of
    devices, recent events, and the fill levels of change logs. `state_trouble`: why the state directory
    cannot take new data, as a sentence. `file_trouble`: which file of a volume's journals is gone, by volume
    id. `refusing`: volumes whose writes fail when their logs are full, because nothing is left to do. `uses`:
    what volumes hold in change logs, as last counted; `use_seconds`: how long that took. `left_over`: steps
    that could not be undone, a sentence each, by the volume's id (None: several volumes) and the step; a
    restart settles them. `restoring`: the export that a restore is written to, by volume id.
    `deleted_snapshots`: epochs of snapshots that the catalog, an older copy, has although the journals say
    that they were deleted, by volume id.
    `rewritten`: how often all of a volume was replaced in this run, by a rollback or a restore, by its id.
    `clock`: nanoseconds since 1970, as stored; `steady`: nanoseconds of a clock that is never set, for
    waiting. `generation` and `run` are in the labels of the devices in use
    (mapping/catalog/generations.py)."""

    state_dir: Path
    catalog: Catalog
    engine: EngineLike
    engine_error: type[Exception]
    default_processors: int
    processors: int
    locks: Locks = field(default_factory=Locks)
    device_trouble: dict[int, str] = field(default_factory=dict)
    files: dict[int, OpenFile] = field(default_factory=dict)
    volume_trouble: dict[VolumeId, str] = field(default_factory=dict)
    state_trouble: str | None = None
    file_trouble: dict[VolumeId, str] = field(default_factory=dict)
    reserve: Reserve = field(init=False)
    events: Events = field(default_factory=Events)
    fill_levels: dict[VolumeId, FillLevel] = field(default_factory=dict)
    refusing: set[VolumeId] = field(default_factory=set)
    relocations: dict[VolumeId, RelocationProgress] = field(default_factory=dict)
    uses: dict[VolumeId, VolumeUseView] = field(default_factory=dict)
    use_seconds: dict[VolumeId, float] = field(default_factory=dict)
    left_over: dict[tuple[VolumeId | None, str], str] = field(default_factory=dict)
    restoring: dict[VolumeId, str] = field(default_factory=dict)
    deleted_snapshots: dict[VolumeId, frozenset[int]] = field(default_factory=dict)
    rewritten: Counter[VolumeId] = field(default_factory=Counter)
    clock: Clock = wall_ns
    steady: Clock = steady_ns
    generation: int = 0
    run: UUID = NO_RUN
    io_timeout_s: int = IO_TIMEOUT_S
    probes: Probes = field(default_factory=Probes)
    """For readers: what is asked of the kernel that a hung file system does not answer."""
    _growing: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.reserve = Reserve(self.state_dir)
        self.engine = guarded(self.engine, self.locks.may_wait)
        self._reading = ConsistentRead(self.catalog, self.engine)

    @property
    def catalog_lock(self) -> CatalogLock:
        """The inner lock; see daemon/locks.py."""
        return self.locks.catalog_lock

    @contextmanager
    def holding(self, name: str, what: str, *, wait_s: float | None = None) -> Iterator[Volume]:
        """Hold the lock of the volume of this name to do `what`; the volume as read under the lock.
        UnknownVolume, VolumeBusy."""
        while True:
            volume = self.find_volume(name)
            with self.locks.volumes({volume.id: name}, what, wait_s=wait_s):
                now = self.find_volume(name)
                if now.id != volume.id:
                    continue  # it was deleted, and another one has its name
                self.refuse_being_made(now)
                yield now
                return

    @contextmanager
    def holding_served(self, name: str, what: str, *, restoring: bool = False) -> Iterator[Volume]:
        """As `holding`, for a volume that is served (`find_served`); VolumeNotServed, Restoring."""
        with self.holding(name, what) as volume:
            self.refuse_not_served(volume, restoring=restoring)
            yield volume

    @contextmanager
    def holding_all(
        self, volumes: Iterable[Volume], what: str, *, wait_s: float | None = None, making: bool = False
    ) -> Iterator[Operation]:
        """Hold the locks of these volumes to do `what`; UnknownVolume if one was deleted before, VolumeBusy
        if one is being created, except for its creator (`making`)."""
        wanted = {volume.id: volume.name for volume in volumes}
        with self.locks.volumes(wanted, what, wait_s=wait_s) as operation:
            there = {volume.id: volume for volume in self.catalog.volumes.all()}
            for identity, name in wanted.items():
                if identity not in there:
                    raise UnknownVolume(name=name)
                if not making:
                    self.refuse_being_made(there[identity])
            yield operation

    @contextmanager
    def holding_group(self, group: Group, what: str) -> Iterator[Group]:
        """Hold a group's lock to do `what`; the group as read under the lock. UnknownGroup if it was deleted,
        GroupBusy."""
        with self.locks.group(group.id, group.name, what):
            now = self.catalog.groups.get(group.id)
            if now is None:
                raise UnknownGroup(name=group.name)
            yield now

    @contextmanager
    def holding_device(self, device: Device, what: str, *, wait_s: float | None = None) -> Iterator[Device]:
        """Hold a device's lock to do `what`; the device as read under the lock. UnknownDevice if it was
        removed, DeviceBusy."""
        with self.locks.device(device.id, device.name, what, wait_s=wait_s):
            now = self.catalog.devices.get(device.id)
            if now is None:
                raise UnknownDevice(name=device.name)
            yield now

    def refuse_being_made(self, volume: Volume) -> None:
        """VolumeBusy if a volume is being created; not if its creation failed and it will be removed."""
        if volume.state == "creating" and volume.id not in self.volume_trouble:
            since = max(0, (self.clock() - volume.created_ns) // 1_000_000_000)
            raise VolumeBusy(name=volume.name, what="volume create", since=format_seconds(since))

    def reading(self) -> AbstractContextManager[None]:
        """One state for all that this thread reads within; nothing is changed within it."""
        return self._reading.one_state()

    def exports(self) -> "Sequence[ExportInfo]":
        """All exports, by name; within `reading` asked for once."""
        return self._reading.exports()

    def stats(self) -> "EngineStats":
        """The engine's counters; within `reading` asked for once."""
        return self._reading.stats()

    def path(self, device: Device) -> Path:
        """Where a device is."""
        return self.state_dir / device.path

    def volume_directory(self, volume: Volume) -> Path:
        """Where the engine keeps a volume's journals and checkpoints."""
        return volume_directory(self.state_dir, volume)

    def manifest_directory(self, volume: Volume) -> Path:
        """Where the engine keeps the manifests of a volume's journals."""
        return manifest_directory(self.state_dir, volume)

    def engine_errors(self, what: str) -> AbstractContextManager[None]:
        """Convert the engine's errors into user errors; `what`: the action."""
        return engine_errors(what, self.engine_error)

    @contextmanager
    def engine_asked(self, what: str, volume: Volume, *snapshots: SnapshotRecord) -> Iterator[None]:
        """As `engine_errors`, for queries of a volume and its snapshots without a lock: an object that was
        deleted during the query is reported as unknown. Not within `reading`."""
        try:
            with self.engine_errors(what):
                yield
        except EngineFailed:
            with self.reading():
                now = self.catalog.volumes.get(volume.id)
                if now is None or now.kept:
                    raise UnknownVolume(name=volume.name) from None
                self.refuse_not_served(now, restoring=True)
                there = {each.uuid for each in self.catalog.snapshots.of(volume.id)}
            for snapshot in snapshots:
                if snapshot.uuid not in there:
                    raise UnknownSnapshot(volume=volume.name, name=snapshot.name) from None
            raise

    def find_volume(self, name: str) -> Volume:
        """The volume of this name, or UnknownVolume."""
        volume = self.catalog.volumes.find(name)
        if volume is None or volume.kept:
            raise UnknownVolume(name=name)
        return volume

    def find_snapshot(self, volume: Volume, name: str) -> SnapshotRecord:
        """A volume's snapshot of this name, or UnknownSnapshot."""
        snapshot = self.catalog.snapshots.find(volume.id, name)
        if snapshot is None:
            raise UnknownSnapshot(volume=volume.name, name=name)
        return snapshot

    def find_undeleted(self, volume: Volume, name: str) -> SnapshotRecord:
        """As `find_snapshot`, for those who use what it shows: or SnapshotWasDeleted."""
        snapshot = self.find_snapshot(volume, name)
        self.refuse_deleted(volume, snapshot)
        return snapshot

    def was_deleted(self, snapshot: SnapshotRecord) -> bool:
        """Whether only an older copy of the catalog has a snapshot."""
        return snapshot.epoch in self.deleted_snapshots.get(snapshot.volume, ())

    def refuse_deleted(self, volume: Volume, snapshot: SnapshotRecord) -> None:
        """SnapshotWasDeleted if that is so."""
        if self.was_deleted(snapshot):
            raise SnapshotWasDeleted(name=export_name(volume.name, snapshot.name))

    def find_group(self, name: str) -> Group:
        """The group of this name, or UnknownGroup."""
        group = self.catalog.groups.find(name)
        if group is None:
            raise UnknownGroup(name=name)
        return group

    def find_served(self, name: str, *, restoring: bool = False) -> Volume:
        """The volume of this name, or UnknownVolume, VolumeNotServed, VolumeBusy or Restoring. `restoring`:
        accept a volume that a backup is being restored to, because only its snapshots matter."""
        volume = self.find_volume(name)
        self.refuse_not_served(volume, restoring=restoring)
        return volume

    def refuse_not_served(self, volume: Volume, *, restoring: bool = False) -> None:
        """VolumeNotServed or Restoring, as for `find_served`; VolumeBusy while it is being created."""
        if volume.restoring and not restoring:
            raise self.restoring_error(volume)
        if not self.is_served(volume):
            self.refuse_being_made(volume)
            reason = self.volume_trouble.get(volume.id, "it is being deleted")
            raise VolumeNotServed(name=volume.name, reason=reason)

    def restoring_error(self, volume: Volume) -> Restoring:
        """The error for a volume that is being restored."""
        restore = self.catalog.restores.of(volume.id)
        return Restoring(name=volume.name, source="a backup" if restore is None else restore.source)

    def refuse_base(self, volume: Volume, snapshot: SnapshotRecord) -> None:
        """Restoring if an incomplete restore follows this snapshot."""
        restore = self.catalog.restores.of(volume.id)
        if restore is not None and restore.base == snapshot.epoch:
            raise Restoring(name=volume.name, source=restore.source)

    def is_served(self, volume: Volume) -> bool:
        """Whether the engine has it, and its devices have no fault."""
        return volume.state == "ready" and volume.id not in self.volume_trouble

    def engine_has(self, volume: Volume) -> bool:
        """Whether the engine has a volume, even if it cannot report its state."""
        try:
            self.engine.volume_stats(volume.id)
        except self.engine_error as error:
            return getattr(error, "kind", "io") != "not-found"
        return True

    def ask_when_full(self, volume: Volume) -> None:
        """Set the engine's action for full change logs by the volume's policy; the engine has the volume."""
        with self.engine_errors(f"setting what volume {volume.name} does when its change logs are full"):
            asks = volume.is_relocated or volume.when_full == "keep-writing" or volume.log_bound > 0
            self.engine.ask_when_full(volume.id, asks)
        self.refusing.discard(volume.id)

    def find_device(self, name: str) -> Device:
        """The device of this name, or UnknownDevice."""
        device = self.catalog.devices.find(name)
        if device is None:
            raise UnknownDevice(name=name)
        return device

    def open_device(self, device: Device, file: OpenFile) -> None:
        """Have the engine open a device with the device's settings; its error if that fails."""
        with self._by_its_path(file):
            self.engine.open_device(
                device.id, file.proc_path, sparse=device.sparse, direct=device.direct, size=device.size
            )

    def reopen_device(self, device: Device, file: OpenFile) -> None:
        """Have the engine reopen a device, in this file, while it is in use; its error if that fails."""
        with self._by_its_path(file):
            self.engine.reopen_device(device.id, file.proc_path)

    @contextmanager
    def _by_its_path(self, file: OpenFile) -> Iterator[None]:
        """Replace a file's path in the engine's errors by the path that users know."""
        try:
            yield
        except self.engine_error as error:
            error.args = (str(error).replace(file.proc_path, str(file.path)), *error.args[1:])
            raise

    def set_io_timeout(self, seconds: int) -> None:
        """Set how long a request may wait for a device, seconds; 0: without limit."""
        with self.engine_errors("setting how long requests wait for a device"):
            self.engine.set_io_timeout(seconds)
        self.io_timeout_s = seconds

    def grow_processors(self, count: int) -> None:
        """Have at least so many processors."""
        with self._growing:
            if count > self.processors:
                with self.engine_errors(f"starting {count} processors"):
                    self.engine.grow_processors(count)
                self.processors = count

    def clients(self) -> dict[str, int]:
        """How many clients are connected to each export, by its name."""
        return {export["name"]: export["connections"] for export in self.exports()}

    def connections(self, names: Iterable[str]) -> int:
        """How many clients are connected to these exports."""
        clients = self.clients()
        return sum(clients.get(name, 0) for name in names)

    def device_names(self) -> dict[int, str]:
        """Every device's name, by id."""
        return {device.id: device.name for device in self.catalog.devices.all()}


def extent_views(extents: Iterable[Extent], names: dict[int, str]) -> list[ExtentView]:
    """Extents with the names of their devices."""
    return [
        ExtentView(device=names[extent.device], offset=extent.offset, length=extent.length)
        for extent in extents
    ]


def devices_of(extents: Iterable[Extent], names: dict[int, str]) -> list[str]:
    """The devices that extents are on, each once, in order."""
    return list(dict.fromkeys(names[extent.device] for extent in extents))
